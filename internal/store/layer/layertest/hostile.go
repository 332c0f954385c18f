package layertest

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/oci"
)

// hostileCases are tars that try to reach outside the tree, or exceed what the kernel supports. Each has a harmless
// counterpart that must be accepted. When refuse is false, the layer may be accepted (in a harmless form) or refused.
var hostileCases = []struct {
	name     string
	evil     []entry
	refuse   bool
	harmless []entry
}{
	{"climb", []entry{file("../x", "evil")}, true, []entry{file("..x", "fine"), file("x..", "fine"), file("...", "fine")}},
	{"climb_inside", []entry{dir("a"), file("a/../../x", "evil")}, true, []entry{dir("a"), file("a/./x", "fine")}},
	{"climb_back", []entry{dir("a"), file("a/../b", "evil")}, true, []entry{dir("a"), file("a/..b", "fine")}},
	{"climb_alone", []entry{{name: "..", kind: tar.TypeDir}}, true, []entry{dir(".")}},
	{"absolute", []entry{file("/../../etc/x", "evil")}, true, []entry{file("/etc/x", "fine")}},
	{"through_symlink", []entry{symlink("l", "/CANARY"), file("l/secret", "evil")}, false, []entry{symlink("l", "/CANARY"), file("m/secret", "fine")}},
	{"through_relative_symlink", []entry{symlink("l", "../../../../../../../../CANARY"), file("l/new", "evil")}, false, []entry{symlink("l", "../../../../../../../../CANARY")}},
	{"through_symlink_chain", []entry{symlink("a", "b"), symlink("b", "/CANARY"), file("a/new", "evil")}, false, []entry{symlink("a", "b"), dir("b"), file("b/new", "fine")}},
	{"directory_over_symlink_attributes", []entry{symlink("l", "/CANARY"), dir("l").chmod(0o777).chown(1, 1)}, false, []entry{dir("l").chmod(0o777)}},
	{"file_over_symlink", []entry{symlink("l", "/CANARY/secret"), file("l", "evil").chmod(0o777)}, false, []entry{symlink("l", "x"), file("l", "fine")}},
	{"symlink_over_directory_then_inside", []entry{dir("d"), symlink("d", "/CANARY"), file("d/secret", "evil")}, false, []entry{dir("d"), file("d/secret", "fine")}},
	{"link_out_absolute", []entry{hardlink("x", "/CANARY/secret")}, true, []entry{dir("CANARY"), file("CANARY/secret", "own"), hardlink("x", "/CANARY/secret")}},
	{"link_out_climbing", []entry{hardlink("x", "../../../../../../../CANARY/secret")}, true, []entry{file("a", "x"), hardlink("x", "./a")}},
	{"link_out_relative_to_cwd", []entry{hardlink("x", "cwd-secret")}, true, []entry{file("cwd-secret", "own"), hardlink("x", "cwd-secret")}},
	{"link_through_symlink", []entry{symlink("l", "/CANARY"), hardlink("x", "l/secret")}, true, []entry{dir("l"), file("l/secret", "own"), hardlink("x", "l/secret")}},
	{"link_forward", []entry{hardlink("x", "later"), file("later", "x")}, true, []entry{file("later", "x"), hardlink("x", "later")}},
	{"link_to_directory", []entry{dir("d"), hardlink("x", "d")}, true, []entry{dir("d"), symlink("x", "d")}},
	{"link_to_root", []entry{hardlink("x", ".")}, true, []entry{symlink("x", ".")}},
	{"link_to_nothing", []entry{hardlink("x", "nowhere")}, true, []entry{symlink("x", "nowhere")}},
	{"link_to_itself_only", []entry{hardlink("x", "x")}, true, []entry{symlink("x", "x")}},
	{"root_is_file", []entry{file(".", "evil")}, true, []entry{dir(".").chmod(0o711)}},
	{"root_is_symlink", []entry{symlink("./", "/CANARY")}, true, []entry{dir("./")}},
	{"whiteout_of_parent", []entry{dir("d"), file("d/.wh...", "")}, true, []entry{dir("d"), file("d/.wh.x", "")}},
	{"whiteout_of_self", []entry{dir("d"), file("d/.wh..", "")}, true, []entry{dir("d"), file("d/.wh....", "")}},
	{"whiteout_of_nothing_named", []entry{file(".wh.", "")}, true, []entry{file(".wh.a", "")}},
	{"whiteout_through_symlink", []entry{symlink("l", "/CANARY"), file("l/.wh.secret", "")}, false, []entry{dir("l"), file("l/.wh.secret", "")}},
	{"whiteout_device", []entry{entry{name: "w", kind: tar.TypeChar}}, false, []entry{entry{name: "w", kind: tar.TypeChar, major: 1, minor: 3}}},
	{"whiteout_xattr", []entry{file("w", "").xattr("trusted.overlay.whiteout", "y"), dir("d").xattr("trusted.overlay.opaque", "x"), file("d/w", "").xattr("trusted.overlay.whiteout", "")}, false, []entry{file("w", "").xattr("user.whiteout", "y")}},
	{"component_too_long", []entry{file(strings.Repeat("x", 256), "evil")}, true, []entry{file(strings.Repeat("x", 255), "fine")}},
	{"path_too_long", []entry{file(strings.Repeat("d/", 2500)+"x", "evil")}, true, []entry{file(strings.Repeat("d/", 500)+"x", "fine")}},
	{"nul_in_name", nil, true, []entry{file("a", "fine")}},
	{"unknown_type", nil, true, []entry{file("a", "fine")}},
}

