package pull_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// Some requests fail. The pull gets the right bytes all the same and fetches few of them twice.
func TestTemporaryFaults(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 3_000_000), transfertest.Files(2, 18<<20))
	type fault func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, rnd *rand.Rand) bool
	faults := map[string]struct {
		fault fault
		times int64
		most  float64 // how often each byte of a layer may be sent, on average
	}{
		"reset": {func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, rnd *rand.Rand) bool {
			f.ServeSome(w, r, l, rnd.IntN(len(l.Blob)))
			remotetest.CutOff(w, true)
			return true
		}, 6, 1.1},
		"end": {func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, rnd *rand.Rand) bool {
			f.ServeSome(w, r, l, rnd.IntN(len(l.Blob)))
			remotetest.CutOff(w, false)
			return true
		}, 6, 1.1},
		"refused before the header": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer, _ *rand.Rand) bool {
			remotetest.CutOff(w, true)
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
			f.ServeSome(w, r, l, 10)
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond)
			_, end := remotetest.Range(r, len(l.Blob))
			n, _ := w.Write(l.Blob[min(from+10, end):end])
			f.CountServed(string(l.Digest), n)
			return true
		}, 3, 1.1},
		"range ignored": {func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, rnd *rand.Rand) bool {
			r.Header.Del("Range")
			f.ServeSome(w, r, l, len(l.Blob))
			return true
		}, 1 << 30, 1.6}, // one whole answer, and what the kernel received of the others before they were closed
		"range ignored and cut off": {func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer, rnd *rand.Rand) bool {
			r.Header.Del("Range")
			if len(f.Log("GET /v2/r/blobs/"+string(l.Digest))) < 4 {
				f.ServeSome(w, r, l, len(l.Blob)/2+rnd.IntN(1000))
				remotetest.CutOff(w, true)
				return true
			}
			f.ServeSome(w, r, l, len(l.Blob))
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
					l := remotetest.LayerOf(r, img)
					if l == nil || n.Add(1) > c.times {
						return false
					}
					mu.Lock()
					own := rand.New(rand.NewPCG(rnd.Uint64(), 2))
					mu.Unlock()
					return c.fault(reg, w, r, l, own)
				}
				w := transfertest.New(t, transfertest.Options{})
				w.MustPull(reg.Addr() + "/r:1")
				w.Holds(reg.Addr()+"/r:1", img)
				for _, l := range img.Layers {
					if got := reg.Served(l.Digest); float64(got) > c.most*float64(l.Size) {
						t.Errorf("layer of %d bytes: %d were sent", l.Size, got)
					}
				}
			})
		}
	}
}

// Faults that do not end lead to a clear error, and nothing of the image is visible.
func TestPermanentFaults(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 3_000_000), transfertest.Files(2, 18<<20))
	cases := map[string]struct {
		hook  func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer)
		class error
		want  string
	}{
		"Retry-After of a day": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer) {
			w.Header().Set("Retry-After", "86400")
			remotetest.Refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "rate limit")
		}, errs.Unavailable, "asks to wait 24h0m0s before the next try: toomanyrequests: rate limit"},
		"always 500": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer) {
			w.WriteHeader(http.StatusInternalServerError)
		}, errs.Unavailable, "unexpected status 500"},
		"always cut off at once": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, _ *remotetest.Layer) {
			remotetest.CutOff(w, true)
		}, errs.Unavailable, "Get \"http://"},
		"wrong content range": {func(_ *remotetest.Fake, w http.ResponseWriter, _ *http.Request, l *remotetest.Layer) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(l.Blob)-1, len(l.Blob)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(l.Blob[5:])
		}, errs.Invalid, "starts at byte 5"},
		"wrong size in content range": {func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request, l *remotetest.Layer) {
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
				if l := remotetest.LayerOf(r, img); l != nil {
					c.hook(reg, w, r, l)
					return true
				}
				return false
			}
			w := transfertest.New(t, transfertest.Options{})
			_, err := w.Pull(reg.Addr()+"/r:1", transfer.PullOptions{})
			transfertest.WantClass(t, err, c.class, c.want)
			w.Lacks(reg.Addr() + "/r:1")
		})
	}
}

