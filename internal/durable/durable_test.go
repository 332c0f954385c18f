package durable_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
)

// The order of the operations guarantees durability: the content before the name, and the name before WriteFile returns.
func TestWriteFileOrder(t *testing.T) {
	dir := t.TempDir()
	var trace []string
	f := &faultfs.FS{Under: durable.OS, Trace: func(s string) {
		op, path, _ := strings.Cut(s, " ")
		if durable.IsTemp(filepath.Base(path)) {
			path = "temp"
		} else {
			path, _ = filepath.Rel(dir, path)
		}
		trace = append(trace, op+" "+path)
	}}
	if err := durable.WriteFile(f, filepath.Join(dir, "x"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"open temp", "write temp", "sync temp", "rename x", "syncdir ."}
	if !slices.Equal(trace, want) {
		t.Errorf("operations = %v, want %v", trace, want)
	}
}

// A fault at any operation leaves the old content or the new, and no temporary.
func TestWriteFileFaults(t *testing.T) {
	for n := 1; ; n++ {
		dir := t.TempDir()
		name := filepath.Join(dir, "x")
		if err := os.WriteFile(name, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		f := &faultfs.FS{Under: durable.OS, FailAt: n, Short: n%2 == 0}
		err := durable.WriteFile(f, name, []byte("new"), 0o600)
		if !f.Hit() {
			if err != nil || n != 6 {
				t.Fatalf("without a fault (n = %d): %v", n, err)
			}
			return
		}
		if err == nil {
			t.Errorf("fault at operation %d was not reported", n)
		}
		got, err := os.ReadFile(name)
		if s := string(got); err != nil || (s != "old" && s != "new") {
			t.Errorf("after a fault at %d: %q, %v", n, got, err)
		}
		entries, _ := os.ReadDir(dir)
		if len(entries) != 1 {
			t.Errorf("after a fault at %d: %v is left", n, entries)
		}
	}
}

func TestReadFileLimit(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(name, make([]byte, 11), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := durable.ReadFile(durable.OS, name, 11); err != nil || len(b) != 11 {
		t.Errorf("ReadFile at its limit = %d bytes, %v", len(b), err)
	}
	if _, err := durable.ReadFile(durable.OS, name, 10); err == nil {
		t.Error("ReadFile over its limit gave no error")
	}
}

func TestRemoveTemps(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		if err := os.WriteFile(durable.TempName(dir), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("keep", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.RemoveTemps(durable.OS, dir); err != nil {
		t.Fatal(err)
	}
	if err := durable.RemoveTemps(durable.OS, filepath.Join(dir, "absent")); err != nil {
		t.Errorf("of a directory that is not there: %v", err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 3 {
		t.Errorf("left: %v", entries)
	}
}
