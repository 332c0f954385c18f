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
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ply/internal/config"
	"ply/internal/container"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/durable/powercut"
	"ply/internal/engine"
	"ply/internal/errs"
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
	bridge string
}

var beds atomic.Int32

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

func (b *bed) open(fsys durable.FS) (*engine.Engine, error) {
	cfg := config.Default()
	cfg.DataRoot, cfg.ExecRoot, cfg.StorageDriver = b.root(), filepath.Join(b.dir, "run"), b.driver
	cfg.Bridge = b.bridge
	return engine.Open(context.Background(), engine.Options{Config: &cfg, ShimPath: filepath.Join(bin, "ply-shim"), FS: fsys, CertsDirs: []string{}})
}

func (b *bed) mustOpen(t *testing.T) *engine.Engine {
	t.Helper()
	e, err := b.open(nil)
	if err != nil {
		t.Fatalf("the store does not open: %v", err)
	}
	return e
}

// prepare makes a data root with the image base:1 and the stopped container old, and an archive of the image away:1 beside it.
func prepare(t *testing.T, driver string) *bed {
	t.Helper()
	dir := powercut.New(t, powercut.Ext4).Dir // a disk in memory
	b := &bed{dir: dir, saved: filepath.Join(dir, "saved"), driver: driver, bridge: fmt.Sprint("plybed", beds.Add(1))}
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
	if _, _, err := e.Containers.Create(ctx, spec.Spec{Name: "old", Image: "base:1", NetworkMode: "none", Cmd: []string{"sh", "-c", "echo changed >/new"}}); err != nil {
		t.Fatal(err)
	}
	runToEnd(t, e, "old")
	if _, err := e.Volumes.Create(ctx, "kept", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.root(), "volumes", "kept", "_data", "f"), []byte("synced"), 0o600); err != nil {
		t.Fatal(err)
	}
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
	do    func(b *bed, e *engine.Engine) error
	check func(b *bed, e *engine.Engine, acked bool) error
}

