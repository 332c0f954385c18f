// Package volume keeps the data of containers that lies outside their layers: local named and anonymous volumes, bind
// mounts, tmpfs mounts and the files of other images, and the sharing of volumes between containers.
//
// Invariant: a volume's data is never removed while a container, running or not, refers to it.
package volume

import (
	"time"

	"ply/internal/oci"
)

// MountSpec is one --mount as a user asks for it. Containers store it, so its JSON names must not change.
type MountSpec struct {
	Type         string            `json:"Type"` // bind, volume, tmpfs, image
	Source       string            `json:"Source"`
	Target       string            `json:"Target"`
	ReadOnly     bool              `json:"ReadOnly"`
	Propagation  string            `json:"Propagation"`
	NoCopy       bool              `json:"NoCopy"` // volume: do not copy the image's content into it
	NonRecursive bool              `json:"NonRecursive"`
	CreateSource bool              `json:"CreateSource"` // bind: create a missing source directory (-v does, --mount does not)
	Labels       map[string]string `json:"Labels"`
	Driver       string            `json:"Driver"`
	DriverOpts   map[string]string `json:"DriverOpts"`
	TmpfsSize    int64             `json:"TmpfsSize"`
	TmpfsMode    uint32            `json:"TmpfsMode"`
	Subpath      string            `json:"Subpath"`

	ReadOnlyNonRecursive   bool `json:"ReadOnlyNonRecursive,omitempty"`   // bind: the mounts below the source stay writable
	ReadOnlyForceRecursive bool `json:"ReadOnlyForceRecursive,omitempty"` // bind: an error where the mounts below the source cannot be made read-only
}

// Mount is a resolved mount of a container. Containers store it, so its JSON names must not change.
type Mount struct {
	Type        string   `json:"Type"`   // bind, volume, tmpfs, image
	Name        string   `json:"Name"`   // volume, or image as the user wrote it
	Source      string   `json:"Source"` // host path
	Target      string   `json:"Target"` // path in the container
	Driver      string   `json:"Driver"`
	Mode        string   `json:"Mode"` // what is written after the second colon of -v
	RW          bool     `json:"RW"`
	Propagation string   `json:"Propagation"`
	CopyUp      bool     `json:"CopyUp"`  // copy the image's content into an empty volume
	Options     []string `json:"Options"` // tmpfs
	Anonymous   bool     `json:"Anonymous"`

	CreateSource bool   `json:"CreateSource"` // bind: create a missing source directory at start
	NonRecursive bool   `json:"NonRecursive"` // bind: without the mounts below the source
	Subpath      string `json:"Subpath"`      // volume, image: the directory or file to mount instead of the root, clean and relative

	ReadOnlyNonRecursive   bool `json:"ReadOnlyNonRecursive,omitempty"`   // bind: the mounts below the source stay writable
	ReadOnlyForceRecursive bool `json:"ReadOnlyForceRecursive,omitempty"` // bind: an error where the mounts below the source cannot be made read-only

	Image oci.ImageID `json:"Image,omitempty"` // image
	Chain oci.Chain   `json:"Chain,omitempty"` // image: its layers, which the collection keeps for the container
}

// Volume is one volume as list and inspect show it.
type Volume struct {
	Name       string
	Driver     string
	Mountpoint string
	Created    time.Time
	Labels     map[string]string
	Options    map[string]string
	Anonymous  bool
	Size       int64 // in bytes; -1 = not measured
	RefCount   int   // containers that refer to it
	Damaged    error // why it cannot be used: its record is damaged. List only; nil = it can
}
