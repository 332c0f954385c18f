package crashstate

import (
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	file = unix.S_IFREG | 0o644
	dir  = unix.S_IFDIR | 0o755
)

// begin returns a log of a directory that has the durable file "old".
func begin(t *testing.T) *Log {
	t.Helper()
	d := t.TempDir()
	if err := os.WriteFile(filepath.Join(d, "old"), []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Scan(d)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func do(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// outcomes returns every state that a crash after all operations can leave, as "name=content" of each file.
func outcomes(t *testing.T, l *Log) []string {
	t.Helper()
	seen := map[string]bool{}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		s := l.State(l.Len(), Random{r, []int{20, 50, 80}[i%3]})
		var all []string
		do(t, s.walk(func(path string, n *node) error {
			if !n.isDir() {
				all = append(all, path+"="+string(n.data))
			}
			return nil
		}))
		if text := strings.Join(all, " "); !seen[text] {
			seen[text] = true
			if got := written(t, s); got != text {
				t.Errorf("the state %q was written as %q", text, got)
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// written writes a state and reads it again.
func written(t *testing.T, s *State) string {
	t.Helper()
	at := filepath.Join(t.TempDir(), "state")
	do(t, s.Write(at))
	var all []string
	do(t, filepath.WalkDir(at, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(at, p)
		all = append(all, rel+"="+string(b))
		return err
	}))
	return strings.Join(all, " ")
}

func TestStates(t *testing.T) {
	for name, c := range map[string]struct {
		run  func(l *Log) error
		want []string
	}{
		"whole recipe": {func(l *Log) error {
			do(t, l.Make(".tmp", file, 0, ""), l.Write(".tmp", 0, []byte("after")))
			l.Sync(".tmp", l.Len())
			do(t, l.Rename(".tmp", "old", false))
			l.Sync(".", l.Len())
			return nil
		}, []string{"old=after"}},
		"file not synced": {func(l *Log) error {
			do(t, l.Make(".tmp", file, 0, ""), l.Write(".tmp", 0, []byte("after")), l.Rename(".tmp", "old", false))
			l.Sync(".", l.Len())
			return nil
		}, []string{"old=", "old=after"}},
		"directory not synced": {func(l *Log) error {
			do(t, l.Make(".tmp", file, 0, ""), l.Write(".tmp", 0, []byte("after")))
			l.Sync(".tmp", l.Len())
			return l.Rename(".tmp", "old", false)
		}, []string{".tmp=after old=before", "old=after", "old=before"}},
		"sync that began before the write": {func(l *Log) error {
			n := l.Len()
			do(t, l.Write("old", 0, []byte("B")))
			l.Sync("old", n)
			return nil
		}, []string{"old=Before", "old=before"}},
		"two writes": {func(l *Log) error {
			return join(l.Write("old", 0, []byte("X")), l.Write("old", 1, []byte("Y")))
		}, []string{"old=XYfore", "old=Xefore", "old=bYfore", "old=before"}},
		"two directories": {func(l *Log) error {
			do(t, l.Make("a", dir, 0, ""), l.Make("b", dir, 0, ""))
			l.Sync(".", l.Len())
			do(t, l.Make("a/f", file, 0, ""), l.Make("b/f", file, 0, ""))
			l.Sync("b", l.Len())
			return nil
		}, []string{"a/f= b/f= old=before", "b/f= old=before"}},
		"order in one directory": {func(l *Log) error {
			return join(l.Make("x", file, 0, ""), l.Make("y", file, 0, ""))
		}, []string{"old=before", "old=before x=", "old=before x= y="}},
		"moved, and only its new directory synced": {func(l *Log) error {
			do(t, l.Make("a", dir, 0, ""))
			l.Sync(".", l.Len())
			do(t, l.Rename("old", "a/old", false))
			l.Sync("a", l.Len())
			return nil
		}, []string{"a/old=before"}},
		"whole file system": {func(l *Log) error {
			do(t, l.Make("a", dir, 0, ""), l.Make("a/f", file, 0, ""), l.Write("a/f", 0, []byte("1")), l.Link("old", "a/old"))
			l.SyncAll(l.Len())
			return l.Remove("old")
		}, []string{"a/f=1 a/old=before", "a/f=1 a/old=before old=before"}},
		"exchanged": {func(l *Log) error {
			do(t, l.Make("a", file, 0, ""))
			l.Sync(".", l.Len())
			return l.Rename("a", "old", true)
		}, []string{"a= old=before", "a=before old="}},
		"truncated": {func(l *Log) error { return l.Truncate("old", 2) }, []string{"old=be", "old=before"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := begin(t)
			do(t, c.run(l))
			if got := outcomes(t, l); !slices.Equal(got, c.want) {
				t.Errorf("states %q, want %q", got, c.want)
			}
			for choice, want := range map[Choice]int{KeepAll: 0, LoseAll: len(l.State(l.Len(), LoseAll).lost)} {
				if lost := len(l.State(l.Len(), choice).lost); lost != want {
					t.Errorf("%v loses %d operations, want %d", choice, lost, want)
				}
			}
		})
	}
}

func join(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// A large write can be torn.
func TestTornWrite(t *testing.T) {
	l := begin(t)
	do(t, l.Make("f", file, 0, ""), l.Write("f", 0, []byte(strings.Repeat("x", 4096))))
	l.Sync(".", l.Len())
	sizes := map[int]bool{}
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		s := l.State(l.Len(), Random{r, 90})
		sizes[len(s.root.names["f"].data)] = true
	}
	if !sizes[0] || !sizes[4096] || !sizes[512] || len(sizes) != 9 {
		t.Errorf("sizes %v", sizes)
	}
}

// What was not recorded is found by Adopt.
func TestAdopt(t *testing.T) {
	d := t.TempDir()
	l, err := Scan(d)
	do(t, err, os.WriteFile(filepath.Join(d, "f"), []byte("12"), 0o640))
	if err := l.Adopt(d, func(string) bool { return false }); err == nil {
		t.Error("a file that was not recorded is not found")
	}
	do(t, l.Make("f", unix.S_IFREG|0o600, 0, ""), l.Write("f", 0, []byte("1")))
	if err := l.Adopt(d, func(string) bool { return false }); err == nil {
		t.Error("a write that was not recorded is not found")
	}
	do(t, l.Write("f", 1, []byte("2")), l.Adopt(d, func(string) bool { return false }))
	if mode := l.State(l.Len(), KeepAll).root.names["f"].mode; mode != unix.S_IFREG|0o640 {
		t.Errorf("mode %o", mode)
	}
	do(t, os.Remove(filepath.Join(d, "f")))
	if err := l.Adopt(d, func(string) bool { return false }); err == nil {
		t.Error("a removal that was not recorded is not found")
	}
	do(t, l.Adopt(d, func(path string) bool { return path == "f" }))
}
