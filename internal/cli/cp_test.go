package cli

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tarEntry is one file of a tar stream.
type tarEntry struct {
	name, body, link string
	kind             byte
}

// archiveOf returns a tar stream of files.
func archiveOf(t *testing.T, list ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range list {
		mode := int64(0o640)
		if e.kind == tar.TypeDir {
			mode = 0o750
		}
		if err := tw.WriteHeader(&tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: mode, Size: int64(len(e.body))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(tw, e.body)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pathStat is what an engine says about a path, in X-Docker-Container-Path-Stat.
type pathStat struct {
	Name       string      `json:"name"`
	Mode       fs.FileMode `json:"mode"`
	LinkTarget string      `json:"linkTarget"`
}

// archiveEngine is an engine with the container c. GET of its archive answers with data and st, HEAD with the entry of stats for the
// path. PUT appends the directory and the names in the stream to the result.
func archiveEngine(t *testing.T, data []byte, st pathStat, stats map[string]pathStat) (*fake, *[]string) {
	var put []string
	head := func(w http.ResponseWriter, st pathStat) {
		b, _ := json.Marshal(st)
		w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(b))
	}
	f := newFake(t, map[string]any{
		"GET /containers/c/archive": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			head(w, st)
			w.Write(data)
		}),
		"HEAD /containers/c/archive": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			st, ok := stats[r.URL.Query().Get("path")]
			if !ok {
				w.WriteHeader(404)
				return
			}
			head(w, st)
		}),
		"PUT /containers/c/archive": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			put = append(put, "into "+r.URL.Query().Get("path"))
			tr := tar.NewReader(r.Body)
			for {
				h, err := tr.Next()
				if err != nil {
					if !errors.Is(err, io.EOF) {
						t.Error(err)
					}
					return
				}
				put = append(put, strings.TrimSpace(h.Name+" "+h.Linkname))
			}
		}),
	})
	return f, &put
}

