package container_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/container"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

func TestDiff(t *testing.T) { onDrivers(t, diff) }

func diff(t *testing.T, w *world) {
	id := w.create(sh("echo n > /new; echo m >> /etc/group; rm /seeded/file; mkdir /d"))
	if ch, err := w.s.Changes(context.Background(), id); err != nil || len(ch) != 0 {
		t.Errorf("a fresh container differs: %v %v", ch, err)
	}
	exit := w.wait(id, container.WaitNextExit)
	w.start(id)
	recv(t, exit)
	ch, err := w.s.Changes(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range ch {
		got = append(got, string("CAD"[c.Kind])+" "+c.Path)
	}
	want := []string{"A /d", "C /etc", "C /etc/group", "A /new", "C /seeded", "D /seeded/file"}
	if !slices.Equal(got, want) {
		t.Errorf("diff %v, want %v", got, want)
	}
}

// committing is a storage driver that calls committed after the commit of a layer.
type committing struct {
	layer.Driver
	committed func(oci.Chain)
}

func (d *committing) Create(ctx context.Context) (layer.Writer, error) {
	w, err := d.Driver.Create(ctx)
	return &committingWriter{w, d}, err
}

type committingWriter struct {
	layer.Writer
	d *committing
}

func (w *committingWriter) Commit(ctx context.Context, parents oci.Chain, want oci.DiffID) (layer.Info, error) {
	info, err := w.Writer.Commit(ctx, parents, want)
	if err == nil && w.d.committed != nil {
		w.d.committed(append(slices.Clone(parents), info.DiffID))
	}
	return info, err
}

// A collection between the commit of the layer and the record of the image, such as that of a removed image with the same
// layer, does not take the layer.
func TestCommitHoldsItsLayer(t *testing.T) { onDrivers(t, commitHoldsItsLayer) }

func commitHoldsItsLayer(t *testing.T, w *world) {
	ctx := context.Background()
	drv := &committing{}
	w.wrap = func(d layer.Driver) layer.Driver { drv.Driver = d; return drv }
	w.close()
	w.open()
	id := w.create(sh("echo x > /new"))
	exit := w.wait(id, container.WaitNextExit)
	w.start(id)
	recv(t, exit)
	collected := 0
	drv.committed = func(chain oci.Chain) {
		collected++
		if _, err := w.store.Reclaim(ctx, []oci.Chain{chain}, nil); err != nil {
			t.Error(err)
		}
		if _, err := w.store.Layers.Stat(ctx, chain); err != nil {
			t.Errorf("the layer is gone: %v", err)
		}
	}
	res, err := w.s.Commit(ctx, id, container.CommitOptions{})
	if err != nil || collected != 1 {
		t.Fatalf("commit: %v, %d collections", err, collected)
	}
	drv.committed = nil
	if code, out, errOut := w.run(spec.Spec{Image: string(res.ID), NetworkMode: "none", Cmd: []string{"cat", "/new"}}); code != 0 || out != "x\n" {
		t.Errorf("run of the commit: %d %q %q", code, out, errOut)
	}
}

// A commit of a running container has its message and author, its image runs, and the content of volumes is left out.
func TestCommitRunning(t *testing.T) { onDrivers(t, commitRunning) }

func commitRunning(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.up(func(s *spec.Spec) { s.Binds = []string{"data:/data"} })
	w.exec(id, "sh", "-c", "echo added > /added; echo lost > /data/lost; rm -r /seeded")
	name, err := oci.ParseReference("mhk/box:1.3")
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.s.Commit(ctx, id, container.CommitOptions{Name: name, Author: "mhk", Message: "add vim", Pause: true, Changes: []string{"ENV WHO=me", `CMD ["cat","/added"]`}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(res.LeftOut, []string{"/data"}) {
		t.Errorf("left out %v", res.LeftOut)
	}
	if st := w.get(id).State.Status; st != container.StatusRunning {
		t.Errorf("container is %s after its commit", st)
	}
	img, err := w.images.Get(ctx, "mhk/box:1.3")
	if err != nil {
		t.Fatal(err)
	}
	c := img.Config
	last := c.History[len(c.History)-1]
	if img.ID != res.ID || len(c.RootFS.DiffIDs) != 2 || c.Author != "mhk" || last.Comment != "add vim" || !strings.HasPrefix(last.CreatedBy, "sh -c trap") || len(c.History) != 2 {
		t.Errorf("image %s: %+v", img.ID, c)
	}
	if !slices.Contains(c.Config.Env, "WHO=me") || !slices.Contains(c.Config.Env, "FROM=image") {
		t.Errorf("env %v", c.Config.Env)
	}
	if code, out, errOut := w.run(spec.Spec{Image: string(res.ID), NetworkMode: "none"}); code != 0 || out != "added\n" {
		t.Errorf("run of the commit: %d %q %q", code, out, errOut)
	}
	_, out, _ := w.run(spec.Spec{Image: string(res.ID), NetworkMode: "none", Cmd: []string{"sh", "-c", "ls -d /seeded /data/lost; ls -A /data"}})
	if out != "" {
		t.Errorf("what was deleted or in a volume is in the image: %q", out)
	}
	_, err = w.s.Commit(ctx, id, container.CommitOptions{Changes: []string{"RUN rm -rf /"}})
	wantErr(t, err, errs.Invalid, "RUN")
}

// A commit without changes makes a layer too, and a container that does not run can be committed.
func TestCommitStopped(t *testing.T) { onDrivers(t, commitStopped) }

func commitStopped(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.create(sh("true"))
	res, err := w.s.Commit(ctx, id, container.CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := w.images.Get(ctx, string(res.ID))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(img.Config.RootFS.DiffIDs); n != 2 || len(res.LeftOut) != 0 {
		t.Errorf("%d layers, left out %v", n, res.LeftOut)
	}
	if w.get(id).State.Status != container.StatusCreated {
		t.Error("state changed")
	}
}

// A commit that meets the end of the container makes the image, at whatever point of the end it comes.
func TestCommitDuringTheEnd(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	id := w.create(sh("echo kept > /kept"))
	for i := range 200 {
		exit := w.wait(id, container.WaitNextExit)
		w.start(id)
		time.Sleep(time.Duration(i%50) * 200 * time.Microsecond) // the run takes about 5 ms
		res, err := w.s.Commit(ctx, id, container.CommitOptions{Pause: true})
		if err != nil {
			t.Fatalf("commit %d: %v", i, err)
		}
		if img, err := w.images.Get(ctx, string(res.ID)); err != nil || len(img.Config.RootFS.DiffIDs) != 2 {
			t.Fatalf("image of commit %d: %v", i, err)
		}
		recv(t, exit)
		if st := w.get(id).State.Status; st != container.StatusExited {
			t.Fatalf("container is %s after its end and commit %d", st, i)
		}
	}
	if res, err := w.s.Commit(ctx, id, container.CommitOptions{}); err != nil {
		t.Error(err)
	} else if code, out, _ := w.run(spec.Spec{Image: string(res.ID), NetworkMode: "none", Cmd: []string{"cat", "/kept"}}); code != 0 || out != "kept\n" {
		t.Errorf("the image has %d %q", code, out)
	}
}

// A kill that meets the freeze of a commit ends the container at once.
func TestKillDuringCommit(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	many := "i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done; echo ready; wait" // they do not all end at once
	for i := range 30 {
		id := w.create(sh(many))
		w.start(id)
		w.waitLog(id, "ready")
		done := make(chan error, 1)
		go func() {
			_, err := w.s.Commit(ctx, id, container.CommitOptions{Pause: true})
			done <- err
		}()
		time.Sleep(time.Duration(i) * 100 * time.Microsecond) // so that the kill meets the commit at different points
		began := time.Now()
		if err := w.s.Kill(ctx, id, "KILL"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 9*time.Second { // a kill of a frozen container is given up after 10 s
			t.Fatalf("kill %d took %v", i, took)
		}
		if err := <-done; err != nil {
			t.Fatalf("commit %d: %v", i, err)
		}
	}
}

// A removal and a commit of the same container do not wait for each other.
func TestRemoveDuringCommit(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for i := range 8 {
		id := w.up(nil)
		done := make(chan error, 1)
		go func() {
			_, err := w.s.Commit(ctx, id, container.CommitOptions{Pause: true})
			done <- err
		}()
		time.Sleep(time.Duration(i) * 2 * time.Millisecond) // so that the removal meets the commit at different points
		began := time.Now()
		if err := w.s.Remove(ctx, id, true, true, false); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Conflict) {
			t.Errorf("commit: %v", err)
		}
		if d := time.Since(began); d > 20*time.Second { // longer than anything here takes without a deadlock
			t.Fatalf("they waited %v for each other", d)
		}
	}
}
