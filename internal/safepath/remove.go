package safepath

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// maxRefills is how often RemoveAll goes back into directories that another process fills while they are emptied.
const maxRefills = 100

// RemoveAll deletes base in the directory parent and everything below it, however deep it is, without following links. What is not
// there is no error. After an error it goes on with the rest and returns the first one. stop, when it is not nil, is called before
// every step; its error ends the removal.
func RemoveAll(parent *os.File, base string, stop func() error) error {
	dirs, err := NewDirs(parent)
	if err != nil {
		return err
	}
	defer dirs.Close()
	r := &remover{dirs: dirs, levels: []emptied{{names: []string{base}}}}
	for len(r.levels) > 0 {
		if stop != nil {
			if err := stop(); err != nil {
				return errors.Join(r.failed, err)
			}
		}
		if err := r.step(); err != nil {
			return errors.Join(r.failed, err)
		}
	}
	return r.failed
}

type remover struct {
	dirs   *Dirs
	levels []emptied // one per directory of dirs
	failed error     // the first
	refill int
}

// emptied is a directory whose content is being deleted.
type emptied struct {
	base  string   // its name in the directory above
	names []string // what is left in it
}

func (r *remover) fail(op, base string, err error) {
	if r.failed == nil && !errors.Is(err, unix.ENOENT) {
		r.failed = &os.PathError{Op: op, Path: base, Err: err}
	}
}

// step deletes or enters one name of the lowest directory, or deletes that directory if it is empty. An error means that the rest
// cannot be found.
func (r *remover) step() error {
	low := &r.levels[len(r.levels)-1]
	if len(low.names) == 0 {
		base := low.base
		if r.levels = r.levels[:len(r.levels)-1]; len(r.levels) == 0 {
			return nil
		}
		if err := r.dirs.Leave(); err != nil {
			return err
		}
		err := unix.Unlinkat(int(r.dirs.Dir().Fd()), base, unix.AT_REMOVEDIR)
		if errors.Is(err, unix.ENOTEMPTY) && r.failed == nil && r.refill < maxRefills {
			r.refill++
			r.enter(base)
			return nil
		}
		if err != nil {
			r.fail("remove", base, err)
		}
		return nil
	}
	base := low.names[0]
	low.names = low.names[1:]
	err := unix.Unlinkat(int(r.dirs.Dir().Fd()), base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		r.fail("remove", base, err)
		return nil
	}
	r.enter(base)
	return nil
}

// enter makes the directory base the lowest one.
func (r *remover) enter(base string) {
	if err := r.dirs.Enter(base); err != nil {
		r.fail("open", base, err)
		return
	}
	names, err := r.dirs.Dir().Readdirnames(-1)
	if err != nil {
		r.fail("read", base, err)
	}
	r.levels = append(r.levels, emptied{base, names})
}