// The registry redirects blobs to another host, which must not get the credentials.
func TestRedirectToStorage(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(2, 18<<20))
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
		if remotetest.LayerOf(r, img) != nil {
			http.Redirect(w, r, storage.URL+"/blob?signature=x", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	w := transfertest.New(t, transfertest.Options{})
	if _, err := w.Pull(reg.Addr()+"/r:1", transfer.PullOptions{Credentials: transfer.Credentials{Username: remotetest.User, Password: remotetest.Password}}); err != nil {
		t.Fatal(err)
	}
	w.Holds(reg.Addr()+"/r:1", img)
	if leaked.Load() {
		t.Error("Authorization went to the storage host")
	}
	if strings.Contains(w.Log.String(), remotetest.Password) {
		t.Error("password in log")
	}
}

// After a pull was cancelled, or its process has ended, the next pull fetches only the missing bytes.
func TestInterruptedPullResumes(t *testing.T) {
	for _, mode := range []string{"cancel", "process"} {
		for _, size := range []int{6 << 20, 60 << 20} {
			t.Run(fmt.Sprintf("%s-%d", mode, size>>20), func(t *testing.T) {
				img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 1000), transfertest.Files(2, size))
				big := img.Layers[1]
				reg := remotetest.StartFake(t, false)
				reg.Add("r", "1", img)
				var limit atomic.Int64
				limit.Store(big.Size * 2 / 3)
				blocked := make(chan struct{}, 100)
				release := make(chan struct{})
				reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
					l := remotetest.LayerOf(r, img)
					if l == nil || l.Digest != big.Digest {
						return false
					}
					from, end := remotetest.Range(r, len(l.Blob))
					room := int(limit.Load()) - from
					if room >= end-from {
						return false
					}
					reg.ServeSome(w, r, l, max(room, 0))
					w.(http.Flusher).Flush()
					blocked <- struct{}{}
					select {
					case <-r.Context().Done():
					case <-release:
					}
					return true
				}
				w := transfertest.New(t, transfertest.Options{})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				l := &transfertest.Lines{}
				go func() {
					done <- w.Puller.Pull(ctx, transfertest.Ref(t, reg.Addr()+"/r:1"), transfer.PullOptions{}, l.Sink)
				}()
				<-blocked
				w.Await(func() bool { return w.Driver.Commits(img.Layers[0].DiffID) == 1 })
				w.Await(func() bool {
					fi, err := os.Stat(w.Root + "/partial/" + big.Digest.Hex())
					return err == nil && fi.Size() >= limit.Load()*19/20
				})
				time.Sleep(50 * time.Millisecond) // for bytes that are in transit
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Fatalf("cancelled pull: %v", err)
				}
				w.Lacks(reg.Addr() + "/r:1")
				if mode == "process" {
					w.Reopen()
				}
				close(release)
				limit.Store(1 << 40)
				again := w.MustPull(reg.Addr() + "/r:1")
				w.Holds(reg.Addr()+"/r:1", img)
				if !again.Has(transfer.LayerExists, img.Layers[0].Digest.Short()) {
					t.Errorf("the layer that was finished is not kept:\n%s", again.Text())
				}
				if got := reg.Served(big.Digest); float64(got) > 1.1*float64(big.Size) {
					t.Errorf("layer of %d bytes: %d were sent", big.Size, got)
				}
			})
		}
	}
}

