package web

import (
	"fmt"
	"html/template"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/docker/go-units"

	"ply/internal/registry/content"
)

// functions are what templates call.
var functions = template.FuncMap{
	"size":  size,
	"ago":   ago,
	"short": short,
	"at":    func(repo content.Repository, reference any) string { return pathTo(repo, fmt.Sprint(reference)) },
	"repo":  func(repo content.Repository) string { return pathTo(repo, "") },
	"plain": plain,
	"add":   func(a, b int) int { return a + b },
}

func size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// pathTo returns the path of the page of a repository, or of a manifest in it. A component of a name never begins with a hyphen.
func pathTo(repo content.Repository, reference string) string {
	p := "/r/" + string(repo)
	if reference != "" {
		p += "/-/" + url.PathEscape(reference)
	}
	return p
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

// short shortens a digest.
func short(d any) string {
	s := fmt.Sprint(d)
	if _, hex, ok := strings.Cut(s, ":"); ok && len(hex) > 12 {
		return hex[:12]
	}
	return s
}

// plain makes text of an image safe to look at: what turns the direction of text or cannot be seen becomes a mark.
func plain(s any) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) || r == ' ' {
			return r
		}
		return unicode.ReplacementChar
	}, fmt.Sprint(s))
}
