package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/build/ops"
	"ply/internal/build/relay"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/safepath"
	"ply/internal/store/layer"
	"ply/internal/volume"
)

// mount prepares one mount of the command and adds it to the options of the container.
func (s *step) mount(ctx context.Context, i int, m *ops.Mount, sp *spec.Spec) error {
	if err := s.noteTarget(ctx, m.Target); err != nil {
		return err
	}
	switch m.Kind {
	case ops.MountTmpfs:
		sp.Mounts = append(sp.Mounts, volume.MountSpec{Type: "tmpfs", Target: m.Target, TmpfsSize: m.TmpfsSize})
		return nil
	case ops.MountSecret:
		return s.secret(ctx, i, m, sp)
	case ops.MountSSH:
		return s.agent(ctx, i, m, sp)
	case ops.MountCache:
		return s.cache(ctx, i, m, sp)
	default:
		return s.bindInput(ctx, i, m, sp)
	}
}

func openPath(root *os.File, p string) (*os.File, error) {
	return safepath.Open(root, p, unix.O_PATH, 0)
}

// noteTarget remembers what of a mount point is missing in the root.
func (s *step) noteTarget(ctx context.Context, target string) error {
	if len(s.base) == 0 {
		s.note(nil, target)
		return nil
	}
	v, err := s.r.Mount(ctx, s.base)
	if err != nil {
		return err
	}
	s.note(v.Tree().Root(), target)
	return v.Close()
}

// removeStubs removes the mount points that only mounts needed, unless the command put something there.
func (s *step) removeStubs(root *os.File) error {
	for _, st := range slices.Backward(s.stubs) {
		dir, base, err := safepath.OpenParent(root, st.path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return err
		}
		err = removeStub(dir, base)
		if err := errors.Join(err, dir.Close()); err != nil {
			return fmt.Errorf("mount point %s: %w", st.path, err)
		}
	}
	return nil
}

func removeStub(dir *os.File, base string) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		if err = unix.Unlinkat(int(dir.Fd()), base, unix.AT_REMOVEDIR); errors.Is(err, unix.ENOTEMPTY) {
			return nil
		}
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0:
		return unix.Unlinkat(int(dir.Fd()), base, 0)
	}
	return nil
}

// point makes a mount point like what node is, a directory or a file.
func (s *step) point(name string, node *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(node.Fd()), &st); err != nil {
		return "", err
	}
	p := filepath.Join(s.dir, name)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return p, os.Mkdir(p, 0o700)
	}
	return p, os.WriteFile(p, nil, 0o600)
}

// show mounts selector, a path below root, at a mount point of the step, and returns that.
func (s *step) show(name string, root *os.File, selector string) (string, error) {
	node, err := openPath(root, selector)
	if errors.Is(err, unix.ENOENT) {
		return "", errs.New(errs.NotFound, "%q: not found", selector)
	}
	if err != nil {
		return "", err
	}
	defer node.Close()
	p, err := s.point(name, node)
	if err != nil {
		return "", err
	}
	t, err := mount.Clone(node, mount.CloneOptions{})
	if err != nil {
		return "", err
	}
	return p, errors.Join(t.Attach(p), t.Close())
}

// bindInput mounts the result of another step.
func (s *step) bindInput(ctx context.Context, i int, m *ops.Mount, sp *spec.Spec) error {
	var chain []string
	in := s.input(m)
	if in != nil {
		for _, d := range in.Chain {
			chain = append(chain, string(d))
		}
	}
	if m.ReadOnly && len(chain) > 0 {
		v, err := s.r.Mount(ctx, in.Chain)
		if err != nil {
			return err
		}
		s.undo = append(s.undo, func(context.Context) error { return v.Close() })
		p, err := s.show(fmt.Sprint("m", i), v.Tree().Root(), m.Selector)
		if err != nil {
			return err
		}
		bind(sp, p, m.Target, true)
		return nil
	}
	w := writable{output: m.Output, dir: filepath.Join(s.dir, fmt.Sprint("w", i))}
	if in != nil {
		w.chain = in.Chain
	}
	drv := s.r.o.Store.Layers
	if err := os.Mkdir(w.dir, 0o711); err != nil {
		return err
	}
	if err := drv.CreateWritable(ctx, w.dir, w.chain); err != nil {
		return err
	}
	s.undo = append(s.undo, func(ctx context.Context) error { return drv.RemoveWritable(ctx, w.dir) })
	root := filepath.Join(s.dir, fmt.Sprint("r", i))
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	if err := drv.Mount(ctx, w.dir, w.chain, root, layer.MountOptions{Volatile: true}); err != nil {
		return err
	}
	s.undo = append(s.undo, func(ctx context.Context) error { return drv.Unmount(ctx, root) })
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := s.show(fmt.Sprint("m", i), f, m.Selector)
	if err != nil {
		return err
	}
	s.undo = append(s.undo, func(context.Context) error { return mount.Unmount(p, true) })
	s.writes = append(s.writes, w)
	bind(sp, p, m.Target, m.ReadOnly)
	return nil
}

