package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

// cutOff breaks a connection: with RST or as a clean end.
func cutOff(w http.ResponseWriter, reset bool) {
	conn, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	_ = buf.Flush()
	if tcp, ok := conn.(*net.TCPConn); ok && reset {
		drainOut(tcp)
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// drainOut waits until the far end has all that was sent, or has gone: a reset throws away the rest, which is not what is measured here.
func drainOut(tcp *net.TCPConn) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for tries, left := 0, 1; left > 0 && tries < 500; tries++ {
		<-tick.C
		err := raw.Control(func(fd uintptr) {
			var queued int32
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCOUTQ, uintptr(unsafe.Pointer(&queued)))
			left = int(queued)
			if errno != 0 {
				left = 0
			}
		})
		if err != nil {
			return
		}
	}
}

// isLayer tells whether a request is for a layer of the image.
func isLayer(r *http.Request, img *remotetest.Image) *remotetest.Layer {
	for i := range img.Layers {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, string(img.Layers[i].Digest)) {
			return &img.Layers[i]
		}
	}
	return nil
}

// serve sends n bytes of the range asked for, with the headers of all of it.
func serveSome(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, n int) {
	from, end := remotetest.Range(r, len(l.Blob))
	w.Header().Set("Content-Length", itoa(end-from))
	if r.Header.Get("Range") != "" {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, end-1, len(l.Blob)))
		w.WriteHeader(http.StatusPartialContent)
	}
	sent, _ := w.Write(l.Blob[from:min(from+n, end)])
	f.CountServed(string(l.Digest), sent)
}

// TestPullFaults: the registry misbehaves for some requests; the pull ends with the right bytes and without fetching much twice.
func TestPullFaults(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, files(1, 3_000_000), files(2, 18<<20))
	type fault func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, rnd *rand.Rand) bool
	faults := map[string]struct {
		fault  fault
		times  int64
		refuse float64 // how many times the layers' bytes may be sent
	}{
		"reset": {func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, rnd *rand.Rand) bool {
			serveSome(f, w, r, l, rnd.IntN(len(l.Blob)))
			cutOff(w, true)
			return true
		}, 6, 1.1},
		"end": {func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, rnd *rand.Rand) bool {
			serveSome(f, w, r, l, rnd.IntN(len(l.Blob)))
			cutOff(w, false)
			return true
		}, 6, 1.1},
		"refused before the header": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer, _ *rand.Rand) bool {
			cutOff(w, true)
			return true
		}, 3, 1.1},
		"429 with seconds": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer, _ *rand.Rand) bool {
			w.Header().Set("Retry-After", "1")
			remotetest.Refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "slow down")
			return true
		}, 2, 1.1},
		"503": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer, _ *rand.Rand) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}, 3, 1.1},
		"slow": {func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, _ *rand.Rand) bool {
			from, _ := remotetest.Range(r, len(l.Blob))
			serveSome(f, w, r, l, 10)
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond)
			_, end := remotetest.Range(r, len(l.Blob))
			n, _ := w.Write(l.Blob[min(from+10, end):end])
			f.CountServed(string(l.Digest), n)
			return true
		}, 3, 1.1},
		"range ignored": {func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, rnd *rand.Rand) bool {
			r.Header.Del("Range")
			serveSome(f, w, r, l, len(l.Blob))
			return true
		}, 1 << 30, 1.6}, // one whole answer, and what the kernel took in for the others before they were hung up on
		"range ignored and cut off": {func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, rnd *rand.Rand) bool {
			r.Header.Del("Range")
			if len(f.Log("GET /v2/r/blobs/"+string(l.Digest))) < 4 {
				serveSome(f, w, r, l, len(l.Blob)/2+rnd.IntN(1000))
				cutOff(w, true)
				return true
			}
			serveSome(f, w, r, l, len(l.Blob))
			return true
		}, 1 << 30, 4},
		"empty answers": {func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, _ *rand.Rand) bool {
			from, end := remotetest.Range(r, len(l.Blob))
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, end-1, len(l.Blob)))
				w.WriteHeader(http.StatusPartialContent)
			}
			w.(http.Flusher).Flush()
			return true
		}, 3, 1.1},
	}
	for name, c := range faults {
		for seed := range uint64(3) {
			t.Run(fmt.Sprintf("%s-%d", name, seed), func(t *testing.T) {
				t.Parallel()
				reg := remotetest.StartFake(t, false)
				reg.Add("r", "1", img)
				var n atomic.Int64
				var mu sync.Mutex
				rnd := rand.New(rand.NewPCG(seed, 1))
				reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
					l := isLayer(r, img)
					if l == nil || n.Add(1) > c.times {
						return false
					}
					mu.Lock()
					own := rand.New(rand.NewPCG(rnd.Uint64(), 2))
					mu.Unlock()
					return c.fault(reg, w, r, l, own)
				}
				w := newWorld(t, Options{})
				w.mustPull(reg.Addr() + "/r:1")
				w.holds(reg.Addr()+"/r:1", img)
				for _, l := range img.Layers {
					if got := reg.Served(l.Digest); float64(got) > c.refuse*float64(l.Size) {
						t.Errorf("layer of %d bytes: %d were sent", l.Size, got)
					}
				}
			})
		}
	}
}

