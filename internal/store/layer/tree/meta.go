package tree

import (
	"encoding/json"
	"path/filepath"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// Names below a layer directory.
const (
	FS         = "fs"
	recipeName = "tar-split.json.gz"
	hiddenName = "hidden"
	metaName   = "meta.json"
)

// Name is a file name in JSON: base64, because names need not be UTF-8.
type Name []byte

// Meta describes a layer directory.
type Meta struct {
	Version int        `json:"version"`
	DiffID  oci.DiffID `json:"diffID"`
	TarSize int64      `json:"tarSize"`
	Size    int64      `json:"size"`
	Entries int        `json:"entries"`
	// OwnRoot says that an entry describes the root directory.
	OwnRoot bool `json:"ownRoot,omitempty"`
	// OpaqueRoot says that nothing of the layers below is seen. Overlayfs knows no mark for that: the
	// driver leaves them out.
	OpaqueRoot bool `json:"opaqueRoot,omitempty"`
	// Implied are directories (not the root) that no entry describes and through which layers below can be seen,
	// parents first.
	Implied []Name `json:"implied,omitempty"`
	// Links are hard links to names that this layer does not have.
	Links []Link `json:"links,omitempty"`
	// Wiped are directories (not the root) that hold whiteouts. Overlayfs filters those out only where it merges.
	Wiped []Name `json:"wiped,omitempty"`
	// Hidden maps recipe names to files in hidden/.
	Hidden []Hidden `json:"hidden,omitempty"`
}

// Link is a hard link to a file in a lower layer.
type Link struct {
	Name   Name `json:"name"`
	Target Name `json:"target"`
}

// Hidden is content that a later entry of the same tar replaced.
type Hidden struct {
	Name Name `json:"name"` // in the recipe
	File int  `json:"file"` // in hidden/
}

const metaVersion = 1

// Alone says that the layer is the same whatever it stands on.
func (m *Meta) Alone() bool { return len(m.Implied) == 0 && len(m.Links) == 0 && len(m.Wiped) == 0 }

// Info gives what a driver tells about the layer.
func (m *Meta) Info() layer.Info {
	return layer.Info{DiffID: m.DiffID, Size: m.Size, TarSize: m.TarSize, Entries: m.Entries}
}

// Load reads the Meta of a layer directory. Errors: fs.ErrNotExist passes through; what is damaged is
// errs.DataLoss.
func Load(fsys durable.FS, dir string) (*Meta, error) {
	data, err := durable.ReadFile(fsys, filepath.Join(dir, metaName), 1<<30)
	if err != nil {
		return nil, err
	}
	var m Meta
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, errs.New(errs.DataLoss, "layer directory %s: %s: %w", filepath.Base(dir), metaName, err)
	}
	if m.Version != metaVersion {
		return nil, errs.New(errs.DataLoss, "layer directory %s: %s has version %d, want %d", filepath.Base(dir), metaName, m.Version, metaVersion)
	}
	return &m, nil
}

func (m *Meta) save(fsys durable.FS, dir string) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return durable.WriteFile(fsys, filepath.Join(dir, metaName), data, 0o600)
}