// secret writes a secret into a file on a tmpfs.
func (s *step) secret(ctx context.Context, i int, m *ops.Mount, sp *spec.Spec) error {
	value, err := s.run.Client.Secret(ctx, m.SecretID)
	if errors.Is(err, errs.NotFound) && m.Optional {
		s.forget(m.Target)
		return nil
	}
	if err != nil {
		return err
	}
	dir := filepath.Join(s.dir, fmt.Sprint("s", i))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	// A secret must not reach a disk, whatever the exec root lies on.
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=2m,mode=0700"); err != nil {
		return &os.PathError{Op: "mount", Path: dir, Err: err}
	}
	s.undo = append(s.undo, func(context.Context) error { return mount.Unmount(dir, true) })
	file := filepath.Join(dir, "secret")
	if err := errors.Join(os.WriteFile(file, value, 0o600), os.Chown(file, m.UID, m.GID), os.Chmod(file, os.FileMode(m.Mode&0o777))); err != nil {
		return err
	}
	bind(sp, file, m.Target, true)
	return nil
}

// forget removes the notes about the mount point of a mount that is left out.
func (s *step) forget(target string) {
	s.stubs = slices.DeleteFunc(s.stubs, func(st stub) bool { return "/"+st.path == target })
}

// agent offers an ssh agent of the client on a socket in the container.
func (s *step) agent(ctx context.Context, i int, m *ops.Mount, sp *spec.Spec) error {
	probe, err := s.run.Client.Agent(ctx, m.SecretID)
	if errors.Is(err, errs.NotFound) && m.Optional {
		s.forget(m.Target)
		return nil
	}
	if err != nil {
		return err
	}
	if err := probe.Close(); err != nil {
		return err
	}
	sock := filepath.Join(s.dir, fmt.Sprint("a", i))
	end, err := relay.Listen(ctx, sock, func(ctx context.Context) (io.ReadWriteCloser, error) { return s.run.Client.Agent(ctx, m.SecretID) })
	if err != nil {
		return err
	}
	s.undo = append(s.undo, func(context.Context) error { return end() })
	if err := errors.Join(os.Chown(sock, m.UID, m.GID), os.Chmod(sock, os.FileMode(m.Mode&0o777))); err != nil {
		return err
	}
	bind(sp, sock, m.Target, false)
	return nil
}

// cache mounts a directory that outlives the build. A new one begins as a copy of the input, which also has the owner and the mode that the mount asks for;
// so mounts with the same ID and other inputs are other directories, as in BuildKit.
func (s *step) cache(ctx context.Context, i int, m *ops.Mount, sp *spec.Spec) error {
	id, in := m.CacheID, s.input(m)
	if in != nil && len(in.Chain) > 0 {
		id += "\x00" + cmp.Or(string(in.Key), string(in.Chain.ID()))
	}
	about := fmt.Sprintf("cached mount %s from exec %s", m.Target, strings.Join(s.run.Exec.Args, " "))
	if m.CacheID != "/"+m.Target { // the front end's own choice
		about += fmt.Sprintf(" with id %q", m.CacheID)
	}
	dir, release, err := s.r.caches.acquire(ctx, id, about, m.Sharing, func(dir string) error {
		if in == nil || len(in.Chain) == 0 {
			return nil
		}
		v, err := s.r.Mount(ctx, in.Chain)
		if err != nil {
			return err
		}
		return errors.Join(fill(ctx, dir, v.Tree().Root(), m.Selector), v.Close(), s.r.o.Store.FS.SyncFS(dir))
	})
	if err != nil {
		return err
	}
	s.undo = append(s.undo, func(context.Context) error { release(); return nil })
	bind(sp, dir, m.Target, m.ReadOnly)
	return nil
}

// fill gives a new directory the attributes and the content of a directory below root.
func fill(ctx context.Context, dir string, root *os.File, selector string) error {
	src, err := safepath.Open(root, selector, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	return volume.CopyTree(ctx, dir, src)
}
