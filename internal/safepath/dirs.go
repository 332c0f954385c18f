package safepath

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// maxOpenDirs is how many directories Dirs keeps open.
const maxOpenDirs = 32

// Dirs is a chain of directories, each inside the one before: the way from the top of a tree down to the directory that
// is being read. A tree may be nested deeper than a process may open files, so only the lowest directories of the chain
// are open. Leave opens a directory again through ".." of the one below it, and accepts it only if it is the same
// directory in the same mount. Not safe for concurrent use.
type Dirs struct {
	chain []chained
	open  int // how many at the end of chain are open, besides the first
}

type chained struct {
	f  *os.File // nil while it is closed
	id dirID
}

// dirID says which directory a descriptor leads to.
type dirID struct{ mount, dev, ino uint64 }

// NewDirs returns the chain that has only top in it. top stays open when the chain is closed. It must have been opened
// for reading or with O_PATH.
func NewDirs(top *os.File) (*Dirs, error) {
	id, err := dirIDOf(top)
	if err != nil {
		return nil, err
	}
	return &Dirs{chain: []chained{{top, id}}}, nil
}

func dirIDOf(f *os.File) (dirID, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID, &st); err != nil {
		return dirID{}, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	return dirID{st.Mnt_id, unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}, nil
}

// Dir returns the lowest directory. It is valid until the next Enter, Push or Leave.
func (d *Dirs) Dir() *os.File { return d.chain[len(d.chain)-1].f }

// Depth returns how many directories are below the first one.
func (d *Dirs) Depth() int { return len(d.chain) - 1 }

// Enter opens the directory base of Dir for reading and appends it. It does not follow a link.
func (d *Dirs) Enter(base string) error {
	fd, err := openRetry(int(d.Dir().Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open", Path: base, Err: err}
	}
	return d.Push(os.NewFile(uintptr(fd), base))
}

// Push appends a directory of Dir that the caller has opened. The chain closes it, even on an error.
func (d *Dirs) Push(f *os.File) error {
	id, err := dirIDOf(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	d.chain = append(d.chain, chained{f, id})
	if d.open++; d.open > maxOpenDirs {
		d.open--
		c := &d.chain[len(d.chain)-1-maxOpenDirs]
		_ = c.f.Close() // opened for reading only
		c.f = nil
	}
	return nil
}

// Leave closes the lowest directory, so that Dir is the one that contains it. Errors: errs.Conflict when the directory
// was moved meanwhile, so that the way back is lost.
func (d *Dirs) Leave() error {
	low := d.chain[len(d.chain)-1]
	up := &d.chain[len(d.chain)-2]
	if up.f == nil {
		f, err := parentOf(low.f, up.id)
		if err != nil {
			return err
		}
		up.f = f
		d.open++
	}
	d.chain = d.chain[:len(d.chain)-1]
	d.open--
	_ = low.f.Close() // opened for reading only
	return nil
}

// parentOf opens the directory above f, which must be the one with the given ID.
func parentOf(f *os.File, want dirID) (*os.File, error) {
	fd, err := openRetry(int(f.Fd()), "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name() + "/..", Err: err}
	}
	up := os.NewFile(uintptr(fd), "..")
	id, err := dirIDOf(up)
	if err == nil && id != want {
		err = errs.New(errs.Conflict, "directory %q was moved while it was read", f.Name())
	}
	if err != nil {
		return nil, errors.Join(err, up.Close())
	}
	return up, nil
}

// Close closes what is open, except for the first directory, which is the only one of the chain afterwards.
func (d *Dirs) Close() {
	for _, c := range d.chain[1:] {
		if c.f != nil {
			_ = c.f.Close() // opened for reading only
		}
	}
	d.chain, d.open = d.chain[:1], 0
}

// openRetry is openat(2), again after a signal.
func openRetry(dirfd int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}
