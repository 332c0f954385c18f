package layertest

import (
	"archive/tar"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/oci"
)

// applyCases are stacks of layers, bottom first. Each must make the same tree as the reference.
var applyCases = []struct {
	name   string
	layers [][]entry
}{
	{"empty", [][]entry{{}}},
	{"plain", [][]entry{{dir("a"), file("a/f", "text"), symlink("a/l", "f"), file("top", noise(1, 5000))}}},
	{"root_attributes", [][]entry{{dir(".").chmod(0o711).chown(7, 8), file("f", "x")}}},
	{"root_attributes_from_below", [][]entry{{dir(".").chmod(0o711).chown(7, 8)}, {file("f", "x")}, {file("g", "x")}}},
	{"stack_six_files_three_layers", [][]entry{
		{file("1", "a"), file("2", "a"), file("3", "a")}, {file("2", "b"), file("4", "b"), file("5", "b")}, {file("5", "c"), file("6", "c")},
	}},
	{"directory_over_directory", [][]entry{
		{dir("d").chmod(0o700), file("d/old", "old")}, {dir("d").chmod(0o755).chown(1, 2), file("d/new", "new")},
	}},
	{"whiteout_file", [][]entry{{dir("d"), file("d/f", "x"), file("d/g", "x")}, {dir("d"), file("d/.wh.f", "")}}},
	{"whiteout_directory", [][]entry{{dir("d"), dir("d/e"), file("d/e/f", "x"), file("g", "x")}, {file(".wh.d", "")}}},
	{"whiteout_of_nothing", [][]entry{{dir("d")}, {dir("d"), file("d/.wh.nothing", ""), file(".wh.neither", "")}}},
	{"whiteout_in_bottom_layer", [][]entry{{dir("d"), file("d/.wh.f", ""), file("d/g", "x"), file(".wh.h", "")}}},
	{"whiteout_then_again", [][]entry{{dir("d"), file("d/f", "1")}, {file(".wh.d", "")}, {dir("d"), file("d/g", "3")}}},
	{"whiteout_beside_file", [][]entry{{file("f", "1")}, {file(".wh.f", ""), file("f", "2")}}},
	{"whiteout_after_file", [][]entry{{file("f", "1")}, {file("f", "2"), file(".wh.f", "")}}},
	{"whiteout_beside_directory", [][]entry{{dir("d"), file("d/f", "1")}, {file(".wh.d", ""), dir("d"), file("d/g", "2")}}},
	{"whiteout_after_directory", [][]entry{{dir("d"), file("d/f", "1")}, {dir("d"), file("d/g", "2"), file(".wh.d", "")}}},
	{"whiteout_without_parent_entry", [][]entry{{dir("d").chmod(0o750), file("d/f", "1"), file("d/g", "1")}, {file("d/.wh.f", "")}}},
	{"opaque_first", [][]entry{{dir("d"), file("d/f", "1"), dir("d/e"), file("d/e/g", "1")}, {dir("d"), file("d/.wh..wh..opq", ""), file("d/h", "2")}}},
	{"opaque_last", [][]entry{{dir("d"), file("d/f", "1"), dir("d/e"), file("d/e/g", "1")}, {dir("d"), dir("d/e"), file("d/h", "2"), file("d/.wh..wh..opq", "")}}},
	{"opaque_without_directory_entry", [][]entry{{dir("d").chmod(0o750), file("d/f", "1")}, {file("d/.wh..wh..opq", ""), file("d/h", "2")}}},
	{"opaque_before_directory_entry", [][]entry{{dir("d"), file("d/f", "1")}, {file("d/.wh..wh..opq", ""), dir("d").chmod(0o711), file("d/h", "2")}}},
	{"opaque_root", [][]entry{{dir("d"), file("d/f", "1"), file("g", "1")}, {file(".wh..wh..opq", ""), file("h", "2")}}},
	{"opaque_middle", [][]entry{{dir("d"), file("d/1", "1")}, {dir("d"), file("d/.wh..wh..opq", ""), file("d/2", "2")}, {dir("d"), file("d/3", "3")}}},
	{"below_link", [][]entry{{dir("usr/bin"), symlink("bin", "usr/bin"), file("bin/sh", "x"), hardlink("ash", "bin/sh")}}},
	{"below_link_to_come", [][]entry{{symlink("bin", "usr/bin"), file("bin/sh", "x"), dir("usr/bin").chmod(0o711)}}},
	{"below_absolute_and_climbing_links", [][]entry{{symlink("a", "/real"), symlink("b", "../../../real"), file("a/1", "1"), file("b/2", "2")}}},
	{"below_link_whiteout", [][]entry{{dir("usr/bin"), file("usr/bin/sh", "x"), file("usr/bin/ls", "x")}, {dir("usr/bin"), symlink("bin", "usr/bin"), file("bin/.wh.sh", "")}}},
	{"below_link_opaque", [][]entry{{dir("usr/bin"), file("usr/bin/sh", "x")}, {dir("usr/bin"), symlink("bin", "usr/bin"), file("bin/.wh..wh..opq", ""), file("bin/ls", "x")}}},
	{"below_moved_link", [][]entry{{dir("one"), dir("two"), symlink("l", "one"), file("l/f", "1"), symlink("l", "two"), file("l/f", "2")}}},
	{"links_inside", [][]entry{{file("a", "x"), hardlink("b", "a"), hardlink("c", "b"), dir("d"), hardlink("d/e", "./a")}}},
	{"links_absolute_name", [][]entry{{dir("d"), file("/d/a", "x"), hardlink("/b", "/d/a")}}},
	{"link_to_symlink", [][]entry{{symlink("s", "nowhere"), hardlink("t", "s")}}},
	{"link_to_device_and_fifo", [][]entry{{
		entry{name: "dev", kind: tar.TypeChar, major: 1, minor: 3}, hardlink("dev2", "dev"), entry{name: "p", kind: tar.TypeFifo}, hardlink("p2", "p"),
	}}},
	{"link_to_lower", [][]entry{{dir("d"), file("d/a", noise(2, 9000)).chmod(0o4755).xattr("user.k", "v"), file("other", "x")}, {hardlink("b", "d/a")}}},
	{"links_to_lower_several_names", [][]entry{{dir("d"), file("d/a", "x"), dir("e")}, {dir("e"), hardlink("e/b", "d/a"), hardlink("c", "d/a"), hardlink("f", "c")}}},
	{"link_to_lower_then_replaced", [][]entry{{file("a", "old")}, {hardlink("b", "a"), file("a", "new")}}},
	{"link_to_lower_through_layers", [][]entry{{file("a", "old")}, {dir("x")}, {file("a", "newer")}, {hardlink("b", "a")}, {hardlink("c", "b")}}},
	{"link_to_lower_then_whiteout", [][]entry{{file("a", "old"), dir("d"), file("d/f", "x")}, {hardlink("b", "a"), file(".wh.a", ""), hardlink("g", "d/f"), file(".wh.d", "")}}},
	{"link_to_lower_linked", [][]entry{{file("a", "x"), hardlink("b", "a")}, {hardlink("c", "a")}}},
	{"symlink_loops", [][]entry{{symlink("a", "b"), symlink("b", "a"), symlink("self", "self"), dir("d"), symlink("d/up", "../d")}}},
	{"symlinks_out", [][]entry{{symlink("abs", "/etc/passwd"), symlink("climb", "../../../../../../etc/passwd"), symlink("long", strings.Repeat("x/", 2000)+"y")}}},
	{"xattrs", [][]entry{{
		file("cap", "x").chmod(0o755).xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		file("user", "x").xattr("user.one", "1").xattr("user.two", "b\x00in\xff"), dir("d").xattr("user.d", "dir"),
		file("empty", "x").xattr("user.empty", ""), symlink("l", "x"),
	}}},
	{"overlay_xattrs_dropped", [][]entry{
		{dir("d"), file("d/f", "1"), dir("e"), file("e/g", "1")},
		{
			dir("d").xattr("trusted.overlay.opaque", "y"), dir("e").xattr("trusted.overlay.redirect", "/d").xattr("user.overlay.opaque", "y"),
			file("m", "").xattr("trusted.overlay.metacopy", "").xattr("user.keep", "1"),
		},
	}},
	{"modes", [][]entry{{
		file("suid", "x").chmod(0o4755), file("sgid", "x").chmod(0o2755), dir("sticky").chmod(0o1777), file("none", "x").chmod(-1),
		file("all", "x").chmod(0o7777), dir("sgiddir").chmod(0o2775).chown(5, 6), file("sgiddir/f", "x"),
	}}},
	{"setuid_of_another_owner", [][]entry{{file("suid", "x").chmod(0o6755).chown(1000, 1000)}}},
	{"devices", [][]entry{{
		entry{name: "null", kind: tar.TypeChar, mode: 0o666, major: 1, minor: 3}, entry{name: "sda", kind: tar.TypeBlock, mode: 0o660, major: 8, minor: 1},
		entry{name: "big", kind: tar.TypeBlock, major: 300, minor: 70000}, entry{name: "fifo", kind: tar.TypeFifo, mode: 0o622},
	}}},
	{"owners", [][]entry{{
		file("a", "x").chown(2_097_151, 2_097_152), file("b", "x").chown(2_147_483_647, 2_147_483_646), symlink("l", "a").chown(3_000_000, 4_000_000), dir("d").chown(65534, 65534),
	}}},
	{"times", [][]entry{{
		file("ns", "x").at(time.Unix(1, 1)), file("neg", "x").at(time.Unix(-1_000_000, 0)), file("negns", "x").at(time.Unix(-5, 500_000_000)),
		file("zero", "x").at(time.Unix(0, 0)), symlink("l", "x").at(time.Unix(77, 7)), dir("d").at(time.Unix(88, 8)), file("d/f", "x"), file("late", "x").at(time.Unix(4_000_000_000, 999_999_999)),
	}}},
	{"names", [][]entry{{
		file(strings.Repeat("n", 255), "x"), file("\xff\xfe\x80", "x"), dir("ü ☃"), file("ü ☃/new\nline\ttab", "x"), file(`back\slash`, "x"), file("CON", "x"),
		file("*", "x"), file("-v", "x"), file(" ", "x"), file("...", "x"), file(".whx", "x"), file(strings.Repeat("d/", 60)+strings.Repeat("e", 200), "x"),
		symlink("\xffl", "\xfe\xfd"), hardlink("\x80hard", "\xff\xfe\x80"), file("per%cent,comma:colon", "x"),
	}}},
	{"dot_slash", [][]entry{{dir("./"), dir("./a"), file("./a/f", "x"), file("./././g", "x"), file("//h", "x"), hardlink("i", "././g")}}},
	{"parents_missing", [][]entry{{file("a/b/c/f", "x"), symlink("l/m", "x"), file("z", "x")}}},
	{"parents_missing_over_lower", [][]entry{{dir("a").chmod(0o700).chown(3, 4).xattr("user.a", "1"), dir("a/b").chmod(0o1777), file("a/b/old", "x")}, {file("a/b/new", "y"), file("c/d/e", "y")}}},
	{"parents_missing_three_layers", [][]entry{{dir("a").chmod(0o700)}, {file("a/1", "x")}, {file("a/2", "x")}, {dir("a").chmod(0o750)}, {file("a/3", "x")}}},
	{"parents_after_children", [][]entry{{file("a/b/f", "x"), dir("a").chmod(0o700), dir("a/b").chmod(0o711)}}},
	{"file_to_directory", [][]entry{{file("a", "x")}, {dir("a"), file("a/f", "y")}}},
	{"directory_to_file", [][]entry{{dir("a"), file("a/f", "x")}, {file("a", "y")}}},
	{"directory_to_symlink_to_directory", [][]entry{{dir("a"), file("a/f", "1"), dir("b"), file("b/g", "1")}, {symlink("a", "b")}, {dir("a"), file("a/h", "3")}}},
	{"directory_file_directory", [][]entry{{dir("a"), file("a/f", "1")}, {file("a", "2")}, {dir("a"), file("a/g", "3")}}},
	{"symlink_to_file_to_device", [][]entry{{symlink("a", "b")}, {file("a", "x")}, {entry{name: "a", kind: tar.TypeChar, major: 1, minor: 3}}}},
	{"duplicates", [][]entry{{file("a", "first"), file("b", "b"), file("a", "second, longer"), dir("d").chmod(0o700), file("d/f", "x"), dir("d").chmod(0o755), file("a", "3")}}},
	{"duplicates_changing_type", [][]entry{{
		dir("a"), file("a/f", "gone"), file("a", "now a file"), file("b", "first"), dir("b"), file("b/f", "x"), symlink("c", "x"), file("c", "y"), file("e", "z"), symlink("e", "z"),
	}}},
	{"duplicate_of_linked", [][]entry{{file("a", "first"), hardlink("b", "a"), file("a", "second")}}},
	{"link_to_itself", [][]entry{{file("a", "x"), hardlink("a", "a")}}},
	{"sizes", [][]entry{sizes()}},
	{"capability_lost_by_new_file", [][]entry{{file("a", "x").xattr("user.k", "1")}, {file("a", "x")}}},
}

func sizes() []entry {
	var all []entry
	for _, n := range []int{0, 1, 511, 512, 513, 1023, 4095, 4096, 4097, 65536, 1 << 20, 1<<20 + 1} {
		all = append(all, file(fmt.Sprintf("size%d", n), noise(uint64(n), n)))
	}
	return all
}

func testApply(t *testing.T, open Open) {
	b := newBox(t, open)
	for _, c := range applyCases {
		t.Run(c.name, func(t *testing.T) {
			var tars [][]byte
			for _, entries := range c.layers {
				tars = append(tars, makeTar(t, entries...))
			}
			b.checkStack(t, tars)
		})
	}
	t.Run("sparse", func(t *testing.T) { testSparse(t, b) })
	t.Run("formats", func(t *testing.T) { testFormats(t, b) })
}

// checkStack commits tars as a stack and compares it with the reference at every depth.
func (b *box) checkStack(t *testing.T, tars [][]byte) {
	t.Helper()
	chain := b.stack(t, tars...)
	defer b.checkTars(t, chain)
	if !b.mounts {
		return
	}
	for i := range chain {
		b.checkView(t, fmt.Sprintf("view of %d layers", i+1), chain[:i+1], tars[:i+1]...)
	}
	want, err := flatten(tars...)
	if err != nil {
		t.Fatal(err)
	}
	w := b.writable(t, chain, noOptions)
	checkTree(t, "fresh writable", w.target, want)
	if got := w.changes(t); len(got) > 0 {
		t.Errorf("a fresh writable has changes: %q", got)
	}
}

