package mount

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// MaxLowers is the largest number of lower layers that overlayfs accepts.
const MaxLowers = 500

// Layer is a directory or a detached tree as a lower layer of an overlay.
type Layer struct {
	path string
	tree *Tree
}

// At returns the directory at path as a layer.
func At(path string) Layer { return Layer{path: path} }

// Of returns a detached tree as a layer, which needs Linux 6.15. The overlay keeps the mount after Close of the tree.
func Of(t *Tree) Layer { return Layer{tree: t} }

// Overlay describes an overlay mount.
type Overlay struct {
	Lower []Layer // top first; at least one, at least two when there is no Upper
	Upper string  // "" for a read-only view
	Work  string  // empty directory on the file system of Upper
	// Volatile never syncs the upper file system. After a crash the kernel refuses to mount the upper directory again, and
	// it must be deleted.
	Volatile bool
	// UserXattr keeps overlayfs' marks in user.overlay.*, as is necessary in a user namespace.
	UserXattr bool
	ReadOnly  bool
}

// Mount mounts the overlay as a detached tree. The error's class is errs.Exhausted for more layers than MaxLowers.
func (o Overlay) Mount() (*Tree, error) {
	if len(o.Lower) > MaxLowers {
		return nil, errs.New(errs.Exhausted, "overlay: %d layers, the kernel takes %d", len(o.Lower), MaxLowers)
	}
	if !appendsLowers() {
		return o.mountByPage()
	}
	c, err := open("overlay")
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := o.configure(c); err != nil {
		return nil, err
	}
	attrs := 0
	if o.ReadOnly || o.Upper == "" {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	return c.mount(attrs)
}

// fixedOptions are those of every overlay.
var fixedOptions = [][2]string{{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}, {"xino", "auto"}}

func (o Overlay) configure(c *context) error {
	if err := c.set("source", "overlay"); err != nil {
		return err
	}
	for _, kv := range fixedOptions {
		if err := c.set(kv[0], kv[1]); err != nil {
			return err
		}
	}
	if o.UserXattr {
		if err := c.flag("userxattr"); err != nil {
			return err
		}
	}
	for i, l := range o.Lower {
		if err := l.append(c, fmt.Sprintf("lower layer %d", i)); err != nil {
			return err
		}
	}
	if o.Upper == "" {
		return nil
	}
	if err := c.path("upperdir", o.Upper); err != nil {
		return err
	}
	if err := c.path("workdir", o.Work); err != nil {
		return err
	}
	if o.Volatile {
		return c.flag("volatile")
	}
	return nil
}

func (l Layer) append(c *context, what string) error {
	if l.tree == nil {
		if err := c.path("lowerdir+", l.path); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	l.tree.mu.RLock()
	defer l.tree.mu.RUnlock()
	if l.tree.fd < 0 {
		return c.wrap(what, os.ErrClosed)
	}
	return c.wrap(what, unix.FsconfigSetFd(c.fd, "lowerdir+", l.tree.fd))
}
