package build_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"ply/internal/build"
	"ply/internal/oci"
)

// names returns the entries of the top layer of an image, with the times of the files.
func (w *world) top(chain oci.Chain) map[string]int64 {
	w.t.Helper()
	r, err := w.store.Layers.Tar(w.t.Context(), chain)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	out := map[string]int64{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			w.t.Fatal(err)
		}
		out[strings.TrimSuffix(h.Name, "/")] = h.ModTime.Unix()
	}
}

const squashed = `FROM scratch AS base
COPY a /keep
COPY a /gone
COPY a /dir/old
FROM base AS middle
COPY b /dir/new
COPY b /twice
FROM middle
COPY b /keep
COPY a /twice
LABEL l=1
`

// The layers of an image become one, and the image has the same files.
func TestSquash(t *testing.T) {
	w := newWorld(t)
	in := input{file: squashed, context: sampleFiles, exports: exports("local")}
	_, plain := w.must(in)
	for from, want := range map[string]int{"true": 1, "base": 4, "middle": 6} {
		in := input{file: squashed, context: sampleFiles, tags: []string{"s:" + from}, exports: exports("image", "squash="+from)}
		res, _ := w.must(in)
		img, err := w.images.Get(t.Context(), "s:"+from)
		if err != nil || len(img.Chain) != want || len(res.Images) != 1 || res.Images[0] != img.ID {
			t.Fatalf("%s: %d layers, %v, %v", from, len(img.Chain), res, err)
		}
		layers := 0
		for _, h := range img.Config.History {
			if !h.EmptyLayer {
				layers++
			}
		}
		last := img.Config.History[len(img.Config.History)-1]
		if layers != want || !strings.HasPrefix(last.Comment, "merge sha256:") || img.Config.Config.Labels["l"] != "1" {
			t.Errorf("%s: history %+v", from, img.Config.History)
		}
		_, c := w.must(input{file: "FROM s:" + from + "\n", exports: exports("local")})
		if !maps.Equal(c.files, plain.files) {
			t.Errorf("%s: files %v, want %v", from, c.files, plain.files)
		}
		again, _ := w.must(in)
		if again.Images[0] != res.Images[0] {
			t.Errorf("%s: a second build made %s, not %s", from, again.Images[0], res.Images[0])
		}
	}
	for from, want := range map[string]string{"nobody": "nobody", "busybox": "busybox"} {
		_, _, err := w.build(input{file: squashed, context: sampleFiles, exports: exports("image", "squash="+from)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("squash=%s: %v", from, err)
		}
	}
}

// With rewrite-timestamp, no file of a new layer is younger than the epoch, two builds at different times are the same image, and the base image stays.
func TestRewriteTimestamp(t *testing.T) {
	w := newWorld(t)
	w.must(input{file: "FROM scratch\nCOPY a /base\n", context: sampleFiles, tags: []string{"base"}})
	base, err := w.images.Get(t.Context(), "base")
	if err != nil {
		t.Fatal(err)
	}
	const epoch = 1500000000
	in := input{file: "FROM base\nCOPY a /x/a\nCOPY b /b\n", context: sampleFiles, tags: []string{"r"}, exports: exports("image", "rewrite-timestamp=true", "source-date-epoch=1500000000")}
	res, _ := w.must(in)
	img, err := w.images.Get(t.Context(), "r")
	if err != nil || len(img.Chain) != 3 || img.Chain[0] != base.Chain[0] || img.Created().Unix() != epoch {
		t.Fatalf("%+v, %v", img, err)
	}
	for n := 2; n <= 3; n++ {
		for name, at := range w.top(img.Chain[:n]) {
			if at > epoch {
				t.Errorf("%s has the time %d", name, at)
			}
		}
	}
	time.Sleep(1100 * time.Millisecond) // so that directories that are made get other times
	in.change = func(r *build.Request) { r.NoCache = true }
	again, _ := w.must(in)
	if again.Images[0] != res.Images[0] {
		t.Errorf("a later build made %s, not %s", again.Images[0], res.Images[0])
	}
	_, c := w.must(input{file: in.file, context: sampleFiles, exports: exports("oci", "rewrite-timestamp=true", "source-date-epoch=1500000000")})
	if !bytes.Contains(c.tars[0].Bytes(), []byte(res.Images[0].Short())) {
		t.Error("the archive has another image")
	}
}

// A layer that was made for no layers below it is laid on others, also by drivers that keep a layer for those below it only.
func TestLinkedLayers(t *testing.T) {
	const file = "FROM scratch AS base\nCOPY a /dir/a\nFROM base\nCOPY --link b /dir/b\nCOPY a /last\nCOPY --link a /dir/a2\n"
	var first map[string]string
	for _, driver := range []string{"vfs", "overlay2", "erofs"} {
		w := newWorldOn(t, driver)
		_, c := w.must(input{file: file, context: sampleFiles, tags: []string{"linked"}, exports: exports("local")})
		mode, _, ok := strings.Cut(c.files["dir"], " 0:0 ") // with the time at which the build made it
		if !ok {
			t.Errorf("%s: the directory is %q", driver, c.files["dir"])
		}
		c.files["dir"] = mode
		if first == nil {
			first = c.files
		}
		if len(c.files) < 4 || !maps.Equal(c.files, first) {
			t.Errorf("%s: files %v, want %v", driver, c.files, first)
		}
		w.must(input{file: file, context: sampleFiles, tags: []string{"linked"}, exports: exports("image")})
	}
}
