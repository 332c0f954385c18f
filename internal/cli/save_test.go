package cli

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// The file of save -o appears under its name only when it is complete, and save refuses to write to a terminal.
func TestSaveToFile(t *testing.T) {
	cut := false
	f := newFake(t, map[string]any{"GET /images/get": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if cut {
			w.Header().Set("Content-Length", "100")
		}
		io.WriteString(w, "archive")
	})})
	name := filepath.Join(t.TempDir(), "x.tar")
	if r := f.run("", "save", "-o", name, "a", "b"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if b, _ := os.ReadFile(name); string(b) != "archive" || f.seen("GET /images/get?names=a&names=b") == "" {
		t.Errorf("file %q", b)
	}
	cut = true
	os.WriteFile(name, []byte("old"), 0o600)
	if r := f.run("", "save", "-o", name, "a"); r.code != 1 {
		t.Errorf("an incomplete archive was accepted: %+v", r)
	}
	if b, _ := os.ReadFile(name); string(b) != "old" {
		t.Errorf("the old file was replaced: %q", b)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(name), ".ply-tmp-*")); len(left) > 0 {
		t.Errorf("temporary files remain: %q", left)
	}
	p := newPTY(t, 24, 80)
	if code := Run(context.Background(), p.invocation(), []string{"save", "a"}); code != 1 {
		t.Errorf("wrote to a terminal, code %d", code)
	}
	p.until(t, "cowardly refusing to save to a terminal")
}
