package dockerroot

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"go.etcd.io/bbolt"

	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
)

// Where containerd keeps images and snapshots, and the namespace of docker in it.
const (
	metadataFile    = "io.containerd.metadata.v1.bolt/meta.db"
	blobDir         = "io.containerd.content.v1.content/blobs/sha256"
	snapshotterRoot = "io.containerd.snapshotter.v1."
	namespace       = "moby"

	// danglingName is how docker calls an image without a name: containerd has no other.
	danglingName = "moby-dangling"
)

// contentStore is the root of a containerd.
type contentStore struct {
	dir       *os.File
	tree      *mount.Tree // nil = dir is below that of the data root
	meta      *database
	snapshots map[string]*database // by snapshotter
}

// openStoreAt opens the root of a containerd outside of the data root.
func openStoreAt(dir string) (*contentStore, error) {
	tree, top, err := openReadOnly(dir)
	if errors.Is(err, errs.NotFound) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return (&contentStore{dir: top, tree: tree}).open()
}

// openStoreIn opens the root of a containerd that dockerd has started itself.
func openStoreIn(root *os.File, name string) (*contentStore, error) {
	dir, err := openDir(root, name)
	if err != nil {
		return nil, err
	}
	return (&contentStore{dir: dir}).open()
}

// open opens the databases and returns s, or closes s.
func (s *contentStore) open() (_ *contentStore, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
			if errors.Is(err, fs.ErrNotExist) {
				err = fs.ErrNotExist
			}
		}
	}()
	if s.meta, err = openDatabase(s.dir, metadataFile, "containerd"); err != nil {
		return nil, err
	}
	s.snapshots = map[string]*database{}
	names, err := list(s.dir, ".")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		driver, ok := strings.CutPrefix(n, snapshotterRoot)
		if !ok {
			continue
		}
		db, err := openDatabase(s.dir, n+"/metadata.db", "containerd")
		if errors.Is(err, fs.ErrNotExist) {
			continue // not used yet
		}
		if errors.Is(err, errs.DataLoss) {
			continue // the containers that need it say so
		}
		if err != nil {
			return nil, err
		}
		s.snapshots[driver] = db
	}
	return s, nil
}

func (s *contentStore) close() error {
	var err error
	if s.meta != nil {
		err = s.meta.close()
	}
	for _, db := range s.snapshots {
		err = errors.Join(err, db.close())
	}
	err = errors.Join(err, s.dir.Close())
	if s.tree != nil {
		err = errors.Join(err, s.tree.Close())
	}
	return err
}

// images returns the images of docker's namespace.
func (s *contentStore) images(ctx context.Context, left *budget) (all []Image, problems []Problem) {
	byTarget := map[oci.Digest]*Image{}
	var order []oci.Digest
	err := s.meta.view(func(tx *bbolt.Tx) error {
		images := bucket(tx, "v1", namespace, "images")
		if images == nil {
			return nil
		}
		n := 0
		return images.ForEachBucket(func(k []byte) error {
			if n++; n > maxNames {
				return errs.New(errs.DataLoss, "there are more than %d names", maxNames)
			}
			name := string(k)
			target, err := targetOf(images.Bucket(k))
			if err != nil {
				problems = append(problems, Problem{KindImage, clip(name), err})
				return nil
			}
			img := byTarget[target.Digest]
			if img == nil {
				img = &Image{Target: target}
				byTarget[target.Digest] = img
				order = append(order, target.Digest)
			}
			if ref, ok := nameOf(name); ok {
				img.Names = append(img.Names, ref)
			}
			return nil
		})
	})
	if err != nil {
		problems = append(problems, Problem{KindImage, metadataFile, err})
	}
	for _, d := range order {
		if ctx.Err() != nil {
			return all, problems
		}
		img := byTarget[d]
		sortNames(img.Names)
		err := s.image(img)
		if err == nil {
			err = left.take(img.Config)
		}
		if err != nil {
			problems = append(problems, Problem{KindImage, title(oci.ImageID(d), img.Names), err})
			continue
		}
		all = append(all, *img)
	}
	return all, problems
}

// nameOf reads the name of an image; false for that of an image without one.
func nameOf(name string) (oci.Reference, bool) {
	if strings.HasPrefix(name, danglingName) {
		return oci.Reference{}, false
	}
	ref, err := oci.ParseReference(name)
	return ref, err == nil
}

// targetOf reads what a name means.
func targetOf(b *bbolt.Bucket) (d oci.Descriptor, err error) {
	target := b.Bucket([]byte("target"))
	if target == nil {
		return d, errs.New(errs.DataLoss, "its record has no target")
	}
	if d.Digest, err = oci.ParseDigest(string(target.Get([]byte("digest")))); err != nil {
		return d, errs.New(errs.DataLoss, "its record: %w", err)
	}
	size, n := binary.Varint(target.Get([]byte("size")))
	if n <= 0 || size <= 0 || size > oci.MaxManifest {
		return d, errs.New(errs.DataLoss, "its record has a size of %d bytes", size)
	}
	d.MediaType, d.Size = clip(string(target.Get([]byte("mediatype")))), size
	return d, nil
}

