package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

// world is an engine as far as this package needs one.
type world struct {
	t      testing.TB
	root   string
	driver *tarDriver
	st     *store.Store
	images *image.Service
	c      *Client
	log    *syncBuffer
	opts   Options
	stOpts store.Options
}

type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newWorld(t testing.TB, opts Options, st ...store.Options) *world {
	t.Helper()
	w := &world{t: t, root: t.TempDir(), log: &syncBuffer{}, opts: opts}
	if len(st) > 0 {
		w.stOpts = st[0]
	}
	w.open()
	t.Cleanup(func() { w.close() })
	return w
}

func (w *world) open() {
	w.t.Helper()
	w.driver = newTarDriver(w.t, w.root)
	var err error
	if w.st, err = store.Open(w.root, w.driver, w.stOpts); err != nil {
		w.t.Fatal(err)
	}
	w.images = image.New(w.st, image.Options{})
	o := w.opts
	o.Log = slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.c = New(w.st, w.images, o)
	w.c.retry = retryPolicy{base: time.Millisecond, max: 10 * time.Millisecond, giveUp: 20 * time.Second, maxAfter: 3 * time.Second}
}

func (w *world) close() {
	w.t.Helper()
	if w.c == nil {
		return
	}
	if err := errors.Join(w.c.Close(), w.st.Close()); err != nil {
		w.t.Error(err)
	}
	w.c = nil
}

// reopen is a new process on the same data root.
func (w *world) reopen() {
	w.t.Helper()
	w.close()
	w.open()
}

func ref(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// lines collects progress: every state once, counters left out.
type lines struct {
	mu   sync.Mutex
	all  []string
	aux  []any
	seen []transfer.Progress
	on   func(transfer.Progress)
}

func (l *lines) sink(p transfer.Progress) {
	l.mu.Lock()
	l.seen = append(l.seen, p)
	if p.Aux != nil {
		l.aux = append(l.aux, p.Aux)
	} else {
		s := p.Action
		if p.ID != "" {
			s = p.ID + ": " + s
		}
		if n := len(l.all); n == 0 || l.all[n-1] != s {
			l.all = append(l.all, s)
		}
	}
	l.mu.Unlock()
	if l.on != nil {
		l.on(p)
	}
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.all, "\n")
}

func (l *lines) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.all {
		if x == s {
			return true
		}
	}
	return false
}

func (w *world) pull(name string, opts transfer.PullOptions) (*lines, error) {
	w.t.Helper()
	l := &lines{}
	ctx, cancel := context.WithTimeout(w.t.Context(), 60*time.Second)
	defer cancel()
	return l, w.c.Pull(ctx, ref(w.t, name), opts, l.sink)
}

func (w *world) mustPull(name string) *lines {
	w.t.Helper()
	l, err := w.pull(name, transfer.PullOptions{})
	if err != nil {
		w.t.Fatalf("pull %s: %v\n%s", name, err, l.text())
	}
	return l
}

func (w *world) mustPush(name string, cred transfer.Credentials) *lines {
	w.t.Helper()
	l := &lines{}
	ctx, cancel := context.WithTimeout(w.t.Context(), 60*time.Second)
	defer cancel()
	if err := w.c.Push(ctx, ref(w.t, name), transfer.PushOptions{Credentials: cred}, l.sink); err != nil {
		w.t.Fatalf("push %s: %v\n%s", name, err, l.text())
	}
	return l
}

// holds checks that an image is here, as it was made, under a name.
func (w *world) holds(name string, img *remotetest.Image) {
	w.t.Helper()
	got, err := w.images.Get(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	if got.ID != img.ID() || string(got.Raw) != string(img.Config) {
		w.t.Errorf("%s is image %s, want %s", name, got.ID, img.ID())
	}
	if got.Manifest == nil || got.Manifest.Digest != img.Digest() {
		w.t.Errorf("%s has manifest %+v, want %s", name, got.Manifest, img.Digest())
	} else if b, err := w.st.Blobs.Bytes(img.Digest(), oci.MaxManifest); err != nil || string(b) != string(img.Manifest) {
		w.t.Errorf("manifest %s: not kept byte-exact: %v", img.Digest(), err)
	}
	for _, l := range img.Layers {
		w.driver.sameTar(w.t, l.DiffID, l.Tar)
		var rec meta.Layer
		err := w.st.Meta.View(func(tx *meta.Tx) (err error) {
			rec, err = tx.Layers.Get(l.DiffID)
			return err
		})
		if err != nil || len(rec.Blobs) == 0 {
			w.t.Errorf("layer %s: record %+v, %v", l.DiffID.Short(), rec, err)
		}
	}
}

// lacks checks that nothing of a failed pull is visible.
func (w *world) lacks(name string) {
	w.t.Helper()
	if _, err := w.images.Get(w.t.Context(), name); !errors.Is(err, errs.NotFound) {
		w.t.Errorf("%s after a failed pull: %v, want not found", name, err)
	}
}

func files(seed uint64, sizes ...int) remotetest.LayerSpec {
	var s remotetest.LayerSpec
	for i, n := range sizes {
		s.Files = append(s.Files, remotetest.File{Name: fmt.Sprintf("f%d-%d", seed, i), Data: remotetest.Noise(seed*100+uint64(i), n)})
	}
	return s
}

func wantClass(t testing.TB, err, class error, parts ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("error %v, want class %v", err, class)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q, want it to hold %q", err, p)
		}
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
