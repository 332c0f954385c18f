package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ply/internal/compress"
	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// job is a ply that runs in the background.
type job struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	out bytes.Buffer // both streams
}

func (j *job) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.out.Write(p)
}

func (j *job) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.out.String()
}

func (w *world) start(t *testing.T, args ...string) *job {
	t.Helper()
	return w.startFrom(t, nil, args...)
}

func (w *world) startFrom(t *testing.T, in *os.File, args ...string) *job {
	t.Helper()
	j := &job{t: t, cmd: exec.Command(w.program("ply"), args...), done: make(chan struct{})}
	j.cmd.Env = append(os.Environ(), w.clientEnv()...)
	j.cmd.Stdout, j.cmd.Stderr = j, j
	if in != nil {
		j.cmd.Stdin = in
	}
	if err := j.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = j.cmd.Wait() // end reads the exit code
		close(j.done)
	}()
	t.Cleanup(func() {
		_ = j.cmd.Process.Kill()
		<-j.done
	})
	return j
}

// await waits until the job has printed a text.
func (j *job) await(text string) {
	j.t.Helper()
	until(j.t, func() bool { return strings.Contains(j.text(), text) }, func() string { return "never saw " + text + " in:\n" + j.text() })
}

// end waits for the end of the job and returns its exit code.
func (j *job) end() int {
	j.t.Helper()
	select {
	case <-j.done:
		return j.cmd.ProcessState.ExitCode()
	case <-time.After(2 * time.Minute):
		j.t.Fatalf("ply does not end:\n%s", j.text())
		return -1
	}
}

func until(t *testing.T, ok func() bool, what func() string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what())
		}
	}
}

// gate passes a blob's bytes up to an offset, and the rest once it is opened.
type gate struct {
	fake   *remotetest.Fake
	blob   []byte
	mark   int
	opened chan struct{}
	open   func()
	busy   atomic.Int32 // answers under way
	held   atomic.Int32 // answers that wait at the mark
	asked  atomic.Int64 // bytes that requests named
}

func newGate(t *testing.T, f *remotetest.Fake, blob []byte, mark int) *gate {
	c := make(chan struct{})
	g := &gate{fake: f, blob: blob, mark: mark, opened: c, open: sync.OnceFunc(func() { close(c) })}
	f.Hook = g.serve
	t.Cleanup(g.open)
	return g
}

func (g *gate) serve(w http.ResponseWriter, r *http.Request) bool {
	digest := string(oci.DigestOf(g.blob))
	if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+digest) {
		return false
	}
	g.busy.Add(1)
	defer g.busy.Add(-1)
	from, end := remotetest.Range(r, len(g.blob))
	g.asked.Add(int64(end - from))
	w.Header().Set("Content-Length", strconv.Itoa(end-from))
	if v := r.Header.Get("Range"); v != "" {
		w.Header().Set("Content-Range", "bytes "+strconv.Itoa(from)+"-"+strconv.Itoa(end-1)+"/"+strconv.Itoa(len(g.blob)))
		w.WriteHeader(http.StatusPartialContent)
	}
	stop := min(end, max(from, g.mark))
	n, _ := w.Write(g.blob[from:stop])
	g.fake.CountServed(digest, n)
	if stop == end {
		return true
	}
	_ = http.NewResponseController(w).Flush() // the client may have gone
	g.held.Add(1)
	defer g.held.Add(-1)
	select {
	case <-g.opened:
		n, _ := w.Write(g.blob[stop:end])
		g.fake.CountServed(digest, n)
	case <-r.Context().Done():
	}
	return true
}

func noise(seed uint64, size int) remotetest.LayerSpec {
	return remotetest.LayerSpec{Codec: compress.None, Files: []remotetest.File{{Name: "noise" + strconv.FormatUint(seed, 10), Data: remotetest.Noise(seed, size)}}}
}