// image finds the config of the image that a target means on this host.
func (s *contentStore) image(img *Image) error {
	m, err := s.manifest(img.Target)
	if err != nil {
		return err
	}
	if img.Config, err = s.blob(m.Config.Digest, oci.MaxConfig); err != nil {
		return errs.New(errs.DataLoss, "config: %w", err)
	}
	cfg, err := oci.DecodeConfig(img.Config)
	if err != nil {
		return err
	}
	img.ID, img.Chain = oci.ImageID(m.Config.Digest), cfg.RootFS.DiffIDs
	return nil
}

// manifest returns the manifest that a descriptor means: of an index, the one for this host or else the first one whose content is here.
func (s *contentStore) manifest(d oci.Descriptor) (*oci.Manifest, error) {
	return s.manifestBelow(d, 0, map[oci.Digest]bool{})
}

// manifestBelow is manifest for a descriptor in indexes. It looks into each index once, however many others list it.
func (s *contentStore) manifestBelow(d oci.Descriptor, depth int, seen map[oci.Digest]bool) (*oci.Manifest, error) {
	if depth > oci.MaxIndexDepth {
		return nil, errs.New(errs.DataLoss, "its indexes are nested deeper than %d", oci.MaxIndexDepth)
	}
	seen[d.Digest] = true
	raw, err := s.blob(d.Digest, oci.MaxManifest)
	if err != nil {
		return nil, err
	}
	mediaType, err := oci.SniffManifest(raw, d.MediaType)
	if err != nil {
		return nil, err
	}
	if !oci.IsIndex(mediaType) {
		return oci.DecodeManifest(raw, mediaType)
	}
	idx, err := oci.DecodeIndex(raw, mediaType)
	if err != nil {
		return nil, err
	}
	var candidates []oci.Descriptor
	if best, err := idx.Choose(oci.HostPlatform()); err == nil {
		candidates = append(candidates, best)
	}
	for _, c := range append(candidates, idx.Manifests...) {
		if c.Annotations[oci.AnnotationReferenceType] != "" || c.Platform != nil && c.Platform.OS == "unknown" || seen[c.Digest] {
			continue
		}
		if m, err := s.manifestBelow(c, depth+1, seen); err == nil && s.has(m.Config.Digest) {
			return m, nil
		}
	}
	return nil, errs.New(errs.DataLoss, "no image of index %s is here", d.Digest.Short())
}

// configOf returns the digest of the config of a manifest.
func (s *contentStore) configOf(d oci.Descriptor) (oci.ImageID, error) {
	m, err := s.manifest(d)
	if err != nil {
		return "", err
	}
	return oci.ImageID(m.Config.Digest), nil
}

func (s *contentStore) has(d oci.Digest) bool {
	f, err := openFile(s.dir, path.Join(blobDir, d.Hex()))
	if err != nil {
		return false
	}
	_ = f.Close() // it was only opened
	return true
}

// blob reads a blob of at most limit bytes and verifies it.
func (s *contentStore) blob(d oci.Digest, limit int64) ([]byte, error) {
	data, err := readFile(s.dir, path.Join(blobDir, d.Hex()), limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.DataLoss, "blob %s is not there", d)
	}
	if err != nil {
		return nil, err
	}
	if oci.DigestOf(data) != d {
		return nil, errs.New(errs.DataLoss, "blob %s has other content", d)
	}
	return data, nil
}

// Archive writes an image of containerd's store as an OCI layout with all its names: the index or manifest, what it lists as far as that is here,
// and the layers for which have returns false. Each blob is compared with its digest. The error's class is errs.DataLoss for one that differs.
func (r *Root) Archive(ctx context.Context, img *Image, names []oci.Reference, have func(oci.Chain) bool, w io.Writer) error {
	a := &archiver{ctx: ctx, s: r.store, have: have, tar: tar.NewWriter(w), done: map[oci.Digest]bool{}}
	if err := a.all(img, names); err != nil {
		return err
	}
	return a.tar.Close()
}

// archiver writes one image.
type archiver struct {
	ctx    context.Context // of the call of Archive
	s      *contentStore
	have   func(oci.Chain) bool
	tar    *tar.Writer
	done   map[oci.Digest]bool
	layers []oci.Descriptor // in the order in which they are written, after the documents
}

