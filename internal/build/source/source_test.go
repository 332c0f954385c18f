package source

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/oci"
)

// world has the sources of an engine whose layers and cache are in memory.
type world struct {
	*Sources
	t *testing.T

	mu      sync.Mutex
	tars    map[oci.DiffID][]byte
	keys    map[oci.Digest]*solver.Record
	secrets map[string]string
	agent   func() (io.ReadWriteCloser, error)
	hosts   map[string][]netip.Addr
}

func newWorld(t *testing.T, l Limits) *world {
	t.Helper()
	if l.Quiet == 0 {
		l.Quiet = 20 * time.Second
	}
	w := &world{t: t, tars: map[oci.DiffID][]byte{}, keys: map[oci.Digest]*solver.Record{}, secrets: map[string]string{}, hosts: map[string][]netip.Addr{}}
	run, err := os.MkdirTemp("", "s") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	w.Sources, err = New(Options{Layers: w, Cache: w, Dir: filepath.Join(t.TempDir(), "sources"), Run: run, Limits: l, Lookup: w.lookup})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(w.o.Dir); err != nil || len(left) > 0 {
			t.Errorf("left in the directory of the sources: %v %v", left, err)
		}
		if left, err := os.ReadDir(run); err != nil || len(left) > 0 {
			t.Errorf("left in the directory of the sockets: %v %v", left, err)
		}
	})
	return w
}

func (w *world) lookup(_ context.Context, host string) ([]netip.Addr, error) {
	if ips := w.hosts[host]; ips != nil {
		return ips, nil
	}
	if host == "localhost" || strings.HasSuffix(host, ".test") {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	return nil, errs.New(errs.NotFound, "no such host %s", host)
}

func (w *world) Layer(_ context.Context, _ solver.Leaser, base oci.Chain, write func(io.Writer) error) (oci.Chain, error) {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return nil, err
	}
	id := oci.DiffID(oci.DigestOf(b.Bytes()))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tars[id] = b.Bytes()
	return append(base[:len(base):len(base)], id), nil
}

func (w *world) Find(_ context.Context, _ solver.Leaser, key oci.Digest) (*solver.Record, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.keys[key]; r != nil {
		return r, nil
	}
	return nil, errs.New(errs.NotFound, "no such key")
}

func (w *world) Save(_ context.Context, r *solver.Record, keys ...oci.Digest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range keys {
		w.keys[k] = r
	}
	return nil
}

func (w *world) Alias(context.Context, oci.Digest, oci.Digest) error { return errors.New("not used") }
func (w *world) Last(context.Context, string) *solver.Record         { return nil }

func (w *world) Secret(_ context.Context, id string) ([]byte, error) {
	if v, ok := w.secrets[id]; ok {
		return []byte(v), nil
	}
	return nil, errs.New(errs.NotFound, "secret %s: not found", id)
}

func (w *world) Agent(context.Context, string) (io.ReadWriteCloser, error) {
	if w.agent == nil {
		return nil, errs.New(errs.NotFound, "no agent")
	}
	return w.agent()
}

type noLease struct{}

func (noLease) Layer(oci.Chain) {}

// build begins a build.
func (w *world) build() *Fetches { return w.For(w, noLease{}) }

// entry is a file of a layer.
type entry struct {
	tar.Header
	data string
}

// files returns what a result has.
func (w *world) files(r *solver.Result) map[string]entry {
	w.t.Helper()
	if len(r.Chain) != 1 || r.Key == "" {
		w.t.Fatalf("result %+v", r)
	}
	out := map[string]entry{}
	tr := tar.NewReader(bytes.NewReader(w.tars[oci.DiffID(r.Chain.Top())]))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			w.t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			w.t.Fatal(err)
		}
		out[strings.TrimSuffix(h.Name, "/")] = entry{*h, string(data)}
	}
}

// noWords fails when a text that must stay secret is in anything that outlives a build.
func (w *world) noWords(words ...string) {
	w.t.Helper()
	for _, word := range words {
		for _, r := range w.keys {
			if strings.Contains(r.Name, word) {
				w.t.Errorf("the record %q has a secret", r.Name)
			}
			for _, p := range r.Parts {
				if strings.Contains(p.Sum, word) {
					w.t.Errorf("the record %q has a secret in %s", r.Name, p.What)
				}
			}
		}
		for id, data := range w.tars {
			if bytes.Contains(data, []byte(word)) {
				w.t.Errorf("the layer %s has a secret", id)
			}
		}
	}
}
