package remotetest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"ply/internal/compress"
	"ply/internal/oci"
)

// File is one entry of a layer.
type File struct {
	Name string
	Data []byte
}

// LayerSpec describes a layer for Make.
type LayerSpec struct {
	Files []File
	Codec compress.Codec // "" = gzip
}

// Layer is a layer with the exact bytes of its tar and its blob.
type Layer struct {
	oci.Descriptor
	DiffID oci.DiffID
	Tar    []byte
	Blob   []byte
}

// Image is an image with the exact bytes of its parts.
type Image struct {
	Layers       []Layer
	Config       []byte
	Manifest     []byte
	ManifestType string
}

// ID returns the ID of the image.
func (i *Image) ID() oci.ImageID { return oci.ImageID(oci.DigestOf(i.Config)) }

// Digest returns the digest of the manifest.
func (i *Image) Digest() oci.Digest { return oci.DigestOf(i.Manifest) }

// Noise returns n bytes that hardly compress. The same seed gives the same bytes.
func Noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// Make returns an image for the platform of the host.
func Make(t testing.TB, format oci.Format, specs ...LayerSpec) *Image {
	t.Helper()
	return MakeFor(t, format, oci.HostPlatform(), specs...)
}

// MakeFor returns an image for a platform. Its manifest and config have an unusual indentation, so that code that serialises them
// again changes their digests.
func MakeFor(t testing.TB, format oci.Format, p oci.Platform, specs ...LayerSpec) *Image {
	t.Helper()
	img := &Image{ManifestType: oci.MediaTypeOCIManifest}
	configType, layerTypes := oci.MediaTypeOCIConfig, map[compress.Codec]string{
		compress.Gzip: oci.MediaTypeOCILayerGzip, compress.Zstd: oci.MediaTypeOCILayerZstd, compress.None: oci.MediaTypeOCILayer,
	}
	if format == oci.FormatDocker {
		img.ManifestType, configType = oci.MediaTypeDockerManifest, oci.MediaTypeDockerConfig
		layerTypes = map[compress.Codec]string{compress.Gzip: oci.MediaTypeDockerLayerGzip, compress.None: oci.MediaTypeDockerLayer}
	}
	cfg := oci.Config{Architecture: p.Architecture, OS: p.OS, Variant: p.Variant, RootFS: oci.RootFS{Type: "layers", DiffIDs: oci.Chain{}}}
	man := oci.Manifest{SchemaVersion: 2, MediaType: img.ManifestType, Layers: []oci.Descriptor{}}
	for i, s := range specs {
		if s.Codec == "" {
			s.Codec = compress.Gzip
		}
		l := makeLayer(t, s)
		l.MediaType = layerTypes[s.Codec]
		if l.MediaType == "" {
			t.Fatalf("format %s has no media type for %s", format, s.Codec)
		}
		img.Layers = append(img.Layers, l)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.DiffID)
		cfg.History = append(cfg.History, oci.History{CreatedBy: fmt.Sprint("layer ", i)})
		man.Layers = append(man.Layers, l.Descriptor)
	}
	img.Config = mustJSON(t, cfg)
	man.Config = oci.Descriptor{MediaType: configType, Digest: oci.DigestOf(img.Config), Size: int64(len(img.Config))}
	img.Manifest = mustJSON(t, man)
	return img
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.MarshalIndent(v, " ", "     ")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func makeLayer(t testing.TB, s LayerSpec) Layer {
	t.Helper()
	var raw, packed bytes.Buffer
	w := tar.NewWriter(&raw)
	for _, f := range s.Files {
		h := &tar.Header{Name: f.Name, Mode: 0o644, Size: int64(len(f.Data)), ModTime: time.Unix(1_700_000_000, 0), Typeflag: tar.TypeReg}
		if strings.HasSuffix(f.Name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z, err := compress.NewWriter(&packed, compress.Params{Codec: s.Codec, Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(raw.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	l := Layer{DiffID: oci.DiffID(oci.DigestOf(raw.Bytes())), Tar: raw.Bytes(), Blob: packed.Bytes()}
	l.Digest, l.Size = oci.DigestOf(l.Blob), int64(len(l.Blob))
	return l
}

// MakeIndex returns an index of images with their platforms, in order. Its first entry is an attestation, which must not be chosen.
func MakeIndex(t testing.TB, platforms []oci.Platform, images []*Image) (data []byte, mediaType string) {
	t.Helper()
	idx := oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeOCIIndex}
	idx.Manifests = append(idx.Manifests, oci.Descriptor{
		MediaType: oci.MediaTypeOCIManifest, Digest: images[0].Digest(), Size: int64(len(images[0].Manifest)),
		Platform:    &oci.Platform{OS: "unknown", Architecture: "unknown"},
		Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
	})
	for i, img := range images {
		idx.Manifests = append(idx.Manifests, oci.Descriptor{
			MediaType: img.ManifestType, Digest: img.Digest(), Size: int64(len(img.Manifest)), Platform: &platforms[i],
		})
	}
	return mustJSON(t, idx), idx.MediaType
}

// Put uploads an image with requests of its own, not with the client that is tested.
func Put(t testing.TB, base, repo, tag string, img *Image, user, password string) {
	t.Helper()
	u := &putter{t, base, repo, user, password}
	for _, l := range img.Layers {
		u.blob(l.Blob)
	}
	u.blob(img.Config)
	u.manifest(tag, img.ManifestType, img.Manifest)
}

// PutManifest uploads only a manifest or index.
func PutManifest(t testing.TB, base, repo, ref, mediaType string, data []byte) {
	t.Helper()
	(&putter{t, base, repo, "", ""}).manifest(ref, mediaType, data)
}

type putter struct {
	t                          testing.TB
	base, repo, user, password string
}

func (u *putter) do(method, url, contentType string, body []byte, want int) *http.Response {
	u.t.Helper()
	req, err := http.NewRequestWithContext(u.t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		u.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	if u.user != "" {
		req.SetBasicAuth(u.user, u.password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		u.t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != want {
		u.t.Fatalf("%s %s: status %d, want %d\n%s", method, url, resp.StatusCode, want, text)
	}
	return resp
}

func (u *putter) blob(b []byte) {
	u.t.Helper()
	resp := u.do(http.MethodPost, u.base+"/v2/"+u.repo+"/blobs/uploads/", "", nil, http.StatusAccepted)
	loc, err := resp.Location()
	if err != nil {
		u.t.Fatal(err)
	}
	q := loc.Query()
	q.Set("digest", string(oci.DigestOf(b)))
	loc.RawQuery = q.Encode()
	u.do(http.MethodPut, loc.String(), "application/octet-stream", b, http.StatusCreated)
}

func (u *putter) manifest(ref, mediaType string, data []byte) {
	u.t.Helper()
	u.do(http.MethodPut, u.base+"/v2/"+u.repo+"/manifests/"+ref, mediaType, data, http.StatusCreated)
}
