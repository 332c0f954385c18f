package dockerroot

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/safepath"
)

// Where the driver overlay2 keeps images and layers.
const (
	graph      = "image/overlay2"
	imageDB    = graph + "/imagedb/content/sha256"
	metadataDB = graph + "/imagedb/metadata/sha256"
	layerDB    = graph + "/layerdb/sha256"
	mountDB    = graph + "/layerdb/mounts"
)

// maxNames bounds the names of all images.
const maxNames = 200_000

// Image is one image.
type Image struct {
	ID     oci.ImageID     // the digest of Config
	Names  []oci.Reference // repository:tag and repository@digest, sorted
	Config []byte
	Chain  oci.Chain
	Parent oci.ImageID // "" = none

	// Target is what the name means in containerd's image store, whose images are read with Archive; zero = the image is of overlay2.
	Target oci.Descriptor
}

// repositories is the file with the names of the images of overlay2.
type repositories struct {
	Repositories map[string]map[string]string
}

// Images returns the images of the root, those of overlay2 first; only some of them when ctx ends.
func (r *Root) Images(ctx context.Context) (all []Image, problems []Problem) {
	names, err := r.names()
	if err != nil {
		problems = append(problems, Problem{KindImage, "the names of all images", err})
	}
	ids, err := list(r.dir, imageDB)
	if err != nil {
		problems = append(problems, Problem{KindImage, imageDB, err})
	}
	known := map[oci.ImageID]bool{}
	left := newBudget()
	for _, hex := range ids {
		if ctx.Err() != nil {
			return all, problems
		}
		if !oci.IsHex64(hex) {
			continue // a temporary file
		}
		img := Image{ID: oci.ImageID("sha256:" + hex)}
		known[img.ID] = true
		err := r.image(&img)
		if err == nil {
			err = left.take(img.Config)
		}
		if err != nil {
			problems = append(problems, Problem{KindImage, title(img.ID, names[img.ID]), err})
			continue
		}
		img.Names = names[img.ID]
		all = append(all, img)
	}
	for id, list := range names {
		if !known[id] {
			problems = append(problems, Problem{KindImage, title(id, list), errs.New(errs.DataLoss, "its config is not there")})
		}
	}
	if r.store != nil {
		more, bad := r.store.images(ctx, left)
		all, problems = append(all, more...), append(problems, bad...)
	}
	sortProblems(problems)
	return all, problems
}

func sortProblems(p []Problem) {
	slices.SortFunc(p, func(a, b Problem) int { return strings.Compare(a.Object, b.Object) })
}

// Title returns what people call the image: its first name or, when it has none, its short ID.
func (i *Image) Title() string { return title(i.ID, i.Names) }

func title(id oci.ImageID, names []oci.Reference) string {
	for _, n := range names {
		if n.Digest() == "" {
			return n.Familiar()
		}
	}
	return short(string(id))
}

// names returns the names of the images of overlay2.
func (r *Root) names() (map[oci.ImageID][]oci.Reference, error) {
	var file repositories
	if err := readJSON(r.dir, graph+"/repositories.json", &file); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	out := map[oci.ImageID][]oci.Reference{}
	total := 0
	var bad error
	for _, refs := range file.Repositories {
		for text, id := range refs {
			if total++; total > maxNames {
				return out, errs.New(errs.DataLoss, "there are more than %d names", maxNames)
			}
			ref, err := oci.ParseReference(text)
			if err == nil {
				_, err = oci.ParseDigest(id)
			}
			if err != nil {
				bad = errs.New(errs.DataLoss, "name %.100q: %v", text, err)
				continue
			}
			out[oci.ImageID(id)] = append(out[oci.ImageID(id)], ref)
		}
	}
	for _, refs := range out {
		sortNames(refs)
	}
	return out, bad
}

func sortNames(refs []oci.Reference) {
	slices.SortFunc(refs, func(a, b oci.Reference) int { return strings.Compare(a.String(), b.String()) })
}

