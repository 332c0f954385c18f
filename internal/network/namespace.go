package network

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

// makeNamespace makes a network namespace that lives as long as the mount at path, with lo up. It is safe against an
// earlier namespace at the same path.
func makeNamespace(path string) (err error) {
	if err := removeNamespace(path); err != nil {
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
	done := make(chan error, 1)
	go func() {
		// The thread is left in the new namespace and locked, so the runtime ends it with the goroutine.
		runtime.LockOSThread()
		done <- enterNew(path)
	}()
	if err := <-done; err != nil {
		return errors.Join(errs.New(errs.Internal, "network namespace %s: %w", path, err), os.Remove(path))
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
	// No network here has an IPv6 subnet, and link-local addresses on eth0 would only mislead. A kernel without IPv6 has no such file.
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

// removeNamespace undoes makeNamespace; nothing there is no error.
func removeNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return errs.New(errs.Internal, "network namespace %s: unmount: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Internal, "network namespace %s: %w", path, err)
	}
	return nil
}

// isNamespace reports whether a namespace is bound at path.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// inNamespace opens the namespace and a netlink handle in it; the caller closes both.
func inNamespace(path string) (netns.NsHandle, *netlink.Handle, error) {
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
