package lint

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The glossary is sorted and says each word once.
func TestGlossaryIsSorted(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "GLOSSARY.md"))
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, m := range regexp.MustCompile(`(?m)^\| ([^|]+) \| `).FindAllStringSubmatch(string(doc), -1) {
		if m[1] != "word" && m[1] != "---" {
			words = append(words, strings.ToLower(m[1]))
		}
	}
	if len(words) < 30 || !slices.IsSorted(words) || len(slices.Compact(slices.Clone(words))) != len(words) {
		t.Errorf("the glossary is not sorted, or says a word twice: %v", words)
	}
}
