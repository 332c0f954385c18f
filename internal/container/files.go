package container

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/container/rootfs"
	"ply/internal/errs"
	"ply/internal/volume"
)

// Files reads and writes the files of containers, running or not. A removal of a container waits for its copies, but not
// for one whose client has stalled; see copies. Safe for concurrent use.
type Files struct {
	find    func(ref string) (*ctr, error)
	volumes *volume.Service
}

// Files returns the access to the containers' files.
func (s *Service) Files() *Files { return &Files{find: s.find, volumes: s.env.opts.Volumes} }

// view calls do with the container's root, in which its volumes, its binds and its hosts, hostname and resolv.conf are
// mounted. The memory file systems of the process (tmpfs, /proc, /dev) are not there, as with docker's cp. client is what
// do reads from or writes to, if anything. write says that do changes files; a root that is read-only for the container is
// then read-only for do too. The context of do ends when a removal of the container does not wait for it any longer.
func (f *Files) view(ctx context.Context, c *ctr, client any, write bool, do func(ctx context.Context, x *copying, root *os.File) error) (err error) {
	x, ctx, err := c.copies.begin(ctx, c, client)
	if err != nil {
		return err
	}
	defer x.end()
	if err := c.root.Acquire(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.root.Release()) }()
	c.mu.Lock()
	var mounts []volume.Mount
	for _, m := range c.rec.Mounts {
		if m.Type != "tmpfs" {
			mounts = append(mounts, m)
		}
	}
	readOnly := c.rec.Spec.ReadonlyRootfs
	c.mu.Unlock()
	var binds []rootfs.Bind
	if len(mounts) > 0 {
		user := "view-" + newID() // keeps the volumes mounted for this view, whatever the container does
		if mounts, err = f.volumes.Prepare(ctx, user, mounts); err != nil {
			return err
		}
		defer f.volumes.Release(user)
		for _, m := range mounts {
			binds = append(binds, rootfs.Bind{Source: m.Source, Target: m.Target, ReadOnly: !m.RW, NonRecursive: m.NonRecursive})
		}
	}
	// After the volumes: one at /etc must not hide them.
	for target, source := range f.hostFiles(c) {
		if !slices.ContainsFunc(mounts, func(m volume.Mount) bool { return path.Clean(m.Target) == target }) {
			binds = append(binds, rootfs.Bind{Source: source, Target: target, ReadOnly: readOnly})
		}
	}
	o := rootfs.ViewOptions{Binds: binds, ReadOnly: readOnly && write}
	return x.reason(ctx, c.root.View(o, func(root *os.File) error { return do(ctx, x, root) }))
}

// hostFiles returns what is mounted at /etc/hosts and the like in the container, by target. A container that was never
// started has none.
func (f *Files) hostFiles(c *ctr) map[string]string {
	c.mu.Lock()
	mode := c.rec.Spec.NetworkMode
	c.mu.Unlock()
	if isContainerMode(mode) {
		other, err := f.find(strings.TrimPrefix(mode, containerMode))
		if err != nil {
			return nil // it was removed, and its files with it
		}
		c = other
	}
	files := map[string]string{}
	for target, source := range map[string]string{
		"/etc/hosts": c.paths.hosts, "/etc/hostname": c.paths.hostname, "/etc/resolv.conf": c.paths.resolv,
	} {
		if _, err := os.Lstat(source); err == nil {
			files[target] = source
		}
	}
	return files
}

// explain puts docker's words around the error of a path that cannot be opened in the container that a user called ref.
func explain(ref string, err error) error {
	pe, ok := errors.AsType[*rootfs.PathError](err)
	if !ok {
		return err
	}
	switch {
	case errors.Is(pe.Err, unix.ENOENT):
		return errs.New(errs.NotFound, "Could not find the file %s in container %s", pe.Path, ref)
	case errors.Is(pe.Err, unix.ENOTDIR): // not class NotFound: docker cp would take the file for one to be made
		return invalid("lstat %s: not a directory", pe.Path)
	case errors.Is(pe.Err, unix.ELOOP):
		return invalid("path %s in container %s: too many levels of symbolic links", pe.Path, ref)
	case errors.Is(pe.Err, unix.ENAMETOOLONG):
		return invalid("path %s in container %s: file name too long", clip(pe.Path), ref)
	}
	return pe.Err
}