// When the record of a partial download claims too many bytes, they are fetched again and the layer is right.
func TestRecordOfPartialClaimsTooMuch(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(2, 6<<20))
	l := img.Layers[0]
	reg := remotetest.StartFake(t, false)
	reg.Add("r", "1", img)
	w := transfertest.New(t, transfertest.Options{})
	p, err := w.Store.Blobs.Partial(l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.File().WriteAt(make([]byte, 3<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.SetPrefix(3<<20), p.Keep()); err != nil {
		t.Fatal(err)
	}
	w.MustPull(reg.Addr() + "/r:1")
	w.Holds(reg.Addr()+"/r:1", img)
}

// Many pulls of images with a common layer fetch it once. When some are cancelled, the others succeed.
func TestPullsShareAFlight(t *testing.T) {
	shared := transfertest.Files(1, 6<<20)
	reg := remotetest.StartFake(t, false)
	var imgs []*remotetest.Image
	for i := range 20 {
		img := remotetest.Make(t, oci.FormatOCI, shared, transfertest.Files(uint64(10+i), 1000))
		reg.Add("r", strconv.Itoa(i), img)
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
	w := transfertest.New(t, transfertest.Options{Downloads: 30})
	ctxs := make([]context.CancelFunc, len(imgs))
	results := make([]chan error, len(imgs))
	waits := make([]*transfertest.Lines, len(imgs))
	for i := range imgs {
		var ctx context.Context
		ctx, ctxs[i] = context.WithTimeout(t.Context(), 60*time.Second)
		defer ctxs[i]()
		results[i], waits[i] = make(chan error, 1), &transfertest.Lines{}
		go func() {
			results[i] <- w.Puller.Pull(ctx, transfertest.Ref(t, reg.Addr()+"/r:"+strconv.Itoa(i)), transfer.PullOptions{}, waits[i].Sink)
		}()
	}
	<-started
	for i := range imgs {
		w.Await(func() bool { return waits[i].Has(transfer.LayerQueued, big.Digest.Short()) })
	}
	for i := range 7 { // the pull that started the flight is very likely one of them
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
		w.Holds(reg.Addr()+"/r:"+strconv.Itoa(i), imgs[i])
	}
	if got := reg.Served(big.Digest); got != big.Size {
		t.Errorf("shared layer of %d bytes: %d were sent", big.Size, got)
	}
	if n := w.Driver.Commits(big.DiffID); n != 1 {
		t.Errorf("shared layer was committed %d times", n)
	}
}

// When a mirror sends wrong bytes, the layer is fetched from the next mirror.
func TestMirrorSendsWrongBytes(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 100_000))
	good, bad := remotetest.StartFake(t, false), remotetest.StartFake(t, false)
	good.Add("library/x", "latest", img)
	bad.Add("library/x", "latest", img)
	bad.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		l := remotetest.LayerOf(r, img)
		if l == nil {
			return false
		}
		b := append([]byte(nil), l.Blob...)
		b[100] ^= 1
		_, _ = w.Write(b)
		return true
	}
	w := transfertest.New(t, transfertest.Options{Remote: remote.Options{Mirrors: []string{bad.URL, good.URL}}})
	w.MustPull("x")
	w.Holds("x", img)
}

// A pull keeps compressed layers as the policy of the store says.
func TestRetentionAfterPull(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	var imgs []*remotetest.Image
	for i := range 4 {
		img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(uint64(i+1), 400_000))
		reg.Add("r", strconv.Itoa(i), img)
		imgs = append(imgs, img)
	}
	for policy, want := range map[store.Retain]int{store.RetainNever: 0, store.RetainAlways: 4, store.RetainAuto: 2} {
		w := transfertest.New(t, transfertest.Options{Store: store.Options{Retain: policy, RetainBudget: 1_000_000}})
		for i := range imgs {
			w.MustPull(reg.Addr() + "/r:" + strconv.Itoa(i))
			w.AwaitRetention()
		}
		kept := 0
		for i, img := range imgs {
			if _, err := w.Store.Blobs.Stat(img.Layers[0].Digest); err == nil {
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
