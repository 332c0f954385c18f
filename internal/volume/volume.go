// Package volume keeps data outside the union file system: local named and anonymous volumes,
// binds, tmpfs, and their sharing between containers.
//
// Invariant: a volume's data is never removed while a container, running or not, refers to it.
package volume

import "time"

// MountSpec is one --mount as a user asks for it.
type MountSpec struct {
	Type         string // bind, volume, tmpfs
	Source       string
	Target       string
	ReadOnly     bool
	Propagation  string
	NoCopy       bool // volume: do not copy the image's content in
	NonRecursive bool
	CreateSource bool // bind: make a missing source directory (-v does, --mount does not)
	Labels       map[string]string
	Driver       string
	DriverOpts   map[string]string
	TmpfsSize    int64
	TmpfsMode    uint32
	Subpath      string
}

// Mount is a resolved mount of a container.
type Mount struct {
	Type        string // bind, volume, tmpfs
	Name        string // volume
	Source      string // host path
	Target      string // path in the container
	Driver      string
	Mode        string // as written after the second colon
	RW          bool
	Propagation string
	CopyUp      bool     // fill from the image on first use
	Options     []string // tmpfs
	Anonymous   bool

	CreateSource bool   // bind: make a missing source directory at start
	NonRecursive bool   // bind: without the mounts below the source
	Subpath      string // volume: clean relative directory of the volume that is mounted instead of its root
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
	Size       int64 // -1 when not asked for
	RefCount   int
}
