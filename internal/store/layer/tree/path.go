package tree

import (
	"errors"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/store/layer/tarscan"
)

// prepare creates the parent directory of an entry if necessary, and returns the entry's path without symbolic links. For
// an opaque marker this is the path of its directory.
func (u *unpacker) prepare(e *tarscan.Entry) (string, error) {
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

// enter opens dir as the current parent and returns its path without symbolic links. It creates missing directories.
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

// at returns the arguments of the *at calls for path p, whose parent was entered last.
func (u *unpacker) at(p string) (dirfd int, base string) {
	if path.Dir(p) == u.parent && u.parentFD >= 0 {
		return u.parentFD, path.Base(p)
	}
	return int(u.root.Fd()), p
}

const maxLinks = 40

// resolve follows the symbolic links of this layer in dir, inside the tree. When force is true, it removes anything that is
// neither a directory nor a link.
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
		target, kind, err := u.inspect(next)
		switch {
		case err != nil:
			return "", err
		case kind == 0 || u.white[next]:
			done = next
		case kind != unix.S_IFLNK && !force:
			return "", unix.ENOTDIR
		case kind != unix.S_IFLNK: // the last entry wins: an entry below it makes it a directory
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

// inspect returns the type of p, 0 if it does not exist, and the target of a link.
func (u *unpacker) inspect(p string) (target string, kind uint32, err error) {
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

// makeAll creates the missing directories of a path without symbolic links.
func (u *unpacker) makeAll(dir string) error {
	if dir == "." || u.dirs[dir] != nil {
		return nil
	}
	if err := u.makeAll(path.Dir(dir)); err != nil {
		return err
	}
	if err := u.keep(dir, 0); err != nil {
		return err
	}
	return u.mkdir(dir, &attrs{implied: true, mode: 0o755})
}

// mkdir creates dir. A whiteout with that name makes it opaque.
func (u *unpacker) mkdir(dir string, a *attrs) error {
	if len(u.dirs) >= u.maxDirs {
		return tarError("more than " + strconv.Itoa(u.maxDirs) + " directories")
	}
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
