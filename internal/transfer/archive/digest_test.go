package archive_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/transfer"
	"ply/internal/transfer/archive"
)

// pulled makes an image as a pull does: with its exact manifest, compressed layers, names by digest, and an index if withIndex.
func pulled(t *testing.T, s side, name string, withIndex bool) (id oci.ImageID, manifest oci.Digest, top oci.Digest) {
	t.Helper()
	ctx := t.Context()
	lower := imagetest.Tar(t, "lower", strings.Repeat(name, 30_000))
	upper := imagetest.Tar(t, "upper", "u")
	put := func(v any) *oci.Descriptor {
		raw, err := json.MarshalIndent(v, "", "   ")
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Store.Blobs.Put(raw)
		if err != nil {
			t.Fatal(err)
		}
		return &oci.Descriptor{Digest: d, Size: int64(len(raw))}
	}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeDockerManifest}
	made := imagetest.Day
	cfg := oci.Config{Created: &made, OS: "linux", Architecture: "amd64", RootFS: oci.RootFS{Type: "layers"}}
	for _, l := range [][]byte{lower, upper} {
		diff := s.Layer(l)
		packed := gzipped(t, l)
		d, err := s.Store.Blobs.Put(packed)
		if err != nil {
			t.Fatal(err)
		}
		desc := oci.Descriptor{MediaType: oci.MediaTypeDockerLayerGzip, Digest: d, Size: int64(len(packed))}
		info, err := s.Store.Layers.Stat(ctx, oci.Chain{diff})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Store.RecordLayer(info, &meta.LayerBlob{Descriptor: desc}); err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, desc)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, diff)
		cfg.History = append(cfg.History, oci.History{Created: &made, CreatedBy: "pulled"})
	}
	raw, err := image.EncodeConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = oci.Descriptor{MediaType: oci.MediaTypeDockerConfig, Digest: oci.DigestOf(raw), Size: int64(len(raw))}
	md := put(m)
	md.MediaType = m.MediaType
	o := image.PutOptions{Config: raw, Manifest: md}
	top = md.Digest
	if withIndex {
		child := *md
		child.Platform = &oci.Platform{OS: "linux", Architecture: "amd64"}
		other := oci.Descriptor{MediaType: oci.MediaTypeDockerManifest, Digest: oci.DigestOf([]byte("arm")), Size: 3, Platform: &oci.Platform{OS: "linux", Architecture: "arm64"}}
		o.Index = put(oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeDockerManifestList, Manifests: []oci.Descriptor{other, child}})
		o.Index.MediaType = oci.MediaTypeDockerManifestList
		top = o.Index.Digest
	}
	ref := imagetest.Ref(t, name)
	o.Names = []oci.Reference{ref, ref.Repository().WithDigest(top)}
	id, err = s.Images.Put(ctx, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	return id, md.Digest, top
}

// An image that was pulled keeps its repository digest and the bytes of its manifest when it is saved and loaded, whether or not
// the store has its compressed layers.
func TestDigestsSurvive(t *testing.T) {
	for _, c := range []struct {
		name          string
		index, retain bool
	}{
		{"manifest, blobs retained", false, true},
		{"manifest, blobs gone", false, false},
		{"index, blobs retained", true, true},
		{"index, blobs gone", true, false},
	} {
		for _, format := range []string{"hybrid", "oci"} {
			t.Run(c.name+" "+format, func(t *testing.T) {
				s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{})
				id, manifest, top := pulled(t, s, "h:5000/team/app:1", c.index)
				raw, _ := s.Store.Blobs.Bytes(manifest, 1<<20)
				if !c.retain {
					dropLayers(t, s, raw)
				}
				data := s.save(t, format, "h:5000/team/app:1")
				if lines := d.load(t, data); !cmp.Equal(lines, []string{"Loaded h:5000/team/app:1"}) {
					t.Error(lines)
				}
				for _, ref := range []string{"h:5000/team/app@" + string(top), string(manifest), "h:5000/team/app:1"} {
					if img := d.image(t, ref); img.ID != id || img.Manifest == nil || img.Manifest.Digest != manifest {
						t.Errorf("%s: %+v", ref, img)
					}
				}
				if got, err := d.Store.Blobs.Bytes(manifest, 1<<20); err != nil || !bytes.Equal(got, raw) {
					t.Errorf("manifest: %s %v", got, err)
				}
				if c.retain != blobsThere(t, d, raw) {
					t.Errorf("compressed layers there: %v, want %v", !c.retain, c.retain)
				}
				if !bytes.Equal(d.save(t, format, "h:5000/team/app:1"), data) {
					t.Error("saved again it differs")
				}
				// A collection keeps what records refer to.
				if _, err := d.Images.Remove(t.Context(), "h:5000/team/app:1", image.RemoveOptions{}); err != nil {
					t.Fatal(err)
				}
				if _, err := d.Store.Blobs.Stat(manifest); err == nil || blobsThere(t, d, raw) || len(d.Driver.Files()) > 0 {
					t.Error("removal left something behind")
				}
			})
		}
	}
}

