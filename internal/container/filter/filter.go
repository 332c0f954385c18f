// Package filter remembers compiled seccomp filters: libseccomp takes about 10 ms of processor time to compile docker's
// profile, which every container and every exec would pay.
//
// The compiler runs in libcontainer's init, inside the container. Its caller hands it a memory file as descriptor 3
// (Descriptor): with a program in it, which replaces what libseccomp would make, or empty, to get a copy of what it
// makes. Everything else is libcontainer's and happens as ever: the profile is read and checked, the program is
// patched and loaded. A program is found by a digest of the whole profile, of this binary, of libseccomp and of this boot of the machine.
//
// Invariants: a program that is found was made for exactly this profile; a directory that is not its owner's alone is not
// used; the file is closed to a program before it runs; when anything is missing, libseccomp compiles.
package filter

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

// Descriptor is where init finds its memory file: the first of libcontainer's extra files.
const Descriptor = 3

const (
	maxProgram = 4096 * 8 // BPF_MAXINSNS instructions
	maxKept    = 64       // profiles; with one more it starts over

	sealedProgram = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	sealedEmpty   = unix.F_SEAL_SHRINK
)

// Filter is the compiled form of one profile, or the promise of one. Its methods are not safe for concurrent use.
type Filter struct {
	dir, name string
	file      *os.File // sealed, with the program; nil when there is none yet
}

// Find looks in dir, whose parent exists, for the program of a profile, which is given as libcontainer's JSON. A nil
// *Filter, which has no file, is for what cannot be remembered.
func Find(dir string, profile []byte) *Filter {
	if !replaceable || !private(dir) {
		return nil
	}
	name, err := key(profile)
	if err != nil {
		return nil
	}
	f := &Filter{dir: dir, name: name}
	data, err := durable.ReadFile(durable.OS, filepath.Join(dir, name), sha256.Size+maxProgram)
	if err != nil || len(data) < sha256.Size {
		return f
	}
	sum, program := data[:sha256.Size], data[sha256.Size:]
	if want := sha256.Sum256(program); bytes.Equal(sum, want[:]) && whole(program) {
		f.file, _ = memory(program, sealedProgram) // without it, libseccomp compiles
	}
	return f
}

// whole reports whether a program consists of instructions.
func whole(program []byte) bool {
	return len(program) > 0 && len(program) <= maxProgram && len(program)%8 == 0
}

// Files gives what to hand to init as its first extra file; the caller calls done when init has applied its
// profile, or has failed to (ok false), before anything of the container runs.
func (f *Filter) Files() (files []*os.File, done func(ok bool)) {
	if f == nil {
		return nil, func(bool) {}
	}
	if f.file != nil {
		return []*os.File{f.file}, func(bool) {}
	}
	empty, err := memory(nil, sealedEmpty)
	if err != nil {
		return nil, func(bool) {}
	}
	return []*os.File{empty}, func(ok bool) {
		defer empty.Close() // only memory
		if ok {
			f.keep(empty)
		}
	}
}

// keep remembers what init wrote. Failures only cost the next one its time.
func (f *Filter) keep(from *os.File) {
	program, err := io.ReadAll(io.NewSectionReader(from, 0, maxProgram+1))
	if err != nil || !whole(program) {
		return
	}
	if f.file, err = memory(program, sealedProgram); err != nil {
		return
	}
	if entries, err := os.ReadDir(f.dir); err != nil || len(entries) >= maxKept && os.RemoveAll(f.dir) == nil && !private(f.dir) {
		return
	}
	// Not durable: after a crash of the machine its name means nothing.
	tmp := durable.TempName(f.dir)
	sum := sha256.Sum256(program)
	if err := os.WriteFile(tmp, append(sum[:], program...), 0o600); err != nil {
		_ = os.Remove(tmp)
		return
	}
	if err := os.Rename(tmp, filepath.Join(f.dir, f.name)); err != nil {
		_ = os.Remove(tmp)
	}
}

// private makes dir, and reports whether nobody else can write to it.
func private(dir string) bool {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return false
	}
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&0o022 == 0 && int(st.Uid) == os.Geteuid()
}

// key names all that a compiled program depends on.
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

// memory makes a memory file with data and seals.
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