// TestPullHopeless: faults that do not end give a clear error, and nothing is visible.
func TestPullHopeless(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, files(1, 3_000_000), files(2, 18<<20))
	cases := map[string]struct {
		hook  func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer)
		class error
		want  string
	}{
		"absurd patience": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer) {
			w.Header().Set("Retry-After", "86400")
			remotetest.Refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "rate limit")
		}, errs.Unavailable, "asks to wait 24h0m0s before the next try: toomanyrequests: rate limit"},
		"always 500": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer) {
			w.WriteHeader(http.StatusInternalServerError)
		}, errs.Unavailable, "unexpected status 500"},
		"always cut off at once": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer) {
			cutOff(w, true)
		}, errs.Unavailable, "Get \"http://"},
		"wrong content range": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, l *remotetest.Layer) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(l.Blob)-1, len(l.Blob)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(l.Blob[5:])
		}, errs.Invalid, "starts at byte 5"},
		"size in range lies": {func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer) {
			from, end := remotetest.Range(r, len(l.Blob))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, end-1, 1<<40))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(l.Blob[from:end])
		}, errs.Invalid, "the manifest says"},
		"redirect loop": {func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request, _ *remotetest.Layer) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, errs.Invalid, "redirects more than"},
		"forbidden": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer) {
			remotetest.Refuse(w, http.StatusForbidden, "DENIED", "requested access to the resource is denied")
		}, errs.Forbidden, "pull access denied"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := remotetest.StartFake(t, false)
			reg.Add("r", "1", img)
			reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				if l := isLayer(r, img); l != nil {
					c.hook(reg, w, r, l)
					return true
				}
				return false
			}
			w := newWorld(t, Options{})
			_, err := w.pull(reg.Addr()+"/r:1", transfer.PullOptions{})
			wantClass(t, err, c.class, c.want)
			w.lacks(reg.Addr() + "/r:1")
		})
	}
}

