package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

const memoryLimit = 256 << 20

// memoryGroup is a cgroup with a memory limit.
type memoryGroup struct {
	t   testing.TB
	dir string
	v1  bool
}

// newMemoryGroup makes a cgroup that may use memoryLimit bytes. The test is skipped where no cgroup can limit memory.
func newMemoryGroup(t testing.TB) *memoryGroup {
	t.Helper()
	g := &memoryGroup{t: t}
	name := fmt.Sprintf("ply-e2e-%d", os.Getpid())
	limit := "memory.max"
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); err == nil {
		g.v1, g.dir, limit = true, "/sys/fs/cgroup/memory/"+name, "memory.limit_in_bytes"
	} else if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil && strings.Contains(string(b), "memory") {
		g.dir = "/sys/fs/cgroup/" + name
		if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0o644); err != nil {
			t.Skipf("no cgroup can limit memory here: %v", err)
		}
	} else {
		t.Skip("this kernel has no memory controller")
	}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made here: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(g.dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	if err := os.WriteFile(filepath.Join(g.dir, limit), []byte(strconv.Itoa(memoryLimit)), 0o644); err != nil {
		t.Fatal(err)
	}
	_ = os.WriteFile(filepath.Join(g.dir, "memory.swap.max"), []byte("0"), 0o644) // there is no such file without swap accounting
	_ = os.WriteFile(filepath.Join(g.dir, "memory.memsw.limit_in_bytes"), []byte(strconv.Itoa(memoryLimit)), 0o644)
	return g
}

// value returns the number in a file of the cgroup: after key, or the whole file if key is "".
func (g *memoryGroup) value(file, key string) int64 {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		g.t.Fatal(err)
	}
	text := string(b)
	if key != "" {
		_, rest, ok := strings.Cut("\n"+text, "\n"+key+" ")
		if !ok {
			g.t.Fatalf("%s has no %s", file, key)
		}
		text, _, _ = strings.Cut(rest, "\n")
	}
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// kills returns how many processes of the cgroup were killed because it had no memory left.
func (g *memoryGroup) kills() int64 {
	if g.v1 {
		return g.value("memory.oom_control", "oom_kill")
	}
	return g.value("memory.events", "oom_kill")
}

// peak returns the highest use so far, with the page cache.
func (g *memoryGroup) peak() int64 {
	if g.v1 {
		return g.value("memory.max_usage_in_bytes", "")
	}
	return g.value("memory.peak", "")
}

// anon returns the memory that is no page cache.
func (g *memoryGroup) anon() int64 {
	if g.v1 {
		return g.value("memory.stat", "total_rss")
	}
	return g.value("memory.stat", "anon")
}

// watch samples anon until the test ends. peak returns the highest sample since the call before.
func (g *memoryGroup) watch() (peak func() int64) {
	var mu sync.Mutex
	var high int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			n := g.anon()
			mu.Lock()
			high = max(high, n)
			mu.Unlock()
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	g.t.Cleanup(func() { close(stop); <-done })
	return func() int64 {
		mu.Lock()
		defer mu.Unlock()
		was := high
		high = 0
		return was
	}
}

// packed is a compressed layer.
type packed struct {
	blob []byte
	id   oci.DiffID
}

// pack compresses what write writes. A codec is gzip, zstd with a window of 1 MiB, or a command line.
func pack(t testing.TB, codec string, write func(w *tar.Writer)) packed {
	t.Helper()
	var b bytes.Buffer
	var z io.WriteCloser
	var err error
	wait := func() error { return nil }
	switch codec {
	case "gzip":
		z, err = gzip.NewWriterLevel(&b, gzip.BestSpeed)
	case "zstd":
		z, err = zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20), zstd.WithEncoderConcurrency(1))
	default:
		args := strings.Fields(codec)
		c := exec.Command(args[0], args[1:]...)
		c.Stdout, c.Stderr = &b, os.Stderr
		if z, err = c.StdinPipe(); err == nil {
			err = c.Start()
		}
		wait = c.Wait
	}
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	w := tar.NewWriter(io.MultiWriter(z, h))
	write(w)
	if err := errors.Join(w.Close(), z.Close(), wait()); err != nil {
		t.Fatal(err)
	}
	return packed{b.Bytes(), oci.DiffID(oci.DigestOfHash(h))}
}

