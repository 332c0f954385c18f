package vfs

import (
	"context"

	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tree"
	"ply/internal/store/layer/upper"
	"ply/internal/store/layer/writable"
)

const (
	copiedName    = "copied.json"
	copiedVersion = 1
)

// copied is copied.json: what must be known about a container's tree to find its changes. Builds before the first release
// wrote it without a version.
type copied struct {
	Since [2]int64 `json:"since"`          // when the copy was complete: seconds and nanoseconds of the file system's clock
	Made  []mark   `json:"made,omitempty"` // mount points of the runtime, which are no changes
}

// mark is what a mount point looked like when it was made.
type mark struct {
	Path  tree.Name `json:"path"`
	Ino   uint64    `json:"ino"`
	Mode  uint32    `json:"mode"`
	Uid   uint32    `json:"uid"`
	Gid   uint32    `json:"gid"`
	Size  int64     `json:"size"`
	Mtime [2]int64  `json:"mtime"`
}

func markOf(path string, st *unix.Stat_t) mark {
	m := mark{Path: tree.Name(path), Ino: st.Ino, Mode: st.Mode, Uid: st.Uid, Gid: st.Gid}
	if kindOf(st) != unix.S_IFDIR { // the content of a directory has marks of its own
		m.Size, m.Mtime = st.Size, [2]int64{st.Mtim.Sec, st.Mtim.Nsec}
	}
	return m
}

func (m mark) is(st *unix.Stat_t) bool {
	now := markOf(string(m.Path), st)
	return now.Ino == m.Ino && now.Mode == m.Mode && now.Uid == m.Uid && now.Gid == m.Gid && now.Size == m.Size && now.Mtime == m.Mtime
}

func treeOf(dir string) string { return filepath.Join(dir, tree.FS) }

