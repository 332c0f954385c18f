package tree

import (
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/store/layer/tarscan"
)

// place makes sure of the parent directory of an entry and gives the entry's path without links.
// For an opaque marker the entry is its directory itself.
func (u *unpacker) place(e *tarscan.Entry) (string, error) {
	dir, base := path.Split(e.Path)
	dir = path.Clean(dir)
	if e.Kind == tarscan.Opaque {
		dir, base = e.Path, ""
	}
	dir, err := u.enter(dir)
	if err != nil {
		return "", err
	}
	if base == "" {
		return dir, nil
	}
	return path.Join(dir, base), nil
}

// enter opens the directory dir as the current parent, making what is missing, and gives its path without links.
func (u *unpacker) enter(dir string) (string, error) {
	if dir == u.parent && u.parentFD >= 0 {
		return dir, nil
	}
	if dir == "." {
		u.dropParent()
		u.parent = "."
		return dir, nil
	}
	if u.dirs[dir] == nil {
		var err error
		if dir, err = u.resolve(dir, true); err != nil {
			return "", err
		}
		if err := u.makeAll(dir); err != nil {
			return "", err
		}
		if dir == "." {
			u.dropParent()
			u.parent = "."
			return dir, nil
		}
	}
	fd, err := openBelow(int(u.root.Fd()), dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	u.dropParent()
	u.parent, u.parentFD = dir, fd
	return dir, nil
}

func (u *unpacker) dropParent() {
	if u.parentFD >= 0 {
		unix.Close(u.parentFD)
	}
	u.parent, u.parentFD = "", -1
}

// at gives what the *at calls need for path p, whose parent was entered last.
func (u *unpacker) at(p string) (dirfd int, base string) {
	if path.Dir(p) == u.parent && u.parentFD >= 0 {
		return u.parentFD, path.Base(p)
	}
	return int(u.root.Fd()), p
}

const maxLinks = 40

// resolve follows the links of this very layer that stand in dir, inside the tree. When forced, anything else
// that stands in the way is removed.
func (u *unpacker) resolve(dir string, force bool) (string, error) {
	pending := strings.Split(dir, "/")
	done := "."
	for links := 0; len(pending) > 0; {
		part := pending[0]
		pending = pending[1:]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		if u.dirs[next] != nil {
			done = next
			continue
		}
		target, kind, err := u.look(next)
		switch {
		case err != nil:
			return "", err
		case kind == 0 || u.white[next]:
			done = next
		case kind != unix.S_IFLNK && !force:
			return "", unix.ENOTDIR
		case kind != unix.S_IFLNK: // the last entry wins: what is below it makes it a directory
			if err := u.clear(next); err != nil {
				return "", err
			}
			done = next
		default:
			if links++; links > maxLinks {
				return "", tarError("its path has a loop of symbolic links")
			}
			if strings.HasPrefix(target, "/") {
				done = "."
			}
			pending = append(strings.Split(target, "/"), pending...)
		}
		if len(done) > 4096 {
			return "", unix.ENAMETOOLONG
		}
	}
	return done, nil
}

// look says what stands at p: kind is 0 for nothing, target is that of a link.
func (u *unpacker) look(p string) (target string, kind uint32, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(int(u.root.Fd()), p, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	kind = st.Mode & unix.S_IFMT
	if kind == unix.S_IFLNK {
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(int(u.root.Fd()), p, buf)
		if err != nil {
			return "", 0, err
		}
		target = string(buf[:n])
	}
	return target, kind, nil
}

// makeAll makes the missing directories of a path without links.
func (u *unpacker) makeAll(dir string) error {
	if dir == "." || u.dirs[dir] != nil {
		return nil
	}
	if err := u.makeAll(path.Dir(dir)); err != nil {
		return err
	}
	return u.mkdir(dir, &attrs{implied: true, mode: 0o755})
}

// mkdir makes dir; a whiteout that stands there makes it opaque.
func (u *unpacker) mkdir(dir string, a *attrs) error {
	delete(u.pending, dir)
	if u.wiped[dir] {
		u.opaque[dir] = true
	}
	if u.white[dir] {
		delete(u.white, dir)
		if err := unix.Unlinkat(int(u.root.Fd()), dir, 0); err != nil {
			return err
		}
	}
	dirfd, base := u.at(dir)
	if err := unix.Mkdirat(dirfd, base, 0o700); err != nil {
		return err
	}
	u.dirs[dir] = a
	return nil
}