// imageOf returns an image of layers. history makes its config larger.
func imageOf(t testing.TB, history int, layers ...packed) *remotetest.Image {
	t.Helper()
	p := oci.HostPlatform()
	cfg := oci.Config{Architecture: p.Architecture, OS: p.OS, Variant: p.Variant, RootFS: oci.RootFS{Type: "layers"}}
	for range history {
		cfg.History = append(cfg.History, oci.History{CreatedBy: "x", EmptyLayer: true})
	}
	img := &remotetest.Image{ManifestType: oci.MediaTypeOCIManifest}
	man := oci.Manifest{SchemaVersion: 2, MediaType: img.ManifestType}
	for _, l := range layers {
		// Layers are served as gzip whatever they are: the codec is found by the bytes.
		d := oci.Descriptor{MediaType: oci.MediaTypeOCILayerGzip, Digest: oci.DigestOf(l.blob), Size: int64(len(l.blob))}
		img.Layers = append(img.Layers, remotetest.Layer{Descriptor: d, DiffID: l.id, Blob: l.blob})
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.id)
		man.Layers = append(man.Layers, d)
	}
	img.Config = marshal(t, cfg)
	man.Config = oci.Descriptor{MediaType: oci.MediaTypeOCIConfig, Digest: oci.DigestOf(img.Config), Size: int64(len(img.Config))}
	img.Manifest = marshal(t, man)
	return img
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// put adds an entry to a layer or an archive.
func put(t testing.TB, w *tar.Writer, h tar.Header, body string) {
	t.Helper()
	h.Size = int64(len(body))
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, body); err != nil {
		t.Fatal(err)
	}
}

// files returns a layer of n empty files below dir.
func files(t testing.TB, dir string, n int) packed {
	t.Helper()
	return pack(t, "zstd", func(w *tar.Writer) {
		for i := range n {
			put(t, w, tar.Header{Name: fmt.Sprintf("%s/%03d/file-%d", dir, i/1000, i)}, "")
		}
	})
}

// longNames returns a layer of n files whose paths have nearly 4 KiB, in directories of their own.
func longNames(t testing.TB, n int) packed {
	t.Helper()
	return pack(t, "zstd", func(w *tar.Writer) {
		for i := range n {
			part := fmt.Sprintf("%d-%s/", i, strings.Repeat("x", 240))
			put(t, w, tar.Header{Name: strings.Repeat(part, 4000/len(part)) + "f"}, "")
		}
	})
}

// pins returns a layer of n files that each have a PAX header of nearly 1 MiB, of which their name is a part.
func pins(t testing.TB, codec string, n int) packed {
	t.Helper()
	records := map[string]string{"PLY.comment": strings.Repeat("x", 1<<20-500)}
	return pack(t, codec, func(w *tar.Writer) {
		for i := range n {
			put(t, w, tar.Header{Name: fmt.Sprintf("é%d/é%d", i, i), Format: tar.FormatPAX, PAXRecords: records}, "x")
		}
	})
}

// zeros returns a layer with a file of n zeros in one codec.
func zeros(t testing.TB, codec string, n int64) packed {
	t.Helper()
	return pack(t, codec, func(w *tar.Writer) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("zeros-%x", codec), Size: n}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, nothing{}, n); err != nil {
			t.Fatal(err)
		}
	})
}

type nothing struct{}

func (nothing) Read(p []byte) (int, error) { clear(p); return len(p), nil }

const (
	window = "zstd -q -1 --single-thread -c --long="
	dict   = "xz -c --lzma2=preset=0,dict="
)

// xzBomb returns six xz streams whose headers ask for dictionaries of 4 GiB.
func xzBomb() []byte {
	block := []byte{2, 0, 0x21, 1, 40, 0, 0, 0}
	block = binary.LittleEndian.AppendUint32(block, crc32.ChecksumIEEE(block))
	block = append(block, 1, 0, 0, 'x', 0, 0, 0, 0)
	s := append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, 0, 0)
	s = append(binary.LittleEndian.AppendUint32(s, crc32.ChecksumIEEE(s[6:])), block...)
	return bytes.Repeat(s, 6)
}

// zstdBomb returns a zstd frame that asks for a window of 3.75 TiB.
func zstdBomb() []byte {
	return append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xff}, bytes.Repeat([]byte{0, 0, 2, 0}, 100)...)
}

// step is one command of ply. Its input is a file, or nothing.
type step struct {
	args  []string
	input string
	// refused is a part of the error with which the command must end; "" means that it must succeed, "*" that it may do either.
	refused string
}

// attack is something hostile and something of the same form that is not. Both are done alone, and at the same time as all others.
type attack struct {
	name         string
	evil, benign step
}

