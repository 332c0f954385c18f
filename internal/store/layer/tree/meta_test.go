package tree

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/record/recordtest"
)

var goldenMeta = Meta{
	DiffID: oci.DiffID("sha256:" + strings.Repeat("0a", 32)), TarSize: 10240, Size: 7, Entries: 3, OwnRoot: true, OpaqueRoot: true,
	Implied: []Name{Name("usr/lib")}, Links: []Link{{Name: Name("l"), Target: Name("t\xff")}}, Wiped: []Name{Name("etc")},
	Hidden: []Hidden{{Name: Name("f"), File: 2}},
}

// The form in which a layer's description is stored. The files of builds before the first release decode too.
func TestGoldenMeta(t *testing.T) {
	recordtest.Filled(t, goldenMeta)
	data, err := record.Marshal(metaVersion, goldenMeta)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "meta.v1.json", data)
	recordtest.Decodes(t, "meta.v1.json", metaVersion, goldenMeta)
	recordtest.Decodes(t, "meta.unsigned.json", metaVersion, goldenMeta)
}

func TestLoad(t *testing.T) {
	layers := t.TempDir()
	dir := filepath.Join(layers, "layer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(durable.OS, dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of no description: %v", err)
	}
	m := goldenMeta
	if err := m.save(durable.OS, dir); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(durable.OS, dir); err != nil || got.DiffID != m.DiffID || string(got.Links[0].Target) != "t\xff" {
		t.Errorf("Load = %+v, %v", got, err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	also := map[string]int{"own.json": 3}
	check := func() error { return CheckVersions(durable.OS, layers, also) }
	write("own.json", `{"version":3}`)
	if err := check(); err != nil {
		t.Errorf("CheckVersions of known versions: %v", err)
	}
	write("own.json", `{"version":4,"writer":"9.8.7"}`)
	if err := check(); !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "own.json has version 4, written by ply 9.8.7") {
		t.Errorf("CheckVersions of a newer file: %v", err)
	}
	write("own.json", `{`)
	if err := check(); err != nil {
		t.Errorf("CheckVersions of a damaged file: %v", err)
	}
	write(metaName, `{"version":2,"writer":"9.8.7"}`)
	if err := check(); !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "ply 9.8.7") {
		t.Errorf("CheckVersions of a newer description: %v", err)
	}
	if _, err := Load(durable.OS, dir); !errors.Is(err, errs.Precondition) {
		t.Errorf("Load of a newer description: %v", err)
	}
	write(metaName, "{")
	if _, err := Load(durable.OS, dir); !errors.Is(err, errs.DataLoss) {
		t.Errorf("Load of a damaged description: %v", err)
	}
	if err := CheckVersions(durable.OS, filepath.Join(layers, "absent"), also); err != nil {
		t.Errorf("CheckVersions of a new root: %v", err)
	}
}
