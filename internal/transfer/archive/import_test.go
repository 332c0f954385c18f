package archive_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"ply/internal/errs"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/archive"
)

func TestImport(t *testing.T) {
	s := newSide(t, archive.Options{})
	rootfs := imagetest.Tar(t, "bin/", "", "bin/sh", "#!", "etc/", "")
	id, err := s.Import(t.Context(), transfer.ImportOptions{
		Name: imagetest.Ref(t, "mine:v1"), From: "-", Source: bytes.NewReader(rootfs), Platform: "linux/arm64/v8",
		Changes: []string{`CMD ["/bin/sh"]`, "ENV A=b", "EXPOSE 80", `LABEL x="y z"`},
	}, transfer.Discard)
	if err != nil {
		t.Fatal(err)
	}
	img := s.image(t, "mine:v1")
	if img.ID != id || !cmp.Equal(img.Chain, oci.Chain{oci.DiffID(oci.DigestOf(rootfs))}) || img.Size != 2 {
		t.Errorf("%+v", img)
	}
	cfg := img.Config
	want := oci.RunConfig{Cmd: []string{"/bin/sh"}, Env: []string{"A=b"}, ExposedPorts: map[string]struct{}{"80/tcp": {}}, Labels: map[string]string{"x": "y z"}}
	if d := cmp.Diff(want, cfg.Config); d != "" {
		t.Error(d)
	}
	if cfg.OS != "linux" || cfg.Architecture != "arm64" || cfg.Comment != "Imported from -" || len(cfg.History) != 1 || cfg.History[0].Comment != "Imported from -" || cfg.History[0].EmptyLayer {
		t.Errorf("%+v", cfg)
	}
	past, _ := s.Events.Listen(t.Context())
	var actions []string
	for _, e := range past {
		actions = append(actions, e.Action)
	}
	if !cmp.Equal(actions, []string{"tag", "import"}) {
		t.Errorf("events %v", actions)
	}
}

// The history of an image is pushed with it, so it has the address without user name, password and query. A message stays as it is.
func TestImportKeepsNoCredentials(t *testing.T) {
	for _, c := range []struct{ from, message, want string }{
		{"http://host/a@b.tar?c=d", "", "Imported from http://host/a@b.tar"},
		{"https://host/a.tar?X-Amz-Signature=secret", "", "Imported from https://host/a.tar"},
		{"http://user:secret@host/a.tar", "", "Imported from http://host/a.tar"},
		{"https://token@host/a.tar", "", "Imported from https://host/a.tar"},
		{"user:secret@host/a.tar", "", "Imported from host/a.tar"},
		{"http://user:secret@host/a.tar", "mine", "mine"},
	} {
		s := newSide(t, archive.Options{})
		id, err := s.Import(t.Context(), transfer.ImportOptions{From: c.from, Message: c.message, Source: bytes.NewReader(imagetest.Tar(t, "a", "b"))}, transfer.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if cfg := s.image(t, string(id)).Config; cfg.Comment != c.want || len(cfg.History) != 1 || cfg.History[0].Comment != c.want {
			t.Errorf("import from %s: %q, history %+v", c.from, cfg.Comment, cfg.History)
		}
	}
}

// The layer is the same however the tar is compressed.
func TestImportOfCompressedTars(t *testing.T) {
	rootfs := imagetest.Tar(t, "a", strings.Repeat("abc", 50_000))
	pack := func(w func(io.Writer) (io.WriteCloser, error)) []byte {
		var b bytes.Buffer
		z, err := w(&b)
		if err == nil {
			_, err = z.Write(rootfs)
		}
		if err == nil {
			err = z.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, data := range map[string][]byte{
		"plain": rootfs,
		"gzip":  gzipped(t, rootfs),
		"zstd":  pack(func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
		"xz":    pack(func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }),
	} {
		s := newSide(t, archive.Options{})
		id, err := s.Import(t.Context(), transfer.ImportOptions{From: "http://x/y.tar", Message: "hello", Source: bytes.NewReader(data)}, transfer.Discard)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		img := s.image(t, string(id))
		if img.Chain[0] != oci.DiffID(oci.DigestOf(rootfs)) || img.Config.Comment != "hello" || len(img.Names) != 0 {
			t.Errorf("%s: %+v", name, img)
		}
	}
}

// An empty source is an archive without entries, as for docker.
func TestImportEmpty(t *testing.T) {
	s := newSide(t, archive.Options{})
	id, err := s.Import(t.Context(), transfer.ImportOptions{Source: strings.NewReader("")}, transfer.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if img := s.image(t, string(id)); len(img.Chain) != 1 || img.Size != 0 {
		t.Errorf("%+v", img)
	}
}

func TestImportRefuses(t *testing.T) {
	s := newSide(t, archive.Options{Limits: archive.Limits{Layer: 1 << 20}})
	before := everything(t, s)
	good := imagetest.Tar(t, "a", "b")
	for name, c := range map[string]struct {
		o    transfer.ImportOptions
		want string
	}{
		"no source":    {transfer.ImportOptions{}, "no source"},
		"text":         {transfer.ImportOptions{Source: strings.NewReader(strings.Repeat("not a tar ", 500))}, "layer"},
		"cut":          {transfer.ImportOptions{Source: bytes.NewReader(gzipped(t, good)[:50])}, "gzip"},
		"climbs":       {transfer.ImportOptions{Source: bytes.NewReader(imagetest.Tar(t, "../a", "b"))}, "climbs"},
		"too long":     {transfer.ImportOptions{Source: bytes.NewReader(gzipped(t, make([]byte, 64<<20)))}, "unpacks to more than"},
		"bad change":   {transfer.ImportOptions{Source: bytes.NewReader(good), Changes: []string{"RUN x"}}, "RUN is not a valid change command"},
		"bad platform": {transfer.ImportOptions{Source: bytes.NewReader(good), Platform: "a/b/c/d"}, "platform"},
		"windows":      {transfer.ImportOptions{Source: bytes.NewReader(good), Platform: "windows/amd64"}, "operating system"},
		"digest name":  {transfer.ImportOptions{Source: bytes.NewReader(good), Name: imagetest.Ref(t, "a@sha256:"+strings.Repeat("a", 64))}, "digest"},
	} {
		_, err := s.Import(t.Context(), c.o, transfer.Discard)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if d := cmp.Diff(before, everything(t, s)); d != "" {
			t.Errorf("%s left behind:\n%s", name, d)
		}
	}
	if s.Driver.Open != 0 {
		t.Errorf("%d writers open", s.Driver.Open)
	}
}

// An imported image can be saved and loaded in every format.
func TestImportedImageRoundTrip(t *testing.T) {
	s := newSide(t, archive.Options{})
	if _, err := s.Import(t.Context(), transfer.ImportOptions{Name: imagetest.Ref(t, "i"), From: "-", Source: bytes.NewReader(imagetest.Tar(t, "a", "b"))}, transfer.Discard); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"hybrid", "oci", "docker", "legacy"} {
		d := newSide(t, archive.Options{})
		if lines := d.load(t, s.save(t, format, "i")); !slices.Equal(lines, []string{"Loaded i:latest"}) {
			t.Errorf("%s: %v", format, lines)
		}
	}
}