func (w *world) try(s step) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(bin, "ply"), s.args...)
	c.Env = append(os.Environ(), w.clientEnv()...)
	if s.input != "" {
		f, err := os.Open(s.input)
		if err != nil {
			return err
		}
		defer f.Close()
		c.Stdin = f
	}
	out, err := c.CombinedOutput()
	text := string(out[max(0, len(out)-500):])
	switch {
	case s.refused == "" && err != nil, ctx.Err() != nil:
		return fmt.Errorf("ply %s: %w\n%s", strings.Join(s.args, " "), err, text)
	case s.refused != "" && s.refused != "*" && (err == nil || !strings.Contains(text, s.refused)):
		return fmt.Errorf("ply %s: %v, want an error with %q\n%s", strings.Join(s.args, " "), err, s.refused, text) //nolint:errorlint // err may be nil
	}
	return nil
}

// A plyd that may use 256 MiB gets hostile images, archives and copies, one after the other and at the same time. It uses no more,
// is not killed, refuses what is hostile with a clear error, and does what is not hostile.
func TestHostileInputWithLittleMemory(t *testing.T) {
	g := newMemoryGroup(t)
	w := prepareWorld(t)
	w.wrap = []string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs")}
	w.startPlyd()
	pid := w.plyd.Process.Pid
	start := time.Now()
	attacks := hostileInput(t, w)
	t.Logf("inputs made in %v", time.Since(start))
	peak := g.watch()
	alive := func(what string) {
		t.Helper()
		high := peak()
		t.Logf("%-40s %4d MiB, with the page cache %4d MiB", what, high>>20, g.peak()>>20)
		if n := g.kills(); n > 0 {
			t.Fatalf("%s: %d processes were killed for their memory", what, n)
		}
		if out := w.ply("info", "-f", "{{.ServerVersion}}"); out == "" || w.plyd.Process.Pid != pid {
			t.Fatalf("%s: plyd does not answer", what)
		}
	}
	alive("nothing")
	for _, a := range attacks {
		start = time.Now()
		if err := w.try(a.evil); err != nil {
			t.Errorf("%s: %v", a.name, err)
		}
		alive(a.name)
		if err := w.try(a.benign); err != nil {
			t.Errorf("twin of %s: %v", a.name, err)
		}
		alive("  twin")
		t.Log(time.Since(start))
	}
	start = time.Now()
	w.clean()
	var all sync.WaitGroup
	for _, a := range attacks {
		all.Go(func() {
			if err := w.try(a.evil); err != nil {
				t.Errorf("%s, with all others: %v", a.name, err)
			}
		})
		all.Go(func() {
			if err := w.try(a.benign); err != nil {
				t.Errorf("twin of %s, with all others: %v", a.name, err)
			}
		})
	}
	all.Wait()
	alive("all at the same time")
	t.Log(time.Since(start))
}

// clean removes all images.
func (w *world) clean() {
	w.t.Helper()
	if ids := strings.Fields(w.ply("images", "-aq", "--no-trunc")); len(ids) > 0 {
		_, _, _ = w.run("ply", append([]string{"rmi", "-f"}, ids...)...) // that of the container stays
	}
}

