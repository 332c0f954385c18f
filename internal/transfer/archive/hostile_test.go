package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/errs"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/transfer"
	"ply/internal/transfer/archive"
)

// doc is an archive that a test case changes.
type doc struct {
	t     *testing.T
	names []string
	items map[string]item
}

func parse(t *testing.T, data []byte) *doc {
	names, items := list(t, data)
	return &doc{t, names, items}
}

func (d *doc) set(name string, i item) *doc {
	if _, ok := d.items[name]; !ok {
		d.names = append(d.names, name)
	}
	d.items[name] = i
	return d
}

func (d *doc) file(name, content string) *doc {
	return d.set(name, item{typ: tar.TypeReg, data: []byte(content)})
}

func (d *doc) drop(names ...string) *doc {
	for _, n := range names {
		for i, have := range d.names {
			if have == n {
				d.names = append(d.names[:i:i], d.names[i+1:]...)
			}
		}
		delete(d.items, n)
	}
	return d
}

func (d *doc) bytes() []byte { return rebuild(d.t, d.names, d.items) }

// edit replaces text in a JSON file.
func (d *doc) edit(name, old, new string) *doc {
	d.t.Helper()
	text := string(d.items[name].data)
	if !strings.Contains(text, old) {
		d.t.Fatalf("%s holds no %q: %s", name, old, text)
	}
	return d.file(name, strings.ReplaceAll(text, old, new))
}

// twice writes an entry twice.
func (d *doc) twice(name string) []byte {
	return rebuild(d.t, append(append([]string(nil), d.names...), name), d.items)
}

func (d *doc) dockerLayers() []string {
	var m []struct{ Layers []string }
	if err := json.Unmarshal(d.items["manifest.json"].data, &m); err != nil {
		d.t.Fatal(err)
	}
	return m[0].Layers
}

func (d *doc) config() string {
	var m []struct{ Config string }
	if err := json.Unmarshal(d.items["manifest.json"].data, &m); err != nil {
		d.t.Fatal(err)
	}
	return m[0].Config
}

// ociManifest returns the name of the blob that index.json lists.
func (d *doc) ociManifest() string {
	var i oci.Index
	if err := json.Unmarshal(d.items["index.json"].data, &i); err != nil {
		d.t.Fatal(err)
	}
	return "blobs/sha256/" + i.Manifests[0].Digest.Hex()
}

