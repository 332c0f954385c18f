package tree

import (
	"errors"
	"path/filepath"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/store/layer"
)

// Names below a layer directory.
const (
	FS         = "fs"
	recipeName = "tar-split.json.gz"
	hiddenName = "hidden"
	metaName   = "meta.json"
)

// Name is a file name. It is base64 in JSON, because file names need not be UTF-8.
type Name []byte

// Meta is meta.json: the description of a layer directory. Builds before the first release wrote it with a version and
// without a writer.
type Meta struct {
	DiffID  oci.DiffID `json:"diffID"`
	TarSize int64      `json:"tarSize"` // bytes of the uncompressed tar
	Size    int64      `json:"size"`    // as in layer.Info
	Entries int        `json:"entries"` // as in layer.Info
	// OwnRoot is true when an entry describes the root directory.
	OwnRoot bool `json:"ownRoot,omitempty"`
	// OpaqueRoot is true when the layer hides all layers below it. Overlayfs has no mark for that, so the driver leaves
	// those layers out.
	OpaqueRoot bool `json:"opaqueRoot,omitempty"`
	// Implied lists the directories (without the root) that no entry describes and that do not hide the layers below,
	// parents first.
	Implied []Name `json:"implied,omitempty"`
	// Links lists hard links to names that this layer does not have.
	Links []Link `json:"links,omitempty"`
	// Wiped lists the directories (without the root) that have whiteouts. Overlayfs hides whiteouts only in directories
	// that it merges.
	Wiped []Name `json:"wiped,omitempty"`
	// Hidden lists the files in hidden/ by their names in the recipe.
	Hidden []Hidden `json:"hidden,omitempty"`
}

// Link is a hard link to a file in a lower layer.
type Link struct {
	Name   Name `json:"name"`
	Target Name `json:"target"`
}

// Hidden is the content of a file that a later entry of the same tar replaced.
type Hidden struct {
	Name Name `json:"name"` // in the recipe
	File int  `json:"file"` // in hidden/
}

const (
	metaVersion = 1
	maxMeta     = 1 << 30
)

// Alone reports whether the layer does not depend on the layers below it.
func (m *Meta) Alone() bool { return len(m.Implied) == 0 && len(m.Links) == 0 && len(m.Wiped) == 0 }

// Info returns the description that drivers report.
func (m *Meta) Info() layer.Info {
	return layer.Info{DiffID: m.DiffID, Size: m.Size, TarSize: m.TarSize, Entries: m.Entries}
}

// Load reads the Meta of a layer directory. A missing file is fs.ErrNotExist. The error's class is errs.DataLoss when the
// file is damaged and errs.Precondition when a newer release wrote it.
func Load(fsys durable.FS, dir string) (*Meta, error) {
	var m Meta
	if err := record.ReadFile(fsys, filepath.Join(dir, metaName), maxMeta, metaVersion, &m); err != nil {
		return nil, err
	}
	return &m, nil
}

func (m *Meta) save(fsys durable.FS, dir string) error {
	return record.WriteFile(fsys, filepath.Join(dir, metaName), metaVersion, m, 0o600)
}

// CheckVersions refuses a directory of layer directories in which a newer release wrote a description: meta.json, or one of
// the driver's own files in also, which maps file names to the newest versions known. It only reads, and it ignores what
// is damaged.
func CheckVersions(fsys durable.FS, layers string, also map[string]int) error {
	entries, err := fsys.ReadDir(layers)
	if err != nil {
		return nil // a new root; other errors come up again when the directory is used
	}
	for _, e := range entries {
		if durable.IsTemp(e.Name()) {
			continue
		}
		if err := checkVersion(fsys, filepath.Join(layers, e.Name(), metaName), metaVersion); err != nil {
			return err
		}
		for name, known := range also {
			if err := checkVersion(fsys, filepath.Join(layers, e.Name(), name), known); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkVersion(fsys durable.FS, name string, known int) error {
	data, err := durable.ReadFile(fsys, name, maxMeta)
	if err != nil {
		return nil
	}
	if _, err := record.ReadHeader(name, data, known); errors.Is(err, errs.Precondition) {
		return err
	}
	return nil
}