func testHostile(t *testing.T, newBox func(t *testing.T) *box) {
	base := t.TempDir()
	canary := filepath.Join(base, "canary")
	if err := os.Mkdir(canary, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{filepath.Join(canary, "secret"), filepath.Join(base, "cwd-secret"), filepath.Join(base, "x")} {
		if err := os.WriteFile(f, []byte("canary"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(base)
	before := readTree(t, base)
	b := newBox(t)
	for _, c := range hostileCases {
		t.Run(c.name, func(t *testing.T) {
			evil := rawHostile(c.name)
			if evil == nil {
				evil = makeTar(t, aim(c.evil, canary)...)
			}
			chain, err := b.attack(t, nil, evil)
			if err == nil && c.refuse {
				t.Error("accepted, want it refused")
			}
			if err != nil && !errors.Is(err, errs.Invalid) {
				t.Errorf("refused with %v, want class invalid argument", err)
			}
			if err == nil && b.mounts {
				readTree(t, b.view(t, chain))
				readTree(t, b.writable(t, chain, noOptions).target)
			}
			if err == nil {
				b.checkTars(t, chain)
			}
			for _, l := range compareTrees(readTree(t, base), before) {
				t.Errorf("canary: %s", l)
			}
			b.checkStack(t, [][]byte{makeTar(t, aim(c.harmless, canary)...)})
		})
	}
	t.Run("lower_symlink", func(t *testing.T) {
		chain := b.stack(t, makeTar(t, symlink("l", canary), symlink("f", canary+"/secret"), symlink("w", canary)))
		for _, evil := range [][]entry{{file("l/secret", "evil")}, {hardlink("x", "l/secret")}, {hardlink("f2", "f"), file("f2", "x")}, {file("w/.wh.secret", "")}, {file("l/.wh..wh..opq", "")}} {
			if c, err := b.attack(t, chain, makeTar(t, evil...)); err == nil && b.mounts {
				readTree(t, b.view(t, c))
			}
		}
		for _, l := range compareTrees(readTree(t, base), before) {
			t.Errorf("canary: %s", l)
		}
	})
	t.Run("truncated", func(t *testing.T) {
		data := makeTar(t, dir("d"), file("d/f", noise(3, 3000)), file("g", "x").xattr("user.a", "b"))
		for n := 100; n < len(data)-1024; n += 512 {
			cut := data[:n]
			if _, err := b.try(t, nil, cut); err == nil {
				checkAllSeen(t, cut)
			} else if !errors.Is(err, errs.Invalid) {
				t.Errorf("cut at %d: %v, want class invalid argument", n, err)
			}
		}
	})
	t.Run("checksum", func(t *testing.T) {
		data := makeTar(t, file("f", "x"))
		data[148]++
		if _, err := b.try(t, nil, data); !errors.Is(err, errs.Invalid) {
			t.Errorf("bad header checksum: %v, want class invalid argument", err)
		}
	})
	if left := leftovers(t, b.root); len(left) > 0 {
		t.Errorf("refused layers left %q", left)
	}
}

// attack commits a tar that may be refused.
func (b *box) attack(t testing.TB, parents oci.Chain, data []byte) (oci.Chain, error) {
	t.Helper()
	info, err := b.try(t, parents, data)
	if err != nil {
		return nil, err
	}
	b.tars[info.DiffID] = data
	return append(slices.Clone(parents), info.DiffID), nil
}

// aim replaces /CANARY in the targets of links by the path of the canary.
func aim(entries []entry, canary string) []entry {
	out := slices.Clone(entries)
	for i := range out {
		out[i].link = strings.ReplaceAll(out[i].link, "/CANARY", canary)
	}
	// A harmless counterpart whose target is in its own tree keeps the name of that tree.
	for i := range out {
		if out[i].kind == tar.TypeLink && slices.ContainsFunc(out, func(e entry) bool { return e.name == "CANARY/" }) {
			out[i].link = entries[i].link
		}
	}
	return out
}

// rawHostile returns the tars that archive/tar cannot write.
func rawHostile(name string) []byte {
	r := &rawTar{}
	switch name {
	case "nul_in_name":
		r.pax('x', "path", "a\x00/../../x")
		r.header("a", '0', 4, nil)
		r.body("evil")
	case "unknown_type":
		r.header("a", 'Z', 4, nil)
		r.body("evil")
	default:
		return nil
	}
	return r.end()
}

// checkAllSeen checks that a truncated tar was accepted only because it ends between entries.
func checkAllSeen(t *testing.T, cut []byte) {
	t.Helper()
	if _, err := flatten(cut); err != nil {
		t.Errorf("a tar cut at %d was accepted, although %v", len(cut), err)
	}
}