// Each archive is refused with a reason and leaves no names, images, layers or blobs.
func TestHostileArchives(t *testing.T) {
	s := newSide(t, archive.Options{})
	four(t, s)
	dockerTar, ociTar, legacyTar := s.save(t, "docker", "ubuntu:14.04"), s.save(t, "oci", "ubuntu:14.04"), s.save(t, "legacy", "ubuntu:14.04")
	hybridTar := s.save(t, "hybrid", "ubuntu:14.04")
	docker := func(f func(d *doc)) func(*testing.T) []byte {
		return func(t *testing.T) []byte { d := parse(t, dockerTar); f(d); return d.bytes() }
	}
	ociCase := func(f func(d *doc)) func(*testing.T) []byte {
		return func(t *testing.T) []byte { d := parse(t, ociTar); f(d); return d.bytes() }
	}
	hybrid := func(f func(d *doc)) func(*testing.T) []byte {
		return func(t *testing.T) []byte { d := parse(t, hybridTar); f(d); return d.bytes() }
	}
	legacy := func(f func(d *doc)) func(*testing.T) []byte {
		return func(t *testing.T) []byte { d := parse(t, legacyTar); f(d); return d.bytes() }
	}
	many := func(n int, one string) string { return "[" + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + "]" }
	for name, c := range map[string]struct {
		make func(*testing.T) []byte
		want string
	}{
		"empty":               {func(*testing.T) []byte { return nil }, "empty"},
		"empty tar":           {func(t *testing.T) []byte { return rebuild(t, nil, nil) }, "is empty"},
		"no tar":              {func(*testing.T) []byte { return bytes.Repeat([]byte("no tar at all\n"), 1000) }, "archive"},
		"cut in a layer":      {func(*testing.T) []byte { return dockerTar[:len(dockerTar)/2] }, "ends in the middle"},
		"cut gzip":            {func(t *testing.T) []byte { z := gzipped(t, dockerTar); return z[:len(z)/2] }, "archive"},
		"a root file system":  {func(t *testing.T) []byte { return imagetest.Tar(t, "etc/", "", "etc/passwd", "x") }, "ply import"},
		"no manifest.json":    {docker(func(d *doc) { d.drop("manifest.json", "repositories"); d.names = d.names[:1] }), "holds no image"},
		"manifest.json twice": {func(t *testing.T) []byte { return parse(t, dockerTar).twice("manifest.json") }, `holds "manifest.json" twice`},
		"layer twice":         {func(t *testing.T) []byte { d := parse(t, dockerTar); return d.twice(d.dockerLayers()[1]) }, "twice"},
		"manifest.json a link": {docker(func(d *doc) {
			d.file("real", string(d.items["manifest.json"].data)).set("manifest.json", item{typ: tar.TypeSymlink, link: "real"})
		}), "manifest.json is a link"},
		"manifest.json no JSON": {docker(func(d *doc) { d.file("manifest.json", "hello") }), "not JSON"},
		"manifest.json cut":     {docker(func(d *doc) { d.file("manifest.json", "[{") }), "manifest.json"},
		"manifest.json object":  {docker(func(d *doc) { d.file("manifest.json", "{}") }), "manifest.json"},
		"duplicate key":         {docker(func(d *doc) { d.edit("manifest.json", `"Config"`, `"Config":"x","Config"`) }), "appears twice"},
		"key in other case":     {docker(func(d *doc) { d.edit("manifest.json", `"Layers"`, `"layers"`) }), `not written "Layers"`},
		"deep JSON": {docker(func(d *doc) {
			d.edit("manifest.json", `[{`, `[{"x":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)+`,`)
		}), "nested deeper"},
		"trailing data": {docker(func(d *doc) { d.edit("manifest.json", "]}]", "]}] {}") }), "after its end"},
		"10,000 images": {docker(func(d *doc) {
			one := strings.Trim(strings.TrimSpace(string(d.items["manifest.json"].data)), "[]")
			for i := range 1001 {
				cfg := strings.Replace(string(d.items[d.config()].data), `"os":"linux"`, fmt.Sprintf(`"os":"linux","x":%d`, i), 1)
				d.file(fmt.Sprintf("c%d", i), cfg)
			}
			var all []string
			for i := range 1001 {
				all = append(all, strings.ReplaceAll(strings.Replace(one+"}", d.config(), fmt.Sprintf("c%d", i), 1), "}}", "}"))
			}
			d.file("manifest.json", strings.ReplaceAll("["+strings.Join(all, ",")+"]", `"ubuntu:14.04"`, ""))
		}), "more than 1000 images"},
		"100,000 tags": {docker(func(d *doc) {
			var tags []string
			for i := range 100_000 {
				tags = append(tags, fmt.Sprintf(`"a:%d"`, i))
			}
			d.edit("manifest.json", `"ubuntu:14.04"`, strings.Join(tags, ","))
		}), "more than 10000 names"},
		"config climbs":     {docker(func(d *doc) { d.edit("manifest.json", d.config(), "../../../etc/passwd") }), "climbs with .."},
		"config absolute":   {docker(func(d *doc) { d.edit("manifest.json", d.config(), "/etc/passwd") }), `has no "/etc/passwd"`},
		"config missing":    {docker(func(d *doc) { d.drop(d.config()) }), "has no"},
		"config empty name": {docker(func(d *doc) { d.edit("manifest.json", d.config(), "") }), "has no"},
		"config changed":    {docker(func(d *doc) { d.edit(d.config(), "amd64", "arm64") }), "has other content"},
		"config a layer":    {docker(func(d *doc) { d.edit("manifest.json", d.config(), d.dockerLayers()[0]) }), "config"},
		"config garbage":    {docker(func(d *doc) { c := d.config(); d.edit("manifest.json", c, "x").file("x", "{}") }), "rootfs type"},
		"config for windows": {docker(func(d *doc) {
			c := d.config()
			d.edit("manifest.json", c, "x").file("x", strings.Replace(string(d.items[c].data), "linux", "windows", 1))
		}), "operating system"},
		"bad diff_id": {docker(func(d *doc) {
			c := d.config()
			d.edit("manifest.json", c, "x").file("x", strings.Replace(string(d.items[c].data), "sha256:", "sha256:../", 1))
		}), "invalid digest"},
		"layer climbs":        {docker(func(d *doc) { d.edit("manifest.json", d.dockerLayers()[2], "../../x") }), "climbs with .."},
		"layer missing":       {docker(func(d *doc) { d.drop(d.dockerLayers()[2]) }), "has no layer"},
		"layer changed":       {docker(func(d *doc) { n := d.dockerLayers()[1]; d.items[n].data[600] ^= 1 }), "the config says"},
		"small layer changed": {docker(func(d *doc) { n := d.dockerLayers()[0]; d.items[n].data[600] ^= 1 }), "the config says"},
		"layers swapped": {docker(func(d *doc) {
			l := d.dockerLayers()
			d.edit("manifest.json", l[0], "T").edit("manifest.json", l[1], l[0]).edit("manifest.json", "T", l[1])
		}), "the config says"},
		"a layer less":       {docker(func(d *doc) { l := d.dockerLayers(); d.edit("manifest.json", `,"`+l[3]+`"`, "") }), "has 3 layers, its config says 4"},
		"a layer more":       {docker(func(d *doc) { l := d.dockerLayers(); d.edit("manifest.json", `"`+l[3]+`"`, `"`+l[3]+`","`+l[3]+`"`) }), "has 5 layers"},
		"link outside":       {docker(func(d *doc) { d.set(d.dockerLayers()[0], item{typ: tar.TypeSymlink, link: "../../../../etc/shadow"}) }), "leaves the archive"},
		"link absolute":      {docker(func(d *doc) { d.set(d.dockerLayers()[0], item{typ: tar.TypeSymlink, link: "/etc/shadow"}) }), "leaves the archive"},
		"hard link outside":  {docker(func(d *doc) { d.set(d.dockerLayers()[0], item{typ: tar.TypeLink, link: "../etc/shadow"}) }), "leaves the archive"},
		"hard link absolute": {docker(func(d *doc) { d.set(d.dockerLayers()[0], item{typ: tar.TypeLink, link: "/etc/shadow"}) }), "has no layer"},
		"links in a circle": {docker(func(d *doc) {
			d.set(d.dockerLayers()[0], item{typ: tar.TypeSymlink, link: "../a"}).set("a", item{typ: tar.TypeSymlink, link: d.dockerLayers()[0]})
		}), "too many links"},
		"entry climbs":            {docker(func(d *doc) { d.file("../../evil", "x") }), "climbs with .."},
		"device":                  {docker(func(d *doc) { d.set("dev", item{typ: tar.TypeBlock}) }), "neither file, directory nor link"},
		"fifo":                    {docker(func(d *doc) { d.set("fifo", item{typ: tar.TypeFifo}) }), "neither file, directory nor link"},
		"bad tag":                 {docker(func(d *doc) { d.edit("manifest.json", "ubuntu:14.04", "UPPER:x") }), "invalid reference"},
		"tag with a digest":       {docker(func(d *doc) { d.edit("manifest.json", "ubuntu:14.04", "a@sha256:"+strings.Repeat("a", 64)) }), "has a digest"},
		"tag like an ID":          {docker(func(d *doc) { d.edit("manifest.json", "ubuntu:14.04", "sha256:abc") }), "could be taken for an ID"},
		"64 hex tag":              {docker(func(d *doc) { d.edit("manifest.json", "ubuntu:14.04", strings.Repeat("a", 64)) }), "invalid reference"},
		"layer no tar":            {docker(func(d *doc) { swapLayer(d, []byte(strings.Repeat("x", 40_000))) }), "layer"},
		"layer climbs inside":     {docker(func(d *doc) { swapLayer(d, imagetest.Tar(d.t, "../evil", "x")) }), "climbs with .."},
		"big layer climbs inside": {docker(func(d *doc) { swapLayer(d, imagetest.Tar(d.t, "../evil", strings.Repeat("x", 99_999))) }), "climbs with .."},
		"bad gzip layer": {docker(func(d *doc) {
			n := d.dockerLayers()[0]
			d.items[n] = item{typ: '0', data: append([]byte{0x1f, 0x8b, 8, 0}, bytes.Repeat([]byte{7}, 50_000)...)}
		}), "layer"},
		"gzip bomb layer": {docker(func(d *doc) {
			n := d.dockerLayers()[1]
			d.items[n] = item{typ: '0', data: gzipped(d.t, make([]byte, 64<<20))}
		}), "unpacks to"},

		"index.json empty":         {ociCase(func(d *doc) { d.file("index.json", `{"schemaVersion":2,"manifests":[]}`) }), "holds no image"},
		"index.json is a manifest": {ociCase(func(d *doc) { d.file("index.json", string(d.items[d.ociManifest()].data)) }), "index"},
		"index and manifest":       {ociCase(func(d *doc) { d.edit("index.json", `"manifests"`, `"layers":[],"config":{},"manifests"`) }), "image and an index at once"},
		"manifest missing":         {ociCase(func(d *doc) { d.drop(d.ociManifest()) }), "listed but not there"},
		"manifest changed":         {ociCase(func(d *doc) { d.edit(d.ociManifest(), `"schemaVersion":2`, `"schemaVersion":2 `) }), "has other content"},
		"manifest size": {ociCase(func(d *doc) {
			n := len(d.items[d.ociManifest()].data)
			d.edit("index.json", fmt.Sprintf(`"size":%d`, n), `"size":7`)
		}), "its descriptor says 7"},
		"manifest type":      {ociCase(func(d *doc) { d.edit("index.json", oci.MediaTypeOCIManifest, oci.MediaTypeDockerManifest) }), "was served as"},
		"bad digest":         {ociCase(func(d *doc) { d.edit("index.json", `"digest":"sha256:`, `"digest":"sha256:../../`) }), "invalid digest"},
		"layer blob changed": {ociCase(func(d *doc) { n := d.names[len(d.names)-1]; d.items[n].data[700] ^= 1 }), "has other content"},
		"index names a layer": {ociCase(func(d *doc) {
			d.edit("index.json", strings.TrimPrefix(d.ociManifest(), "blobs/sha256/"), strings.TrimPrefix(d.names[len(d.names)-1], "blobs/sha256/"))
		}), "listed but not there"},
		"index names itself": {ociCase(func(d *doc) {
			d.file("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"`+oci.MediaTypeOCIIndex+`","digest":"`+string(oci.DigestOf(d.items["index.json"].data))+`","size":1}]}`)
		}), "listed but not there"},
		"indexes too deep": {ociCase(func(d *doc) {
			at := string(d.items["index.json"].data)
			for range 10 {
				dg := oci.DigestOf([]byte(at))
				d.file("blobs/sha256/"+dg.Hex(), at)
				at = fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, oci.MediaTypeOCIIndex, dg, len(at))
			}
			d.file("index.json", at)
		}), "nested deeper than 8"},
		"no platform fits": {ociCase(func(d *doc) {
			inner := `{"schemaVersion":2,"mediaType":"` + oci.MediaTypeOCIIndex + `","manifests":[{"mediaType":"` + oci.MediaTypeOCIManifest + `","digest":"` + string(oci.DigestOf(nil)) + `","size":0,"platform":{"os":"plan9","architecture":"mips"}}]}`
			dg := oci.DigestOf([]byte(inner))
			d.file("blobs/sha256/"+dg.Hex(), inner).file("index.json", fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, oci.MediaTypeOCIIndex, dg, len(inner)))
		}), "no matching manifest"},
		"10,000 manifests": {ociCase(func(d *doc) {
			d.file("index.json", `{"schemaVersion":2,"manifests":`+many(10_000, `{"mediaType":"x","digest":"`+string(oci.DigestOf(nil))+`","size":1}`)+`}`)
		}), "the limit is"},
		"an artifact": {ociCase(func(d *doc) {
			m := `{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"` + string(oci.DigestOf(nil)) + `","size":0},"layers":[]}`
			dg := oci.DigestOf([]byte(m))
			d.file("blobs/sha256/"+dg.Hex(), m).file("index.json", fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, oci.MediaTypeOCIManifest, dg, len(m)))
		}), "artifact of type application/vnd.cncf.helm"},
		"manifests annotation": {ociCase(func(d *doc) {
			d.edit("index.json", `"annotations":{`, `"annotations":{"io.ply.image.manifests":"sha256:../x",`)
		}), "invalid digest"},
		"index.json and manifest.json disagree": {hybrid(func(d *doc) {
			c := strings.Replace(string(d.items[d.config()].data), "amd64", "arm64", 1)
			d.edit("manifest.json", d.config(), "other").file("other", c)
		}), "has two images with the name ubuntu:14.04"},

		"parent of itself": {legacy(func(d *doc) {
			top := topOf(d)
			d.file(top+"/json", `{"id":"`+top+`","parent":"`+top+`"}`)
		}), "parent of themselves"},
		"parent missing": {legacy(func(d *doc) {
			top := topOf(d)
			d.file(top+"/json", `{"id":"`+top+`","parent":"../../etc"}`)
		}), "has no ../../etc/json"},
		"another's ID":       {legacy(func(d *doc) { top := topOf(d); d.file(top+"/json", `{"id":"`+strings.Repeat("a", 64)+`"}`) }), "has the id"},
		"layer.tar missing":  {legacy(func(d *doc) { d.drop(topOf(d) + "/layer.tar") }), "layer.tar"},
		"top missing":        {legacy(func(d *doc) { d.file("repositories", `{"a":{"b":"`+strings.Repeat("b", 64)+`"}}`) }), "has no"},
		"bad name":           {legacy(func(d *doc) { d.edit("repositories", `"ubuntu"`, `"UB/../x"`) }), "invalid reference"},
		"too many documents": {func(t *testing.T) []byte { return hugeMetadata(t) }, "small files exceed"},
		"too many entries": {func(t *testing.T) []byte {
			var names []string
			for i := range 5001 {
				names = append(names, fmt.Sprintf("d%d/", i))
			}
			return rebuild(t, names, map[string]item{})
		}, "more than 5000 entries"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newSide(t, archive.Options{Limits: archive.Limits{Metadata: 4 << 20, Layer: 32 << 20, Entries: 5000}})
			d.Image(imagetest.Spec{Name: "ubuntu:14.04"})
			before := everything(t, d)
			lines, err := d.tryLoad(t, c.make(t), transfer.LoadOptions{Platform: "linux/amd64"})
			if err == nil {
				t.Fatalf("accepted: %v", lines)
			}
			if !strings.Contains(err.Error(), c.want) || !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.NotFound) {
				t.Errorf("err %v, want %q", err, c.want)
			}
			if diff := cmp.Diff(before, everything(t, d)); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

