package tree

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

func (u *unpacker) whiteout(p string) error {
	if err := u.keep(p, 0); err != nil {
		return err
	}
	u.wiped[p] = true
	switch _, kind, err := u.inspect(p); {
	case err != nil:
		return err
	case u.dirs[p] != nil:
		u.opaque[p] = true
	case kind == 0 && u.pending[p] == "":
		dirfd, base := u.at(p)
		if err := unix.Mknodat(dirfd, base, unix.S_IFCHR, 0); err != nil {
			return err
		}
		u.white[p] = true
	}
	return nil // the layer's own file hides the name below anyway
}

// clear removes what an earlier entry of this tar created at p, and keeps content that the recipe needs.
func (u *unpacker) clear(p string) error {
	delete(u.pending, p)
	if u.white[p] {
		delete(u.white, p)
	} else if u.dirs[p] != nil {
		if err := u.clearDir(p); err != nil {
			return err
		}
		return nil
	}
	dirfd, base := u.at(p)
	var st unix.Stat_t
	err := unix.Fstatat(dirfd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0 {
		if err := u.hide(p, dirfd, base, st.Nlink > 1); err != nil {
			return err
		}
	}
	err = unix.Unlinkat(dirfd, base, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// clearDir removes a directory of this layer and everything below it.
func (u *unpacker) clearDir(p string) error {
	u.dropParent()
	fd, err := openBelow(int(u.root.Fd()), p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), p)
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := u.clear(p + "/" + name); err != nil {
			return err
		}
	}
	for _, link := range u.links[p] {
		delete(u.pending, link)
	}
	delete(u.links, p)
	delete(u.dirs, p)
	return unix.Unlinkat(int(u.root.Fd()), p, unix.AT_REMOVEDIR)
}

// hide keeps the content of a file that is about to be removed.
func (u *unpacker) hide(p string, dirfd int, base string, shared bool) error {
	name := p
	if later := u.names[p]; later != "" {
		name = later
	}
	if _, done := u.hidden[name]; done {
		return nil
	}
	hidden := u.dir + "/" + hiddenName
	n := len(u.hidden)
	if n == 0 {
		if err := u.fsys.Mkdir(hidden, 0o700); err != nil {
			return err
		}
	}
	if err := u.keep(name, 0); err != nil {
		return err
	}
	u.hidden[name] = n
	u.meta.Hidden = append(u.meta.Hidden, Hidden{Name: Name(name), File: n})
	to := hidden + "/" + strconv.Itoa(n)
	if !shared {
		return unix.Renameat(dirfd, base, unix.AT_FDCWD, to)
	}
	fd, err := unix.Openat(dirfd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(fd), p)
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
