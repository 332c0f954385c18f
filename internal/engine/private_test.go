package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/store/layer/drivers"
)

// asNobody runs a program as a user of the host without any privilege.
func asNobody(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd.Run()
}

// A container can write a program with the set-user-ID bit of root into its volume. No user of the host can run it or see it, in a
// new data root and in one that was made with wider permissions. A container's user still can, because the volume is mounted.
func TestUsersOfTheHostCannotReachVolumes(t *testing.T) {
	for _, driver := range drivers.Names() {
		for _, was := range []os.FileMode{0, 0o711, 0o755} {
			t.Run(driver+"/"+was.String(), func(t *testing.T) {
				opts := newOptions(t, driver)
				if err := os.Chmod(filepath.Dir(opts.Config.DataRoot), 0o755); err != nil {
					t.Fatal(err)
				}
				wide := []string{"", "layers", "layers/sha256", "volumes", "containers"}
				if was != 0 {
					for _, d := range wide {
						if err := os.Mkdir(filepath.Join(opts.Config.DataRoot, d), was); err != nil {
							t.Fatal(err)
						}
					}
				}
				e := mustOpen(t, opts)
				v, err := e.Volumes.Create(t.Context(), "vol", "", nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				program := filepath.Join(v.Mountpoint, "program")
				if out, err := exec.Command("cp", "-L", "/bin/true", program).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				if err := os.Chmod(program, 0o755|os.ModeSetuid); err != nil {
					t.Fatal(err)
				}
				if asNobody(program) == nil {
					t.Error("a user of the host ran a program of a volume")
				}
				if asNobody("/usr/bin/stat", program) == nil {
					t.Error("a user of the host sees a file of a volume")
				}
				for _, d := range []string{"", "volumes", "layers", "containers"} {
					fi, err := os.Stat(filepath.Join(opts.Config.DataRoot, d))
					if err != nil || fi.Mode().Perm() != 0o700 {
						t.Errorf("%q has mode %v, want 0700: %v", d, fi.Mode(), err)
					}
				}
				mounted := filepath.Join(filepath.Dir(opts.Config.DataRoot), "mounted")
				if err := os.Mkdir(mounted, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := unix.Mount(v.Mountpoint, mounted, "", unix.MS_BIND, ""); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := unix.Unmount(mounted, unix.MNT_DETACH); err != nil {
						t.Error(err)
					}
				})
				if err := asNobody(filepath.Join(mounted, "program")); err != nil {
					t.Errorf("a user to whom the volume is mounted cannot run its program: %v", err)
				}
			})
		}
	}
}
