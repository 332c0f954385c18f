package tree

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// coarse mounts a file system whose times have whole seconds.
func coarse(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "at")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 8<<20), os.Mkdir(at, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", "-I", "128", "-O", "^has_journal", image}, {"mount", "-o", "loop", image, at}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return at
}

// A file that changes after it was read, while its file system still gives it the same times, is read again: rewritten in place, in place with its time set back, and as
// a new file that gets the inode of the old one.
func TestDigestsOfCoarseTimes(t *testing.T) {
	dir := coarse(t)
	p := filepath.Join(dir, "f")
	old := time.Unix(1_500_000_000, 0)
	write := func(text string) error {
		return errors.Join(os.WriteFile(p, []byte(text), 0o644), os.Chtimes(p, old, old))
	}
	for _, c := range []struct {
		what   string
		change func() error
	}{
		{"in place", func() error { return os.WriteFile(p, []byte("2"), 0o644) }},
		{"in place, with the old time", func() error { return write("2") }},
		{"another file with the same inode", func() error { return errors.Join(os.Remove(p), write("2")) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			root, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			same := 0
			for deadline := time.Now().Add(time.Minute); same < 2 && time.Now().Before(deadline); {
				// A memory that has no other file, in the beginning of a second.
				tr, err := New(root, Options{Digests: NewDigests()})
				if err != nil {
					t.Fatal(err)
				}
				if now := time.Now(); now.Nanosecond() > 2e8 {
					time.Sleep(time.Until(now.Truncate(time.Second).Add(time.Second + 20*time.Millisecond)))
				}
				if err := os.WriteFile(p, []byte("1"), 0o644); err != nil {
					t.Fatal(err)
				}
				if c.what != "in place" {
					if err := os.Chtimes(p, old, old); err != nil {
						t.Fatal(err)
					}
				}
				var before, after unix.Stat_t
				err = unix.Stat(p, &before)
				first := digest(t, tr, Selection{Src: "f"})
				if err := errors.Join(err, c.change(), unix.Stat(p, &after)); err != nil {
					t.Fatal(err)
				}
				if digest(t, tr, Selection{Src: "f"}) == first {
					t.Fatal("the digest of the old content was used")
				}
				if before.Ino == after.Ino && before.Size == after.Size && before.Mtim == after.Mtim && before.Ctim == after.Ctim {
					same++
				}
			}
			if same == 0 {
				t.Error("the times of the file never stayed the same, so nothing was shown")
			}
		})
	}
}

// What was examined is remembered when no later change could have left the times as they are, also when the clock goes backwards.
func TestDigestsRememberOldFiles(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Unix(1_700_000_000, 0).Add(d) }
	spec := func(t time.Time) unix.Timespec { return unix.NsecToTimespec(t.UnixNano()) }
	for _, c := range []struct {
		what              string
		read, mtime, ctim time.Duration
		remembered        bool
	}{
		{"at rest", 0, -time.Hour, -time.Hour, true},
		{"changed two seconds before", 0, -2 * time.Second, -2 * time.Second, true},
		{"changed just before", 0, -1999 * time.Millisecond, -1999 * time.Millisecond, false},
		{"attributes changed just before", 0, -time.Hour, -time.Second, false},
		{"changed while it was read", 0, 5 * time.Millisecond, 5 * time.Millisecond, false},
		{"time of the content in the future", 0, time.Hour, -time.Hour, false},
		{"clock set back by an hour", -time.Hour, -10 * time.Second, -10 * time.Second, false},
	} {
		d := NewDigests()
		st := unix.Stat_t{Dev: 1, Ino: 2, Size: 3, Mtim: spec(at(c.mtime)), Ctim: spec(at(c.ctim))}
		d.put(&st, at(c.read), [32]byte{1}, nil)
		if _, ok := d.get(&st); ok != c.remembered {
			t.Errorf("%s: remembered %v, want %v", c.what, ok, c.remembered)
		}
		for what, change := range map[string]func(*unix.Stat_t){
			"size": func(s *unix.Stat_t) { s.Size++ }, "inode": func(s *unix.Stat_t) { s.Ino++ }, "device": func(s *unix.Stat_t) { s.Dev++ },
			"time of the content": func(s *unix.Stat_t) { s.Mtim.Nsec++ }, "earlier time of the attributes": func(s *unix.Stat_t) { s.Ctim.Sec -= 5 },
		} {
			other := st
			change(&other)
			if _, ok := d.get(&other); ok {
				t.Errorf("%s: a file with another %s is taken for the one that was examined", c.what, what)
			}
		}
	}
}

// A file that changes while it is read is not remembered.
func TestDigestsOfFilesThatChangeMeanwhile(t *testing.T) {
	d := NewDigests()
	d.racy = -time.Hour
	tr, dir := newTree(t, Options{Digests: d}, "f = 1")
	p := filepath.Join(dir, "f")
	err := tr.Walk("f", WalkOptions{}, func(e *Entry) error {
		// It was examined; now it changes, and then it is read.
		var st unix.Stat_t
		for st.Ctim = e.Info.ctime; st.Ctim == e.Info.ctime; {
			if err := errors.Join(os.WriteFile(p, []byte("2"), 0o644), unix.Stat(p, &st)); err != nil {
				return err
			}
		}
		_, err := e.content()
		return err
	})
	if err != nil || d.size() != 0 {
		t.Errorf("%d files are remembered, %v", d.size(), err)
	}
}
