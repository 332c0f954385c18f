package mount

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// appendsLowers reports whether the kernel takes the layers of an overlay one by one, which Linux 6.7 and later do. Kernels
// before 6.5 accept every option here, and refuse the mount; those between refuse the option.
var appendsLowers = sync.OnceValue(func() bool {
	c, err := open("overlay")
	if err != nil {
		return true // the mount fails likewise, and says why
	}
	defer c.close()
	return c.set("lowerdir+", "/") == nil && c.set("ply", "") != nil
})

// ShortName returns the name that stands in mountinfo for the layer At(path) where the kernel does not take layers one by one.
func ShortName(path string) string {
	sum := sha256.Sum256([]byte(path))
	return base64.RawURLEncoding.EncodeToString(sum[:6])
}

// pageOptions is the size of the longest options that mount(2) takes, without the zero byte behind them.
const pageOptions = 4095

// stage is where mountByPage puts its links, in a mount namespace of its own: a directory that exists on every host, and below
// which no layer lies.
const stage = "/proc/sys"

// mountByPage mounts the overlay with mount(2). The options name its directories by short links in a file system in memory, which
// exist only until the mount.
func (o Overlay) mountByPage() (*Tree, error) {
	var opts []string
	for _, kv := range fixedOptions {
		opts = append(opts, kv[0]+"="+kv[1])
	}
	links := map[string]string{}
	var lower []string
	for i, l := range o.Lower {
		if l.tree != nil {
			return nil, &Error{FS: "overlay", Op: fmt.Sprintf("lower layer %d", i), Err: unix.EOPNOTSUPP}
		}
		if err := unix.Access(l.path, unix.F_OK); err != nil {
			return nil, &Error{FS: "overlay", Op: fmt.Sprintf("lower layer %d", i), Err: &os.PathError{Op: "access", Path: l.path, Err: err}}
		}
		name := ShortName(l.path)
		if other, is := links[name]; is && other != l.path {
			return nil, errs.New(errs.Internal, "overlay: the layers %s and %s have one short name, %s", other, l.path, name)
		}
		links[name] = l.path
		lower = append(lower, name)
	}
	opts = append(opts, "lowerdir="+strings.Join(lower, ":"))
	if o.UserXattr {
		opts = append(opts, "userxattr")
	}
	if o.Upper != "" {
		links["u"], links["w"] = o.Upper, o.Work
		opts = append(opts, "upperdir=u", "workdir=w")
		if o.Volatile {
			opts = append(opts, "volatile")
		}
	}
	page := strings.Join(opts, ",")
	if len(page) > pageOptions {
		return nil, errs.New(errs.Exhausted, "overlay: %d layers do not fit the options of a mount before Linux 6.7", len(o.Lower))
	}
	var t *Tree
	err := InNamespace(func() (err error) {
		t, err = mountStaged(links, page)
		return err
	})
	if err != nil || !o.ReadOnly && o.Upper != "" {
		return t, err
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(t.fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return nil, errors.Join(&Error{FS: "overlay", Op: "make read-only", Err: err}, t.Close())
	}
	return t, nil
}

// mountStaged mounts an overlay in the mount namespace of this thread, which ends with it, and returns a detached copy.
func mountStaged(links map[string]string, options string) (*Tree, error) {
	fail := func(op string, err error) (*Tree, error) { return nil, &Error{FS: "overlay", Op: op, Err: err} }
	if err := unix.Mount("ply", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=1m,mode=700"); err != nil {
		return fail("mount a tmpfs on "+stage, err)
	}
	if err := unix.Chdir(stage); err != nil {
		return fail("enter "+stage, err)
	}
	for name, path := range links {
		if strings.HasPrefix(path, fdPrefix) {
			f, err := reopen(path)
			if err != nil {
				return fail("open", err)
			}
			defer f.Close()
			path = fdPrefix + strconv.Itoa(int(f.Fd()))
		}
		if err := unix.Symlink(path, name); err != nil {
			return fail("link to "+path, err)
		}
	}
	if err := unix.Mkdir("m", 0o700); err != nil {
		return fail("mkdir", err)
	}
	if err := ignoringEINTR(func() error { return unix.Mount("overlay", "m", "overlay", 0, options) }); err != nil {
		return fail("mount", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "m", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail("open_tree", err)
	}
	return &Tree{fd: fd}, nil
}

const fdPrefix = "/proc/self/fd/"

// reopen opens the directory that link, below fdPrefix, names in the mount namespace of this thread: overlayfs takes none of another
// namespace. The error is unix.ESTALE when the directory's path now leads to another one.
func reopen(link string) (*os.File, error) {
	path, err := os.Readlink(link)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	was, err := os.Stat(link)
	if err == nil {
		var is os.FileInfo
		if is, err = f.Stat(); err == nil && !os.SameFile(was, is) {
			err = &os.PathError{Op: "open", Path: path, Err: unix.ESTALE}
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
