package container_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ply/internal/container"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/errs"
)

// All operations at once on few containers: in any order each call ends, each error is one that a client can understand,
// and nothing is left behind (world.end checks that).
func TestStress(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	names := []string{"s0", "s1", "s2"}
	one, in := 0, makeTar(t, []file{{name: "x", data: "y", mode: 0o644}})
	ops := map[string]func(n string) error{
		"create": func(n string) error {
			s := sh("trap 'exit 3' TERM; while :; do sleep 0.05; done")
			s.Name, s.Binds = n, []string{"shared:/seeded"}
			s.AutoRemove = rand.IntN(4) == 0
			if !s.AutoRemove && rand.IntN(3) == 0 {
				s.RestartPolicy.Name = "always"
			}
			_, _, err := w.s.Create(ctx, s)
			return err
		},
		"start":   func(n string) error { return w.s.Start(ctx, n) },
		"stop":    func(n string) error { return w.s.Stop(ctx, n, "", &one) },
		"restart": func(n string) error { return w.s.Restart(ctx, n, "", &one) },
		"kill":    func(n string) error { return w.s.Kill(ctx, n, "KILL") },
		"pause":   func(n string) error { return w.s.Pause(ctx, n) },
		"unpause": func(n string) error { return w.s.Unpause(ctx, n) },
		"remove":  func(n string) error { return w.s.Remove(ctx, n, rand.IntN(2) == 0, true, false) },
		"rename":  func(n string) error { return w.s.Rename(ctx, n, names[rand.IntN(len(names))]) },
		"commit": func(n string) error {
			_, err := w.s.Commit(ctx, n, container.CommitOptions{Pause: true})
			return err
		},
		"diff":    func(n string) error { _, err := w.s.Changes(ctx, n); return err },
		"copy in": func(n string) error { return w.files.CopyTo(ctx, n, "/tmp", bytes.NewReader(in), false, false) },
		"copy":    func(n string) error { return w.files.CopyFrom(ctx, n, "/etc", anything, io.Discard) },
		"export":  func(n string) error { return w.files.Export(ctx, n, io.Discard) },
		"exec": func(n string) error {
			id, err := w.sessions.ExecCreate(ctx, n, spec.ExecSpec{Cmd: []string{"true"}, AttachStdout: true})
			if err != nil {
				return err
			}
			err = w.sessions.ExecStart(ctx, id, session.AttachOptions{Stdout: io.Discard, Stream: true}, false, [2]uint{})
			if err != nil && errors.Is(err, errs.Internal) {
				return nil // the container ended while the exec began; the error has the runtime's words
			}
			return err
		},
		"list": func(n string) error {
			_, err := w.s.List(ctx, container.ListOptions{All: true, Size: true})
			return err
		},
		"logs": func(n string) error {
			return w.sessions.Logs(ctx, n, session.LogOptions{Stdout: true, Tail: -1}, io.Discard, nil)
		},
	}
	var kinds []string
	for k := range ops {
		kinds = append(kinds, k)
	}
	stop := time.Now().Add(6 * time.Second)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for time.Now().Before(stop) {
				k, n := kinds[rand.IntN(len(kinds))], names[rand.IntN(len(names))]
				began := time.Now()
				err := ops[k](n)
				if d := time.Since(began); d > 25*time.Second { // shorter than the time limits of waiting
					t.Errorf("%s %s took %v: %v", k, n, d, err)
				}
				switch {
				case err == nil, errors.Is(err, container.ErrNotModified), errors.Is(err, errs.NotFound), errors.Is(err, errs.Conflict),
					errors.Is(err, errs.Invalid), errors.Is(err, errs.Precondition), errors.Is(err, context.Canceled), errors.Is(err, errs.Unavailable):
				default:
					t.Errorf("%s %s: %v", k, n, err)
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		t.Error("something hung")
	}
}

// A start without a runnable shim fails, and works once the shim can run.
func TestShimMissing(t *testing.T) {
	var broken string
	w := newWorldWith(t, func(o *container.Options) {
		if broken == "" {
			broken = filepath.Join(filepath.Dir(o.DataRoot), "no-shim")
		}
		o.ShimPath = broken
	})
	id := w.create(sh("true"))
	if err := w.s.Start(context.Background(), id); err == nil {
		t.Fatal("started without a shim")
	}
	if st := w.get(id).State; st.Status != container.StatusCreated || st.ExitCode != 128 || st.Error == "" {
		t.Errorf("state %+v", st)
	}
	if len(w.net.up) != 0 {
		t.Error("network is left")
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(data, []byte(w.dir)) {
		t.Errorf("a mount is left: %v", err)
	}
	broken = w.shim
	w.close()
	w.open()
	w.start(id)
}
