package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"
	"time"
)

func TestClamp(t *testing.T) {
	latest := time.Unix(1_000_000, 0)
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755, ModTime: latest.Add(-time.Hour), Format: tar.FormatPAX},
		{Typeflag: tar.TypeReg, Name: "d/new", Size: 3, Mode: 0o4755, Uid: 7, ModTime: latest.Add(time.Hour + 5), AccessTime: latest.Add(time.Minute), Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}},
		{Typeflag: tar.TypeLink, Name: "l", Linkname: "d/new", ModTime: latest.Add(time.Hour), Format: tar.FormatPAX},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, "abc"[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	in.Write(make([]byte, 8192)) // padding of the end
	var out bytes.Buffer
	c := Clamp(&out, latest)
	if _, err := c.Write(in.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	want := []time.Time{latest.Add(-time.Hour), latest, latest}
	r := tar.NewReader(&out)
	for i := 0; ; i++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			if i != len(want) {
				t.Errorf("%d entries", i)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(want[i]) || !h.AccessTime.IsZero() {
			t.Errorf("%s: %s %s", h.Name, h.ModTime, h.AccessTime)
		}
		if data, err := io.ReadAll(r); h.Name == "d/new" && (err != nil || string(data) != "abc" || h.Mode != 0o4755 || h.Uid != 7 || h.PAXRecords["SCHILY.xattr.user.x"] != "y") {
			t.Errorf("%+v %q %v", h, data, err)
		}
	}
	// A tar that is damaged, and a writer that fails, are errors.
	c = Clamp(&out, latest)
	_, err := c.Write(bytes.Repeat([]byte("x"), 4096))
	if err := errors.Join(err, c.Close()); err == nil {
		t.Error("a damaged tar went through")
	}
	c = Clamp(failing{}, latest)
	_, err = c.Write(in.Bytes())
	if err := errors.Join(err, c.Close()); !errors.Is(err, errFull) {
		t.Errorf("a writer that fails: %v", err)
	}
}

var errFull = errors.New("full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }
