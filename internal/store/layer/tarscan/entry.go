package tarscan

import "time"

// Kind is the kind of an entry.
type Kind uint8

// The kinds.
const (
	Regular  Kind = iota + 1
	Dir           // over a directory, it replaces the attributes and keeps the content
	Symlink       // Link is the target as written
	Hardlink      // Link is the clean path of the target, in this layer or a lower one
	CharDev       // Major, Minor
	BlockDev      // Major, Minor
	Fifo
	Whiteout // Path is hidden in the layers below
	Opaque   // Path is a directory whose content in the layers below is hidden
)

// Xattr is an extended attribute with its full name.
type Xattr struct {
	Name  string
	Value string
}

// Entry is one name of a layer. An Entry is valid only during the call of visit. Its texts may be kept: they are parts of no
// larger text.
type Entry struct {
	Path   string // relative and clean; "." is the root
	Kind   Kind
	Mode   uint32 // permission bits with set-ids and sticky bit, at most 07777
	UID    uint32
	GID    uint32
	Mtime  time.Time
	Xattrs []Xattr // sorted by name
	Link   string
	Major  uint32
	Minor  uint32
	// Size is the length of a Regular in bytes, with the holes of a sparse file.
	Size int64
	// Offset is the position of a Regular's content in the stream, a multiple of 512; -1 when it is Sparse or empty.
	Offset int64
	// Sparse is true when the content is not one piece of the stream. It must then be read from the data of visit.
	Sparse bool
}

// Limits bounds what a tar may contain. Zero means the default.
type Limits struct {
	Entries int   // number of names; default 2,000,000
	Bytes   int64 // of the stream, and of all files together; default 64 GiB
	Text    int64 // bytes of all names, link targets and extended attributes, which drivers keep in memory; default 512 MiB
}

// The defaults of Limits.
const (
	MaxEntries = 2_000_000
	MaxBytes   = 64 << 30
	MaxText    = 512 << 20
)

// XattrCost is what an extended attribute takes in memory besides its bytes. Limits.Text counts it.
const XattrCost = 64

// cost returns how many bytes of memory the texts of an entry take.
func (e *Entry) cost() int64 {
	n := len(e.Path) + len(e.Link)
	for _, x := range e.Xattrs {
		n += len(x.Name) + len(x.Value) + XattrCost
	}
	return int64(n)
}

const (
	maxXattrs = 64 << 10
	maxTarget = 4095
	blockSize = 512
)

// The times that ext4 can store in an inode of 256 bytes. All drivers use them, so that all show the same time.
const (
	minTime = -(1 << 31)
	maxTime = 1<<34 - 1<<31 - 1
)

func clampTime(t time.Time) time.Time {
	switch s := t.Unix(); {
	case s < minTime:
		return time.Unix(minTime, 0)
	case s > maxTime:
		return time.Unix(maxTime, 0)
	}
	return t
}
