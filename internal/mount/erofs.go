package mount

import "golang.org/x/sys/unix"

// Erofs describes a file-backed EROFS mount.
type Erofs struct {
	Image   string
	Devices []string // files with the data, in the order of the image's device table
	// DirectIO reads the files without their page cache, so that content is cached once instead of twice.
	DirectIO bool
}

// Mount mounts the image as a read-only detached tree. Device nodes and set-user-ID bits in it have no effect through this
// tree itself; they have through an overlay on it.
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
