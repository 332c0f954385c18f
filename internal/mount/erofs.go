package mount

import "golang.org/x/sys/unix"

// Erofs describes a file-backed EROFS mount.
type Erofs struct {
	Image   string
	Devices []string // files that hold the data, in the order of the image's device table
	// DirectIO reads the files past their own page cache: content is cached once instead of twice.
	DirectIO bool
}

// Mount gives the image as a read-only detached tree. Nothing in it is a device or set-id as seen through this
// tree alone; an overlay made over it is not bound by that.
func (e Erofs) Mount() (*Tree, error) {
	c, err := open("erofs")
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.path("source", e.Image); err != nil {
		return nil, err
	}
	for _, d := range e.Devices {
		if err := c.path("device", d); err != nil {
			return nil, err
		}
	}
	if e.DirectIO {
		if err := c.flag("directio"); err != nil {
			return nil, err
		}
	}
	if err := c.flag("ro"); err != nil {
		return nil, err
	}
	return c.mount(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID)
}