// TestPullRedirectToStorage: blobs at another host, which must not see the credentials.
func TestPullRedirectToStorage(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, files(2, 18<<20))
	var leaked atomic.Bool
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Store(true)
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(img.Layers[0].Blob)))
	}))
	defer storage.Close()
	reg := remotetest.StartFake(t, false)
	reg.Add("r", "1", img)
	reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if u, _, ok := r.BasicAuth(); !ok || u != remotetest.User {
			w.Header().Set("Www-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if isLayer(r, img) != nil {
			http.Redirect(w, r, storage.URL+"/blob?signature=x", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	w := newWorld(t, Options{})
	if _, err := w.pull(reg.Addr()+"/r:1", transfer.PullOptions{Credentials: transfer.Credentials{Username: remotetest.User, Password: remotetest.Password}}); err != nil {
		t.Fatal(err)
	}
	w.holds(reg.Addr()+"/r:1", img)
	if leaked.Load() {
		t.Error("Authorization went to the storage host")
	}
	if strings.Contains(w.log.String(), remotetest.Password) {
		t.Error("password in log")
	}
}

// TestPullResumes: a pull that is cancelled, or whose process dies, does not fetch again what it has.
func TestPullResumes(t *testing.T) {
	for _, mode := range []string{"cancel", "process"} {
		for _, size := range []int{6 << 20, 60 << 20} {
			t.Run(fmt.Sprintf("%s-%d", mode, size>>20), func(t *testing.T) {
				img := remotetest.Make(t, oci.FormatOCI, files(1, 1000), files(2, size))
				big := img.Layers[1]
				reg := remotetest.StartFake(t, false)
				reg.Add("r", "1", img)
				var limit atomic.Int64
				limit.Store(big.Size * 2 / 3)
				blocked := make(chan struct{}, 100)
				release := make(chan struct{})
				reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
					l := isLayer(r, img)
					if l == nil || l.Digest != big.Digest {
						return false
					}
					from, end := remotetest.Range(r, len(l.Blob))
					room := int(limit.Load()) - from
					if room >= end-from {
						return false
					}
					serveSome(reg, w, r, l, max(room, 0))
					w.(http.Flusher).Flush()
					blocked <- struct{}{}
					select {
					case <-r.Context().Done():
					case <-release:
					}
					return true
				}
				w := newWorld(t, Options{})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				l := &lines{}
				go func() { done <- w.c.Pull(ctx, ref(t, reg.Addr()+"/r:1"), transfer.PullOptions{}, l.sink) }()
				<-blocked
				w.await(func() bool { return w.driver.count(img.Layers[0].DiffID) == 1 })
				w.await(func() bool {
					fi, err := os.Stat(w.root + "/partial/" + big.Digest.Hex())
					return err == nil && fi.Size() >= limit.Load()*19/20
				})
				time.Sleep(50 * time.Millisecond) // for what is under way
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Fatalf("cancelled pull: %v", err)
				}
				w.lacks(reg.Addr() + "/r:1")
				if mode == "process" {
					w.reopen()
				}
				close(release)
				limit.Store(1 << 40)
				again := w.mustPull(reg.Addr() + "/r:1")
				w.holds(reg.Addr()+"/r:1", img)
				if !again.has(img.Layers[0].Digest.Short() + ": Already exists") {
					t.Errorf("the layer that was finished is not kept:\n%s", again.text())
				}
				if got := reg.Served(big.Digest); float64(got) > 1.1*float64(big.Size) {
					t.Errorf("layer of %d bytes: %d were sent", big.Size, got)
				}
			})
		}
	}
}

// TestPullStaleProgress: a record that is ahead of its data costs a second download, not a wrong layer.
func TestPullStaleProgress(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, files(2, 6<<20))
	l := img.Layers[0]
	reg := remotetest.StartFake(t, false)
	reg.Add("r", "1", img)
	w := newWorld(t, Options{})
	p, err := w.st.Blobs.Partial(l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.File().WriteAt(make([]byte, 3<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.SetPrefix(3<<20), p.Keep()); err != nil {
		t.Fatal(err)
	}
	w.mustPull(reg.Addr() + "/r:1")
	w.holds(reg.Addr()+"/r:1", img)
}

// await waits for something that another goroutine does.
func (w *world) await(ok func() bool) {
	w.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatal("waited for too long")
		}
	}
}

