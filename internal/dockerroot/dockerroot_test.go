package dockerroot_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"ply/internal/boltfile"
	"ply/internal/dockerroot"
	"ply/internal/dockerroot/dockerroottest"
	"ply/internal/errs"
	"ply/internal/oci"
)

const (
	one = "1111111111111111111111111111111111111111111111111111111111111111"
	two = "2222222222222222222222222222222222222222222222222222222222222222"
)

// open opens the root; it is closed at the end of the test.
func open(t testing.TB, f *dockerroottest.Fixture, o dockerroot.Options) *dockerroot.Root {
	t.Helper()
	r, err := dockerroot.Open(t.Context(), f.Dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// whole returns a root with two of everything.
func whole(t testing.TB) (f *dockerroottest.Fixture, chain oci.Chain, raw []byte) {
	f = dockerroottest.New(t)
	base, _ := f.Layer(nil, "a", "one")
	f.Image(base)
	chain, raw = f.Layer(base, "b", "two", "c", strings.Repeat("three ", 100_000))
	id := f.Image(chain, "x:1", "x@sha256:"+one)
	f.Container(one, id, nil, nil)
	f.Container(two, id, map[string]any{"MountPoints": map[string]any{"/d": map[string]any{"Type": "volume", "Name": "data", "Destination": "/d", "RW": true}}}, nil)
	f.Network(one, "net", nil)
	f.Network(two, "other", nil)
	f.Volume("data", `{"Name":"data","Driver":"local","Labels":{"l":"1"}}`)
	f.Volume("plain", "")
	return f, chain, raw
}

// Everything is read, and a layer is the tar that docker got.
func TestWholeRoot(t *testing.T) {
	f, chain, raw := whole(t)
	f.Write("volumes/plain/opts.json", `{"MountType":"tmpfs","MountOpts":"size=1m","MountDevice":"tmpfs","Quota":{"Size":0}}`)
	f.Write("containers/"+one+"/"+one+"-json.log", "log")
	f.Write("containers/"+one+"/"+one+"-json.log.1.gz", "older")
	f.Write("containers/"+one+"/"+one+"-json.logx", "nothing")
	f.WriteJSON("containers/"+one+"/hostconfig.json", map[string]any{"NetworkMode": "net", "LogConfig": map[string]any{"Type": "json-file"}})
	r := open(t, f, dockerroot.Options{})
	all, problems := r.Images(t.Context())
	if len(all) != 2 || len(problems) != 0 {
		t.Fatalf("%+v %+v", all, problems)
	}
	for _, img := range all {
		if len(img.Chain) == 2 && (len(img.Names) != 2 || img.Title() != "x:1" || !cmp.Equal(img.Chain, chain)) {
			t.Errorf("%+v", img)
		}
	}
	tar, err := r.Layer(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(tar); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("%d bytes, want %d: %v", len(got), len(raw), err)
	}
	if err := tar.Close(); err != nil {
		t.Error(err)
	}
	networks, problems := r.Networks()
	want := dockerroot.Network{
		ID: one, Name: "net", Driver: "bridge", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Options: map[string]string{"com.docker.network.driver.mtu": "1400"},
		Pools: []dockerroot.Pool{{Subnet: netip.MustParsePrefix("10.9.0.0/16"), Range: netip.MustParsePrefix("10.9.1.0/24"), Gateway: netip.MustParseAddr("10.9.0.1"), Aux: map[string]netip.Addr{"r": netip.MustParseAddr("10.9.0.7")}}},
	}
	if len(networks) != 2 || len(problems) != 0 {
		t.Fatalf("%+v %+v", networks, problems)
	}
	if d := cmp.Diff(want, networks[0], cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
	volumes, problems := r.Volumes(t.Context())
	if len(volumes) != 2 || len(problems) != 0 || volumes[0].Labels["l"] != "1" || volumes[1].Options["device"] != "tmpfs" || volumes[0].Created.IsZero() {
		t.Errorf("%+v %+v", volumes, problems)
	}
	containers, problems := r.Containers(t.Context())
	if len(containers) != 2 || len(problems) != 0 || containers[0].Name != "c11" || containers[0].State.ExitCode != 3 || len(containers[1].Mounts) != 1 {
		t.Fatalf("%+v %+v", containers, problems)
	}
	if logs, err := r.Log(&containers[0]); err != nil || !cmp.Equal(logs, []string{"", ".1.gz"}) {
		t.Errorf("log %q %v", logs, err)
	}
	upper, err := r.Upper(&containers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer upper.Close()
	if names, err := upper.Readdirnames(-1); err != nil || !cmp.Equal(names, []string{"changed"}) {
		t.Errorf("upper %q %v", names, err)
	}
}

// A root that a program has open is refused, and one that is read is locked against it. Nothing is written into it.
func TestLocks(t *testing.T) {
	f, _, _ := whole(t)
	for _, name := range []string{"volumes/metadata.db", "network/files/local-kv.db"} {
		db, err := bbolt.Open(f.Path(name), 0o600, &bbolt.Options{Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dockerroot.Open(t.Context(), f.Dir, dockerroot.Options{}); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "dockerd runs on this data root") {
			t.Errorf("%s is open: %v", name, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r := open(t, f, dockerroot.Options{})
	if db, err := bbolt.Open(f.Path("volumes/metadata.db"), 0o600, &bbolt.Options{Timeout: 10 * time.Millisecond}); err == nil {
		_ = db.Close()
		t.Error("the database could be opened while the root is read")
	}
	data, err := r.VolumeData("data")
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	if err := unix.Mkdirat(int(data.Fd()), "new", 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("a directory in the source: %v", err)
	}
}

// A root of which a container still runs, without its dockerd, is refused until the container has ended. That a record says it runs is not enough: dockerd may have been
// killed, and another process may have the number now.
func TestRunningContainersAreRefused(t *testing.T) {
	f, chain, _ := whole(t)
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails
	id := hex.EncodeToString(random[:])
	image := f.Image(chain, "y:1")
	running := func(pid int) {
		f.Container(id, image, map[string]any{"State": map[string]any{"Running": true, "Pid": pid, "StartedAt": "2026-01-02T03:04:05Z"}}, nil)
	}
	running(os.Getpid())
	r, err := dockerroot.Open(t.Context(), f.Dir, dockerroot.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	group := cgroup(t, id, c.Process.Pid)
	end := sync.OnceFunc(func() {
		_ = c.Process.Kill()
		_ = c.Wait() // its status says that it was killed
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	running(c.Process.Pid)
	if _, err := dockerroot.Open(t.Context(), f.Dir, dockerroot.Options{}); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "container c"+id[:2]+" of this data root still runs") {
		t.Errorf("a container runs: %v", err)
	}
	end()
	open(t, f, dockerroot.Options{})
}

// cgroup puts a process into a new cgroup and returns its directory.
func cgroup(t *testing.T, name string, pid int) string {
	t.Helper()
	for _, top := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		dir := filepath.Join(top, name)
		if _, err := os.Stat(filepath.Join(top, "cgroup.procs")); err != nil || os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err == nil {
			return dir
		}
		_ = os.Remove(dir) // it is empty
	}
	t.Skip("no cgroup can be made here")
	return ""
}

// What is no data root, and what has shifted owners, is refused.
func TestOpenRefuses(t *testing.T) {
	f, _, _ := whole(t)
	shifted := filepath.Join(t.TempDir(), "100000.100000")
	if err := os.Rename(f.Dir, shifted); err != nil {
		t.Fatal(err)
	}
	for dir, class := range map[string]error{shifted: errs.Unimplemented, t.TempDir(): errs.NotFound, "/nowhere": errs.NotFound, "relative": errs.Invalid, "/etc/passwd": errs.NotFound} {
		if _, err := dockerroot.Open(t.Context(), dir, dockerroot.Options{}); !errors.Is(err, class) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if _, err := dockerroot.Open(t.Context(), dockerroottest.New(t).Dir, dockerroot.Options{Containerd: t.TempDir()}); !errors.Is(err, errs.NotFound) || errors.Is(err, fs.ErrClosed) {
		t.Errorf("no root of containerd: %v", err)
	}
}

// bomb returns a compressed line of n bytes.
func bomb(t testing.TB, n int) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	chunk := bytes.Repeat([]byte("a"), 1<<20)
	for range n >> 20 {
		if _, err := w.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// An object that is damaged, or wants to lead out of the root, is named with what is wrong. The others are read.
func TestHostileRoot(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(`{"ID":"`+two+`"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	link := func(name string) func(*dockerroottest.Fixture, oci.Chain) {
		return func(f *dockerroottest.Fixture, _ oci.Chain) {
			if err := errors.Join(os.RemoveAll(f.Path(name)), os.Symlink(secret, f.Path(name))); err != nil {
				panic(err)
			}
		}
	}
	text := func(name, content string) func(*dockerroottest.Fixture, oci.Chain) {
		return func(f *dockerroottest.Fixture, _ oci.Chain) { f.Write(name, content) }
	}
	layer := func(name, content string) func(*dockerroottest.Fixture, oci.Chain) {
		return func(f *dockerroottest.Fixture, chain oci.Chain) { f.Write(f.LayerDir(chain)+"/"+name, content) }
	}
	file := func(damage func(path string) error) func(*dockerroottest.Fixture, oci.Chain) {
		return func(f *dockerroottest.Fixture, chain oci.Chain) {
			if err := damage(f.Path("overlay2/cache-" + chain.Top().Short() + "/diff/b")); err != nil {
				panic(err)
			}
		}
	}
	fifo := func(f *dockerroottest.Fixture, _ oci.Chain) {
		name := f.Path("containers/" + two + "/hostconfig.json")
		if err := errors.Join(os.Remove(name), unix.Mkfifo(name, 0o644)); err != nil {
			panic(err)
		}
	}
	for name, c := range map[string]struct {
		damage func(*dockerroottest.Fixture, oci.Chain)
		kind   string // of the problem; "layer" = the layer cannot be read
		want   string
	}{
		"config is a link":    {link("containers/" + two + "/config.v2.json"), "container", "no regular file"},
		"container is a link": {link("containers/" + two), "container", "config.v2.json"},
		"config is long": {func(f *dockerroottest.Fixture, _ oci.Chain) {
			_ = os.Truncate(f.Path("containers/"+two+"/config.v2.json"), 17<<20)
		}, "container", "more than"},
		"config is nested":      {text("containers/"+two+"/config.v2.json", strings.Repeat(`{"State":`, 5000)), "container", "nested"},
		"config is of another":  {text("containers/"+two+"/config.v2.json", `{"ID":"`+one+`","Config":{}}`), "container", "is of container"},
		"host config is a fifo": {fifo, "container", "no regular file"},
		"task of a swarm":       {text("containers/"+two+"/config.v2.json", `{"ID":"`+two+`","Config":{},"Managed":true}`), "container", "swarm"},
		"volume is a link":      {link("volumes/data"), "volume", "not a directory"},
		"options are garbage":   {text("volumes/data/opts.json", "{"), "volume", "opts.json"},
		"volume of a plug-in":   {func(f *dockerroottest.Fixture, _ oci.Chain) { f.Volume("data", `{"Driver":"nfs"}`) }, "volume", "volume driver nfs"},
		"its name is long": {func(f *dockerroottest.Fixture, _ oci.Chain) {
			f.Volume(strings.Repeat("v", 210), `{"Driver":"nfs"}`)
		}, "volume", "volume driver nfs"},
		"volume is gone": {func(f *dockerroottest.Fixture, _ oci.Chain) { _ = os.RemoveAll(f.Path("volumes/data")) }, "volume", "not there"},
		"network is garbage": {func(f *dockerroottest.Fixture, _ oci.Chain) {
			f.Network(two, "other", map[string]any{"ipamV4Info": "["})
		}, "network", "addresses"},
		"network of a swarm": {func(f *dockerroottest.Fixture, _ oci.Chain) {
			f.Network(two, "other", map[string]any{"scope": "swarm"})
		}, "network", "swarm"},
		"names are garbage": {text("image/overlay2/repositories.json", "x"), "image", "repositories.json"},
		"image is changed": {func(f *dockerroottest.Fixture, c oci.Chain) {
			f.Write("image/overlay2/imagedb/content/sha256/"+one, dockerroottest.Config(c))
		}, "image", "other content"},
		"recipe is garbage":      {layer("tar-split.json.gz", "garbage"), "layer", "tar-split"},
		"recipe is cut":          {layer("tar-split.json.gz", bomb(t, 1<<20)[:20]), "layer", "tar-split"},
		"recipe is a bomb":       {layer("tar-split.json.gz", bomb(t, 300<<20)), "layer", "more than"},
		"layer is another":       {layer("diff", "sha256:"+one), "layer", "want"},
		"cache leads out":        {layer("cache-id", "../../.."), "layer", "no name of a directory"},
		"file is gone":           {file(os.Remove), "layer", "no file"},
		"file has other content": {file(func(p string) error { return os.WriteFile(p, []byte("TWO"), 0o644) }), "layer", "checksum"},
		"file has grown":         {file(func(p string) error { return os.Truncate(p, 1<<40) }), "layer", ""},
		"file is a link":         {file(func(p string) error { return errors.Join(os.Remove(p), os.Symlink(secret, p)) }), "layer", "no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			f, chain, raw := whole(t)
			c.damage(f, chain)
			r := open(t, f, dockerroot.Options{})
			var all []dockerroot.Problem
			images, p := r.Images(t.Context())
			all = append(all, p...)
			containers, p := r.Containers(t.Context())
			all = append(all, p...)
			volumes, p := r.Volumes(t.Context())
			all = append(all, p...)
			networks, p := r.Networks()
			all = append(all, p...)
			if c.kind == "layer" {
				tar, err := r.Layer(t.Context(), chain)
				if err == nil {
					var got []byte
					got, err = io.ReadAll(io.LimitReader(tar, 64<<20))
					if err == nil && name == "file has grown" && !bytes.Equal(got, raw) { // the digest shows it
						err = errs.New(errs.DataLoss, "other bytes")
					}
					_ = tar.Close()
				}
				if name == "file has grown" && err == nil {
					return // no byte too many was read
				}
				if !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %q", err, c.want)
				}
				return
			}
			if len(all) != 1 || all[0].Kind != c.kind || !strings.Contains(all[0].Err.Error(), c.want) {
				t.Errorf("%+v, want %s %q", all, c.kind, c.want)
			}
			left := map[string]int{"image": len(images), "container": len(containers), "volume": len(volumes), "network": len(networks)}
			for kind, n := range left {
				want := 2
				if kind == c.kind && kind != "image" {
					want = 1
				}
				if n < want || n > 2 && kind != "image" {
					t.Errorf("%d of kind %s", n, kind)
				}
			}
		})
	}
}

// A database of which pages are damaged is an error, whatever the page says.
func TestDamagedDatabases(t *testing.T) {
	for _, name := range []string{"volumes/metadata.db", "network/files/local-kv.db"} {
		f, _, _ := whole(t)
		good, err := os.ReadFile(f.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		damage := map[string][]byte{"cut": good[:5000], "empty": {}, "garbage": bytes.Repeat([]byte("garbage "), 4096)}
		for page := 2; page*4096 < len(good); page++ {
			for _, fill := range []byte{0xff, 0x00, 0x7f} {
				b := bytes.Clone(good)
				copy(b[page*4096+8:], bytes.Repeat([]byte{fill}, 64))
				damage[string(rune('0'+page))+string(rune('a'+fill%26))] = b
			}
		}
		for what, b := range damage {
			if err := os.WriteFile(f.Path(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := dockerroot.Open(t.Context(), f.Dir, dockerroot.Options{})
			if err != nil {
				if !errors.Is(err, errs.DataLoss) {
					t.Errorf("%s %s: %v", name, what, err)
				}
				continue
			}
			r.Volumes(t.Context()) // must not end the process
			r.Networks()
			_ = r.Close()
		}
	}
}

// An image of containerd's store becomes an archive, without the layers that are here; the writable layer of a container is its snapshot.
func TestContainerd(t *testing.T) {
	for _, at := range []string{"containerd/daemon", "../own"} {
		f := dockerroottest.New(t)
		target, layer, id := f.Containerd(at, "docker.io/library/x:1", one)
		f.Container(one, oci.ImageID(target.Digest), map[string]any{"Driver": "overlayfs", "ImageManifest": target}, nil)
		o := dockerroot.Options{}
		if at == "../own" {
			without, err := dockerroot.Open(t.Context(), f.Dir, o)
			if err != nil {
				t.Fatal(err)
			}
			if _, p := without.Containers(t.Context()); len(p) != 1 || !strings.Contains(p[0].Err.Error(), "--containerd") {
				t.Errorf("without the root of containerd: %+v", p)
			}
			_ = without.Close()
			o.Containerd = f.Path(at)
		}
		r := open(t, f, o)
		all, problems := r.Images(t.Context())
		if len(all) != 1 || len(problems) != 0 || all[0].ID != id || all[0].Title() != "x:1" {
			t.Fatalf("%+v %+v", all, problems)
		}
		for _, here := range []bool{false, true} {
			var b bytes.Buffer
			if err := r.Archive(t.Context(), &all[0], all[0].Names, func(oci.Chain) bool { return here }, &b); err != nil {
				t.Fatal(err)
			}
			found := false
			for tr := tar.NewReader(&b); ; {
				h, err := tr.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				data, err := io.ReadAll(tr)
				found = found || err == nil && bytes.Equal(data, layer)
				if h.Name == "index.json" && !strings.Contains(string(data), "docker.io/library/x:1") {
					t.Errorf("index.json %s", data)
				}
			}
			if found == here {
				t.Errorf("the layer is here: %v, and in the archive: %v", here, found)
			}
		}
		containers, problems := r.Containers(t.Context())
		if len(containers) != 1 || len(problems) != 0 || containers[0].Image != id {
			t.Fatalf("%+v %+v", containers, problems)
		}
		upper, err := r.Upper(&containers[0])
		if err != nil {
			t.Fatal(err)
		}
		if names, err := upper.Readdirnames(-1); err != nil || !cmp.Equal(names, []string{"changed"}) {
			t.Errorf("upper %q %v", names, err)
		}
		_ = upper.Close()
		f.Write(at+"/io.containerd.content.v1.content/blobs/sha256/"+oci.DigestOf(layer).Hex(), strings.Repeat("x", len(layer)))
		if err := r.Archive(t.Context(), &all[0], all[0].Names, func(oci.Chain) bool { return false }, io.Discard); !errors.Is(err, errs.DataLoss) {
			t.Errorf("a layer with other content: %v", err)
		}
	}
}

// A database of which a page refers to itself is an error. bbolt would follow it until the process has no memory.
func TestDatabaseInACircle(t *testing.T) {
	for _, name := range []string{"volumes/metadata.db", "network/files/local-kv.db"} {
		f, _, _ := whole(t)
		many := map[string]string{}
		for i := range 300 {
			many[fmt.Sprintf("docker/network/v1.0/network/%03d", i)] = strings.Repeat("x", 100)
		}
		f.Database(name, map[string]string{"volumes/metadata.db": "volumes", "network/files/local-kv.db": "libnetwork"}[name], many)
		b, err := os.ReadFile(f.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		branches := 0
		for at := 0; at+4096 <= len(b); at += 4096 {
			if binary.NativeEndian.Uint16(b[at+8:]) == boltfile.BranchPage {
				branches++
				for i := range int(binary.NativeEndian.Uint16(b[at+10:])) {
					binary.NativeEndian.PutUint64(b[at+boltfile.HeaderSize+16*i+8:], uint64(at/4096))
				}
			}
		}
		if err := os.WriteFile(f.Path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := dockerroot.Open(t.Context(), f.Dir, dockerroot.Options{})
		if err == nil {
			r.Volumes(t.Context())
			r.Networks()
			_ = r.Close()
		}
		if branches == 0 || !errors.Is(err, errs.DataLoss) {
			t.Errorf("%s with %d branches: %v", name, branches, err)
		}
	}
}

// Indexes that list others again and again are read once each.
func TestManyPathsThroughIndexes(t *testing.T) {
	f := dockerroottest.New(t)
	f.Containerd("containerd/daemon", "docker.io/library/x:1", one)
	next := oci.Descriptor{MediaType: oci.MediaTypeOCIManifest, Digest: oci.DigestOf(nil), Size: 1}
	for range oci.MaxIndexDepth {
		raw, err := json.Marshal(oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeOCIIndex, Manifests: slices.Repeat([]oci.Descriptor{next}, 100)})
		if err != nil {
			t.Fatal(err)
		}
		next = oci.Descriptor{MediaType: oci.MediaTypeOCIIndex, Digest: oci.DigestOf(raw), Size: int64(len(raw))}
		f.Write("containerd/daemon/io.containerd.content.v1.content/blobs/sha256/"+next.Digest.Hex(), string(raw))
	}
	db, err := bbolt.Open(f.Path("containerd/daemon/io.containerd.metadata.v1.bolt/meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		img, err := tx.Bucket([]byte("v1")).Bucket([]byte("moby")).Bucket([]byte("images")).CreateBucket([]byte("docker.io/library/many:1"))
		if err != nil {
			return err
		}
		b, err := img.CreateBucket([]byte("target"))
		return errors.Join(err, b.Put([]byte("digest"), []byte(next.Digest)), b.Put([]byte("mediatype"), []byte(next.MediaType)), b.Put([]byte("size"), binary.AppendVarint(nil, next.Size)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	r := open(t, f, dockerroot.Options{})
	all, problems := r.Images(t.Context())
	if len(all) != 1 || len(problems) != 1 || !strings.Contains(problems[0].Err.Error(), "no image of index") {
		t.Errorf("%d images, %+v", len(all), problems)
	}
	if err := r.Archive(t.Context(), &dockerroot.Image{Target: next}, nil, func(oci.Chain) bool { return false }, io.Discard); err != nil {
		t.Errorf("an archive: %v", err)
	}
}

// What is more than the objects of a kind may have together is named, and the rest is read.
func TestTooMuchTogether(t *testing.T) {
	f, _, _ := whole(t)
	r := open(t, f, dockerroot.Options{})
	images, _ := r.Images(t.Context())
	check := func(what string, got int, problems []dockerroot.Problem) {
		t.Helper()
		if got != 1 || len(problems) != 1 || !strings.Contains(problems[0].Err.Error(), "too large together") {
			t.Errorf("%d of %s, %+v", got, what, problems)
		}
	}
	both := len(images[0].Config) + len(images[1].Config)
	for _, limit := range []struct{ bytes, values int }{{both - 1, 1 << 20}, {1 << 20, 12}} {
		undo := dockerroot.SetLimits(limit.bytes, limit.values)
		images, p := r.Images(t.Context())
		check("images", len(images), p)
		undo()
	}
	for _, limit := range []struct{ bytes, values int }{{500, 1 << 20}, {1 << 20, 25}} {
		undo := dockerroot.SetLimits(limit.bytes, limit.values)
		containers, p := r.Containers(t.Context())
		check("containers", len(containers), p)
		undo()
	}
	defer dockerroot.SetLimits(10, 10)()
	if networks, p := r.Networks(); len(networks) != 0 || len(p) != 2 {
		t.Errorf("%d networks, %+v", len(networks), p)
	}
	if volumes, p := r.Volumes(t.Context()); len(volumes) != 1 || len(p) != 1 {
		t.Errorf("%d volumes, %+v", len(volumes), p)
	}
}

// A root with many objects does not keep an import from ending.
func TestReadingEnds(t *testing.T) {
	f, _, _ := whole(t)
	r := open(t, f, dockerroot.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	images, _ := r.Images(ctx)
	containers, _ := r.Containers(ctx)
	volumes, _ := r.Volumes(ctx)
	if len(images)+len(containers)+len(volumes) > 0 {
		t.Errorf("%d images, %d containers and %d volumes were read", len(images), len(containers), len(volumes))
	}
}
