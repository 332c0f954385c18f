package drivers

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/store/layer"
)

func TestTheNamesAreThoseOfTheDrivers(t *testing.T) {
	if got := strings.Join(Names(), " "); got != "erofs overlay2 vfs" {
		t.Errorf("Names() = %s, want the best driver first", got)
	}
	if got := List(); got != "erofs, overlay2 or vfs" {
		t.Errorf("List() = %s", got)
	}
}

func TestCheck(t *testing.T) {
	for _, name := range append(Names(), "") {
		if err := Check(name); err != nil {
			t.Errorf("Check(%q) = %v", name, err)
		}
	}
	for name, want := range map[string]string{
		"aufs":    "there is no aufs: it was never part of the mainline kernel; use erofs, overlay2 or vfs, or leave it to the probe",
		"btrfs":   "erofs and overlay2 work on a btrfs data root",
		"overlay": "overlay2 replaced it",
		"nosuch":  `"nosuch" is none of erofs, overlay2, vfs`,
		"EROFS":   "is none of",
	} {
		if err := Check(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check(%q) = %v, want %q", name, err, want)
		}
	}
	for _, name := range Names() {
		if _, ok := absent[name]; ok {
			t.Errorf("%s is both a driver and absent", name)
		}
	}
}

func mustOpen(t *testing.T, root, want string) (layer.Driver, [][2]string) {
	t.Helper()
	d, notes, err := Open(durable.OS, root, want)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, notes
}

func TestADataRootKeepsItsDriver(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("drivers need root")
	}
	root := filepath.Join(t.TempDir(), "new", "root")
	if d, notes := mustOpen(t, root, "vfs"); d.Name() != "vfs" || len(notes) != 0 {
		t.Errorf("driver %s, notes %v", d.Name(), notes)
	}
	if b, err := os.ReadFile(filepath.Join(root, "driver")); err != nil || string(b) != "vfs\n" {
		t.Errorf("recorded %q, %v", b, err)
	}
	if d, notes := mustOpen(t, root, ""); d.Name() != "vfs" || len(notes) != 0 {
		t.Errorf("without a name: driver %s, notes %v", d.Name(), notes)
	}
	_, _, err := Open(durable.OS, root, "overlay2")
	if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "was made with storage driver vfs, not overlay2") {
		t.Errorf("another driver: %v", err)
	}
}

func TestAnUnknownDriverIsRefused(t *testing.T) {
	root := t.TempDir()
	if _, _, err := Open(durable.OS, root, "nosuch"); !errors.Is(err, errs.Invalid) {
		t.Errorf("asked for by name: %v, want Invalid", err)
	}
	if _, err := os.Stat(filepath.Join(root, file)); err == nil {
		t.Error("a driver that does not exist was recorded")
	}
	if err := os.WriteFile(filepath.Join(root, file), []byte("btrfs\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := Open(durable.OS, root, "")
	if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "which this version does not have") {
		t.Errorf("recorded: %v, want Precondition", err)
	}
	if err := os.WriteFile(filepath.Join(root, file), []byte(strings.Repeat("x", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(durable.OS, root, ""); err == nil {
		t.Error("a damaged record was taken")
	}
}

func TestTheBestDriverThatWorksIsChosen(t *testing.T) {
	works := func(string) (bool, string) { return true, "" }
	fails := func(why string) func(string) (bool, string) {
		return func(string) (bool, string) { return false, why }
	}
	list := []driver{{name: "a", probe: fails("no a")}, {name: "b", probe: fails("no b")}, {name: "c", probe: works}, {name: "d", probe: works}}
	d, notes, err := choose(list, "/r", "")
	if err != nil || d.name != "c" || !slices.Equal(notes, [][2]string{{"a not used", "no a"}, {"b not used", "no b"}}) {
		t.Errorf("%v, %v, %v", d, notes, err)
	}
	if d, notes, err := choose(list, "/r", "d"); err != nil || d.name != "d" || len(notes) != 0 {
		t.Errorf("by name: %v, %v, %v", d, notes, err)
	}
	if _, _, err := choose(list, "/r", "b"); !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "storage driver b does not work on /r: no b") {
		t.Errorf("one that does not work: %v", err)
	}
	if _, _, err := choose(list[:2], "/r", ""); !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "no storage driver works on /r") {
		t.Errorf("none works: %v", err)
	}
}

// What a start that was killed left directly below the data root is removed by the next one.
func TestOpenRemovesLeftProbes(t *testing.T) {
	root := t.TempDir()
	left := durable.TempName(root)
	if err := errors.Join(os.MkdirAll(filepath.Join(left, "mount", "d"), 0o700), os.WriteFile(durable.TempName(root), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(root, "kept")
	if err := os.Mkdir(kept, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := mount.Bind(kept, filepath.Join(left, "mount"), false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(kept, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, _, err := Open(durable.OS, root, "vfs")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if temps, err := filepath.Glob(filepath.Join(root, durable.TempPrefix+"*")); err != nil || len(temps) > 0 {
		t.Errorf("left %v, %v", temps, err)
	}
	if _, err := os.Stat(filepath.Join(kept, "f")); err != nil {
		t.Errorf("what was mounted there: %v", err)
	}
}