// TestPullSingleFlight: many pulls of images that share a layer fetch it once; cancelling some does not fail the others.
func TestPullSingleFlight(t *testing.T) {
	shared := files(1, 6<<20)
	reg := remotetest.StartFake(t, false)
	var imgs []*remotetest.Image
	for i := range 20 {
		img := remotetest.Make(t, oci.FormatOCI, shared, files(uint64(10+i), 1000))
		reg.Add("r", itoa(i), img)
		imgs = append(imgs, img)
	}
	big := imgs[0].Layers[0]
	started, release := make(chan struct{}, 100), make(chan struct{})
	reg.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, string(big.Digest)) {
			started <- struct{}{}
			<-release
		}
		return false
	}
	w := newWorld(t, Options{MaxConcurrentDownloads: 30})
	ctxs := make([]context.CancelFunc, len(imgs))
	results := make([]chan error, len(imgs))
	waits := make([]*lines, len(imgs))
	for i := range imgs {
		var ctx context.Context
		ctx, ctxs[i] = context.WithTimeout(t.Context(), 60*time.Second)
		defer ctxs[i]()
		results[i], waits[i] = make(chan error, 1), &lines{}
		go func() {
			results[i] <- w.c.Pull(ctx, ref(t, reg.Addr()+"/r:"+itoa(i)), transfer.PullOptions{}, waits[i].sink)
		}()
	}
	<-started
	for i := range imgs {
		w.await(func() bool { return waits[i].has(big.Digest.Short() + ": Pulling fs layer") })
	}
	for i := range 7 { // among them, almost surely, the one that started it
		ctxs[i*3%20]()
	}
	for i := range 7 {
		if err := <-results[i*3%20]; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled pull: %v", err)
		}
		results[i*3%20] = nil
	}
	close(release)
	for i, r := range results {
		if r == nil {
			continue
		}
		if err := <-r; err != nil {
			t.Errorf("pull %d: %v", i, err)
			continue
		}
		w.holds(reg.Addr()+"/r:"+itoa(i), imgs[i])
	}
	if got := reg.Served(big.Digest); got != big.Size {
		t.Errorf("shared layer of %d bytes: %d were sent", big.Size, got)
	}
	if n := w.driver.count(big.DiffID); n != 1 {
		t.Errorf("shared layer was committed %d times", n)
	}
}

// TestPullMirrorLies: wrong content from a mirror is fetched from the hub's next endpoint.
func TestPullMirrorLies(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, files(1, 100_000))
	good, liar := remotetest.StartFake(t, false), remotetest.StartFake(t, false)
	good.Add("library/x", "latest", img)
	liar.Add("library/x", "latest", img)
	liar.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		l := isLayer(r, img)
		if l == nil {
			return false
		}
		b := append([]byte(nil), l.Blob...)
		b[100] ^= 1
		_, _ = w.Write(b)
		return true
	}
	w := newWorld(t, Options{Mirrors: []string{liar.URL, good.URL}})
	w.mustPull("x")
	w.holds("x", img)
}

// TestRetain: compressed layers are kept as the policy says.
func TestRetain(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	var imgs []*remotetest.Image
	for i := range 4 {
		img := remotetest.Make(t, oci.FormatOCI, files(uint64(i+1), 400_000))
		reg.Add("r", itoa(i), img)
		imgs = append(imgs, img)
	}
	for policy, want := range map[store.Retain]int{store.RetainNever: 0, store.RetainAlways: 4, store.RetainAuto: 2} {
		w := newWorld(t, Options{}, store.Options{Retain: policy, RetainBudget: 1_000_000})
		for i := range imgs {
			w.mustPull(reg.Addr() + "/r:" + itoa(i))
			w.c.work.Wait()
		}
		kept := 0
		for i, img := range imgs {
			if _, err := w.st.Blobs.Stat(img.Layers[0].Digest); err == nil {
				kept++
				if policy == store.RetainAuto && i < 2 {
					t.Errorf("auto kept the older layer %d", i)
				}
			}
		}
		if kept != want {
			t.Errorf("%s: %d layers kept, want %d", policy, kept, want)
		}
	}
}