func dropLayers(t *testing.T, s side, manifest []byte) {
	t.Helper()
	m, err := oci.DecodeManifest(manifest, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if err := s.Store.Blobs.Remove(l.Digest); err != nil {
			t.Fatal(err)
		}
	}
}

func blobsThere(t *testing.T, s side, manifest []byte) bool {
	t.Helper()
	m, err := oci.DecodeManifest(manifest, "")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range m.Layers {
		if _, err := s.Store.Blobs.Stat(l.Digest); err == nil {
			n++
		}
	}
	if n != 0 && n != len(m.Layers) {
		t.Errorf("%d of %d compressed layers", n, len(m.Layers))
	}
	return n > 0
}

func TestSaveByDigest(t *testing.T) {
	s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{})
	id, manifest, _ := pulled(t, s, "h:5000/team/app:1", false)
	lines := d.load(t, s.save(t, "", "h:5000/team/app@"+string(manifest)))
	if !cmp.Equal(lines, []string{"Loaded " + string(id)}) {
		t.Error(lines)
	}
	img := d.image(t, "h:5000/team/app@"+string(manifest))
	if len(img.Names) != 0 || len(img.Digests) != 1 {
		t.Errorf("%v %v", img.Names, img.Digests)
	}
}

// The digest of an index whose bytes are lost cannot be verified. The archive has the digest of the manifest instead.
func TestDigestOfALostIndex(t *testing.T) {
	s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{})
	_, manifest, top := pulled(t, s, "h:5000/team/app:1", true)
	if err := s.Store.Blobs.Remove(top); err != nil {
		t.Fatal(err)
	}
	d.load(t, s.save(t, "", "h:5000/team/app:1"))
	img := d.image(t, "h:5000/team/app:1")
	if len(img.Digests) != 1 || img.Digests[0].Digest() != manifest {
		t.Errorf("digests %v", img.Digests)
	}
}

// If an archive could claim any digest for its image, `run repo@digest` would start an image with another digest.
func TestClaimedDigestsAreVerified(t *testing.T) {
	s := newSide(t, archive.Options{})
	pulled(t, s, "h:5000/team/app:1", false)
	lie := "h:5000/team/app@sha256:" + strings.Repeat("a", 64)
	names, items := list(t, s.save(t, "", "h:5000/team/app:1"))
	var idx oci.Index
	if err := json.Unmarshal(items["index.json"].data, &idx); err != nil {
		t.Fatal(err)
	}
	idx.Manifests[0].Annotations["io.ply.image.digests"] += " " + lie
	raw, err := json.Marshal(idx)
	if err != nil {
		t.Fatal(err)
	}
	items["index.json"] = item{typ: '0', data: raw}
	d := newSide(t, archive.Options{})
	d.load(t, rebuild(t, names, items))
	if img := d.image(t, "h:5000/team/app:1"); len(img.Digests) != 1 {
		t.Errorf("digests %v", img.Digests)
	}
	if _, err := d.Images.Get(t.Context(), lie); err == nil {
		t.Error("the lie resolves")
	}
}