// content checks that a file in an image has the bytes that it was made with.
func (w *world) content(t *testing.T, image string, seed uint64, size int) {
	t.Helper()
	id := w.ply("create", image, "/none")
	defer w.ply("rm", id)
	o, e, err := w.run("ply", "cp", "-q", id+":/noise"+strconv.FormatUint(seed, 10), filepath.Join(w.dir, "copied"))
	if err != nil {
		t.Fatalf("cp: %v: %s%s", err, o, e)
	}
	b, err := os.ReadFile(filepath.Join(w.dir, "copied"))
	if err != nil || !bytes.Equal(b, remotetest.Noise(seed, size)) {
		t.Errorf("%s: the file differs from what was pushed: %v, %d bytes", image, err, len(b))
	}
}

// prefix returns how much an unfinished download has recorded.
func (w *world) prefix(d oci.Digest) int64 {
	b, err := os.ReadFile(filepath.Join(w.dir, "data", "partial", d.Hex()+".json"))
	var s struct{ Prefix int64 }
	if err != nil || json.Unmarshal(b, &s) != nil {
		return 0
	}
	return s.Prefix
}

// plyd is killed in the middle of a large layer that is fetched in several ranges at a time; the next pull does not fetch again what
// was there.
func TestTransferResumesAfterCrash(t *testing.T) {
	w := newWorld(t)
	f := remotetest.StartFake(t, false)
	const size = 20 << 20
	img := remotetest.Make(t, oci.FormatOCI, noise(1, size), noise(2, 1000))
	f.Add("team/app", "1", img)
	big := img.Layers[0]
	g := newGate(t, f, big.Blob, 13<<20)
	ref := f.Addr() + "/team/app:1"
	j := w.start(t, "pull", ref)
	until(t, func() bool { return w.prefix(big.Digest) >= 9<<20 && g.held.Load() == 4 }, func() string { return "no progress recorded:\n" + j.text() })
	w.kill9()
	if code := j.end(); code != 1 {
		t.Errorf("pull ended with %d when plyd died:\n%s", code, j.text())
	}
	had := w.prefix(big.Digest)
	until(t, func() bool { return g.busy.Load() == 0 }, func() string { return "the registry still answers" })
	g.open()
	g.asked.Store(0)
	w.startPlyd()
	if out := w.ply("images", "-a", "-q"); out != "" {
		t.Errorf("after the crash there is an image: %s", out)
	}
	out := w.ply("pull", ref)
	if got := g.asked.Load(); got != big.Size-had {
		t.Errorf("second pull asked for %d bytes, want %d of %d", got, big.Size-had, big.Size)
	}
	if !strings.Contains(out, "Status: Downloaded newer image for "+ref) {
		t.Errorf("said:\n%s", out)
	}
	w.content(t, ref, 1, size)
}

// When the connection breaks in the middle of a blob, the rest is requested by Range, and the user sees nothing of it.
func TestTransferResumesAfterDrop(t *testing.T) {
	w := newWorld(t)
	f := remotetest.StartFake(t, false)
	const size = 3 << 20
	img := remotetest.Make(t, oci.FormatOCI, noise(3, size))
	f.Add("team/app", "1", img)
	blob := img.Layers[0]
	var mu sync.Mutex
	var ranges []string
	f.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, string(blob.Digest)) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) > 2 {
			return false
		}
		from, _ := remotetest.Range(r, len(blob.Blob))
		rw.Header().Set("Content-Length", strconv.Itoa(len(blob.Blob)-from))
		if from > 0 {
			rw.Header().Set("Content-Range", "bytes "+strconv.Itoa(from)+"-"+strconv.Itoa(len(blob.Blob)-1)+"/"+strconv.Itoa(len(blob.Blob)))
			rw.WriteHeader(http.StatusPartialContent)
		}
		n, _ := rw.Write(blob.Blob[from : from+1<<20])
		f.CountServed(string(blob.Digest), n)
		return true // less than promised: the server closes the connection
	}
	ref := f.Addr() + "/team/app:1"
	w.ply("pull", ref)
	want := []string{"", "bytes=1048576-" + strconv.Itoa(len(blob.Blob)-1), "bytes=2097152-" + strconv.Itoa(len(blob.Blob)-1)}
	if strings.Join(ranges, " ") != strings.Join(want, " ") {
		t.Errorf("ranges %q, want %q", ranges, want)
	}
	if got := f.Served(blob.Digest); got != blob.Size {
		t.Errorf("served %d bytes, want %d", got, blob.Size)
	}
	w.content(t, ref, 3, size)
}

