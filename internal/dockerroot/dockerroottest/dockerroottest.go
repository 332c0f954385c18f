// Package dockerroottest makes data roots as docker leaves them, for tests.
package dockerroottest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"go.etcd.io/bbolt"

	"ply/internal/oci"
)

// Fixture is a data root as docker leaves it. Its methods add objects, and end the test on an error.
type Fixture struct {
	t   testing.TB
	Dir string
}

// New returns a root with nothing in it.
func New(t testing.TB) *Fixture {
	t.Helper()
	f := &Fixture{t, t.TempDir()}
	for _, d := range []string{"containers", "volumes", "image/overlay2/imagedb/content/sha256", "network/files"} {
		f.Mkdir(d)
	}
	f.Database("volumes/metadata.db", "volumes", map[string]string{})
	f.Database("network/files/local-kv.db", "libnetwork", map[string]string{})
	return f
}

// Path returns the path of a name in the root.
func (f *Fixture) Path(name string) string { return filepath.Join(f.Dir, name) }

// Mkdir makes a directory.
func (f *Fixture) Mkdir(name string) {
	f.t.Helper()
	if err := os.MkdirAll(f.Path(name), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// Write writes a file.
func (f *Fixture) Write(name, text string) {
	f.t.Helper()
	f.Mkdir(filepath.Dir(name))
	if err := os.WriteFile(f.Path(name), []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *Fixture) WriteJSON(name string, v any) {
	f.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		f.t.Fatal(err)
	}
	f.Write(name, string(b))
}

// Database writes one bucket.
func (f *Fixture) Database(name, bucket string, values map[string]string) {
	f.t.Helper()
	f.Mkdir(filepath.Dir(name))
	db, err := bbolt.Open(f.Path(name), 0o600, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(bucket))
		for k, v := range values {
			if err == nil {
				err = b.Put([]byte(k), []byte(v))
			}
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// Layer adds a layer with files, a name and a content in turn, on top of a chain, and returns its tar.
func (f *Fixture) Layer(below oci.Chain, files ...string) (chain oci.Chain, raw []byte) {
	f.t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o640, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}); err != nil {
			f.t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.t.Fatal(err)
	}
	raw = b.Bytes()
	chain = append(append(oci.Chain{}, below...), oci.DiffID(oci.DigestOf(raw)))
	cache := "cache-" + chain.Top().Short()
	var recipe bytes.Buffer
	zw := gzip.NewWriter(&recipe)
	in, err := asm.NewInputTarStream(bytes.NewReader(raw), storage.NewJSONPacker(zw), storage.NewDiscardFilePutter())
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		f.t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.Mkdir("overlay2/" + cache + "/diff")
	for i := 0; i < len(files); i += 2 {
		f.Write("overlay2/"+cache+"/diff/"+files[i], files[i+1])
	}
	dir := f.LayerDir(chain)
	f.Write(dir+"/diff", string(chain.Top()))
	f.Write(dir+"/cache-id", cache)
	f.Write(dir+"/size", "3")
	f.Write(dir+"/tar-split.json.gz", recipe.String())
	return chain, raw
}

// LayerDir returns the directory of a layer in the store of layers.
func (f *Fixture) LayerDir(chain oci.Chain) string {
	return "image/overlay2/layerdb/sha256/" + strings.TrimPrefix(string(chain.ID()), "sha256:")
}

// Config returns the config of an image.
func Config(chain oci.Chain) string {
	b, _ := json.Marshal(map[string]any{
		"architecture": oci.HostPlatform().Architecture, "os": "linux", "config": map[string]any{"Cmd": []string{"sh"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": chain},
	})
	return string(b)
}

// Image adds an image and names, and returns its ID.
func (f *Fixture) Image(chain oci.Chain, names ...string) oci.ImageID {
	f.t.Helper()
	raw := Config(chain)
	id := oci.ImageID(oci.DigestOf([]byte(raw)))
	f.Write("image/overlay2/imagedb/content/sha256/"+id.Hex(), raw)
	refs := map[string]string{}
	for _, n := range names {
		refs[n] = string(id)
	}
	f.WriteJSON("image/overlay2/repositories.json", map[string]any{"Repositories": map[string]any{"x": refs}})
	return id
}

// Container adds a container of an image, with more in its records.
func (f *Fixture) Container(id string, image oci.ImageID, more, host map[string]any) {
	f.t.Helper()
	rec := map[string]any{
		"ID": id, "Name": "/c" + id[:2], "Image": string(image), "Driver": "overlay2", "OS": "linux", "Config": map[string]any{"Image": "x:1"},
		"State": map[string]any{"ExitCode": 3, "StartedAt": "2026-01-02T03:04:05Z"},
	}
	for k, v := range more {
		rec[k] = v
	}
	if host == nil {
		host = map[string]any{"NetworkMode": "default"}
	}
	f.WriteJSON("containers/"+id+"/config.v2.json", rec)
	f.WriteJSON("containers/"+id+"/hostconfig.json", host)
	f.Write("image/overlay2/layerdb/mounts/"+id+"/mount-id", "upper-"+id[:2])
	f.Write("overlay2/upper-"+id[:2]+"/diff/changed", "text")
}

// Network adds a network as libnetwork writes it.
func (f *Fixture) Network(id, name string, more map[string]any) {
	f.t.Helper()
	rec := map[string]any{
		"id": id, "name": name, "networkType": "bridge", "scope": "local", "created": "2026-01-02T03:04:05Z", "ipamType": "default",
		"ipamV4Config": `[{"PreferredPool":"10.9.0.0/16","SubPool":"10.9.1.0/24","Gateway":"","AuxAddresses":{"r":"10.9.0.7"}}]`,
		"ipamV4Info":   `[{"IPAMData":"{\"AddressSpace\":\"LocalDefault\",\"Gateway\":\"10.9.0.1/16\",\"Pool\":\"10.9.0.0/16\"}","PoolID":"x"}]`,
		"generic":      map[string]any{"com.docker.network.enable_ipv6": false, "com.docker.network.generic": map[string]string{"com.docker.network.driver.mtu": "1400"}},
	}
	for k, v := range more {
		rec[k] = v
	}
	b, err := json.Marshal(rec)
	if err != nil {
		f.t.Fatal(err)
	}
	f.Database("network/files/local-kv.db", "libnetwork", map[string]string{"docker/network/v1.0/network/" + id + "/": "12345678" + string(b)})
}

// Volume adds a volume.
func (f *Fixture) Volume(name, record string) {
	f.t.Helper()
	f.Write("volumes/"+name+"/_data/file", name)
	if record != "" {
		f.Database("volumes/metadata.db", "volumes", map[string]string{name: record})
	}
}

// Containerd adds the root of a containerd with an image of one layer, and the snapshot of a container. It returns the descriptor of the image's
// manifest, and the bytes of its layer.
func (f *Fixture) Containerd(dir, name, container string) (target oci.Descriptor, layer []byte, id oci.ImageID) {
	f.t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: 4, Typeflag: tar.TypeReg})
	_, _ = io.WriteString(w, "text")
	if err := w.Close(); err != nil {
		f.t.Fatal(err)
	}
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	_, _ = zw.Write(b.Bytes())
	if err := zw.Close(); err != nil {
		f.t.Fatal(err)
	}
	blob := func(data []byte, mediaType string) oci.Descriptor {
		d := oci.DigestOf(data)
		f.Write(dir+"/io.containerd.content.v1.content/blobs/sha256/"+d.Hex(), string(data))
		return oci.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	cfg := blob([]byte(Config(oci.Chain{oci.DiffID(oci.DigestOf(b.Bytes()))})), oci.MediaTypeOCIConfig)
	l := blob(packed.Bytes(), "application/vnd.oci.image.layer.v1.tar+gzip")
	manifest, err := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeOCIManifest, Config: cfg, Layers: []oci.Descriptor{l}})
	if err != nil {
		f.t.Fatal(err)
	}
	target = blob(manifest, oci.MediaTypeOCIManifest)
	meta := f.bolt(dir + "/io.containerd.metadata.v1.bolt/meta.db")
	defer meta.Close()
	put(f.t, meta, []string{"v1", "moby", "images", name, "target"}, map[string][]byte{
		"digest": []byte(target.Digest), "mediatype": []byte(target.MediaType), "size": binary.AppendVarint(nil, target.Size),
	})
	put(f.t, meta, []string{"v1", "moby", "snapshots", "overlayfs", container}, map[string][]byte{"name": []byte("moby/7/" + container)})
	snapshots := f.bolt(dir + "/io.containerd.snapshotter.v1.overlayfs/metadata.db")
	defer snapshots.Close()
	put(f.t, snapshots, []string{"v1", "snapshots", "moby/7/" + container}, map[string][]byte{"id": binary.AppendUvarint(nil, 7)})
	f.Write(dir+"/io.containerd.snapshotter.v1.overlayfs/snapshots/7/fs/changed", "text")
	return target, packed.Bytes(), oci.ImageID(cfg.Digest)
}

func (f *Fixture) bolt(name string) *bbolt.DB {
	f.t.Helper()
	f.Mkdir(filepath.Dir(name))
	db, err := bbolt.Open(f.Path(name), 0o600, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return db
}

func put(t testing.TB, db *bbolt.DB, path []string, values map[string][]byte) {
	t.Helper()
	err := db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(path[0]))
		for _, p := range path[1:] {
			if err == nil {
				b, err = b.CreateBucketIfNotExists([]byte(p))
			}
		}
		for k, v := range values {
			if err == nil {
				err = b.Put([]byte(k), v)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
