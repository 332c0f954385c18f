package volume

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/rootfs"
	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/errs"
	"ply/internal/store/meta"
)

// packing returns a service that can export and import.
func packing(t *testing.T, f *faultfs.FS) Contents {
	t.Helper()
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		t.Setenv("TMPDIR", "/dev/shm") // what is shown is the order of operations, and memory does not wait for the disk
	}
	s, _ := traced(t, f)
	s.opts.Pack, s.opts.Unpack = rootfs.Pack, rootfs.Unpack
	f.Under = withoutSyncFS{f.Under}
	return Contents{s}
}

// restarted returns what the next engine has.
func restarted(s Contents) (Contents, error) {
	next, err := New(s.opts)
	return Contents{next}, err
}

// withoutSyncFS does not wait for what all others write to the disk. The order of operations and their failures stay.
type withoutSyncFS struct{ durable.FS }

func (withoutSyncFS) SyncFS(string) error { return nil }

func mustCreate(t *testing.T, s Contents, name string) *Volume {
	t.Helper()
	v, err := s.Create(ctx, name, "", map[string]string{"l": name}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// full makes a volume with a file, a directory, a second name, a link and attributes of its own.
func full(t *testing.T, s Contents, name string) *Volume {
	t.Helper()
	v := mustCreate(t, s, name)
	at := func(n string) string { return filepath.Join(v.Mountpoint, n) }
	old := time.Unix(1e9, 5000)
	err := errors.Join(os.Mkdir(at("d"), 0o750), os.WriteFile(at("d/f"), []byte("content"), 0o640), os.Chown(at("d/f"), 70, 71), os.Chmod(at("d/f"), 0o4750),
		os.Link(at("d/f"), at("second")), os.Symlink("d/f", at("link")), unix.Mkfifo(at("fifo"), 0o600),
		unix.Setxattr(at("d/f"), "trusted.test", []byte("value"), 0), os.Chtimes(at("d/f"), old, old), os.Chtimes(at("d"), old, old),
		os.Chown(v.Mountpoint, 70, 70), os.Chmod(v.Mountpoint, 0o700), os.Chtimes(v.Mountpoint, old, old))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// describe returns one line per file below dir: kind, mode, owner, links, time, xattr, content.
func describe(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d %d", strings.TrimPrefix(path, dir), st.Mode, st.Uid, st.Gid, st.Nlink)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			x := make([]byte, 100)
			n, _ := unix.Getxattr(path, "trusted.test", x)
			line += fmt.Sprintf(" %d.%d %q %q", st.Mtim.Sec, st.Mtim.Nsec, b, x[:max(n, 0)])
		case unix.S_IFDIR:
			line += fmt.Sprintf(" %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " " + to
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

// What was exported is there again after an import, into a new volume and into one that is empty; a copy has it too. All have the owners,
// modes, times, extended attributes, links and the attributes of the volume's directory.
func TestExportImportCopy(t *testing.T) {
	s := packing(t, &faultfs.FS{})
	v := full(t, s, "vol")
	want := describe(t, v.Mountpoint)
	var stream bytes.Buffer
	if err := s.Export(ctx, "vol", &stream); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, s, "empty")
	for _, name := range []string{"new", "empty"} {
		if _, err := s.Import(ctx, name, bytes.NewReader(stream.Bytes())); err != nil {
			t.Fatal(err)
		}
	}
	c, err := s.Copy(ctx, "vol", "copy")
	if err != nil {
		t.Fatal(err)
	}
	if c.Labels["l"] != "vol" || c.Anonymous || c.RefCount != 0 {
		t.Errorf("the copy is %+v", c)
	}
	for _, name := range []string{"vol", "new", "empty", "copy"} {
		v, err := s.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(t, v.Mountpoint); got != want {
			t.Errorf("%s has\n%s\nwant\n%s", name, got, want)
		}
		if v.RefCount != 0 {
			t.Errorf("%s is still in use by %v", name, s.users(name))
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(v.Mountpoint), "record.json")); err != nil {
			t.Errorf("%s has no copy of its record: %v", name, err)
		}
	}
	noLeftovers(t, s, 4)
}

// noLeftovers checks that the root has the directories of n volumes, and nothing else but empty ones.
func noLeftovers(t *testing.T, s Contents, n int) {
	t.Helper()
	entries, err := os.ReadDir(s.opts.Root)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		switch {
		case e.Name() == removingDir || e.Name() == renamingDir:
			if left, err := os.ReadDir(filepath.Join(s.opts.Root, e.Name())); err != nil || len(left) > 0 {
				t.Errorf("left in %s: %v, %v", e.Name(), left, err)
			}
		default:
			names = append(names, e.Name())
		}
	}
	if len(names) != n {
		t.Errorf("the root has %v, want %d volumes", names, n)
	}
}

// A volume that somebody has, or that has content, is not filled; a name that is taken is not copied or renamed to.
func TestRefusals(t *testing.T) {
	s := packing(t, &faultfs.FS{})
	full(t, s, "full")
	mustCreate(t, s, "used")
	mustCreate(t, s, "idle")
	if _, err := s.Create(ctx, "device", "", nil, map[string]string{"type": "tmpfs", "device": "tmpfs"}); err != nil {
		t.Fatal(err)
	}
	s.AddReferences(c1, "used")
	none := func() io.Reader { return bytes.NewReader(make([]byte, 1024)) }
	imp := func(name string) error { _, err := s.Import(ctx, name, none()); return err }
	cp := func(from, to string) error { _, err := s.Copy(ctx, from, to); return err }
	wantErr(t, imp("full"), errs.Conflict, "import full: volume is not empty")
	wantErr(t, imp("used"), errs.Conflict, "import used: volume is in use - [c1]")
	wantErr(t, imp("device"), errs.Invalid, "on a device (tmpfs)")
	wantErr(t, imp("a/b"), errs.Invalid, "invalid characters")
	wantErr(t, cp("full", "idle"), errs.Conflict, "copy: a volume named idle already exists")
	wantErr(t, cp("absent", "x1"), errs.NotFound, "no such volume")
	wantErr(t, cp("full", "../x"), errs.Invalid, "invalid characters")
	wantErr(t, s.Rename(ctx, "used", "other"), errs.Conflict, "rename used: volume is in use - [c1]")
	wantErr(t, s.Rename(ctx, "full", "idle"), errs.Conflict, "rename full: a volume named idle already exists")
	wantErr(t, s.Rename(ctx, "full", "full"), errs.Invalid, "has that name")
	wantErr(t, s.Rename(ctx, "full", "."), errs.Invalid, "too short")
	wantErr(t, s.Rename(ctx, "absent", "other"), errs.NotFound, "no such volume")
	wantErr(t, s.Export(ctx, "absent", io.Discard), errs.NotFound, "no such volume")
	s.AddReferences(c2, AnyVolume)
	wantErr(t, s.Rename(ctx, "full", "other"), errs.Conflict, "it may use the volume")
	s.DropReferences(c2)
	if err := os.Mkdir(filepath.Join(s.opts.Root, "orphan"), 0o700); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Rename(ctx, "full", "orphan"), errs.Conflict, "is there without a record")
	wantErr(t, cp("full", "orphan"), errs.Conflict, "is there without a record")
	noLeftovers(t, s, 5)
}

// A volume that is being exported is not removed or renamed.
func TestExportKeepsTheVolume(t *testing.T) {
	s := packing(t, &faultfs.FS{})
	full(t, s, "vol")
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := s.Export(ctx, "vol", w)
		w.CloseWithError(err)
		ended <- err
	}()
	first := make([]byte, 512)
	if _, err := io.ReadFull(r, first); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Remove(ctx, "vol", false), errs.Conflict, "in use")
	wantErr(t, s.Rename(ctx, "vol", "other"), errs.Conflict, "in use")
	rest, err := io.ReadAll(r)
	if err := errors.Join(err, <-ended); err != nil {
		t.Fatal(err)
	}
	var names []string
	for tr := tar.NewReader(bytes.NewReader(append(first, rest...))); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if want := []string{"./", "./d/", "./d/f", "./fifo", "./link", "./second"}; !slices.Equal(names, want) {
		t.Errorf("exported %v, want %v", names, want)
	}
	if err := s.Remove(ctx, "vol", false); err != nil {
		t.Error(err)
	}
}