// PathStat describes a file. A link is described itself, with the path in the container that it leads to.
// Errors: NotFound, Invalid.
func (f *Files) PathStat(ctx context.Context, ref, p string) (out rootfs.Info, err error) {
	if err := rootfs.CheckPath(p); err != nil {
		return out, err
	}
	c, err := f.find(ref)
	if err != nil {
		return out, err
	}
	err = f.view(ctx, c, nil, false, func(_ context.Context, _ *copying, root *os.File) error {
		out, err = rootfs.Lstat(root, p)
		return err
	})
	return out, explain(ref, err)
}

// CopyFrom writes a file or directory as a tar stream whose names begin with the last component of the path. A link is
// written as a link unless the path ends in "/" or "/.". found is called with what is there before the first byte is
// written. Errors: NotFound, Invalid.
func (f *Files) CopyFrom(ctx context.Context, ref, p string, found func(rootfs.Info) error, w io.Writer) error {
	if err := rootfs.CheckPath(p); err != nil {
		return err
	}
	c, err := f.find(ref)
	if err != nil {
		return err
	}
	err = f.view(ctx, c, w, false, func(ctx context.Context, x *copying, root *os.File) error {
		return rootfs.CopyOut(ctx, root, p, found, x.writer(w))
	})
	if err != nil {
		return explain(ref, err)
	}
	c.publish("archive-path")
	return nil
}

// CopyTo unpacks a tar stream, compressed or not, into a directory. noOverwriteDirNonDir refuses to replace a directory
// by another kind of file, and the other way round. copyUIDGID gives the files to the user of the container; without
// it, and in a container that has no user set, they have the owners in the stream. Errors: NotFound, Invalid, Forbidden
// for a read-only directory.
func (f *Files) CopyTo(ctx context.Context, ref, p string, stream io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error {
	if err := rootfs.CheckPath(p); err != nil {
		return err
	}
	c, err := f.find(ref)
	if err != nil {
		return err
	}
	c.mu.Lock()
	o := rootfs.CopyInOptions{
		KeepKinds: noOverwriteDirNonDir, Chown: copyUIDGID && c.rec.Spec.User != "", ReadOnly: c.rec.Spec.ReadonlyRootfs, User: c.rec.Spec.User,
	}
	c.mu.Unlock()
	err = f.view(ctx, c, stream, true, func(ctx context.Context, x *copying, root *os.File) error {
		return rootfs.CopyIn(ctx, root, p, x.reader(stream), o)
	})
	if err != nil {
		return explain(ref, err)
	}
	c.publish("extract-to-dir")
	return nil
}

// Export writes the root file system as a tar stream. What is mounted in it is left out; the mount points stay.
func (f *Files) Export(ctx context.Context, ref string, w io.Writer) (err error) {
	c, err := f.find(ref)
	if err != nil {
		return err
	}
	if st := c.status(); st == StatusDead || st == StatusRemoving {
		return errs.New(errs.Conflict, "You cannot export container %s which is %s", c.id, st)
	}
	x, ctx, err := c.copies.begin(ctx, c, w)
	if err != nil {
		return err
	}
	defer x.end()
	if err := c.root.Acquire(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.root.Release()) }()
	err = x.reason(ctx, c.root.View(rootfs.ViewOptions{}, func(root *os.File) error { return rootfs.Export(ctx, root, x.writer(w)) }))
	if err == nil {
		c.publish("export")
	}
	return err
}