// image reads the config and the parent of an image.
func (r *Root) image(img *Image) error {
	hex := img.ID.Hex()
	var err error
	if img.Config, err = readFile(r.dir, path.Join(imageDB, hex), oci.MaxConfig); err != nil {
		return err
	}
	if oci.ImageID(oci.DigestOf(img.Config)) != img.ID {
		return errs.New(errs.DataLoss, "its config has other content, %s", oci.DigestOf(img.Config))
	}
	cfg, err := oci.DecodeConfig(img.Config)
	if err != nil {
		return err
	}
	img.Chain = cfg.RootFS.DiffIDs
	parent, err := readFile(r.dir, path.Join(metadataDB, hex, "parent"), 256)
	if err == nil {
		if d, err := oci.ParseDigest(string(parent)); err == nil {
			img.Parent = oci.ImageID(d)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// maxCache bounds the names of directories of layers.
const maxCache = 256

// word reads a file with one word that is the name of a directory.
func (r *Root) word(name string) (string, error) {
	data, err := readFile(r.dir, name, maxCache)
	if err != nil {
		return "", err
	}
	word := strings.TrimSpace(string(data))
	if word == "" || word == "." || word == ".." || strings.ContainsAny(word, "/\x00") {
		return "", errs.New(errs.DataLoss, "%s has %.40q, which is no name of a directory", name, word)
	}
	return word, nil
}

// Layer opens the tar of the top layer of a chain of overlay2, as it was when docker got it. Each file of the layer is compared with its checksum
// while it is read; the digest of the tar is for the caller. The error's class is errs.DataLoss for a layer that is damaged or not there.
func (r *Root) Layer(ctx context.Context, chain oci.Chain) (io.ReadCloser, error) {
	lost := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return errs.New(errs.DataLoss, "%v", err)
		}
		return err
	}
	dir := path.Join(layerDB, strings.TrimPrefix(string(chain.ID()), "sha256:"))
	diff, err := r.word(dir + "/diff")
	if err != nil {
		return nil, lost(err)
	}
	if oci.DiffID(diff) != chain.Top() {
		return nil, errs.New(errs.DataLoss, "%s/diff has %.80q, want %s", dir, diff, chain.Top())
	}
	cache, err := r.word(dir + "/cache-id")
	if err != nil {
		return nil, lost(err)
	}
	tree, err := openDir(r.dir, path.Join("overlay2", cache, "diff"))
	if err != nil {
		return nil, lost(err)
	}
	recipe, err := openFile(r.dir, dir+"/tar-split.json.gz")
	if err != nil {
		return nil, errors.Join(lost(err), tree.Close())
	}
	zr, err := gzip.NewReader(recipe)
	if err != nil {
		return nil, errors.Join(errs.New(errs.DataLoss, "%s/tar-split.json.gz: %w", dir, err), tree.Close(), recipe.Close())
	}
	return openTar(ctx, zr, tree, recipe), nil
}

// LayerSize returns the bytes of a layer of overlay2 as docker shows them; 0 = unknown. Nothing depends on it.
func (r *Root) LayerSize(chain oci.Chain) (n int64) {
	data, err := readFile(r.dir, path.Join(layerDB, strings.TrimPrefix(string(chain.ID()), "sha256:"), "size"), 32)
	if err == nil {
		_ = json.Unmarshal(data, &n)
	}
	return min(max(n, 0), oci.MaxLayerSize)
}

// upper opens the writable layer of a container of overlay2.
func (r *Root) upper(id string) (*os.File, error) {
	name, err := r.word(path.Join(mountDB, id, "mount-id"))
	if err != nil {
		return nil, err
	}
	return openDir(r.dir, path.Join("overlay2", name, "diff"))
}

// openRegular opens a regular file of a layer. Directories on the way may not be links, as in the tree that docker made.
func openRegular(tree *os.File, name string) (*os.File, error) {
	clean, err := safepath.Clean(name)
	if err != nil {
		return nil, err
	}
	return openFile(tree, clean)
}
