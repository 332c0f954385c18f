package erofs

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/record/recordtest"
)

var (
	goldenSum   = fileSum{Size: 4096, Digest: oci.Digest("sha256:" + strings.Repeat("1f", 32))}
	goldenLayer = layerRecord{
		DiffID: oci.DiffID("sha256:" + strings.Repeat("0a", 32)), Size: 7, TarSize: 10240, Entries: 3,
		Dependent: true, OpaqueRoot: true, Root: true, Side: &goldenSum,
	}
	goldenIndex = indexRecord{Index: goldenSum, Chain: &goldenSum}
)

// The form in which a layer's records are stored. The files of builds before the first release decode too.
func TestGoldenRecords(t *testing.T) {
	recordtest.Filled(t, goldenLayer)
	recordtest.Filled(t, goldenIndex)
	for name, v := range map[string]any{"layer.v1.json": goldenLayer, "index.v1.json": goldenIndex} {
		data, err := record.Marshal(1, v)
		if err != nil {
			t.Fatal(err)
		}
		recordtest.Golden(t, name, data)
	}
	recordtest.Decodes(t, "layer.v1.json", layerVersion, goldenLayer)
	recordtest.Decodes(t, "layer.unsigned.json", layerVersion, goldenLayer)
	recordtest.Decodes(t, "index.v1.json", indexVersion, goldenIndex)
	recordtest.Decodes(t, "index.unversioned.json", indexVersion, goldenIndex)
}

// edit changes the fields of a record on disk.
func edit(t *testing.T, name string, change func(map[string]any)) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	change(fields)
	if data, err = json.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Layers of builds that wrote no writer, and no version into index.json, stay valid and take further indexes.
func TestLayersOfEarlierBuilds(t *testing.T) {
	root := t.TempDir()
	d := open(t, root, Options{})
	base := put(t, d, nil, pack(t, entry{name: "d/f", body: "one"}))
	other := put(t, d, nil, pack(t, entry{name: "d/f", body: "two"}))
	top := pack(t, entry{name: "l", kind: tar.TypeLink, link: "d/f"})
	chain := put(t, d, base, top)
	names, err := filepath.Glob(filepath.Join(d.layers, "*", "*.json"))
	if err != nil || len(names) != 6 {
		t.Fatalf("%d records, %v; want 6", len(names), err)
	}
	for _, name := range names {
		edit(t, name, func(fields map[string]any) {
			if fields["version"] != 1.0 || fields["writer"] == nil {
				t.Errorf("%s: version %v, writer %v", name, fields["version"], fields["writer"])
			}
			delete(fields, "writer")
			if filepath.Base(name) != recordName {
				delete(fields, "version")
			}
		})
	}
	d = open(t, root, Options{})
	if len(d.damaged) != 0 {
		t.Errorf("damaged: %v", d.damaged)
	}
	if _, err := d.Stat(t.Context(), chain); err != nil {
		t.Error(err)
	}
	if err := d.Verify(t.Context(), chain); err != nil {
		t.Error(err)
	}
	want(t, view(t, d, chain), "l", "one")
	want(t, view(t, d, put(t, d, other, top)), "l", "two")
}

// A layer of a newer release stops Open before anything is changed, and the error names the release.
func TestNewerLayerIsRefused(t *testing.T) {
	for _, name := range []string{recordName, "index.json"} {
		root := t.TempDir()
		d := open(t, root, Options{})
		chain := put(t, d, nil, pack(t, entry{name: "f", body: "x"}))
		damaged := put(t, d, nil, pack(t, entry{name: "g", body: "y"}))
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		edit(t, filepath.Join(d.layerDir(chain.Top()), name), func(fields map[string]any) {
			fields["version"], fields["writer"] = 2, "9.8.7"
		})
		// Open would remove a temporary and move a damaged layer.
		if err := os.Mkdir(durable.TempName(d.layers), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(d.layerDir(damaged.Top()), tarName), 1); err != nil {
			t.Fatal(err)
		}
		before := tree(t, root)
		f := &faultfs.FS{Under: durable.OS}
		_, err := Open(f, root, Options{})
		if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "ply 9.8.7") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: Open = %v; want class Precondition, the file and its writer", name, err)
		}
		if f.Count() != 0 {
			t.Errorf("%s: Open made %d changes", name, f.Count())
		}
		if after := tree(t, root); after != before {
			t.Errorf("%s: Open changed the root from\n%s\nto\n%s", name, before, after)
		}
	}
}

// tree lists all files below a directory with size and modification time.
func tree(t *testing.T, root string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			all.WriteString(strings.TrimPrefix(p, root) + " " + info.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