// Ctrl-C keeps the finished layers and the verified prefixes of the others.
func TestTransferCancelKeepsLayers(t *testing.T) {
	w := newWorld(t)
	f := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, noise(4, 1<<20), noise(5, 6<<20))
	f.Add("team/app", "1", img)
	base, top := img.Layers[0], img.Layers[1]
	g := newGate(t, f, top.Blob, 5<<20)
	ref := f.Addr() + "/team/app:1"
	j := w.start(t, "pull", ref)
	j.await(base.Digest.Short() + ": Pull complete")
	until(t, func() bool { return w.prefix(top.Digest) >= 4<<20 }, j.text)
	if err := j.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := j.end(); code != 130 {
		t.Errorf("exit code %d, want 130\n%s", code, j.text())
	}
	if !strings.Contains(j.text(), "Finished layers are kept") {
		t.Errorf("said:\n%s", j.text())
	}
	if out := w.ply("images", "-a", "-q"); out != "" {
		t.Errorf("the cancelled pull left an image: %s", out)
	}
	until(t, func() bool { return g.busy.Load() == 0 }, func() string { return "plyd still downloads" })
	g.open()
	out := w.ply("pull", ref)
	if !strings.Contains(out, base.Digest.Short()+": Already exists") || !strings.Contains(out, top.Digest.Short()+": Pull complete") {
		t.Errorf("second pull said:\n%s", out)
	}
	if got := f.Served(base.Digest); got != base.Size {
		t.Errorf("the finished layer was served %d bytes, want %d once", got, base.Size)
	}
	if got := f.Served(top.Digest); got > top.Size+(1<<20) { // what was on its way when the line was cut came twice
		t.Errorf("of the other layer %d bytes were served, its size is %d", got, top.Size)
	}
	w.content(t, ref, 5, 6<<20)
}

// Three concurrent pulls of images on one base fetch it once, and go on when the pull that began it is cancelled.
func TestTransferSharesDownloads(t *testing.T) {
	w := newWorld(t)
	f := remotetest.StartFake(t, false)
	const size = 2 << 20
	var refs []string
	var base remotetest.Layer
	for i := range uint64(3) {
		img := remotetest.Make(t, oci.FormatOCI, noise(6, size), noise(10+i, 1000))
		repo := "team/app" + strconv.FormatUint(i, 10)
		f.Add(repo, "1", img)
		base = img.Layers[0]
		refs = append(refs, f.Addr()+"/"+repo+":1")
	}
	g := newGate(t, f, base.Blob, 1<<20)
	var jobs []*job
	for _, ref := range refs {
		j := w.start(t, "pull", "--progress", "json", ref)
		j.await(`"Downloading"`)
		jobs = append(jobs, j)
	}
	if err := jobs[0].cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := jobs[0].end(); code != 130 {
		t.Errorf("exit code %d, want 130:\n%s", code, jobs[0].text())
	}
	g.open()
	for i, j := range jobs[1:] {
		if code := j.end(); code != 0 {
			t.Errorf("pull %d ended with %d:\n%s", i+1, code, j.text())
		}
		w.content(t, refs[i+1], 6, size)
	}
	if got := f.Served(base.Digest); got != base.Size {
		t.Errorf("the base was served %d bytes, want %d once", got, base.Size)
	}
}

