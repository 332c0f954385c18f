// Package seccomp caches compiled seccomp programs. libseccomp needs about 10 ms of processor time to compile docker's
// profile, and without the cache every container and every exec would spend it.
//
// The compiler runs in libcontainer's init, inside the container. The shim passes init a memory file as descriptor 3
// (Descriptor). If the file holds a program, init loads it in place of what libseccomp would produce. If the file is
// empty, init writes a copy of the compiled program to it. libcontainer does everything else as usual: it reads and checks
// the profile, patches the program and loads it. The cache key is a digest of the whole profile, this binary,
// libseccomp's version and the boot of the machine.
//
// Invariants: a cached program was compiled from exactly this profile; a cache directory that another user can write to
// is not used; the memory file is closed before a program of the container runs; when anything is missing or damaged,
// libseccomp compiles the profile.
package seccomp

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/procid"
)

// Descriptor is the number under which init finds its memory file: the first of libcontainer's extra files.
const Descriptor = 3

const (
	maxProgram = 4096 * 8 // bytes: BPF_MAXINSNS instructions
	maxKept    = 64       // cached programs; when the cache is full, it is emptied

	sealedProgram = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	sealedEmpty   = unix.F_SEAL_SHRINK
)

// Program is the compiled form of one profile, or the cache entry that will receive it. Its methods are not safe for
// concurrent use.
type Program struct {
	dir, name string
	file      *os.File // sealed memory file with the program; nil until there is one
}

// Find looks up the program of a profile in the cache directory dir. The parent of dir must exist; profile is libcontainer's JSON.
// It returns nil where programs cannot be cached; the methods of a nil *Program do nothing.
func Find(dir string, profile []byte) *Program {
	if !replaceable || !private(dir) {
		return nil
	}
	name, err := key(profile)
	if err != nil {
		return nil
	}
	p := &Program{dir: dir, name: name}
	data, err := durable.ReadFile(durable.OS, filepath.Join(dir, name), sha256.Size+maxProgram)
	if err != nil || len(data) < sha256.Size {
		return p
	}
	sum, program := data[:sha256.Size], data[sha256.Size:]
	if want := sha256.Sum256(program); bytes.Equal(sum, want[:]) && whole(program) {
		p.file, _ = memory(program, sealedProgram) // on an error libseccomp compiles
	}
	return p
}

// whole reports whether the length of a program is that of a list of instructions that the kernel would take.
func whole(program []byte) bool {
	return len(program) > 0 && len(program) <= maxProgram && len(program)%8 == 0
}

// Files returns the extra files to pass to init. The caller calls done when init has loaded its profile, or has
// failed to (ok is false), and before any program of the container runs.
func (p *Program) Files() (files []*os.File, done func(ok bool)) {
	if p == nil {
		return nil, func(bool) {}
	}
	if p.file != nil {
		return []*os.File{p.file}, func(bool) {}
	}
	empty, err := memory(nil, sealedEmpty)
	if err != nil {
		return nil, func(bool) {}
	}
	return []*os.File{empty}, func(ok bool) {
		defer empty.Close() // only memory
		if ok {
			p.keep(empty)
		}
	}
}

// keep stores the program that init wrote to from. After a failure the next container compiles again.
func (p *Program) keep(from *os.File) {
	program, err := io.ReadAll(io.NewSectionReader(from, 0, maxProgram+1))
	if err != nil || !whole(program) {
		return
	}
	if p.file, err = memory(program, sealedProgram); err != nil {
		return
	}
	if entries, err := os.ReadDir(p.dir); err != nil || len(entries) >= maxKept && os.RemoveAll(p.dir) == nil && !private(p.dir) {
		return
	}
	// The file is not synced: its name contains the boot ID, so no later boot looks it up.
	tmp := durable.TempName(p.dir)
	sum := sha256.Sum256(program)
	if err := os.WriteFile(tmp, append(sum[:], program...), 0o600); err != nil {
		_ = os.Remove(tmp)
		return
	}
	if err := os.Rename(tmp, filepath.Join(p.dir, p.name)); err != nil {
		_ = os.Remove(tmp)
	}
}

// private creates dir if it is missing, and reports whether it belongs to this user and no other user can write to it.
func private(dir string) bool {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return false
	}
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&0o022 == 0 && int(st.Uid) == os.Geteuid()
}

// key returns a digest of everything that a compiled program depends on.
func key(profile []byte) (string, error) {
	boot, err := procid.Boot()
	if err != nil {
		return "", err
	}
	var exe unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &exe); err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00", library(), boot)
	fmt.Fprintf(h, "%d %d %d %d %d\x00", exe.Dev, exe.Ino, exe.Size, exe.Mtim.Nano(), exe.Ctim.Nano())
	h.Write(profile)
	return hex.EncodeToString(h.Sum(nil)), nil
}

// memory creates a memory file that holds data and adds seals to it.
func memory(data []byte, seals int) (*os.File, error) {
	fd, err := unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "seccomp")
	_, err = f.Write(data)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