// topOf returns the v1 ID in the file repositories.
func topOf(d *doc) string {
	var r map[string]map[string]string
	if err := json.Unmarshal(d.items["repositories"].data, &r); err != nil {
		d.t.Fatal(err)
	}
	return r["ubuntu"]["14.04"]
}

// swapLayer replaces the second layer and corrects the config, so that only the content of the layer is bad.
func swapLayer(d *doc, content []byte) {
	l, c := d.dockerLayers()[1], d.config()
	old := oci.DigestOf(d.items[l].data)
	d.file("c", strings.Replace(string(d.items[c].data), string(old), string(oci.DigestOf(content)), 1))
	d.edit("manifest.json", c, "c")
	d.items[l] = item{typ: tar.TypeReg, data: content}
}

func hugeMetadata(t *testing.T) []byte {
	var names []string
	items := map[string]item{}
	for i := range 10 {
		n := fmt.Sprintf("%d.json", i)
		names = append(names, n)
		items[n] = item{typ: tar.TypeReg, data: []byte(`{"x":"` + strings.Repeat("x", 1<<20) + `"}`)}
	}
	return rebuild(t, names, items)
}

// everything lists the content of a store: records, blobs, layers and temporary files.
func everything(t *testing.T, s side) (all []string) {
	t.Helper()
	err := s.Store.Meta.View(func(tx *meta.Tx) error {
		for k, v := range tx.Names.All() {
			all = append(all, "name "+k+" "+string(v.Value.Image))
		}
		for k := range tx.Images.All() {
			all = append(all, "image "+string(k))
		}
		for k := range tx.Layers.All() {
			all = append(all, "layer "+string(k))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(s.Store.Root, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			all = append(all, strings.TrimPrefix(p, s.Store.Root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Unusual archives that are valid.
func TestUnusualArchives(t *testing.T) {
	s := newSide(t, archive.Options{})
	four(t, s)
	id := s.image(t, "ubuntu:14.04").ID
	for name, c := range map[string]struct {
		format string
		change func(d *doc)
		line   string
	}{
		"layer behind a symlink": {"docker", func(d *doc) {
			n := d.dockerLayers()[0]
			d.set("real/x", d.items[n]).set(n, item{typ: tar.TypeSymlink, link: "../real/x"})
		}, ""},
		"layer behind a hard link": {"docker", func(d *doc) {
			n := d.dockerLayers()[0]
			d.set("real/x", d.items[n]).set(n, item{typ: tar.TypeLink, link: "./real/x"})
		}, ""},
		"two links deep": {"docker", func(d *doc) {
			n := d.dockerLayers()[0]
			d.set("x", d.items[n]).set("y", item{typ: tar.TypeSymlink, link: "x"}).set(n, item{typ: tar.TypeSymlink, link: "../y"})
		}, ""},
		"link with needless dots": {"docker", func(d *doc) {
			n := d.dockerLayers()[0]
			d.set("a/x", d.items[n]).set(n, item{typ: tar.TypeSymlink, link: ".././b/../a/x"})
		}, ""},
		"gzip layers": {"docker", func(d *doc) {
			for _, n := range d.dockerLayers() {
				d.items[n] = item{typ: '0', data: gzipped(d.t, d.items[n].data)}
			}
		}, ""},
		"no tags":           {"docker", func(d *doc) { d.edit("manifest.json", `["ubuntu:14.04"]`, "null").drop("repositories") }, "Loaded " + string(id)},
		"tag without a tag": {"docker", func(d *doc) { d.edit("manifest.json", "ubuntu:14.04", "ubuntu") }, "Loaded ubuntu:latest"},
		"unknown keys":      {"docker", func(d *doc) { d.edit("manifest.json", `[{`, `[{"Parent":"x","LayerSources":{"a":{"mediaType":"b"}},`) }, ""},
		"config under any name": {"docker", func(d *doc) {
			c := d.config()
			d.file("sha256:config", string(d.items[c].data)).edit("manifest.json", c, "sha256:config").drop(c)
		}, ""},
		"files nobody asked for": {"docker", func(d *doc) { d.file("README", strings.Repeat("hello\n", 20_000)).file(".x", "") }, ""},
		"bad layer nobody wants": {"docker", func(d *doc) { d.file("junk", "\x1f\x8b\x08"+strings.Repeat("junk", 20_000)) }, ""},
		"indented JSON": {"docker", func(d *doc) {
			var b bytes.Buffer
			_ = json.Indent(&b, d.items["manifest.json"].data, " ", "\t")
			d.file("manifest.json", b.String())
		}, ""},
		"only a bare tag": {"oci", func(d *doc) { d.edit("index.json", `"io.containerd.image.name":"docker.io/library/ubuntu:14.04",`, "") }, "Loaded " + string(id)},
		"name in ref.name": {"oci", func(d *doc) {
			d.edit("index.json", `"io.containerd.image.name":"docker.io/library/ubuntu:14.04",`, "").edit("index.json", `ref.name":"14.04"`, `ref.name":"q/x:1"`)
		}, "Loaded q/x:1"},
		"without media types": {"oci", func(d *doc) { d.edit("index.json", `"mediaType":"`+oci.MediaTypeOCIIndex+`",`, "") }, ""},
		"an attestation beside": {"oci", func(d *doc) {
			d.edit("index.json", `"manifests":[`, `"manifests":[{"mediaType":"`+oci.MediaTypeOCIManifest+`","digest":"`+string(oci.DigestOf(nil))+`","size":0,"platform":{"os":"unknown","architecture":"unknown"}},`)
		}, ""},
		"index in index, one platform's blobs only": {"oci", func(d *doc) {
			inner := strings.Replace(string(d.items["index.json"].data), `"manifests":[`, `"manifests":[{"mediaType":"`+oci.MediaTypeOCIManifest+`","digest":"`+string(oci.DigestOf(nil))+`","size":0,"platform":{"os":"linux","architecture":"s390x"}},`, 1)
			dg := oci.DigestOf([]byte(inner))
			d.file("blobs/sha256/"+dg.Hex(), inner)
			d.file("index.json", fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"annotations":{"io.containerd.image.name":"ubuntu:14.04"}}]}`, oci.MediaTypeOCIIndex, dg, len(inner)))
		}, ""},
		"an artifact beside": {"oci", func(d *doc) {
			const empty = "{}"
			config := oci.DigestOf([]byte(empty))
			manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.x.config","digest":%q,"size":2},"layers":[]}`, oci.MediaTypeOCIManifest, config)
			dg := oci.DigestOf([]byte(manifest))
			d.file("blobs/sha256/"+config.Hex(), empty).file("blobs/sha256/"+dg.Hex(), manifest)
			d.edit("index.json", `"manifests":[`, fmt.Sprintf(`"manifests":[{"mediaType":%q,"digest":%q,"size":%d},`, oci.MediaTypeOCIManifest, dg, len(manifest)))
		}, "ArtifactSkipped application/vnd.x.config\nLoaded ubuntu:14.04"},
		"same name for two platforms": {"oci", func(d *doc) {
			d.edit("index.json", `"manifests":[`, `"manifests":[{"mediaType":"`+oci.MediaTypeOCIManifest+`","digest":"`+string(oci.DigestOf(nil))+`","size":0,"platform":{"os":"linux","architecture":"s390x"},"annotations":{"io.containerd.image.name":"docker.io/library/ubuntu:14.04"}},`)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := newSide(t, archive.Options{})
			doc := parse(t, s.save(t, c.format, "ubuntu:14.04"))
			c.change(doc)
			lines, err := d.tryLoad(t, doc.bytes(), transfer.LoadOptions{Platform: "linux/amd64"})
			if err != nil {
				t.Fatal(err)
			}
			want := c.line
			if want == "" {
				want = "Loaded ubuntu:14.04"
			}
			if strings.Join(lines, "\n") != want {
				t.Errorf("said %q, want %q", lines, want)
			}
			if d.image(t, string(id)).ID != id {
				t.Error("another image")
			}
		})
	}
}

// The archive may lack a layer that the store has.
func TestLoadArchiveWithoutALayer(t *testing.T) {
	s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{})
	four(t, s)
	doc := parse(t, s.save(t, "oci", "ubuntu:14.04"))
	var m oci.Manifest
	if err := json.Unmarshal(doc.items[doc.ociManifest()].data, &m); err != nil {
		t.Fatal(err)
	}
	doc.drop("blobs/sha256/"+m.Layers[0].Digest.Hex(), "blobs/sha256/"+m.Layers[1].Digest.Hex())
	if _, err := d.tryLoad(t, doc.bytes(), transfer.LoadOptions{}); err == nil || !strings.Contains(err.Error(), "neither in the archive nor in the store") {
		t.Errorf("err %v", err)
	}
	d.load(t, s.save(t, "", "base:1"))
	d.load(t, doc.bytes())
	if d.image(t, "ubuntu:14.04").ID != s.image(t, "ubuntu:14.04").ID {
		t.Error("another image")
	}
}

// A stream that is cancelled or breaks, at any byte, leaves nothing in the store.
func TestLoadOfABrokenStream(t *testing.T) {
	s := newSide(t, archive.Options{})
	pulled(t, s, "h:5000/app:1", true)
	data := s.save(t, "", "h:5000/app:1")
	d := newSide(t, archive.Options{})
	before := everything(t, d)
	gone := errors.New("connection reset")
	for at := 0; at < len(data)-2048; at += 509 {
		err := d.Load(t.Context(), io.MultiReader(bytes.NewReader(data[:at]), broken{gone}), transfer.LoadOptions{}, transfer.Discard)
		if err == nil || !strings.Contains(err.Error(), gone.Error()) {
			t.Fatalf("at %d: %v", at, err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		err = d.Load(ctx, io.MultiReader(bytes.NewReader(data[:at]), canceller{cancel, gone}), transfer.LoadOptions{}, transfer.Discard)
		if !errors.Is(err, gone) {
			t.Fatalf("cancelled at %d: %v", at, err)
		}
	}
	if diff := cmp.Diff(before, everything(t, d)); diff != "" || d.Driver.Open != 0 {
		t.Errorf("left behind:\n%s", diff)
	}
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

type canceller struct {
	cancel context.CancelCauseFunc
	cause  error
}

func (c canceller) Read(p []byte) (int, error) {
	c.cancel(c.cause)
	return 0, nil
}

func FuzzLoad(f *testing.F) {
	s := newSide(f, archive.Options{})
	s.Image(imagetest.Spec{Name: "base:1", Layers: [][]byte{imagetest.Tar(f, "a", "b")}})
	for _, format := range []string{"hybrid", "docker", "oci", "legacy"} {
		f.Add(s.save(f, format, "base:1"))
	}
	d := newSide(f, archive.Options{Limits: archive.Limits{Layer: 1 << 20, Metadata: 1 << 20}})
	f.Fuzz(func(t *testing.T, data []byte) {
		err := d.Load(t.Context(), bytes.NewReader(data), transfer.LoadOptions{}, transfer.Discard)
		if d.Driver.Open != 0 {
			t.Error("a layer neither committed nor aborted")
		}
		if err != nil && !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.NotFound) {
			t.Errorf("%v", err)
		}
	})
}