// paxHeader returns a header of a stream that says more about the entry after it.
func paxHeader(t *testing.T, records ...string) []byte {
	t.Helper()
	var body string
	for _, r := range records {
		n := len(r) + 3
		n += len(strconv.Itoa(n + 1))
		body += fmt.Sprintf("%d %s\n", n-1, r)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "more", Typeflag: tar.TypeReg, Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, body); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	block := b.Bytes()
	block[156] = 'x'
	copy(block[148:156], "        ")
	sum := 0
	for _, c := range block[:512] {
		sum += int(c)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return block
}

// A hostile or broken stream leaves nothing, in a new volume and in an empty one, and writes nothing outside of it.
func TestHostileImports(t *testing.T) {
	s := packing(t, &faultfs.FS{})
	outside := filepath.Join(t.TempDir(), "outside")
	entry := func(hs ...tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range hs {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	good := tar.Header{Name: "./first", Typeflag: tar.TypeReg, Mode: 0o600}
	for what, stream := range map[string][]byte{
		"no tar":               []byte(strings.Repeat("no tar at all ", 100)),
		"a name above":         entry(good, tar.Header{Name: "../../outside", Typeflag: tar.TypeReg}),
		"a hard link above":    entry(good, tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "../../../outside"}),
		"a cut stream":         entry(good, tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: 4096}),
		"a file of an exabyte": entry(good, tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: 1 << 60}),
		"a sparse exabyte":     append(paxHeader(t, "GNU.sparse.size=1152921504606846976", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,0"), entry(good)...),
		"an owner below zero":  entry(good, tar.Header{Name: "x", Typeflag: tar.TypeReg, Uid: -5, Format: tar.FormatGNU}),
		"an unknown type":      entry(good, tar.Header{Name: "x", Typeflag: 'Z'}),
	} {
		mustCreate(t, s, "empty")
		for _, name := range []string{"new", "empty"} {
			if _, err := s.Import(ctx, name, bytes.NewReader(stream)); err == nil {
				t.Errorf("%s into %s: accepted", what, name)
			}
		}
		if _, err := s.Get(ctx, "new"); !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: the new volume: %v", what, err)
		}
		if left, err := os.ReadDir(s.path("empty")); err != nil || len(left) > 0 {
			t.Errorf("%s: the empty volume has %v, %v", what, left, err)
		}
		noLeftovers(t, s, 1)
	}
	// A link in the stream leads nowhere, even when a later name goes through it.
	if _, err := s.Import(ctx, "linked", bytes.NewReader(entry(tar.Header{Name: "out", Typeflag: tar.TypeSymlink, Linkname: filepath.Dir(outside)}, tar.Header{Name: "out/outside", Typeflag: tar.TypeReg}))); err == nil {
		t.Log("the name was made inside the volume")
	}
	if _, err := os.Lstat(outside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file outside the volume: %v", err)
	}
}

// An import, a copy or a rename that fails at any disk operation leaves the source as it was and the target not there or whole, at once and
// after the next start.
func TestFillAndRenameFailAtEveryOperation(t *testing.T) {
	var stream bytes.Buffer
	{
		s := packing(t, &faultfs.FS{})
		full(t, s, "vol")
		if err := s.Export(ctx, "vol", &stream); err != nil {
			t.Fatal(err)
		}
	}
	for what, do := range map[string]func(Contents) error{
		"import": func(s Contents) error {
			_, err := s.Import(ctx, "target", bytes.NewReader(stream.Bytes()))
			return err
		},
		"copy":   func(s Contents) error { _, err := s.Copy(ctx, "vol", "target"); return err },
		"rename": func(s Contents) error { return s.Rename(ctx, "vol", "target") },
	} {
		for _, forever := range []bool{false, true} {
			for n := 1; ; n++ {
				f := &faultfs.FS{Forever: forever}
				s := packing(t, f)
				want := describe(t, full(t, s, "vol").Mountpoint)
				f.FailAt = f.Count() + n
				err := do(s)
				hit := f.Hit()
				f.FailAt = 0
				if !hit && err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				again, newErr := restarted(s)
				if newErr != nil {
					t.Fatal(newErr)
				}
				whole := 0
				for _, name := range []string{"vol", "target"} {
					v, err := again.Get(ctx, name)
					if errors.Is(err, errs.NotFound) {
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					whole++
					if got := describe(t, v.Mountpoint); got != want {
						t.Errorf("%s, operation %d (and all later ones: %v) failed with %v: %s has\n%s", what, n, forever, err, name, got)
					}
				}
				target := again.free("look", "target") != nil
				switch {
				case what == "rename" && whole != 1, what != "rename" && again.free("look", "vol") == nil:
					t.Errorf("%s, operation %d (and all later ones: %v) failed with %v: %d volumes, target: %v", what, n, forever, err, whole, target)
				case err == nil && !target:
					t.Errorf("%s, operation %d: no error, and no target", what, n)
				}
				noLeftovers(t, again, whole)
				if !hit {
					if n < 8 {
						t.Errorf("%s takes %d operations only", what, n-1)
					}
					break
				}
			}
		}
	}
}

// An engine that ends while a volume is renamed, before or after its record changed, finds it under the name of the record.
func TestInterruptedRename(t *testing.T) {
	for _, changed := range []bool{false, true} {
		s := packing(t, &faultfs.FS{})
		want := describe(t, full(t, s, "vol").Mountpoint)
		db := s.opts.Store.Meta
		m := renaming{trash{durable.OS, db, s.opts.Root}, "vol", "target"}
		if err := m.begin(); err != nil {
			t.Fatal(err)
		}
		name, gone := "vol", "target"
		if changed {
			name, gone = gone, name
			err := db.Update(func(tx *meta.Tx) error {
				rec, err := tx.Volumes.Get("vol")
				return errors.Join(err, tx.Volumes.Delete("vol"), tx.Volumes.Put("target", rec))
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		s, err := restarted(s)
		if err != nil {
			t.Fatal(err)
		}
		v, err := s.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(t, v.Mountpoint); got != want {
			t.Errorf("%s has\n%s\nwant\n%s", name, got, want)
		}
		if _, err := s.Get(ctx, gone); !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: %v", gone, err)
		}
		noLeftovers(t, s, 1)
	}
}

// A tree that is deeper than any path is refused, not followed until no descriptor is left.
func TestCopyOfATreeThatIsTooDeep(t *testing.T) {
	s := packing(t, &faultfs.FS{})
	v := mustCreate(t, s, "deep")
	at, err := os.Open(v.Mountpoint)
	if err != nil {
		t.Fatal(err)
	}
	for range 2100 {
		if err := unix.Mkdirat(int(at.Fd()), "d", 0o700); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Openat(int(at.Fd()), "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = at.Close()
		at = os.NewFile(uintptr(fd), "d")
	}
	_ = at.Close()
	_, err = s.Copy(ctx, "deep", "copy")
	wantErr(t, err, errs.Invalid, "path is longer")
	if len(err.Error()) > 1000 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
	noLeftovers(t, s, 1)
	if err := s.Remove(ctx, "deep", false); err != nil {
		t.Error(err)
	}
}