// CreateWritable implements layer.Driver.
func (d *Driver) CreateWritable(ctx context.Context, dir string, chain oci.Chain) (err error) {
	if _, err := d.meta(chain); err != nil {
		return err
	}
	if err := d.fsys.Mkdir(treeOf(dir), 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.fsys.RemoveAll(treeOf(dir)))
		}
	}()
	from, err := openRoot(d.tree(chain))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openRoot(treeOf(dir))
	if err != nil {
		return err
	}
	defer to.Close()
	if err := copyTree(ctx, from, to); err != nil {
		return fmt.Errorf("copy of the image: %w", err)
	}
	// The clock of the file system counts, so this is the ctime of a new file. The clock is coarse: a change at the same
	// time counts as a later one.
	f, err := d.fsys.OpenFile(filepath.Join(dir, copiedName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := saveCopied(d.fsys, dir, &copied{Since: [2]int64{st.Ctim.Sec, st.Ctim.Nsec}}); err != nil {
		return err
	}
	return d.fsys.SyncFS(dir)
}

func saveCopied(fsys durable.FS, dir string, c *copied) error {
	return record.WriteFile(fsys, filepath.Join(dir, copiedName), copiedVersion, c, 0o600)
}

func loadCopied(fsys durable.FS, dir string) (*copied, error) {
	var c copied
	if err := record.ReadFile(fsys, filepath.Join(dir, copiedName), 16<<20, copiedVersion, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// Mount implements layer.Driver. Volatile makes no difference, because nothing is synced for a mount.
func (d *Driver) Mount(ctx context.Context, dir string, chain oci.Chain, target string, opts layer.MountOptions) error {
	if err := d.makeInit(ctx, dir, opts.Init); err != nil {
		return err
	}
	return mount.Bind(treeOf(dir), target, false)
}

// makeInit creates the mount points that the tree lacks, and records them.
func (d *Driver) makeInit(ctx context.Context, dir string, entries []layer.InitEntry) (err error) {
	if len(entries) == 0 {
		return nil
	}
	tmp := durable.TempName(dir)
	if err := d.fsys.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.fsys.RemoveAll(tmp)) }()
	base := writable.Base{Root: 0, Open: func() ([]*os.File, error) {
		f, err := writable.OpenDir(treeOf(dir))
		return []*os.File{f}, err
	}}
	if err := writable.BuildInit(tmp, base, entries); err != nil {
		return errs.New(errs.Internal, "mount points of the runtime: %w", err)
	}
	c, err := loadCopied(d.fsys, dir)
	if err != nil {
		return err
	}
	from, err := openRoot(tmp)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := openRoot(treeOf(dir))
	if err != nil {
		return err
	}
	defer to.Close()
	made, err := mergeInit(from, to, ".")
	if err != nil || len(made) == 0 {
		return err
	}
	for _, m := range made {
		c.Made = slices.DeleteFunc(c.Made, func(old mark) bool { return string(old.Path) == string(m.Path) })
	}
	c.Made = append(c.Made, made...)
	return saveCopied(d.fsys, dir, c)
}

// mergeInit moves the content of from into to and returns marks of what it moved. Existing directories keep their
// attributes and times.
func mergeInit(from, to *os.File, path string) (made []mark, err error) {
	list, err := names(from)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	was, err := lstat(to, ".")
	if err != nil {
		return nil, err
	}
	for _, name := range list {
		more, err := mergeInitOne(from, to, name, join(path, name))
		if err != nil {
			return nil, err
		}
		made = append(made, more...)
	}
	return made, setTime(to, ".", &was)
}

func mergeInitOne(from, to *os.File, name, path string) (made []mark, err error) {
	st, err := lstat(from, name)
	if err != nil {
		return nil, err
	}
	was, err := lstat(to, name)
	if kindOf(&st) == unix.S_IFDIR && err == nil && kindOf(&was) == unix.S_IFDIR {
		sub, err := openDir(int(from.Fd()), name)
		if err != nil {
			return nil, err
		}
		defer sub.Close()
		into, err := openDir(int(to.Fd()), name)
		if err != nil {
			return nil, err
		}
		defer into.Close()
		return mergeInit(sub, into, path)
	}
	if err := removeAll(to, name); err != nil {
		return nil, err
	}
	if err := unix.Renameat(int(from.Fd()), name, int(to.Fd()), name); err != nil {
		return nil, &os.PathError{Op: "rename", Path: path, Err: err}
	}
	return marksBelow(to, name, path)
}

// marksBelow returns marks of a name and everything below it.
func marksBelow(d *os.File, name, path string) ([]mark, error) {
	st, err := lstat(d, name)
	if err != nil {
		return nil, err
	}
	made := []mark{markOf(path, &st)}
	if kindOf(&st) != unix.S_IFDIR {
		return made, nil
	}
	sub, err := openDir(int(d.Fd()), name)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	list, err := names(sub)
	if err != nil {
		return nil, err
	}
	for _, n := range list {
		more, err := marksBelow(sub, n, join(path, n))
		if err != nil {
			return nil, err
		}
		made = append(made, more...)
	}
	return made, nil
}

// refuse returns the error for a path that no layer can have.
func refuse(_ *os.File, _, path string) error {
	return errs.New(errs.Invalid, "writable layer: path %.60q…: longer than %d bytes", path, upper.MaxPath)
}

// compareWith compares the writable with its chain and calls then with both trees open.
func (d *Driver) compareWith(ctx context.Context, dir string, chain oci.Chain, beyond func(dir *os.File, name, path string) error,
	then func(base, cur *os.File, changes []layer.Change) error) error {
	if _, err := d.meta(chain); err != nil {
		return err
	}
	c, err := loadCopied(d.fsys, dir)
	if err != nil {
		return err
	}
	base, err := openRoot(d.tree(chain))
	if err != nil {
		return err
	}
	defer base.Close()
	cur, err := openRoot(treeOf(dir))
	if err != nil {
		return err
	}
	defer cur.Close()
	cmp := &comparer{ctx: ctx, beyond: beyond, since: unix.Timespec{Sec: c.Since[0], Nsec: c.Since[1]}, made: make(map[string]mark, len(c.Made))}
	for _, m := range c.Made {
		cmp.made[string(m.Path)] = m
	}
	changes, err := cmp.compare(base, cur)
	if err != nil {
		return err
	}
	return then(base, cur, changes)
}

// Changes implements layer.Driver.
func (d *Driver) Changes(ctx context.Context, dir string, chain oci.Chain) (all []layer.Change, err error) {
	err = d.compareWith(ctx, dir, chain, refuse, func(_, _ *os.File, changes []layer.Change) error {
		all = changes
		return nil
	})
	return all, err
}

// Diff implements layer.Driver.
func (d *Driver) Diff(ctx context.Context, dir string, chain oci.Chain, w io.Writer) error {
	return d.compareWith(ctx, dir, chain, refuse, func(base, cur *os.File, changes []layer.Change) error {
		t := upper.NewTar(w)
		old, err := lstat(base, ".")
		if err != nil {
			return err
		}
		now, err := lstat(cur, ".")
		if err != nil {
			return err
		}
		differ, err := attrsDiffer(base, cur, ".", &old, &now)
		if err != nil {
			return err
		}
		if differ {
			if err := t.Add(ctx, int(cur.Fd()), ".", "."); err != nil {
				return err
			}
		}
		for _, ch := range changes {
			if err := write(ctx, t, cur, ch); err != nil {
				return err
			}
		}
		return t.Close()
	})
}

// write writes one change to the tar.
func write(ctx context.Context, t *upper.Tar, cur *os.File, ch layer.Change) error {
	path := ch.Path[1:]
	if ch.Kind == layer.Deleted {
		return t.Whiteout(path)
	}
	dir, base := parentOf(path)
	parent, err := openDir(int(cur.Fd()), dir)
	if err != nil {
		return ignoreGone(err)
	}
	defer parent.Close()
	st, err := lstat(parent, base)
	if err != nil {
		return ignoreGone(err)
	}
	if kindOf(&st) == unix.S_IFSOCK {
		if ch.Kind == layer.Modified { // a layer has no sockets, but a socket hides what it replaced
			return t.Whiteout(path)
		}
		return nil
	}
	return t.Add(ctx, int(parent.Fd()), base, path)
}

// Usage implements layer.Driver: it counts the files that the container added or changed, not the copy of the image.
func (d *Driver) Usage(ctx context.Context, dir string, chain oci.Chain) (sum int64, err error) {
	beyond := func(dir *os.File, name, _ string) error {
		size, err := sizeOf(ctx, dir, name)
		sum += size
		return ignoreGone(err)
	}
	err = d.compareWith(ctx, dir, chain, beyond, func(_, cur *os.File, changes []layer.Change) error {
		seen := map[inode]bool{}
		for _, ch := range changes {
			if ch.Kind == layer.Deleted {
				continue
			}
			parentPath, base := parentOf(ch.Path[1:])
			parent, err := openDir(int(cur.Fd()), parentPath)
			if err != nil {
				if gone(err) {
					continue
				}
				return err
			}
			st, err := lstat(parent, base)
			parent.Close()
			if err == nil && kindOf(&st) == unix.S_IFREG && !seen[inodeOf(&st)] {
				seen[inodeOf(&st)] = true
				sum += st.Size
			}
		}
		return nil
	})
	return sum, err
}

// sizeOf returns the sum of the sizes of the regular files at and below a name.
func sizeOf(ctx context.Context, dir *os.File, name string) (int64, error) {
	st, err := lstat(dir, name)
	switch {
	case err != nil:
		return 0, err
	case kindOf(&st) == unix.S_IFREG:
		return st.Size, nil
	case kindOf(&st) != unix.S_IFDIR:
		return 0, nil
	}
	sub, err := openDir(int(dir.Fd()), name)
	if err != nil {
		return 0, err
	}
	defer sub.Close()
	return upper.Usage(ctx, fmt.Sprintf("/proc/self/fd/%d/.", sub.Fd()))
}

// RemoveWritable implements layer.Driver.
func (d *Driver) RemoveWritable(ctx context.Context, dir string) error {
	err := d.fsys.Remove(filepath.Join(dir, copiedName))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, d.fsys.RemoveAll(treeOf(dir)))
}
