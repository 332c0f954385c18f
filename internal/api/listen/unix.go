package listen

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"ply/internal/errs"
)

// defaultGroup is the group whose members may use the socket, if it exists.
const defaultGroup = "ply"

// listenUnix creates the socket file. It replaces an existing one only when no process serves it.
func listenUnix(path, group string, by *Limiter) (net.Listener, error) {
	if !filepath.IsAbs(path) || path != filepath.Clean(path) {
		return nil, errs.New(errs.Invalid, "host unix://%s: want a clean absolute path", path)
	}
	gid, err := socketGroup(group)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, errs.New(errs.Internal, "socket %s: %w", path, err)
	}
	unlock, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	// The socket gets its name only when its owner and mode are right, so that no one can connect before.
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.Internal, "socket %s: %w", temp, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, errs.New(errs.Internal, "socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chown(temp, 0, gid)
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		err = nil // without root the socket belongs to the user
	}
	if err == nil {
		err = os.Chmod(temp, socketMode())
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp) // the error that matters is reported
		return nil, errs.New(errs.Internal, "socket %s: %w", path, errors.Join(err, l.Close()))
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, errs.New(errs.Internal, "socket %s: %w", path, errors.Join(err, l.Close()))
	}
	return limit(&unixListener{UnixListener: l, path: path, file: st}, by), nil
}

func socketMode() fs.FileMode {
	if os.Geteuid() != 0 {
		return 0o600
	}
	return 0o660
}

// lockSocket keeps two engines that start at once from taking the same path.
func lockSocket(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, errs.New(errs.Internal, "socket %s: %w", path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, errs.New(errs.Conflict, "socket %s: another engine is opening it", path)
	}
	return func() { _ = f.Close() }, nil // closing releases the lock
}

// clearSocket removes the socket file of an engine that ended. It refuses to remove anything else.
func clearSocket(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.New(errs.Internal, "socket %s: %w", path, err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return errs.New(errs.Conflict, "socket %s: the path is taken by something that is not a socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close() // the connection was only a test
		return errs.New(errs.Conflict, "socket %s: another engine answers on it", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return errs.New(errs.Conflict, "socket %s: another process may be using it: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return errs.New(errs.Internal, "socket %s: %w", path, err)
	}
	return nil
}

// socketGroup returns the ID of the group of the socket. A group that the user named must exist; the default one need not.
func socketGroup(name string) (int, error) {
	asked := name != ""
	if !asked {
		name = defaultGroup
	}
	if gid, err := strconv.Atoi(name); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		if asked {
			return 0, errs.New(errs.Invalid, "group %s: %w", name, err)
		}
		return 0, nil
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, errs.New(errs.Internal, "group %s: %w", name, err)
	}
	return gid, nil
}

// unixListener removes its socket file when it is closed, unless another engine has replaced it.
type unixListener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
	once sync.Once
}

func (l *unixListener) Close() error {
	l.once.Do(func() {
		if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.file) {
			_ = os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }
