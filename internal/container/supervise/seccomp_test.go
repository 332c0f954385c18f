package supervise_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/container/shim"
)

// The second container of a profile, and its execs, load the program that was compiled for the first. Another profile has
// another program, a damaged program is not used, and the user's program cannot see the memory file.
func TestSeccompProgramsAreCached(t *testing.T) {
	const probe = `grep Seccomp: /proc/self/status; for f in 3 4 5 6 7 8 9; do [ -e /proc/self/fd/$f ] && readlink /proc/self/fd/$f | grep memfd; done; ` +
		`unshare -U true 2>/dev/null || echo no userns; mkdir /made 2>/dev/null || echo no mkdir; echo end`
	const noMkdir = `seccomp={"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat","unshare"],"action":"SCMP_ACT_ERRNO"}]}`
	first := sh(t, probe)
	dir := first.cfg.StateDir + "-seccomp"
	run := func(security ...string) string {
		t.Helper()
		b := sh(t, probe)
		b.cfg.StateDir = first.cfg.StateDir
		b.in.Spec.SecurityOpt = security
		b.launch().start()
		b.wait()
		return b.output()
	}
	names := func() (out []string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return out
	}
	const confined = "Seccomp:\t2\nno userns\nend\n"
	if out := run(); out != confined {
		t.Fatalf("first: %q", out)
	}
	kept := names()
	if len(kept) != 1 {
		t.Fatalf("kept %q", kept)
	}
	file := filepath.Join(dir, kept[0])
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if out := run(); out != confined {
		t.Errorf("second: %q", out)
	}
	for range 2 {
		if out := run(noMkdir); out != "Seccomp:\t2\nno userns\nno mkdir\nend\n" {
			t.Errorf("other profile: %q", out)
		}
	}
	if n := len(names()); n != 2 {
		t.Errorf("%d programs of 2 profiles", n)
	}
	if err := os.WriteFile(file, bytes.Repeat([]byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f}, 20), 0o600); err != nil { // a program that allows everything
		t.Fatal(err)
	}
	if out := run(); out != confined {
		t.Errorf("with a damaged program: %q", out)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the damaged program was not replaced, %v", err)
	}

	b := sh(t, "sleep 100")
	b.cfg.StateDir = first.cfg.StateDir
	b.launch().start()
	p := execProcess(b, "/bin/sh", "-c", probe)
	if err := b.c.Exec(t.Context(), "x", p, shim.ExecOptions{}); err != nil {
		t.Fatal(err)
	}
	s := b.attach("x", shim.AttachArgs{Stdout: true})
	if err := b.c.Start(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	out, _, err := collect(s)
	if err != nil || !strings.HasPrefix(out, "Seccomp:\t2\nno userns\n") {
		t.Errorf("exec: %q, %v", out, err)
	}
	// A cache directory that other users can write to is not used.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("bad"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run(); out != confined {
		t.Errorf("with a cache that everyone can write to: %q", out)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != "bad" {
		t.Errorf("a cache that everyone can write to was used, %v", err)
	}
}
