package tarscan

import "time"

// Kind of an entry.
type Kind uint8

// The kinds.
const (
	Regular  Kind = iota + 1
	Dir           // over a directory: replaces the attributes, keeps what it holds
	Symlink       // Link is the target as written
	Hardlink      // Link is the clean path of the target, of this layer or a lower one
	CharDev       // Major, Minor
	BlockDev      // Major, Minor
	Fifo          //
	Whiteout      // Path is the name that is hidden in the layers below
	Opaque        // Path is the directory whose content in the layers below is hidden
)

// Xattr is an extended attribute with its full name.
type Xattr struct {
	Name  string
	Value string
}

// Entry is one name of a layer. An Entry is valid only during the call of visit.
type Entry struct {
	Path   string // relative, clean; "." is the root
	Kind   Kind
	Mode   uint32 // permission bits with set-ids and sticky, 07777
	UID    uint32
	GID    uint32
	Mtime  time.Time
	Xattrs []Xattr // sorted by name
	Link   string
	Major  uint32
	Minor  uint32
	// Size is the length of a Regular as readers of the file see it.
	Size int64
	// Offset is where the content of a Regular lies in the stream, a multiple of 512; -1 when Sparse or empty.
	Offset int64
	// Sparse says that the content does not lie in the stream as one piece: it must be read through visit's data.
	Sparse bool
}

// Limits bound what a tar may ask for. The zero value of a field means its default.
type Limits struct {
	Entries int   // names; default 2,000,000
	Bytes   int64 // of the stream, and of the files in it together; default 64 GiB
}

// Defaults of Limits.
const (
	MaxEntries = 2_000_000
	MaxBytes   = 64 << 30
)

const (
	maxXattrs = 64 << 10
	maxTarget = 4095
	blockSize = 512
)

// What ext4 can store in an inode of 256 bytes: so every driver shows the same time.
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
