// Package volume keeps data outside the union file system: local named and anonymous volumes,
// binds, tmpfs, and their sharing between containers.
//
// Invariant: a volume's data is never removed while a container, running or not, refers to it.
package volume

import "time"

// MountSpec is one --mount as a user asks for it. It is part of a container's stored record.
type MountSpec struct {
	Type         string            `json:"Type"` // bind, volume, tmpfs
	Source       string            `json:"Source"`
	Target       string            `json:"Target"`
	ReadOnly     bool              `json:"ReadOnly"`
	Propagation  string            `json:"Propagation"`
	NoCopy       bool              `json:"NoCopy"` // volume: do not copy the image's content in
	NonRecursive bool              `json:"NonRecursive"`
	CreateSource bool              `json:"CreateSource"` // bind: make a missing source directory (-v does, --mount does not)
	Labels       map[string]string `json:"Labels"`
	Driver       string            `json:"Driver"`
	DriverOpts   map[string]string `json:"DriverOpts"`
	TmpfsSize    int64             `json:"TmpfsSize"`
	TmpfsMode    uint32            `json:"TmpfsMode"`
	Subpath      string            `json:"Subpath"`
}

// Mount is a resolved mount of a container. It is part of a container's stored record.
type Mount struct {
	Type        string   `json:"Type"`   // bind, volume, tmpfs
	Name        string   `json:"Name"`   // volume
	Source      string   `json:"Source"` // host path
	Target      string   `json:"Target"` // path in the container
	Driver      string   `json:"Driver"`
	Mode        string   `json:"Mode"` // as written after the second colon
	RW          bool     `json:"RW"`
	Propagation string   `json:"Propagation"`
	CopyUp      bool     `json:"CopyUp"`  // fill from the image on first use
	Options     []string `json:"Options"` // tmpfs
	Anonymous   bool     `json:"Anonymous"`

	CreateSource bool   `json:"CreateSource"` // bind: make a missing source directory at start
	NonRecursive bool   `json:"NonRecursive"` // bind: without the mounts below the source
	Subpath      string `json:"Subpath"`      // volume: clean relative directory of the volume that is mounted instead of its root
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
