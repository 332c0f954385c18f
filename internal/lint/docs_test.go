package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The drawing of the database must name every bucket of the code, and every field of its records.
func TestDatabaseDrawing(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "DB.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, drawing, _ := strings.Cut(string(doc), "```\n")
	drawing, _, _ = strings.Cut(drawing, "```")
	drawn := map[string][]string{} // record → fields
	var buckets []string
	record := regexp.MustCompile(`→ ([A-Z]\w*): (.*)`)
	for line := range strings.Lines(drawing) {
		line = strings.TrimRight(line, "\n")
		if line != "" && line[0] != ' ' {
			buckets = append(buckets, line)
		}
		if m := record.FindStringSubmatch(line); m != nil {
			drawn[m[1]] = strings.Split(m[2], ", ")
		}
	}
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", "store", "meta", "meta.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	coded := map[string][]string{}
	codedBuckets := []string{"meta"}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.TypeSpec:
			if s, ok := n.Type.(*ast.StructType); ok {
				coded[n.Name.Name] = jsonFields(s)
			}
		case *ast.ValueSpec:
			if n.Names[0].Name == "bucketNames" {
				for _, e := range n.Values[0].(*ast.CompositeLit).Elts {
					codedBuckets = append(codedBuckets, strings.Trim(e.(*ast.BasicLit).Value, `"`))
				}
			}
		}
		return true
	})
	if !slices.Equal(buckets, codedBuckets) {
		t.Errorf("buckets drawn %v, coded %v", buckets, codedBuckets)
	}
	for name, fields := range drawn {
		if !slices.Equal(fields, coded[name]) {
			t.Errorf("record %s: drawn %v, coded %v", name, fields, coded[name])
		}
	}
	if len(drawn) != 4 {
		t.Errorf("%d records are drawn with fields, want Name, Image, Layer and Volume", len(drawn))
	}
}

func jsonFields(s *ast.StructType) []string {
	var names []string
	for _, f := range s.Fields.List {
		if f.Tag == nil {
			continue
		}
		name, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
		names = append(names, name)
	}
	return names
}

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