// On a terminal pull and push draw docker's bars; to a pipe they print one line per change; json and quiet are as documented.
func TestTransferProgress(t *testing.T) {
	w := newWorld(t)
	f := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, noise(7, 1000), noise(8, 7<<20))
	f.Add("team/app", "1", img)
	top := img.Layers[1]
	f.Hook = slowly(f, top.Blob)
	ref := f.Addr() + "/team/app:1"
	short := top.Digest.Short()
	for _, program := range []string{"ply", "docker"} {
		out := w.onPty(t, program, "pull", ref)
		wantAll(t, out,
			"1: Pulling from team/app\n", "\x1b[1A\x1b[2K\r"+short+": Downloading [=", "MB/7.342MB", short+": Extracting [==================================================>]",
			short+": Pull complete", img.Layers[0].Digest.Short()+": Pull complete", "Digest: sha256:", "Status: Downloaded newer image for "+ref+"\n", "\n"+ref+"\n")
		w.ply("rmi", ref)
	}
	out := w.ply("pull", ref)
	if strings.ContainsAny(out, "\x1b\r[") {
		t.Errorf("piped, pull draws:\n%q", out)
	}
	wantAll(t, out, short+": Pulling fs layer\n", short+": Download complete\n", short+": Pull complete\n")
	f.DropBlobs()
	f.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
		r.Body = &slowBody{r.Body}
		return false
	}
	out = w.onPty(t, "ply", "push", ref)
	diff := img.Layers[1].DiffID.Short()
	wantAll(t, out, "The push refers to repository ["+f.Addr()+"/team/app]\n", diff+": Pushing [=", diff+": Pushed", "1: digest: "+string(img.Digest())+" size: ")
	f.Hook = nil
	f.DropBlobs()
	out = w.ply("push", ref)
	if strings.ContainsAny(out, "\x1b\r") || strings.Contains(out, "[=") {
		t.Errorf("piped, push draws:\n%q", out)
	}
	wantAll(t, out, diff+": Preparing\n", diff+": Pushed", "1: digest: "+string(img.Digest())+" size: ")

	for _, verb := range []string{"push", "pull"} {
		if out := w.ply(verb, "-q", ref); out != ref {
			t.Errorf("%s -q printed %q", verb, out)
		}
		if verb == "pull" {
			w.ply("rmi", ref)
		}
		seen := map[string]bool{}
		for line := range strings.Lines(w.ply(verb, "--progress", "json", ref)) {
			var m struct {
				Status string `json:"status"`
				ID     string `json:"id"`
				Detail *struct{ Current, Total int64 }
			}
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Errorf("%s: not JSON: %v: %s", verb, err, line)
			}
			seen[m.Status] = true
		}
		last := map[string]string{"push": "Layer already exists", "pull": "Pull complete"}[verb]
		if !seen[last] {
			t.Errorf("%s --progress json never said %s: %v", verb, last, seen)
		}
	}
}

// slowly serves a blob in small steps.
func slowly(f *remotetest.Fake, blob []byte) func(http.ResponseWriter, *http.Request) bool {
	digest := string(oci.DigestOf(blob))
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest) || r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
		from := bytes.NewReader(blob)
		for from.Len() > 0 {
			if _, err := io.CopyN(w, from, 512<<10); err != nil && !errors.Is(err, io.EOF) {
				return true
			}
			_ = http.NewResponseController(w).Flush() // a client that has gone shows at the next write
			time.Sleep(40 * time.Millisecond)
		}
		return true
	}
}

// slowBody reads an upload in small steps.
type slowBody struct{ io.ReadCloser }

func (b *slowBody) Read(p []byte) (int, error) {
	time.Sleep(4 * time.Millisecond)
	return b.ReadCloser.Read(p[:min(len(p), 64<<10)])
}

func (w *world) onPty(t *testing.T, program string, args ...string) string {
	t.Helper()
	c := exec.Command(w.program(program), args...)
	c.Env = append(os.Environ(), w.clientEnv()...)
	out, err := onTerminal(c, "")
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return out
}

func wantAll(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in:\n%q", p, text)
		}
	}
}