func (a *archiver) all(img *Image, names []oci.Reference) error {
	index := oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeOCIIndex}
	var digests []string
	for _, n := range names {
		if n.Digest() != "" {
			digests = append(digests, n.String())
		}
	}
	entry := img.Target
	for _, n := range names {
		if n.Digest() == "" {
			entry.Annotations = map[string]string{oci.AnnotationName: n.String(), oci.AnnotationDigests: strings.Join(digests, " ")}
			index.Manifests = append(index.Manifests, entry)
		}
	}
	if len(index.Manifests) == 0 {
		if len(digests) > 0 {
			entry.Annotations = map[string]string{oci.AnnotationDigests: strings.Join(digests, " ")}
		}
		index.Manifests = append(index.Manifests, entry)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := a.document("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := a.document("index.json", raw); err != nil {
		return err
	}
	if err := a.target(img.Target, 0); err != nil {
		return err
	}
	for _, l := range a.layers {
		if err := a.layer(l); err != nil {
			return err
		}
	}
	return nil
}

func (a *archiver) document(name string, data []byte) error {
	err := a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = a.tar.Write(data)
	}
	return err
}

// blob writes a document once.
func (a *archiver) blob(d oci.Digest, data []byte) error {
	if a.done[d] {
		return nil
	}
	a.done[d] = true
	return a.document("blobs/sha256/"+d.Hex(), data)
}

// target writes the documents of a descriptor. What an index lists and is not here is left out: docker fetches only what it needs.
func (a *archiver) target(d oci.Descriptor, depth int) error {
	if a.done[d.Digest] {
		return nil
	}
	if err := a.ctx.Err(); err != nil {
		return context.Cause(a.ctx)
	}
	raw, err := a.s.blob(d.Digest, oci.MaxManifest)
	if err != nil {
		return err
	}
	mediaType, err := oci.SniffManifest(raw, d.MediaType)
	if err != nil {
		return err
	}
	if err := a.blob(d.Digest, raw); err != nil {
		return err
	}
	if oci.IsIndex(mediaType) {
		idx, err := oci.DecodeIndex(raw, mediaType)
		if err != nil {
			return err
		}
		for _, c := range idx.Manifests {
			if a.s.has(c.Digest) && depth < oci.MaxIndexDepth {
				if err := a.target(c, depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	m, err := oci.DecodeManifest(raw, mediaType)
	if err != nil {
		return err
	}
	if !a.s.has(m.Config.Digest) {
		return nil
	}
	config, err := a.s.blob(m.Config.Digest, oci.MaxConfig)
	if err != nil {
		return err
	}
	if err := a.blob(m.Config.Digest, config); err != nil {
		return err
	}
	var chain oci.Chain
	if cfg, err := oci.DecodeConfig(config); err == nil && len(cfg.RootFS.DiffIDs) == len(m.Layers) {
		chain = cfg.RootFS.DiffIDs
	}
	for i, l := range m.Layers {
		if i < len(chain) && a.have(chain[:i+1]) || a.done[l.Digest] || !a.s.has(l.Digest) {
			continue
		}
		a.done[l.Digest] = true
		a.layers = append(a.layers, l)
	}
	return nil
}

// layer writes the blob of a layer and verifies it.
func (a *archiver) layer(d oci.Descriptor) error {
	if err := a.ctx.Err(); err != nil {
		return context.Cause(a.ctx)
	}
	f, err := openFile(a.s.dir, path.Join(blobDir, d.Digest.Hex()))
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != d.Size {
		return errs.New(errs.DataLoss, "blob %s has %d bytes, its manifest says %d", d.Digest, fi.Size(), d.Size)
	}
	if err := a.tar.WriteHeader(&tar.Header{Name: "blobs/sha256/" + d.Digest.Hex(), Mode: 0o644, Size: d.Size, Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(a.tar, sum)}, struct{ io.Reader }{io.LimitReader(f, d.Size)}, make([]byte, tarBuffer)); err != nil {
		return err
	}
	if got := oci.DigestOfHash(sum); got != d.Digest {
		return errs.New(errs.DataLoss, "blob %s has other content, %s", d.Digest, got)
	}
	return nil
}

// upper opens the writable layer of a container: its snapshot has the key of the container.
func (s *contentStore) upper(driver, container string) (*os.File, error) {
	db := s.snapshots[driver]
	if db == nil {
		return nil, errs.New(errs.DataLoss, "containerd has no snapshots of the driver %.40q", driver)
	}
	var name string
	err := s.meta.view(func(tx *bbolt.Tx) error {
		if b := bucket(tx, "v1", namespace, "snapshots", driver, container); b != nil {
			name = string(b.Get([]byte("name")))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if name == "" {
		return nil, errs.New(errs.DataLoss, "its snapshot is not there")
	}
	var id uint64
	err = db.view(func(tx *bbolt.Tx) error {
		b := bucket(tx, "v1", "snapshots", name)
		if b == nil {
			return errs.New(errs.DataLoss, "its snapshot %.100q is not there", name)
		}
		var n int
		if id, n = binary.Uvarint(b.Get([]byte("id"))); n <= 0 {
			return errs.New(errs.DataLoss, "its snapshot %.100q has no ID", name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return openDir(s.dir, path.Join(snapshotterRoot+driver, "snapshots", strconv.FormatUint(id, 10), "fs"))
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
