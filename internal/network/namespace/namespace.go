// Package namespace makes network namespaces that live as long as a mount.
//
// A namespace is bound at a path, so it exists before the first process of a container and after the last one, and
// survives a restart of the engine. Every network driver works in one.
package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// Make makes a network namespace bound at path, with the interface lo up. A namespace that an earlier run left at the
// same path is removed.
func Make(path string) (err error) {
	if err := Remove(path); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := onThread(func() error { return enterNew(path) }); err != nil {
		return errors.Join(errs.New(errs.Internal, "network namespace %s: %w", path, err), Remove(path))
	}
	return nil
}

func enterNew(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	// Interfaces have no IPv6, not even link-local addresses, until SetUp gives them some. A kernel without IPv6 has no such file.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	h, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// Remove unmounts the namespace at path and removes the file. A path that does not exist is no error.
func Remove(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return errs.New(errs.Internal, "network namespace %s: unmount: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Internal, "network namespace %s: %w", path, err)
	}
	return nil
}

// Exists reports whether a namespace is bound at path.
func Exists(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Do calls f on a thread in the namespace at path. Sockets and processes that f makes are in the namespace; f starts no goroutine.
func Do(path string, f func() error) error {
	return onThread(func() error {
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = errors.Join(netns.Set(ns), ns.Close())
		}
		if err != nil {
			return errs.New(errs.Internal, "network namespace %s: enter: %w", path, err)
		}
		return f()
	})
}

// onThread calls f on a thread that ends with f, and with it the namespace that f has entered.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The runtime does not end the main thread, and its namespace is that of the process for everyone else: /proc/net has it, too. So keep it locked, and use another.
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f() // not unlocked, so the runtime ends the thread with the goroutine
	}()
	return <-done
}

// Open opens the namespace at path and a netlink handle in it. The caller closes both.
func Open(path string) (netns.NsHandle, *netlink.Handle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return ns, nil, errs.New(errs.Internal, "network namespace %s: open: %w", path, err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return ns, nil, errors.Join(errs.New(errs.Internal, "network namespace %s: netlink: %w", path, err), ns.Close())
	}
	return ns, h, nil
}
