package layertest

import (
	"archive/tar"
	"flag"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ply/internal/oci"
)

// stacks is for long manual runs: -layertest.stacks=500 -rapid.checks=500.
var stacks = flag.Int("layertest.stacks", 20, "random stacks of layers to compare with the reference")

// layerNames are few names, so that layers and entries clash. Links have names of their own: the reference does not define
// the meaning of an entry below a link.
var (
	layerNames = []string{"a", "b", "a/b", "a/c", "a/b/c", "a/b/d", "e", "e/f", "e/f/g", "h"}
	linkNames  = []string{"l", "a/l", "a/b/l", "e/f/l"}
)

func drawEntry(rt *rapid.T) entry {
	name := rapid.SampledFrom(layerNames).Draw(rt, "name")
	e := entry{name: name, uid: rapid.IntRange(0, 3).Draw(rt, "uid"), mtime: time.Unix(int64(rapid.IntRange(-5, 2_000_000_000).Draw(rt, "mtime")), 7)}
	switch kind := rapid.IntRange(0, 9).Draw(rt, "kind"); kind {
	case 0, 1, 2:
		e.body = noise(uint64(len(name)), rapid.SampledFrom([]int{0, 1, 600, 5000}).Draw(rt, "size"))
		e.mode = int64(rapid.SampledFrom([]int{0o644, 0o4755, 0o600}).Draw(rt, "mode"))
	case 3, 4:
		e.name, e.kind = name+"/", tar.TypeDir
		e.mode = int64(rapid.SampledFrom([]int{0o755, 0o1777, 0o700}).Draw(rt, "mode"))
		if rapid.Bool().Draw(rt, "xattr") {
			e = e.xattr("user.x", name)
		}
	case 5:
		e.name, e.kind, e.link = rapid.SampledFrom(linkNames).Draw(rt, "link"), tar.TypeSymlink, name
	case 6:
		e.kind, e.link = tar.TypeLink, rapid.SampledFrom(append(layerNames, linkNames...)).Draw(rt, "target")
	case 7:
		e.kind, e.major, e.minor = tar.TypeChar, 1, int64(rapid.IntRange(1, 9).Draw(rt, "minor"))
	case 8:
		return file(whiteoutOf(name), "")
	default:
		return file(name+"/.wh..wh..opq", "")
	}
	return e
}

func whiteoutOf(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[:i+1] + ".wh." + name[i+1:]
		}
	}
	return ".wh." + name
}

// testRandomStacks compares random stacks with the reference. Stacks that the reference refuses are skipped.
func testRandomStacks(t *testing.T, open Open) {
	b := newBox(t, open)
	runs, bad := 0, false
	rapid.Check(t, func(rt *rapid.T) {
		if runs++; runs > *stacks && (!bad || runs > *stacks+60) {
			return
		}
		layers := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(drawEntry), 0, 8), 1, 4).Draw(rt, "layers")
		var tars [][]byte
		for _, entries := range layers {
			data := makeTar(t, steady(entries)...)
			if _, err := flatten(append(tars, data)...); err == nil {
				tars = append(tars, data)
			}
		}
		ok := t.Run("stack", func(t *testing.T) {
			var chain oci.Chain
			for _, data := range tars {
				chain = b.put(t, chain, data)
			}
			want, err := flatten(tars...)
			must(t, err)
			w := b.writable(t, chain, noOptions)
			checkTree(t, "writable", w.target, want)
			b.checkTars(t, chain)
		})
		if !ok {
			bad = true
			rt.Fatalf("layers %q", describe(layers))
		}
	})
}

// testWhiteoutBelowReplaced mounts a layer that replaces a directory and has a whiteout further down in it: nothing is there to be hidden.
func testWhiteoutBelowReplaced(t *testing.T, open Open) {
	b := newBox(t, open)
	lower := makeTar(t, file("a/b/d", "old"), file("a/b/kept", "old"))
	upper := makeTar(t, file("a/c", "new"), file("a/b/.wh.d", ""), file(".wh.a", ""))
	var chain oci.Chain
	for _, data := range [][]byte{lower, upper} {
		chain = b.put(t, chain, data)
	}
	want, err := flatten(lower, upper)
	must(t, err)
	checkTree(t, "writable", b.writable(t, chain, noOptions).target, want)
}

// steady leaves out entries that turn a file of the same layer into a directory, or the reverse: what the layer hides in
// that case is not specified.
func steady(entries []entry) (kept []entry) {
	isDir := map[string]bool{}
	fits := func(p string, dir bool) bool {
		was, known := isDir[p]
		return !known || was == dir
	}
	for _, e := range entries {
		p, dir := strings.TrimSuffix(e.name, "/"), e.kind == tar.TypeDir
		_, marker := strings.CutPrefix(path.Base(p), ".wh.")
		ok := marker || fits(p, dir)
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			ok = ok && fits(d, true)
		}
		if !ok {
			continue
		}
		if !marker {
			isDir[p] = dir
		}
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			isDir[d] = true
		}
		kept = append(kept, e)
	}
	return kept
}

func describe(layers [][]entry) (lines []string) {
	for i, entries := range layers {
		for _, e := range entries {
			lines = append(lines, fmt.Sprintf("%d: %c %s -> %s %d bytes", i, max(e.kind, '0'), e.name, e.link, len(e.body)))
		}
	}
	return lines
}