// Two images have a common base; one was pulled, the other made here. The archive has the layers of the base once.
func TestSaveMixesForms(t *testing.T) {
	s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{})
	id, _, _ := pulled(t, s, "app:1", false)
	s.Image(imagetest.Spec{Name: "mine", Parent: id, Layers: [][]byte{imagetest.Tar(t, "mine", "m")}})
	data := s.save(t, "", "mine", "app:1")
	_, items := list(t, data)
	n := 0
	for name, i := range items {
		if strings.HasPrefix(name, "blobs/") && len(i.data) > 4 && i.data[0] != '{' {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d layer blobs, want 3", n)
	}
	d.load(t, data)
	for _, ref := range []string{"mine", "app:1"} {
		if d.image(t, ref).ID != s.image(t, ref).ID {
			t.Error(ref)
		}
	}
}

// Save detects a damaged compressed layer. The next save works without it.
func TestSaveDetectsDamage(t *testing.T) {
	s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{})
	id, manifest, _ := pulled(t, s, "app:1", false)
	raw, err := s.Store.Blobs.Bytes(manifest, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	m, err := oci.DecodeManifest(raw, "")
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(s.Store.Root, "blobs", "sha256", m.Layers[0].Digest.Hex())
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), []string{"app:1"}, transfer.SaveOptions{}, io.Discard); !errors.Is(err, errs.DataLoss) {
		t.Errorf("err %v", err)
	}
	d.load(t, s.save(t, "", "app:1"))
	if img := d.image(t, "app:1"); img.ID != id || img.Manifest == nil || img.Manifest.Digest != manifest {
		t.Errorf("%+v", img)
	}
}

// A load that would use the reserved disk space fails.
func TestReserve(t *testing.T) {
	s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{Limits: archive.Limits{Reserve: 1 << 60}})
	big := imagetest.Tar(t, "x", strings.Repeat("x", 40<<20))
	s.Image(imagetest.Spec{Name: "big", Layers: [][]byte{big}})
	before := everything(t, d)
	if _, err := d.tryLoad(t, s.save(t, "", "big"), transfer.LoadOptions{}); !errors.Is(err, errs.Exhausted) {
		t.Errorf("load: %v", err)
	}
	if _, err := d.Import(t.Context(), transfer.ImportOptions{Source: bytes.NewReader(big)}, transfer.Discard); !errors.Is(err, errs.Exhausted) {
		t.Errorf("import: %v", err)
	}
	if diff := cmp.Diff(before, everything(t, d)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// A manifest can list a blob of another image as a layer, when the layers were here already. Save does not put it into the
// archive, and the image can still be loaded.
func TestSaveLeavesOutBlobsOfOtherImages(t *testing.T) {
	s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{})
	private, _, _ := pulled(t, s, "h:5000/private:1", false)
	tar := imagetest.Tar(t, "f", "x")
	diff := s.Layer(tar)
	made := imagetest.Day
	cfg := oci.Config{Created: &made, OS: "linux", Architecture: "amd64", RootFS: oci.RootFS{Type: "layers", DiffIDs: oci.Chain{diff}}}
	raw, err := image.EncodeConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	size, err := s.Store.Blobs.Stat(oci.Digest(private))
	if err != nil {
		t.Fatal(err)
	}
	m := oci.Manifest{
		SchemaVersion: 2, MediaType: oci.MediaTypeDockerManifest,
		Config: oci.Descriptor{MediaType: oci.MediaTypeDockerConfig, Digest: oci.DigestOf(raw), Size: int64(len(raw))},
		Layers: []oci.Descriptor{{MediaType: oci.MediaTypeDockerLayerGzip, Digest: oci.Digest(private), Size: size}},
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	md := oci.Descriptor{MediaType: m.MediaType, Size: int64(len(manifest))}
	if md.Digest, err = s.Store.Blobs.Put(manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Images.Put(t.Context(), nil, image.PutOptions{Config: raw, Manifest: &md, Names: []oci.Reference{imagetest.Ref(t, "evil:1")}}); err != nil {
		t.Fatal(err)
	}
	data := s.save(t, "hybrid", "evil:1")
	if _, items := list(t, data); items["blobs/sha256/"+oci.Digest(private).Hex()].data != nil {
		t.Error("the archive has the config of another image")
	}
	if lines := d.load(t, data); !cmp.Equal(lines, []string{"Loaded evil:1"}) {
		t.Errorf("load: %v", lines)
	}
}
