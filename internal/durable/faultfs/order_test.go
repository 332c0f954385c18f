package faultfs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/durable"
)

// Order reports each step that is left out, and nothing when all steps are there.
func TestOrder(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	create := func(fsys durable.FS, name, text string, sync bool) {
		t.Helper()
		f, err := fsys.OpenFile(at(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if sync {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	do := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		run      func(fsys durable.FS)
		reported string // part of the one report; "" for none
		unsynced []string
	}{
		"whole recipe": {func(f durable.FS) { do(durable.WriteFile(f, at("a"), []byte("x"), 0o600)) }, "", nil},
		"file not synced": {func(f durable.FS) {
			create(f, ".tmp-1", "x", false)
			do(durable.Rename(f, at(".tmp-1"), at("b")))
		}, "before the content of", []string{"content of b"}},
		"directory not synced": {func(f durable.FS) {
			create(f, ".tmp-2", "x", true)
			do(f.Rename(at(".tmp-2"), at("c")))
		}, "", []string{"names of ."}},
		"written in place":         {func(f durable.FS) { create(f, "d", "x", true) }, "", []string{"names of ."}},
		"temporary left":           {func(f durable.FS) { create(f, ".tmp-3", "x", false); do(f.SyncDir(dir)) }, "", nil},
		"temporary removed":        {func(f durable.FS) { create(f, "e", "x", false); do(f.Remove(at("e")), f.SyncDir(dir)) }, "", nil},
		"directory, file unknown":  {tree(t, at, create, "4", false, true), "before the content of", []string{"content of tree4/f"}},
		"directory, names unknown": {tree(t, at, create, "5", true, false), "before the names of", []string{"names of tree5"}},
		"directory, whole recipe":  {tree(t, at, create, "6", true, true), "", nil},
		"whole file system": {func(f durable.FS) {
			do(f.Mkdir(at(".tmp-7"), 0o700))
			create(f, ".tmp-7/f", "x", false)
			do(f.SyncFS(dir), durable.Rename(f, at(".tmp-7"), at("tree7")))
		}, "", nil},
		"written after the sync": {func(f durable.FS) {
			h, err := f.OpenFile(at(".tmp-8"), os.O_RDWR|os.O_CREATE, 0o600)
			do(err, h.Sync(), h.Truncate(5), durable.Rename(f, at(".tmp-8"), at("g")), h.Close())
		}, "before the content of", []string{"content of g"}},
		"link":    {func(f durable.FS) { do(f.Link(at("a"), at("h"))) }, "", []string{"names of ."}},
		"replace": {func(f durable.FS) { create(f, "i", "x", false); do(durable.WriteFile(f, at("i"), nil, 0o600)) }, "", nil},
	} {
		if err := os.WriteFile(at("a"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		var reports []string
		o := &Order{Under: durable.OS, Report: func(s string) { reports = append(reports, s) }}
		c.run(o)
		if len(reports) > 1 || strings.Join(reports, "") == "" != (c.reported == "") || !strings.Contains(strings.Join(reports, ""), c.reported) {
			t.Errorf("%s: reported %q, want %q", name, reports, c.reported)
		}
		var unsynced []string
		for _, u := range o.Unsynced() {
			what, path, _ := strings.Cut(u, " of ")
			path, _ = filepath.Rel(dir, path)
			unsynced = append(unsynced, what+" of "+path)
		}
		if !slices.Equal(unsynced, c.unsynced) {
			t.Errorf("%s: unsynced %q, want %q", name, unsynced, c.unsynced)
		}
	}
}

// tree returns a sequence that renames a directory with a file, with or without the syncs before.
func tree(t *testing.T, at func(string) string, create func(durable.FS, string, string, bool), n string, syncFile, syncDir bool) func(durable.FS) {
	return func(f durable.FS) {
		t.Helper()
		if err := f.Mkdir(at(".tmp-"+n), 0o700); err != nil {
			t.Fatal(err)
		}
		create(f, ".tmp-"+n+"/f", "x", syncFile)
		if syncDir {
			if err := f.SyncDir(at(".tmp-" + n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := durable.Rename(f, at(".tmp-"+n), at("tree"+n)); err != nil {
			t.Fatal(err)
		}
	}
}