// treeOf lists the files below dir with their modes.
func treeOf(t *testing.T, dir string) []string {
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		if rel != "." {
			if st, err := d.Info(); err == nil {
				out = append(out, rel+" "+st.Mode().String())
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The destination of a copy from a container has the names that docker gives it.
func TestCopyFromContainer(t *testing.T) {
	whole := []tarEntry{{"t/", "", "", tar.TypeDir}, {"t/f", "hi", "", tar.TypeReg}, {"t/h", "", "t/f", tar.TypeLink}, {"t/l", "", "f", tar.TypeSymlink}}
	contents := []tarEntry{{"./", "", "", tar.TypeDir}, {"./f", "hi", "", tar.TypeReg}}
	dir := pathStat{Name: "t", Mode: fs.ModeDir | 0o750}
	for _, c := range []struct {
		src, dst string
		list     []tarEntry
		want     []string
	}{
		{"c:/t", "new", whole, []string{"new drwxr-x---", "new/f -rw-r-----", "new/h -rw-r-----", "new/l Lrwxrwxrwx"}},
		{"c:/t", ".", whole, []string{"t drwxr-x---", "t/f -rw-r-----", "t/h -rw-r-----", "t/l Lrwxrwxrwx"}},
		{"c:/t/.", "new", contents, []string{"new drwxr-x---", "new/f -rw-r-----"}},
		{"c:/t/.", ".", contents, []string{"f -rw-r-----"}},
	} {
		work := t.TempDir()
		t.Chdir(work)
		f, _ := archiveEngine(t, archiveOf(t, c.list...), dir, nil)
		if r := f.run("", "cp", c.src, c.dst); r.code != 0 {
			t.Errorf("cp %s %s: %+v", c.src, c.dst, r)
		}
		if got := treeOf(t, work); !slices.Equal(got, c.want) {
			t.Errorf("cp %s %s: %q, want %q", c.src, c.dst, got, c.want)
		}
	}
}

// Names in the stream that lead out of the destination are refused, and nothing is written outside of it.
func TestCopyStaysInside(t *testing.T) {
	for name, list := range map[string][]tarEntry{
		"dots":        {{"t/", "", "", tar.TypeDir}, {"t/../../out", "x", "", tar.TypeReg}, {"../out", "x", "", tar.TypeReg}},
		"through":     {{"t/", "", "", tar.TypeDir}, {"t/l", "", "../..", tar.TypeSymlink}, {"t/l/out", "x", "", tar.TypeReg}},
		"absolute":    {{"t/", "", "", tar.TypeDir}, {"t/l", "", "/", tar.TypeSymlink}, {"t/l/out", "x", "", tar.TypeReg}},
		"hard link":   {{"t/", "", "", tar.TypeDir}, {"t/h", "", "../../secret", tar.TypeLink}},
		"device":      {{"t/", "", "", tar.TypeDir}, {"t/dev", "", "", tar.TypeChar}},
		"over a dir":  {{"t/", "", "", tar.TypeDir}, {"t/d/", "", "", tar.TypeDir}, {"t/d", "x", "", tar.TypeReg}},
		"dir on file": {{"t/", "", "", tar.TypeDir}, {"t/d", "x", "", tar.TypeReg}, {"t/d/", "", "", tar.TypeDir}},
	} {
		top := t.TempDir()
		os.WriteFile(filepath.Join(top, "secret"), []byte("s"), 0o600)
		os.MkdirAll(filepath.Join(top, "a"), 0o755)
		t.Chdir(filepath.Join(top, "a"))
		f, _ := archiveEngine(t, archiveOf(t, list...), pathStat{Name: "t", Mode: fs.ModeDir}, nil)
		r := f.run("", "cp", "c:/t", "new")
		if r.code == 0 || !strings.Contains(r.err, "archive entry") {
			t.Errorf("%s: %+v", name, r)
		}
		if got, _ := filepath.Glob(filepath.Join(top, "*")); len(got) != 2 {
			t.Errorf("%s: wrote outside: %q", name, got)
		}
		if _, err := os.Stat("/out"); err == nil {
			t.Errorf("%s: wrote to the root", name)
		}
	}
}

// A copy to a container sends the names that docker sends, and refuses what docker refuses.
func TestCopyToContainer(t *testing.T) {
	work := t.TempDir()
	t.Chdir(work)
	os.MkdirAll("src/sub", 0o755)
	os.WriteFile("src/a", []byte("a"), 0o644)
	os.Link("src/a", "src/b")
	os.Symlink("a", "src/l")
	stats := map[string]pathStat{"/ex": {Name: "ex", Mode: fs.ModeDir}, "/file": {Name: "file"}, "/link": {Name: "link", Mode: fs.ModeSymlink, LinkTarget: "ex"}}
	for _, c := range []struct {
		src, dst string
		want     []string
		err      string
	}{
		{"src", "c:/new", []string{"into /", "new/", "new/a", "new/b new/a", "new/l a", "new/sub/"}, ""},
		{"src", "c:/ex", []string{"into /ex", "src/", "src/a", "src/b src/a", "src/l a", "src/sub/"}, ""},
		{"src/.", "c:/ex", []string{"into /ex", "./", "a", "b a", "l a", "sub/"}, ""},
		{"src/a", "c:/link", []string{"into /ex", "a"}, ""},
		{"src/a", "c:/file", []string{"into /", "file"}, ""},
		{"src/l", "c:/ex", []string{"into /ex", "l a"}, ""},
		{"src", "c:/file", nil, "cannot copy directory"},
		{"src/a", "c:/none/", nil, "no such directory"},
		{"src/a/", "c:/ex", nil, "not a directory"},
		{"none", "c:/ex", nil, "no such file"},
		{"-", "c:/file", nil, "must be a directory"},
	} {
		f, put := archiveEngine(t, nil, pathStat{}, stats)
		r := f.run("", "cp", c.src, c.dst)
		if c.err != "" {
			if r.code == 0 || !strings.Contains(r.err, c.err) || len(*put) > 0 {
				t.Errorf("cp %s %s: %+v %q, want %s", c.src, c.dst, r, *put, c.err)
			}
			continue
		}
		if r.code != 0 || !slices.Equal(*put, c.want) {
			t.Errorf("cp %s %s: %+v, sent %q, want %q", c.src, c.dst, r, *put, c.want)
		}
	}
}
