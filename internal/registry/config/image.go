package config

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// imageVariable is set in the registry's image. There the defaults are those that people know of images of the reference registry,
// so that their volumes and files work unchanged.
const imageVariable = "PLY_REGISTRY_IMAGE"

// places are where an image keeps everything and looks for its settings. Tests replace them.
type places struct {
	roots []string // the first one that is a mount is used, and the first one when none is
	files []string // the first one that exists is read
}

var imagePlaces = places{
	roots: []string{"/var/lib/registry", "/tmp/registry"},
	files: []string{DefaultFile, "/etc/distribution/config.yml", "/etc/docker/registry/config.yml"},
}

// hostPlaces are those outside of an image.
var hostPlaces = places{roots: []string{DefaultRoot}, files: []string{DefaultFile}}

func placesOf(environ []string) places {
	if slices.ContainsFunc(environ, func(e string) bool { return strings.HasPrefix(e, imageVariable+"=") && e != imageVariable+"=" }) {
		return imagePlaces
	}
	return hostPlaces
}

// root returns the default root.
func (p places) root() string {
	for _, r := range p.roots[1:] {
		if isMount(r) && !isMount(p.roots[0]) {
			return r
		}
	}
	return p.roots[0]
}

// file returns the file to read when name was asked for, which is "" when none was. An image has one file of settings, whichever of
// its names it is asked for by. Optional means that the file may be missing.
func (p places) file(name string) (_ string, optional bool) {
	if name != "" && !(slices.Contains(p.files, name) && len(p.files) > 1 && missing(name)) {
		return name, false
	}
	for _, f := range p.files {
		if !missing(f) {
			return f, name == ""
		}
	}
	if name != "" {
		return name, false
	}
	return p.files[0], true
}

func missing(name string) bool {
	_, err := os.Stat(name)
	return errors.Is(err, fs.ErrNotExist)
}

// isMount reports whether something is mounted at path. A variable for tests, which cannot always mount.
var isMount = func(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	return err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
