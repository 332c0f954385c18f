package container_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/container"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/check"
	"ply/internal/store/meta"
	"ply/internal/store/meta/metatest"
)

// A check shows a container whose record is written while the engine runs, such as one that a repair of the database has rebuilt, and
// a repair takes the container up. While containers come and go, a check finds nothing of the kind.
func TestCheckTakesUpRebuiltContainers(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := oci.ContainerID(w.up(func(s *spec.Spec) { s.Name = "lost"; s.Binds = []string{"vol:/v"} }))
	pid := w.get(string(id)).State.PID
	w.close()
	db, err := meta.Open(filepath.Join(w.dir, "data", "meta.db"), meta.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var raw []byte
	err = db.Update(func(tx *meta.Tx) (err error) {
		if raw, err = tx.Containers.Get(id); err != nil {
			return err
		}
		raw = bytes.Clone(raw)
		return tx.Containers.Delete(id)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	w.open() // its directories stay, because its shim lives
	if _, err := w.s.Get(ctx, "lost", false); !errors.Is(err, errs.NotFound) {
		t.Fatalf("it is known: %v", err)
	}
	if err := w.store.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Put(id, raw) }); err != nil {
		t.Fatal(err)
	}
	examine := func(repair bool) (found []check.Finding) {
		t.Helper()
		r := check.New(check.Options{Repair: repair}, check.Listener{Found: func(f check.Finding) { found = append(found, f) }})
		if err := w.s.Check(ctx, r); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := examine(false); len(found) != 1 || found[0].Kind != "container record" || found[0].Repaired != "" {
		t.Fatalf("findings: %+v", found)
	}
	if found := examine(true); len(found) != 1 || found[0].Repaired != "taken up" {
		t.Fatalf("findings of a repair: %+v", found)
	}
	if c := w.get("lost"); c.State.Status != container.StatusRunning || c.State.PID != pid {
		t.Errorf("the container is %+v", c.State)
	}
	var coming sync.WaitGroup
	stop := make(chan struct{})
	coming.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := w.s.Remove(ctx, w.create(spec.Spec{Image: "box"}), true, true, false); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 20 {
		for _, f := range examine(false) {
			if f.Kind == "container record" {
				t.Errorf("while containers come and go: %+v", f)
			}
		}
	}
	close(stop)
	coming.Wait()
}

// A container whose record has changed on disk keeps running and is listed with its name and what is wrong with it. Its name is
// taken, its volumes and its files stay, and force removes it. Other containers work.
func TestDamagedRecordIsShown(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	bad := w.up(func(s *spec.Spec) { s.Name = "bad"; s.Binds = []string{"vol:/v"} })
	good := w.up(func(s *spec.Spec) { s.Name = "good" })
	idle := w.create(spec.Spec{Image: "box", Name: "idle"})
	pid := w.get(bad).State.PID
	w.close()
	unknown := filepath.Join(w.dir, "data", "containers", strings.Repeat("cd", 32))
	if err := os.MkdirAll(unknown, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.dir, "data", "meta.db")
	metatest.Falsify(t, path, "containers", bad, "/v", "/w")
	metatest.Damage(t, path, "containers", idle)
	w.open()
	for _, all := range []bool{true, false} {
		list, err := w.s.List(ctx, container.ListOptions{All: all})
		if err != nil {
			t.Fatal(err)
		}
		shown := map[oci.ContainerID]*container.Container{}
		for _, c := range list {
			shown[c.ID] = c
		}
		if c := shown[oci.ContainerID(bad)]; c == nil || c.Name != "bad" || c.Damaged == nil || c.State.Status != container.StatusDead {
			t.Errorf("all %v: the damaged container that runs is listed as %+v", all, c)
		}
		if c := shown[oci.ContainerID(idle)]; (c != nil) != all || c != nil && c.Damaged == nil {
			t.Errorf("all %v: the damaged container that does not run is listed as %+v", all, c)
		}
		if c := shown[oci.ContainerID(good)]; c == nil || c.Damaged != nil || c.State.Status != container.StatusRunning {
			t.Errorf("all %v: the whole container is listed as %+v", all, c)
		}
	}
	for what, err := range map[string]error{
		"start": w.s.Start(ctx, "bad"), "stop": w.s.Stop(ctx, bad[:12], "", nil), "rename": w.s.Rename(ctx, bad, "other"),
		"remove": w.s.Remove(ctx, idle, false, false, false),
	} {
		if !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), "system check --repair") || !strings.Contains(err.Error(), "rm -f") {
			t.Errorf("%s = %v, want class DataLoss and the ways out", what, err)
		}
	}
	sp := spec.Spec{Image: "box", Name: "bad"}
	if _, _, err := w.s.Create(ctx, sp); !errors.Is(err, errs.Conflict) {
		t.Errorf("another container gets the name: %v", err)
	}
	if err := w.vols.Remove(ctx, "vol", true); !errors.Is(err, errs.Conflict) {
		t.Errorf("its volume is removed: %v", err)
	}
	if _, err := os.Stat(unknown); err != nil {
		t.Errorf("a directory that may be that of a damaged record: %v", err)
	}
	if unix.Kill(pid, 0) != nil {
		t.Error("its process is gone")
	}
	for _, id := range []string{bad, idle} {
		if err := w.s.Remove(ctx, id, true, false, false); err != nil {
			t.Errorf("remove by force: %v", err)
		}
	}
	w.eventually("its process is gone", func() bool { return unix.Kill(pid, 0) != nil })
	if _, err := w.s.Get(ctx, bad, false); !errors.Is(err, errs.NotFound) {
		t.Errorf("after the removal: %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "data", "containers", bad)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its files after the removal: %v", err)
	}
	if err := w.vols.Remove(ctx, "vol", false); err != nil {
		t.Errorf("the volume after the removal: %v", err)
	}
	w.close()
	w.open() // nothing is damaged any more, so the leftover goes
	if _, err := os.Stat(unknown); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the leftover: %v", err)
	}
}
