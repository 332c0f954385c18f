// Package transfertest provides a store with a puller and a pusher for tests, layers for images, and a record of the progress.
package transfertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
	"ply/internal/transfer"
	"ply/internal/transfer/pull"
	"ply/internal/transfer/push"
	"ply/internal/transfer/remote"
	"ply/internal/transfer/remote/remotetest"
)

// Options of New. The zero value works.
type Options struct {
	Store     store.Options
	Remote    remote.Options // Retry is short unless it is set
	Downloads int            // pull.Options.Max
	Uploads   int            // push.Options.Max
}

// World is the part of an engine that a transfer needs.
type World struct {
	Root   string
	Driver *imagetest.Driver
	Store  *store.Store
	Images *image.Service
	Remote *remote.Client
	Puller *pull.Puller
	Pusher *push.Pusher
	Log    *Log

	t    testing.TB
	opts Options
}

// Log collects log lines.
type Log struct {
	mu sync.Mutex
	b  strings.Builder
}

// Write appends.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns all lines.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// New opens an empty data root, which is closed when the test ends.
func New(t testing.TB, opts Options) *World {
	t.Helper()
	w := &World{t: t, Root: t.TempDir(), Log: &Log{}, opts: opts}
	w.open()
	t.Cleanup(w.close)
	return w
}