func hostileInput(t *testing.T, w *world) (all []attack) {
	t.Helper()
	f := remotetest.StartFake(t, false)
	night := 1 // how much larger the inputs of a nightly run are
	if os.Getenv("PLY_NIGHTLY") != "" {
		night = 4
	}
	pull := func(name, refused string, img *remotetest.Image) step {
		f.Add(name, "1", img)
		return step{args: []string{"pull", "-q", f.Addr() + "/" + name + ":1"}, refused: refused}
	}
	store := func(name string, data []byte) string {
		file := filepath.Join(w.dir, name)
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	load := func(name, refused string, data []byte) step {
		return step{args: []string{"load", "-q"}, input: store(name, data), refused: refused}
	}
	add := func(name string, evil, benign step) { all = append(all, attack{name, evil, benign}) }
	raw := func(b []byte) packed { return packed{b, oci.DiffID(oci.DigestOf(b))} }

	add("xz dictionary of 4 GiB", pull("xz-bomb", "dictionary of 4095 MiB", imageOf(t, 0, raw(xzBomb()))),
		pull("xz", "", imageOf(t, 0, zeros(t, "xz -c -0", 1<<20))))
	add("zstd window of 3.75 TiB", pull("zstd-bomb", "at most 128 MiB", imageOf(t, 0, raw(zstdBomb()))),
		pull("zstd", "", imageOf(t, 0, zeros(t, "zstd", 1<<20))))
	add("zstd window of 128 MiB", pull("zstd-128", "no more than 64 MiB", imageOf(t, 0, zeros(t, window+"27", 140<<20))),
		pull("zstd-64", "", imageOf(t, 0, zeros(t, window+"26", 70<<20), zeros(t, window+"26", 80<<20))))
	add("xz dictionary of 128 MiB", pull("xz-128", "no more than 64 MiB", imageOf(t, 0, zeros(t, dict+"128MiB", 140<<20))),
		pull("xz-64", "", imageOf(t, 0, zeros(t, dict+"64MiB", 70<<20), zeros(t, dict+"64MiB", 80<<20))))
	add("gzip of zeros", pull("gzip-bomb", "", imageOf(t, 0, zeros(t, "gzip", int64(night)<<28))), pull("gzip", "", imageOf(t, 0, zeros(t, "gzip", 1<<20))))
	add("long PAX headers", pull("pins", "", imageOf(t, 0, pins(t, "zstd", 200*night))), pull("pin", "", imageOf(t, 0, pins(t, "zstd", 10))))
	add("many entries", pull("entries", "memory", imageOf(t, 0, files(t, "a", 2_500_000))), pull("6e5-entries", "", imageOf(t, 0, files(t, "b", 600_000))))
	add("long names", pull("names", "", imageOf(t, 0, longNames(t, 20_000))), pull("some-names", "", imageOf(t, 0, longNames(t, 500))))

	var tall []packed
	for i := range 20 * night {
		tall = append(tall, files(t, fmt.Sprint("c", i), 10_000))
	}
	var flat []packed
	for i := range min(300, 60*night) {
		flat = append(flat, files(t, fmt.Sprint("d", i), 10))
	}
	slow := pull("tall", "", imageOf(t, 0, tall...))
	bottom := "/blobs/" + string(oci.DigestOf(tall[0].blob))
	top := oci.DigestOf(tall[len(tall)-1].blob)
	f.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, bottom) {
			for end := time.Now().Add(time.Minute); f.Served(top) == 0 && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
		}
		return false
	}
	add("layers above one that comes last", slow, pull("flat", "", imageOf(t, 0, flat...)))

	add("config of 8 MiB", pull("config-big", "", imageOf(t, 60_000, flat[0])), pull("config", "", imageOf(t, 100, flat[1])))
	values := imageOf(t, 0, flat[2])
	values.Manifest = append(bytes.TrimSuffix(values.Manifest, []byte("}")), []byte(`,"annotations":{"a":"`+strings.Repeat("x", 3<<20)+`"}}`)...)
	add("manifest of 3 MiB", pull("manifest-big", "*", values), pull("manifest", "", imageOf(t, 0, flat[2])))

	add("archive of small files", load("small.tar", "exceed", archiveOf(t, 3000, 30<<10)), load("few.tar", "", saved(t, w, 10)))
	add("archive in xz with a dictionary of 4 GiB", load("bomb.tar.xz", "dictionary of", xzBomb()), load("fine.tar.xz", "", compressed(t, "xz -c", saved(t, w, 0))))
	add("import of an xz bomb", step{args: []string{"import", store("import.xz", xzBomb())}, refused: "dictionary of"},
		step{args: []string{"import", store("import-fine.xz", zeros(t, dict+"64MiB", 1<<20).blob)}})
	add("import of long PAX headers", step{args: []string{"import", store("pins.tar", pins(t, "zstd", 200*night).blob)}},
		step{args: []string{"import", store("pin.tar", pins(t, "zstd", 5).blob)}})
	w.busybox()
	id := w.ply("create", "busybox", "sh")
	cp := func(name, refused string, data []byte) step {
		return step{args: []string{"cp", "-", id + ":/tmp"}, input: store(name, data), refused: refused}
	}
	add("copy of an xz bomb", cp("cp.xz", "dictionary of", xzBomb()), cp("cp-fine.xz", "", zeros(t, "xz -c -0", 1<<20).blob))
	add("copy of long PAX headers", cp("cp-pins", "", pins(t, "zstd", 200*night).blob), cp("cp-pin", "", pins(t, "zstd", 5).blob))
	return all
}

// archiveOf returns an archive of n small files.
func archiveOf(t testing.TB, n, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range n {
		put(t, w, tar.Header{Name: fmt.Sprint(i)}, "{"+strings.Repeat(" ", size)+"}")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// saved returns an archive of an image, with n further files.
func saved(t testing.TB, w *world, n int) []byte {
	t.Helper()
	name := fmt.Sprint("saved", n)
	w.ply("import", filepath.Join(images, "busybox.tar"), name)
	file := filepath.Join(w.dir, name)
	w.ply("save", "-o", file, name)
	w.ply("rmi", name)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	more := archiveOf(t, n, 1000)
	return append(more[:len(more)-1024], b...) // without the end of the archive
}

func compressed(t testing.TB, command string, data []byte) []byte {
	t.Helper()
	args := strings.Fields(command)
	c := exec.Command(args[0], args[1:]...)
	c.Stdin = bytes.NewReader(data)
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
