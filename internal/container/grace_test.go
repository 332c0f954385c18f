package container

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// The move that is made ahead of a start leaves plyd in its cgroup.
func TestExpectedMoveChangesNothing(t *testing.T) {
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skip(err)
	}
	var m cgroupMoves
	if m.find() == "" {
		t.Skip("the cgroup of this process is not below /sys/fs/cgroup")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*moveEvery)
	defer cancel()
	m.expect(ctx)
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(after) != string(before) {
		t.Errorf("the process was moved: %q, %v; before %q", after, err, before)
	}
}

// Only a cgroup that contains this process is taken, whatever the list says.
func TestOwnProcs(t *testing.T) {
	root := t.TempDir()
	put := func(dir, content string) {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, "cgroup.procs"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	me := os.Getpid()
	put("memory/a", fmt.Sprintf("1\n%d1\n2%d\n", me, me)) // only numbers that contain ours
	put("systemd/b", fmt.Sprintf("1\n%d\n", me))
	put("unified/c", fmt.Sprintf("%d\n", me))
	put("d", fmt.Sprintf("%d\n7\n", me))
	for _, c := range []struct{ list, want string }{
		{"3:memory:/a\n1:name=systemd:/b\n", "systemd/b"},
		{"3:memory:/a\n", ""},
		{"0::/c\n", "unified/c"},
		{"0::/d\n", "d"},
		{"0::/absent\n", ""},
		{"broken\n\n0:/d\n", ""},
		{"", ""},
	} {
		want := ""
		if c.want != "" {
			want = filepath.Join(root, c.want, "cgroup.procs")
		}
		if got := ownProcs(c.list, root); got != want {
			t.Errorf("ownProcs(%q) = %q, want %q", c.list, got, want)
		}
	}
}