func (w *World) open() {
	w.t.Helper()
	layers := filepath.Join(w.Root, "tars")
	if err := os.MkdirAll(layers, 0o700); err != nil {
		w.t.Fatal(err)
	}
	w.Driver = imagetest.NewDriver(layers)
	var err error
	if w.Store, err = store.Open(w.Root, w.Driver, w.opts.Store); err != nil {
		w.t.Fatal(err)
	}
	w.Images = image.New(w.Store, image.Options{})
	log := slog.New(slog.NewTextHandler(w.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o := w.opts.Remote
	o.Log = log
	if o.Retry == (remote.Retry{}) {
		o.Retry = remote.Retry{Base: time.Millisecond, Max: 10 * time.Millisecond, GiveUp: 20 * time.Second, MaxAfter: 3 * time.Second}
	}
	w.Remote = remote.New(o)
	w.Puller = pull.New(w.Store, w.Images, w.Remote, pull.Options{Max: w.opts.Downloads, Log: log})
	w.Pusher = push.New(w.Store, w.Images, w.Remote, push.Options{Max: w.opts.Uploads, Log: log})
}

func (w *World) close() {
	w.t.Helper()
	w.Puller.Close()
	w.Remote.Close()
	if err := w.Store.Close(); err != nil {
		w.t.Error(err)
	}
}

// Reopen does what a new process on the same data root does.
func (w *World) Reopen() {
	w.t.Helper()
	w.close()
	w.open()
}

// Ref parses a reference.
func Ref(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Lines collects progress. Safe for concurrent use.
type Lines struct {
	// On sees every report, when it is not nil.
	On func(transfer.Progress)

	mu  sync.Mutex
	all []string
}

// Sink collects a report, unless it differs from the last one only in its counters.
func (l *Lines) Sink(p transfer.Progress) {
	l.mu.Lock()
	if s := Line(p); len(l.all) == 0 || l.all[len(l.all)-1] != s {
		l.all = append(l.all, s)
	}
	l.mu.Unlock()
	if l.On != nil {
		l.On(p)
	}
}

// Line writes a report as text, without its counters.
func Line(p transfer.Progress) string {
	var f []string
	add := func(s string) {
		if s != "" {
			f = append(f, s)
		}
	}
	add(fmt.Sprintf("%v", p.State))
	add(p.Layer)
	if !p.Ref.IsZero() {
		add(p.Ref.Familiar())
	}
	if !p.From.IsZero() {
		add(p.From.Path())
	}
	add(string(p.Digest))
	add(string(p.Image))
	add(p.MediaType)
	if !p.State.Counts() && p.Total != 0 {
		add(fmt.Sprint(p.Total))
	}
	return strings.Join(f, " ")
}

// Text returns the lines so far.
func (l *Lines) Text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.all, "\n")
}

// Has reports whether a line with this state and these fields, as Line writes them, was collected.
func (l *Lines) Has(state transfer.State, fields ...string) bool {
	want := strings.Join(append([]string{state.String()}, fields...), " ")
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.all {
		if x == want {
			return true
		}
	}
	return false
}

// HasPushed reports whether the push of a name ended with the digest and size of a manifest.
func (l *Lines) HasPushed(name string, manifest []byte) bool {
	return l.Has(transfer.ManifestPushed, name, string(oci.DigestOf(manifest)), fmt.Sprint(len(manifest)))
}

// Pull pulls an image.
func (w *World) Pull(name string, opts transfer.PullOptions) (*Lines, error) {
	w.t.Helper()
	l := &Lines{}
	ctx, cancel := context.WithTimeout(w.t.Context(), 60*time.Second)
	defer cancel()
	return l, w.Puller.Pull(ctx, Ref(w.t, name), opts, l.Sink)
}

// MustPull pulls an image; an error ends the test.
func (w *World) MustPull(name string) *Lines {
	w.t.Helper()
	l, err := w.Pull(name, transfer.PullOptions{})
	if err != nil {
		w.t.Fatalf("pull %s: %v\n%s", name, err, l.Text())
	}
	return l
}

// MustPush pushes an image; an error ends the test.
func (w *World) MustPush(name string, cred transfer.Credentials) *Lines {
	w.t.Helper()
	l := &Lines{}
	ctx, cancel := context.WithTimeout(w.t.Context(), 60*time.Second)
	defer cancel()
	if err := w.Pusher.Push(ctx, Ref(w.t, name), transfer.PushOptions{Credentials: cred}, l.Sink); err != nil {
		w.t.Fatalf("push %s: %v\n%s", name, err, l.Text())
	}
	return l
}

// Tag gives an image another name.
func (w *World) Tag(from, to string) {
	w.t.Helper()
	if err := w.Images.Tag(w.t.Context(), from, Ref(w.t, to)); err != nil {
		w.t.Fatal(err)
	}
}

// Make records an image that was never in a registry, as commit and build do.
func (w *World) Make(name string, format oci.Format, img *remotetest.Image) {
	w.t.Helper()
	ctx := w.t.Context()
	lease := w.Store.Lease()
	defer lease.Release()
	var chain oci.Chain
	for _, l := range img.Layers {
		lw, err := w.Driver.Create(ctx)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := lw.Write(l.Tar); err != nil {
			w.t.Fatal(err)
		}
		info, err := lw.Commit(ctx, chain, l.DiffID)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := w.Store.RecordLayer(info, nil); err != nil {
			w.t.Fatal(err)
		}
		chain = append(chain, l.DiffID)
	}
	put := image.PutOptions{Config: img.Config, Format: format, Names: []oci.Reference{Ref(w.t, name)}}
	if _, err := w.Images.Put(ctx, lease, put); err != nil {
		w.t.Fatal(err)
	}
}

// Holds checks that the store has an image under a name, byte for byte.
func (w *World) Holds(name string, img *remotetest.Image) {
	w.t.Helper()
	got, err := w.Images.Get(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	if got.ID != img.ID() || string(got.Raw) != string(img.Config) {
		w.t.Errorf("%s is image %s, want %s", name, got.ID, img.ID())
	}
	if got.Manifest == nil || got.Manifest.Digest != img.Digest() {
		w.t.Errorf("%s has manifest %+v, want %s", name, got.Manifest, img.Digest())
	} else if b, err := w.Store.Blobs.Bytes(img.Digest(), oci.MaxManifest); err != nil || string(b) != string(img.Manifest) {
		w.t.Errorf("manifest %s: not kept byte-exact: %v", img.Digest(), err)
	}
	for _, l := range img.Layers {
		w.SameTar(l.DiffID, l.Tar)
		var rec meta.Layer
		err := w.Store.Meta.View(func(tx *meta.Tx) (err error) {
			rec, err = tx.Layers.Get(l.DiffID)
			return err
		})
		if err != nil || len(rec.Blobs) == 0 {
			w.t.Errorf("layer %s: record %+v, %v", l.DiffID.Short(), rec, err)
		}
	}
}

// SameTar compares a layer in the store with what it should be.
func (w *World) SameTar(id oci.DiffID, want []byte) {
	w.t.Helper()
	got, err := os.ReadFile(w.Driver.Path(id))
	if err != nil || !bytes.Equal(got, want) {
		w.t.Errorf("layer %s: stored tar differs (%d bytes, want %d): %v", id.Short(), len(got), len(want), err)
	}
}

// Lacks checks that the store has no image under a name.
func (w *World) Lacks(name string) {
	w.t.Helper()
	if _, err := w.Images.Get(w.t.Context(), name); !errors.Is(err, errs.NotFound) {
		w.t.Errorf("%s after a failed pull: %v, want not found", name, err)
	}
}

// Await waits until ok returns true.
func (w *World) Await(ok func() bool) {
	w.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatal("waited for too long")
		}
	}
}

// AwaitRetention waits until Retention has decided about every compressed layer.
func (w *World) AwaitRetention() {
	w.t.Helper()
	w.Await(func() bool {
		downloads, err := os.ReadDir(filepath.Join(w.Root, "partial"))
		return err == nil && len(downloads) == 0
	})
}

// Files describes a layer of noise: one file per size, in bytes. Different seeds give different noise.
func Files(seed uint64, sizes ...int) remotetest.LayerSpec {
	var s remotetest.LayerSpec
	for i, n := range sizes {
		s.Files = append(s.Files, remotetest.File{Name: fmt.Sprintf("f%d-%d", seed, i), Data: remotetest.Noise(seed*100+uint64(i), n)})
	}
	return s
}

// WantClass checks the class of an error and parts of its text.
func WantClass(t testing.TB, err, class error, parts ...string) {
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