// testSparse reads the sparse formats of tar programs. The tars are made by hand from the documentation of the formats.
func testSparse(t *testing.T, b *box) {
	for _, c := range sparseTars(t) {
		t.Run(c.name, func(t *testing.T) {
			b.checkStack(t, [][]byte{c.data})
		})
	}
}

// testFormats reads other forms of tars: old GNU and USTAR headers, global PAX headers, garbage after the end.
func testFormats(t *testing.T, b *box) {
	long := strings.Repeat("long/", 40) + "name"
	gnu := rewrite(t, tar.FormatGNU, file(long, "x"), dir("d"), symlink("d/l", long), file("big", "x").chown(3_000_000, 1), file("neg", "x").at(time.Unix(-5, 0)))
	ustar := rewrite(t, tar.FormatUSTAR, file("a", "x"), dir("d"), file("d/"+strings.Repeat("u", 99), "x"))
	plain := makeTar(t, file("a", "x"))
	cases := []struct {
		name string
		data []byte
	}{
		{"gnu", gnu},
		{"ustar", ustar},
		{"garbage_after_end", append(slices.Clone(plain), []byte("garbage that no one reads")...)},
		{"no_end", plain[:len(plain)-1024]},
		{"one_zero_block", plain[:len(plain)-512]},
		{"many_zero_blocks", append(slices.Clone(plain), make([]byte, 20*512)...)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { b.checkStack(t, [][]byte{c.data}) })
	}
}

// testDeep makes a stack of many layers.
func testDeep(t *testing.T, open Open) {
	b := newBox(t, open)
	for _, depth := range []int{100, 300} {
		t.Run(fmt.Sprint(depth), func(t *testing.T) {
			var tars [][]byte
			var chain oci.Chain
			for i := range depth {
				entries := []entry{file("shared", fmt.Sprint(i)), dir("d"), file(fmt.Sprintf("d/%d", i%10), "x")}
				switch i % 20 { // few names, because some drivers copy them all
				case 5:
					entries = append(entries, file(fmt.Sprintf("only%d", i), fmt.Sprint(depth)))
				case 15:
					entries = append(entries, file(fmt.Sprintf(".wh.only%d", i-30), ""))
				}
				tars = append(tars, makeTar(t, entries...))
				chain = b.put(t, chain, tars[i])
			}
			want, err := flatten(tars...)
			if err != nil {
				t.Fatal(err)
			}
			checkTree(t, "view", b.view(t, chain), want)
			checkTree(t, "writable", b.writable(t, chain, noOptions).target, want)
		})
	}
}