// after checks what was there before the operation, and its result.
func (o *op) after(b *bed, e *engine.Engine, acked bool) error {
	err := whole(e, "base:1")
	if _, getErr := e.Containers.Get(context.Background(), "old", false); getErr != nil {
		err = errors.Join(err, getErr)
	}
	if o.name != "volume rm" {
		err = errors.Join(err, keptVolume(b, e))
	}
	return errors.Join(err, o.check(b, e, acked))
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
func imageIfAcked(ref string) func(*bed, *engine.Engine, bool) error {
	return func(_ *bed, e *engine.Engine, acked bool) error {
		if _, err := has(e, ref); err != nil {
			if acked {
				return fmt.Errorf("was acknowledged, but: %w", err)
			}
			return nil
		}
		return whole(e, ref)
	}
}

// operations are those under test. remote is an image of a registry.
func operations(remote string) []op {
	parse := func(s string) oci.Reference {
		r, err := oci.ParseReference(s)
		if err != nil {
			panic(err) // the names stand below
		}
		return r
	}
	return append(volumeOperations(), []op{
		{"pull", func(_ *bed, e *engine.Engine) error {
			return e.Puller.Pull(context.Background(), parse(remote), transfer.PullOptions{}, transfer.Discard)
		}, imageIfAcked(remote)},
		{"load", func(b *bed, e *engine.Engine) error {
			f, err := os.Open(filepath.Join(b.dir, "away.tar"))
			if err != nil {
				return err
			}
			defer f.Close()
			return e.Archive.Load(context.Background(), f, transfer.LoadOptions{Quiet: true}, transfer.Discard)
		}, imageIfAcked("away:1")},
		{"import", func(_ *bed, e *engine.Engine) error {
			f, err := os.Open(rootfs)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = e.Archive.Import(context.Background(), transfer.ImportOptions{Name: parse("imported:1"), Source: f, From: "-"}, transfer.Discard)
			return err
		}, imageIfAcked("imported:1")},
		{"commit", func(_ *bed, e *engine.Engine) error {
			_, err := e.Containers.Commit(context.Background(), "old", container.CommitOptions{Name: parse("made:1"), Pause: true})
			return err
		}, imageIfAcked("made:1")},
		{"tag", func(_ *bed, e *engine.Engine) error {
			return e.Images.Tag(context.Background(), "base:1", parse("tagged:1"))
		}, imageIfAcked("tagged:1")},
		{"rmi", func(_ *bed, e *engine.Engine) error {
			if err := e.Images.Tag(context.Background(), "base:1", parse("spare:1")); err != nil {
				return err
			}
			if _, err := e.Containers.Commit(context.Background(), "old", container.CommitOptions{Name: parse("gone:1")}); err != nil {
				return err
			}
			_, err := e.Images.Remove(context.Background(), "gone:1", image.RemoveOptions{})
			return err
		}, func(_ *bed, e *engine.Engine, acked bool) error {
			if _, err := has(e, "gone:1"); err == nil && acked {
				return errors.New("the removed image is still there")
			} else if err == nil {
				return whole(e, "gone:1")
			}
			return nil
		}},
		{"run", func(_ *bed, e *engine.Engine) error {
			_, _, err := e.Containers.Create(context.Background(), spec.Spec{Name: "fresh", Image: "base:1", Cmd: []string{"sh", "-c", "echo hi"}, NetworkMode: "none"})
			if err != nil {
				return err
			}
			return startAndWait(e, "fresh")
		}, func(_ *bed, e *engine.Engine, acked bool) error {
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
		{"create", func(_ *bed, e *engine.Engine) error {
			_, _, err := e.Containers.Create(context.Background(), spec.Spec{Name: "fresh", Image: "base:1", Cmd: []string{"sh", "-c", ":"}, NetworkMode: "none"})
			return err
		}, func(_ *bed, e *engine.Engine, acked bool) error {
			if _, err := e.Containers.Get(context.Background(), "fresh", false); err != nil {
				if acked {
					return fmt.Errorf("was acknowledged, but: %w", err)
				}
				return nil
			}
			return errors.Join(startAndWait(e, "fresh"), e.Containers.Remove(context.Background(), "fresh", true, true, false))
		}},
	}...)
}

// content returns what the file f of a volume contains.
func content(b *bed, volume, f string) (string, error) {
	data, err := os.ReadFile(filepath.Join(b.root(), "volumes", volume, "_data", f))
	return string(data), err
}

func hasVolume(e *engine.Engine, name string) bool {
	_, err := e.Volumes.Get(context.Background(), name)
	return err == nil
}

// vacant checks that a volume that does not exist is empty when it is made.
func vacant(b *bed, e *engine.Engine, name string) error {
	if _, err := e.Volumes.Create(context.Background(), name, "", nil, nil); err != nil {
		return err
	}
	left, err := os.ReadDir(filepath.Join(b.root(), "volumes", name, "_data"))
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("a new volume %s has %v", name, left)
	}
	return err
}

// volumeOperations are the operations of volumes. The volume kept has the file f.
func volumeOperations() []op {
	ctx := context.Background()
	return []op{
		{"volume create", func(_ *bed, e *engine.Engine) error {
			_, err := e.Volumes.Create(ctx, "fresh", "", nil, nil)
			return err
		}, func(b *bed, e *engine.Engine, acked bool) error {
			if !hasVolume(e, "fresh") && acked {
				return errors.New("the volume was acknowledged and is missing")
			}
			return errors.Join(vacant(b, e, "fresh"), e.Volumes.Remove(ctx, "fresh", false))
		}},
		{"volume rm", func(_ *bed, e *engine.Engine) error {
			return e.Volumes.Remove(ctx, "kept", false)
		}, func(b *bed, e *engine.Engine, acked bool) error {
			if !hasVolume(e, "kept") {
				return vacant(b, e, "kept")
			}
			if acked {
				return errors.New("the volume was removed and is there")
			}
			return keptVolume(b, e)
		}},
		{"fill", func(_ *bed, e *engine.Engine) error {
			_, _, err := e.Containers.Create(ctx, spec.Spec{Name: "fresh", Image: "base:1", Cmd: []string{"sh", "-c", ":"}, NetworkMode: "none", Binds: []string{"filled:/vol"}})
			return errors.Join(err, startAndWait(e, "fresh"))
		}, func(b *bed, e *engine.Engine, acked bool) error {
			text, err := content(b, "filled", "from-image")
			if acked && err != nil || err == nil && text != "content\n" {
				return fmt.Errorf("the volume has %q, %w", text, err)
			}
			if err := e.Containers.Remove(ctx, "fresh", true, true, false); err != nil && (acked || !errors.Is(err, errs.NotFound)) {
				return err
			}
			return e.Volumes.Remove(ctx, "filled", true)
		}},
	}
}

// keptVolume checks the volume that was there before the operation.
func keptVolume(b *bed, e *engine.Engine) error {
	text, err := content(b, "kept", "f")
	if err != nil || text != "synced" || !hasVolume(e, "kept") {
		return fmt.Errorf("the volume that was there before has %q, %v", text, err)
	}
	return nil
}

// remoteImage starts a registry with one image and returns its name.
func remoteImage(t *testing.T) string {
	reg := remotetest.StartFake(t, false)
	reg.Add("some/image", "1", remotetest.Make(t, oci.FormatOCI, remotetest.LayerSpec{}, remotetest.LayerSpec{}))
	return reg.Addr() + "/some/image:1"
}

// TestFaults runs every operation of the engine and makes each operation of the disk fail in turn: once, and from then on. The
// errors are those of a broken disk, a full one, a used-up quota and too many open files, in turn; with -crash.faults each operation
// gets each error.
func TestFaults(t *testing.T) {
	remote := remoteImage(t)
	for _, part := range []struct {
		driver string
		ops    []string
	}{
		{"erofs", []string{"pull", "commit", "run", "tag", "volume create"}},
		{"erofs", []string{"load", "import", "rmi", "create", "volume rm", "fill"}},
		{"overlay2", []string{"pull", "load", "commit", "rmi", "create"}}, // the driver's part in the others is the same as in these
	} {
		t.Run(part.driver, func(t *testing.T) {
			t.Parallel()
			b := prepare(t, part.driver)
			for _, o := range operations(remote) {
				if !slices.Contains(part.ops, o.name) {
					continue
				}
				t.Run(o.name, func(t *testing.T) {
					before := mountCount(t, b.dir)
					for _, f := range []fault{{}, {forever: true}, {reads: true}, {reads: true, forever: true}} {
						exhaust(t, b, o, f)
					}
					if after := mountCount(t, b.dir); after != before {
						t.Errorf("%d mounts before, %d after", before, after)
					}
				})
			}
		})
	}
}

// fault is a way in which a disk fails.
type fault struct {
	forever bool // from then on
	reads   bool // at reads, and not at changes
}

var faultErrors = []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EDQUOT, syscall.EMFILE}

func exhaust(t *testing.T, b *bed, o op, f fault) {
	// Single faults of changes cover each point. The others are sampled.
	step := 1
	switch {
	case *allFaults:
	case f.reads && f.forever:
		step = 31
	case f.reads:
		step = 13
	case f.forever:
		step = 7
	case o.name == "fill": // run covers the same operations of a container
		step = 3
	}
	for n := 1; !t.Failed(); n += step {
		all := faultErrors
		if f.reads {
			all = []syscall.Errno{syscall.EIO, syscall.EMFILE}
		}
		if !*allFaults {
			all = all[n/step%len(all):][:1]
		}
		count, ended := 0, false
		for _, errno := range all {
			count, ended = o.fail(t, b, &faultfs.FS{Under: durable.OS, FailAt: n, Forever: f.forever, Reads: f.reads, Err: errno, Short: n%2 == 0})
		}
		if ended {
			t.Logf("%+v: %d disk operations", f, count)
			break
		}
	}
}

// fail runs the operation on a faulty disk and checks the engine on a good one afterwards. ended reports that the operation ended
// before the fault.
func (o *op) fail(t *testing.T, b *bed, faulty *faultfs.FS) (count int, ended bool) {
	t.Helper()
	b.reset(t)
	what := fmt.Sprintf("%v at disk operation %d (reads: %v, and all later ones: %v)", faulty.Err, faulty.FailAt, faulty.Reads, faulty.Forever)
	var words string
	counted := 0
	faulty.Trace = func(op string) {
		if counted++; counted == faulty.FailAt {
			words = op
		}
	}
	opErr, opened := o.attempt(b, faulty)
	if faulty.Hit() {
		what += ", " + words
	}
	acked := opened && opErr == nil
	if opened && opErr != nil && !strings.Contains(opErr.Error(), faulty.Err.Error()) {
		t.Errorf("%s: the error does not tell the cause: %v", what, opErr)
	}
	e := b.mustOpen(t)
	if err := o.after(b, e, acked); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if err := o.do(b, e); err != nil && !acked {
		t.Errorf("%s: the next try fails: %v", what, err)
	}
	if err := e.Close(); err != nil {
		t.Errorf("%s: close: %v", what, err)
	}
	temporaries(t, b.root(), what)
	if faulty.Hit() || !opened {
		return faulty.Count(), false
	}
	if !acked {
		t.Errorf("without a fault the operation fails: %v", opErr)
	}
	return faulty.Count(), true
}

// attempt opens the engine on a faulty disk and runs the operation. A panic fails the test.
func (o *op) attempt(b *bed, faulty *faultfs.FS) (err error, opened bool) {
	e, err := b.open(faulty)
	if err != nil {
		return err, false
	}
	err = o.do(b, e)
	_ = e.Close() // on a broken disk it may fail too
	return err, true
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
