package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ply/internal/config"
	"ply/internal/container"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/engine"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

// bed is a data root that can be reset to its prepared state.
type bed struct {
	dir    string // holds everything
	saved  string // the prepared data root
	driver string
}

func (b *bed) root() string { return filepath.Join(b.dir, "data") }

// reset replaces the data root by a copy of the prepared one.
func (b *bed) reset(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(b.root()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", "--reflink=auto", b.saved, b.root()).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

func (b *bed) open(t *testing.T, fsys durable.FS) (*engine.Engine, error) {
	t.Helper()
	cfg := config.Default()
	cfg.DataRoot, cfg.ExecRoot, cfg.StorageDriver = b.root(), filepath.Join(b.dir, "run"), b.driver
	cfg.Bridge = "plycrash0"
	return engine.Open(context.Background(), engine.Options{Config: &cfg, ShimPath: filepath.Join(bin, "ply-shim"), FS: fsys, CertsDirs: []string{}})
}

func (b *bed) mustOpen(t *testing.T) *engine.Engine {
	t.Helper()
	e, err := b.open(t, nil)
	if err != nil {
		t.Fatalf("the store does not open: %v", err)
	}
	return e
}

// prepare makes a data root with the image base:1 and the stopped container old, and an archive of the image away:1 beside it.
func prepare(t *testing.T, driver string) *bed {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "ply-crash.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	b := &bed{dir: dir, saved: filepath.Join(dir, "saved"), driver: driver}
	e := b.mustOpen(t)
	ctx := t.Context()
	for _, name := range []string{"base:1", "away:1"} {
		ref, _ := oci.ParseReference(name)
		f, err := os.Open(rootfs)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Archive.Import(ctx, transfer.ImportOptions{Name: ref, Message: name, Changes: []string{`CMD ["sh"]`}, Source: f, From: "-"}, transfer.Discard); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if _, _, err := e.Containers.Create(ctx, spec.Spec{Name: "old", Image: "base:1", Cmd: []string{"sh", "-c", "echo changed >/new"}}); err != nil {
		t.Fatal(err)
	}
	runToEnd(t, e, "old")
	f, err := os.Create(filepath.Join(dir, "away.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Archive.Save(ctx, []string{"away:1"}, transfer.SaveOptions{}, f); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := e.Images.Remove(ctx, "away:1", image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.root(), b.saved); err != nil {
		t.Fatal(err)
	}
	return b
}

func runToEnd(t *testing.T, e *engine.Engine, name string) {
	t.Helper()
	if err := startAndWait(e, name); err != nil {
		t.Fatal(err)
	}
}

func startAndWait(e *engine.Engine, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	done, err := e.Containers.Wait(ctx, name, container.WaitNextExit)
	if err != nil {
		return err
	}
	if err := e.Containers.Start(ctx, name); err != nil {
		return err
	}
	select {
	case exit := <-done:
		if exit.Code != 0 {
			return fmt.Errorf("exit code %d", exit.Code)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// op is an operation under test. check examines an engine that was opened after do; acked reports whether do returned nil.
type op struct {
	name  string
	do    func(t *testing.T, b *bed, e *engine.Engine) error
	check func(t *testing.T, b *bed, e *engine.Engine, acked bool) error
}

func has(e *engine.Engine, ref string) (*image.Image, error) {
	return e.Images.Get(context.Background(), ref)
}

// whole reads every layer of an image and compares its digest.
func whole(e *engine.Engine, ref string) error {
	img, err := has(e, ref)
	if err != nil {
		return err
	}
	for i := range img.Config.RootFS.DiffIDs {
		if err := e.Store.Layers.Verify(context.Background(), img.Config.RootFS.DiffIDs[:i+1]); err != nil {
			return fmt.Errorf("%s: layer %d: %w", ref, i, err)
		}
	}
	return nil
}

// imageIfAcked returns a check: the image exists if it was acknowledged, and it is whole if it exists.
func imageIfAcked(ref string) func(*testing.T, *bed, *engine.Engine, bool) error {
	return func(_ *testing.T, _ *bed, e *engine.Engine, acked bool) error {
		if _, err := has(e, ref); err != nil {
			if acked {
				return fmt.Errorf("was acknowledged, but: %w", err)
			}
			return nil
		}
		return whole(e, ref)
	}
}

func operations(t *testing.T) []op {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, remotetest.LayerSpec{}, remotetest.LayerSpec{})
	reg.Add("some/image", "1", img)
	remote := strings.TrimPrefix(reg.URL, "http://") + "/some/image:1"
	parse := func(s string) oci.Reference {
		r, err := oci.ParseReference(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	return []op{
		{"pull", func(t *testing.T, _ *bed, e *engine.Engine) error {
			return e.Puller.Pull(context.Background(), parse(remote), transfer.PullOptions{}, transfer.Discard)
		}, imageIfAcked(remote)},
		{"load", func(t *testing.T, b *bed, e *engine.Engine) error {
			f, err := os.Open(filepath.Join(b.dir, "away.tar"))
			if err != nil {
				return err
			}
			defer f.Close()
			return e.Archive.Load(context.Background(), f, transfer.LoadOptions{Quiet: true}, transfer.Discard)
		}, imageIfAcked("away:1")},
		{"import", func(t *testing.T, _ *bed, e *engine.Engine) error {
			f, err := os.Open(rootfs)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = e.Archive.Import(context.Background(), transfer.ImportOptions{Name: parse("imported:1"), Source: f, From: "-"}, transfer.Discard)
			return err
		}, imageIfAcked("imported:1")},
		{"commit", func(t *testing.T, _ *bed, e *engine.Engine) error {
			_, err := e.Containers.Commit(context.Background(), "old", container.CommitOptions{Name: parse("made:1"), Pause: true})
			return err
		}, imageIfAcked("made:1")},
		{"tag", func(t *testing.T, _ *bed, e *engine.Engine) error {
			return e.Images.Tag(context.Background(), "base:1", parse("tagged:1"))
		}, imageIfAcked("tagged:1")},
		{"rmi", func(t *testing.T, _ *bed, e *engine.Engine) error {
			if err := e.Images.Tag(context.Background(), "base:1", parse("spare:1")); err != nil {
				return err
			}
			if _, err := e.Containers.Commit(context.Background(), "old", container.CommitOptions{Name: parse("gone:1")}); err != nil {
				return err
			}
			_, err := e.Images.Remove(context.Background(), "gone:1", image.RemoveOptions{})
			return err
		}, func(_ *testing.T, _ *bed, e *engine.Engine, acked bool) error {
			if _, err := has(e, "gone:1"); err == nil && acked {
				return errors.New("the removed image is still there")
			} else if err == nil {
				return whole(e, "gone:1")
			}
			return nil
		}},
		{"run", func(t *testing.T, _ *bed, e *engine.Engine) error {
			_, _, err := e.Containers.Create(context.Background(), spec.Spec{Name: "fresh", Image: "base:1", Cmd: []string{"sh", "-c", "echo hi"}, NetworkMode: "none"})
			if err != nil {
				return err
			}
			return startAndWait(e, "fresh")
		}, func(t *testing.T, _ *bed, e *engine.Engine, acked bool) error {
			c, err := e.Containers.Get(context.Background(), "fresh", false)
			if err != nil {
				if acked {
					return fmt.Errorf("was acknowledged, but: %w", err)
				}
				return nil
			}
			if acked && c.State.ExitCode != 0 {
				return fmt.Errorf("exit code %d", c.State.ExitCode)
			}
			if acked {
				var out bytes.Buffer
				if err := e.Containers.Sessions().Logs(context.Background(), "fresh", session.LogOptions{Stdout: true, Stderr: true, Tail: -1}, &out, io.Discard); err != nil || out.String() != "hi\n" {
					return fmt.Errorf("log %q, %w", out.String(), err)
				}
			}
			return e.Containers.Remove(context.Background(), "fresh", true, true, false)
		}},
	}
}

// TestFaults runs every operation of the engine and makes each operation of the disk fail in turn: once, and from then on.
func TestFaults(t *testing.T) {
	for _, driver := range []string{"erofs", "overlay2"} {
		b := prepare(t, driver)
		for _, o := range operations(t) {
			if driver != "erofs" && (o.name == "tag" || o.name == "run" || o.name == "import") {
				continue // the driver's part in these is the same as in load and commit
			}
			t.Run(driver+"/"+o.name, func(t *testing.T) { exhaust(t, b, o) })
		}
	}
}

func exhaust(t *testing.T, b *bed, o op) {
	before := mountCount(t, b.dir)
	for _, forever := range []bool{false, true} {
		step := 1
		if forever {
			step = 7 // the single faults cover each point; a disk that stays broken is sampled
		}
		for n := 1; ; n += step {
			b.reset(t)
			faulty := &faultfs.FS{Under: durable.OS, FailAt: n, Forever: forever, Err: syscall.ENOSPC, Short: n%2 == 0}
			acked, opened := attempt(t, b, o, faulty)
			hit := faulty.Hit()
			e := b.mustOpen(t)
			what := fmt.Sprintf("fault at disk operation %d (and all later ones: %v)", n, forever)
			if err := whole(e, "base:1"); err != nil {
				t.Errorf("%s: what was there before: %v", what, err)
			}
			if _, err := e.Containers.Get(t.Context(), "old", false); err != nil {
				t.Errorf("%s: the container that was there before: %v", what, err)
			}
			if err := o.check(t, b, e, acked); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if acked2 := o.do(t, b, e); acked2 != nil && !acked {
				t.Errorf("%s: the next try fails: %v", what, acked2)
			}
			if err := e.Close(); err != nil {
				t.Errorf("%s: close: %v", what, err)
			}
			temporaries(t, b.root(), what)
			if t.Failed() {
				return
			}
			if !hit && opened {
				if !acked {
					t.Errorf("without a fault the operation fails")
				}
				t.Logf("failing from then on %v: %d disk operations", forever, faulty.Count())
				break
			}
		}
	}
	if after := mountCount(t, b.dir); after != before {
		t.Errorf("%d mounts before, %d after", before, after)
	}
}

// attempt opens the engine on a faulty disk and runs the operation. A panic fails the test.
func attempt(t *testing.T, b *bed, o op, faulty *faultfs.FS) (acked, opened bool) {
	e, err := b.open(t, faulty)
	if err != nil {
		return false, false
	}
	err = o.do(t, b, e)
	_ = e.Close() // on a broken disk it may fail too
	return err == nil, true
}

// temporaries checks that no temporary file is left after a clean start and stop.
func temporaries(t *testing.T, root, what string) {
	t.Helper()
	err := filepath.Walk(root, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if durable.IsTemp(filepath.Base(path)) {
			t.Errorf("%s: temporary left: %s", what, path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func mountCount(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte(" "+dir))
}
