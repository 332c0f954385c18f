package container_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container"
	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/network"
	"ply/internal/procid"
	"ply/internal/store/meta"
)

// A container that runs while the engine is replaced is found again, with the right exit code and log.
func TestRestoreLive(t *testing.T) { onDrivers(t, restoreLive) }

func restoreLive(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.up(func(s *spec.Spec) {
		s.Cmd = []string{"sh", "-c", "echo ready; while test ! -e /tmp/go; do sleep 0.05; done; echo gone; exit 6"}
	})
	frozen := w.up(nil)
	if err := w.s.Pause(ctx, frozen); err != nil {
		t.Fatal(err)
	}
	rm := w.up(func(s *spec.Spec) { s.AutoRemove = true })
	pid := w.get(id).State.PID
	w.close()
	w.open()
	if st := w.get(id).State; st.Status != container.StatusRunning || st.PID != pid {
		t.Errorf("state %+v", st)
	}
	if st := w.get(frozen).State.Status; st != container.StatusPaused {
		t.Errorf("paused container is %s", st)
	}
	exit := w.wait(id, container.WaitNotRunning)
	if code, out := w.exec(id, "touch", "/tmp/go"); code != 0 {
		t.Fatal(out)
	}
	if e := recv(t, exit); e.Code != 6 {
		t.Errorf("exit %+v", e)
	}
	if out, _ := w.logs(id); out != "ready\ngone\n" {
		t.Errorf("log %q", out)
	}
	gone := w.wait(rm, container.WaitRemoved)
	if err := w.s.Stop(ctx, rm, "", nil); err != nil {
		t.Fatal(err)
	}
	if e := recv(t, gone); e.Code != 3 {
		t.Errorf("exit of --rm %+v", e)
	}
}

// A new engine shows the addresses and ports of the containers that run.
func TestRestoreShowsNetworkAndPorts(t *testing.T) {
	w := newWorld(t)
	publish := func(s *spec.Spec) {
		s.NetworkMode = "bridge"
		s.Ports = []network.PortBinding{{Proto: "tcp", ContainerPort: 80, HostIP: netip.MustParseAddr("127.0.0.1")}}
	}
	for _, id := range []string{w.up(publish), w.up(func(s *spec.Spec) { publish(s); s.AutoRemove = true })} {
		before := w.get(id)
		if len(before.Ports) != 1 || before.Ports[0].HostPort == 0 || !before.Networks["bridge"].IPv4.IsValid() {
			t.Fatalf("ports %v, networks %v", before.Ports, before.Networks)
		}
		w.close()
		w.open()
		after := w.get(id)
		if !slices.Equal(after.Ports, before.Ports) || !reflect.DeepEqual(after.Networks, before.Networks) {
			t.Errorf("ports %v, networks %v, before the restart %v, %v", after.Ports, after.Networks, before.Ports, before.Networks)
		}
	}
}

// A container that ended while no engine ran has its exit code.
func TestRestoreEnded(t *testing.T) {
	w := newWorld(t)
	id := w.up(func(s *spec.Spec) {
		s.Cmd = []string{"sh", "-c", "echo ready; while test ! -e /data/go; do sleep 0.05; done; echo gone; exit 6"}
		s.Binds = []string{filepath.Join(w.dir, "data-go") + ":/data"}
	})
	c := w.get(id)
	dir := filepath.Join(w.dir, "data", "containers", id)
	w.close()
	if err := os.WriteFile(filepath.Join(w.dir, "data-go", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.eventually("exit file", func() bool { _, err := os.Stat(filepath.Join(dir, shim.ExitFile)); return err == nil })
	w.open()
	w.eventually("exit recorded", func() bool { return w.get(id).State.Status == container.StatusExited })
	if st := w.get(id).State; st.ExitCode != 6 || st.Started.IsZero() || c.Name != w.get(id).Name {
		t.Errorf("state %+v", st)
	}
	if out, _ := w.logs(id); out != "ready\ngone\n" {
		t.Errorf("log %q", out)
	}
}

// upWithGo starts a container that ends with code 6 when the function that is returned is called. Its data is outside the
// data root.
func (w *world) upWithGo() (id string, end func()) {
	w.t.Helper()
	dir := w.t.TempDir()
	id = w.up(func(s *spec.Spec) {
		s.Cmd = []string{"sh", "-c", "echo ready; while test ! -e /data/go; do sleep 0.05; done; exit 6"}
		s.Binds = []string{dir + ":/data"}
	})
	return id, func() {
		w.t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
}

// Whether an exit file is of the run that a power cut or an engine's death interrupted is decided by the ID of the run; the
// clock may have been set meanwhile. Only files of earlier releases, which name no run, are judged by boot and time.
func TestRestoreKnowsTheExitFileOfTheRun(t *testing.T) {
	const elsewhere = "00000000-0000-0000-0000-000000000000"
	for _, c := range []struct {
		name string
		run  string        // in the exit file; "this" = of the last run
		boot string        // in the record; "" = this boot
		at   time.Duration // of the exit file, after the start
		want int
	}{
		{"of this run", "this", "", time.Second, 6},
		{"of this run and the clock was set back", "this", elsewhere, -time.Hour, 6},
		{"of the run before", "other", elsewhere, -time.Hour, 255},
		{"of the run before and the clock was set back", "other", elsewhere, time.Hour, 255},
		{"without a run and later", "", elsewhere, time.Second, 6},
		{"without a run and earlier", "", elsewhere, -time.Hour, 255},
		{"without a run in the same boot and the clock was set back", "", "", -time.Hour, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			id, end := w.upWithGo()
			started := w.get(id).State.Started
			w.close()
			end()
			file := filepath.Join(w.dir, "data", "containers", id, shim.ExitFile)
			w.eventually("exit file", func() bool { _, err := os.Stat(file); return err == nil })
			r, err := shim.ReadExit(file)
			if err != nil || r.Code != 6 || r.Run == "" {
				t.Fatalf("exit file of the shim: %+v, %v", r, err)
			}
			if c.run != "this" {
				r.Run = c.run
			}
			r.At = started.Add(c.at)
			data, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			w.killShim(id) // it answers until it is told to end, and would say how the container ended
			if c.boot != "" {
				boot, err := procid.Boot()
				if err != nil {
					t.Fatal(err)
				}
				w.editRecord(id, boot, c.boot)
			}
			w.open()
			if st := w.get(id).State; st.Status != container.StatusExited || st.ExitCode != c.want {
				t.Errorf("state %+v, want exit code %d", st, c.want)
			}
		})
	}
}

// A shim that is killed before the runtime has stored its state leaves a cgroup that the runtime does not know.
func TestRestoreRemovesTheCgroupOfAnUnfinishedCreation(t *testing.T) {
	w := newWorld(t)
	id := w.up(nil)
	pid := w.get(id).State.PID
	w.close()
	w.killShim(id)
	if err := os.RemoveAll(filepath.Join(w.dir, "run", "runtime", id)); err != nil {
		t.Fatal(err)
	}
	w.open()
	left, err := filepath.Glob("/sys/fs/cgroup/*" + w.cgroups + "/" + id)
	if err != nil || len(left) > 0 {
		t.Errorf("cgroups are left: %v %v", left, err)
	}
	w.eventually("its process ends", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
}

// A container whose shim.pid is damaged is found again by the socket of its shim. One whose shim cannot be understood is ended whole.
func TestRestoreWithDamagedFilesOfTheShim(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		file string
		want container.Status
	}{{shim.PidFile, container.StatusRunning}, {shim.ConfigFile, container.StatusExited}} {
		for name, damage := range map[string]func(string) error{
			"missing":   os.Remove,
			"truncated": func(name string) error { return os.Truncate(name, 1) },
		} {
			id := w.up(nil)
			bundle := filepath.Join(w.dir, "run", "containers", id)
			who, err := shim.ReadIdentity(filepath.Join(bundle, shim.PidFile))
			if err != nil {
				t.Fatal(err)
			}
			w.close()
			if err := damage(filepath.Join(bundle, c.file)); err != nil {
				t.Fatal(err)
			}
			w.open()
			if st := w.get(id).State.Status; st != c.want {
				t.Errorf("%s is %s: the container is %s, want %s", c.file, name, st, c.want)
			}
			if alive := procid.Alive(procid.ID(who)); alive != (c.want == container.StatusRunning) {
				t.Errorf("%s is %s: the shim lives: %t", c.file, name, alive)
			}
			if err := w.s.Remove(context.Background(), id, true, true, false); err != nil {
				t.Error(err)
			}
			if procid.Alive(procid.ID(who)) {
				t.Errorf("%s is %s: the shim of the removed container lives", c.file, name)
			}
		}
	}
}

// A container that is removed at its end, and of whose record only the files are gone, is removed when an engine starts.
func TestRestoreRemovesTheRecordOfAnEndedContainer(t *testing.T) {
	w := newWorld(t)
	id := w.create(spec.Spec{Image: "box", AutoRemove: true, Cmd: []string{"true"}})
	w.close()
	if err := os.RemoveAll(filepath.Join(w.dir, "data", "containers", id)); err != nil {
		t.Fatal(err)
	}
	w.open()
	if list, err := w.s.List(context.Background(), container.ListOptions{All: true}); err != nil || len(list) > 0 {
		t.Errorf("%d containers, %v", len(list), err)
	}
}

func (w *world) killShim(id string) {
	w.t.Helper()
	who, err := shim.ReadIdentity(filepath.Join(w.dir, "run", "containers", id, shim.PidFile))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := procid.Kill(procid.ID(who), unix.SIGKILL); err != nil && !errors.Is(err, procid.ErrGone) {
		w.t.Fatal(err)
	}
	w.eventually("shim is gone", func() bool { return !procid.Alive(procid.ID(who)) })
}

// When the disk is full as a container ends, and its shim is gone as well when an engine runs again, the engine still finds
// the exit code.
func TestRestoreFindsTheExitOnAFullDisk(t *testing.T) {
	w := newWorldOn(t, "overlay2", nil) // which works on a tmpfs
	w.close()
	data := filepath.Join(w.dir, "data")
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("disk", data, "tmpfs", 0, "size=48m"); err != nil {
		t.Fatal(err)
	}
	w.open()
	w.makeImage("box", nil)
	id, end := w.upWithGo()
	w.close()
	full, err := os.Create(filepath.Join(data, "full"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(full, zeros{}); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	if err := full.Close(); err != nil {
		t.Fatal(err)
	}
	end()
	copied := filepath.Join(w.dir, "run", "containers", id, shim.ExitFile)
	w.eventually("copy of the exit file", func() bool { _, err := os.Stat(copied); return err == nil })
	if _, err := os.Stat(filepath.Join(data, "containers", id, shim.ExitFile)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("exit file on a full disk: %v", err)
	}
	w.killShim(id)
	if err := os.Remove(full.Name()); err != nil {
		t.Fatal(err)
	}
	w.open()
	if st := w.get(id).State; st.Status != container.StatusExited || st.ExitCode != 6 {
		t.Errorf("state %+v, want exit code 6", st)
	}
	t.Cleanup(func() { // before the world ends: its disk goes last
		if err := w.s.Remove(context.Background(), id, true, true, false); err != nil {
			t.Error(err)
		}
		w.close()
		if err := unix.Unmount(data, 0); err != nil {
			t.Error(err)
		}
		w.open()
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// What inspect shows of a running container is the same, to the nanosecond, after a restart of the engine.
func TestRestoreShowsTheSame(t *testing.T) {
	w := newWorld(t)
	ids := []string{w.up(nil), w.up(func(s *spec.Spec) { s.AutoRemove = true }), w.up(func(s *spec.Spec) { s.RestartPolicy.Name = "always" })}
	before := map[string]*container.Container{}
	for _, id := range ids {
		before[id] = w.get(id)
		if before[id].State.Started.IsZero() {
			t.Error("no time of the start")
		}
	}
	for range 2 {
		w.close()
		w.open()
		for _, id := range ids {
			was, err := json.Marshal(before[id])
			if err != nil {
				t.Fatal(err)
			}
			is, err := json.Marshal(w.get(id))
			if err != nil {
				t.Fatal(err)
			}
			if string(is) != string(was) {
				t.Errorf("before the restart\n%s\nafter it\n%s", was, is)
			}
		}
	}
}

// After engine and shim were killed a container has the exit code 255 and its processes are gone. With a restart policy it
// runs again.
func TestRestoreKilledShim(t *testing.T) { onDrivers(t, restoreKilledShim) }

func restoreKilledShim(t *testing.T, w *world) {
	id := w.up(nil)
	again := w.up(func(s *spec.Spec) { s.RestartPolicy.Name = "unless-stopped" })
	rm := w.up(func(s *spec.Spec) { s.AutoRemove = true })
	pid := w.get(id).State.PID
	w.close()
	for _, id := range []string{id, again, rm} {
		who, err := shim.ReadIdentity(filepath.Join(w.dir, "run", "containers", id, shim.PidFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := procid.Kill(procid.ID(who), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.eventually("shim is gone", func() bool { return !procid.Alive(procid.ID(who)) })
	}
	w.open()
	if st := w.get(id).State; st.Status != container.StatusExited || st.ExitCode != 255 {
		t.Errorf("state %+v", st)
	}
	w.eventually("its process is gone", func() bool { return unix.Kill(pid, 0) != nil })
	w.eventually("the other runs again", func() bool { return w.get(again).State.Status == container.StatusRunning })
	if _, err := w.s.Get(context.Background(), rm, false); err == nil {
		t.Error("--rm container is still there")
	}
}

// A container whose shim is killed while the engine runs ends with 255 and can be started again.
func TestShimKilled(t *testing.T) {
	w := newWorld(t)
	id := w.up(nil)
	exit := w.wait(id, container.WaitNextExit)
	who, err := shim.ReadIdentity(filepath.Join(w.dir, "run", "containers", id, shim.PidFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := procid.Kill(procid.ID(who), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := recv(t, exit); e.Code != 255 {
		t.Errorf("exit %+v", e)
	}
	w.start(id)
}

// After a reboot the pid files name other processes. None of them is signalled, and the container has the exit code 255.
func TestRestoreAfterReboot(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.up(nil)
	if err := w.s.Kill(ctx, id, ""); err != nil {
		t.Fatal(err)
	}
	w.close()
	// The record of a run that a power cut ended, and pid files that name this test.
	w.forge(id)
	w.open()
	if st := w.get(id).State; st.Status != container.StatusExited || st.ExitCode != 255 {
		t.Errorf("state %+v", st)
	}
	w.start(id)
}

func (w *world) forge(id string) {
	w.t.Helper()
	w.editRecord(id, `"Status":"exited"`, `"Status":"running"`)
	if err := os.Remove(filepath.Join(w.dir, "data", "containers", id, shim.ExitFile)); err != nil {
		w.t.Fatal(err)
	}
	bundle := filepath.Join(w.dir, "run", "containers", id)
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		w.t.Fatal(err)
	}
	self, err := procid.Self()
	if err != nil {
		w.t.Fatal(err)
	}
	other := []byte(`{"boot":"00000000-0000-0000-0000-000000000000","pid":` + itoa(self.PID) + `,"start":` + utoa(self.Start) + `}`)
	for _, f := range []string{shim.PidFile, shim.InitFile} {
		if err := os.WriteFile(filepath.Join(bundle, f), other, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
}

// editRecord replaces a text in the record of a container. The services are closed.
func (w *world) editRecord(id, old, text string) {
	w.t.Helper()
	db, err := meta.Open(filepath.Join(w.dir, "data", "meta.db"), meta.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *meta.Tx) error {
		for k, raw := range tx.Containers.All() {
			if string(k) == id {
				plain, _, _ := strings.Cut(string(raw.Value), `,"sum":`) // without the checksum, which would not match
				edited := strings.Replace(plain+"}", old, text, 1)
				if edited == plain+"}" {
					w.t.Fatalf("record has no %s: %s", old, plain)
				}
				return tx.Containers.Put(k, []byte(edited))
			}
		}
		w.t.Fatal("no record")
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// Restore deletes the directories of a container whose record was not written before a crash.
func TestRestoreSweeps(t *testing.T) { onDrivers(t, restoreSweeps) }

func restoreSweeps(t *testing.T, w *world) {
	id := strings.Repeat("ab", 32)
	w.close()
	for _, d := range []string{"data/containers/" + id + "/rw/upper", "run/containers/" + id + "/rootfs"} {
		if err := os.MkdirAll(filepath.Join(w.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.open()
	w.clean()
}

// A new engine starts containers with the policy always, and those with unless-stopped that no user stopped. A restart of
// a --rm container does not remove it.
func TestRestorePolicies(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	mk := func(policy string) string {
		return w.up(func(s *spec.Spec) { s.RestartPolicy.Name = policy })
	}
	always, unless, shut := mk("always"), mk("unless-stopped"), mk("unless-stopped")
	for _, id := range []string{always, unless} {
		if err := w.s.Stop(ctx, id, "", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.s.StopAll(ctx, 10); err != nil { // this is not a stop by a user
		t.Fatal(err)
	}
	if st := w.get(shut).State.Status; st != container.StatusExited {
		t.Errorf("after StopAll %s", st)
	}
	w.close()
	w.open()
	for id, want := range map[string]container.Status{always: container.StatusRunning, shut: container.StatusRunning} {
		w.eventually("running again", func() bool { return w.get(id).State.Status == want })
	}
	if st := w.get(unless).State.Status; st != container.StatusExited {
		t.Errorf("a container that a user stopped is %s", st)
	}
	rm := w.up(func(s *spec.Spec) { s.AutoRemove = true })
	if err := w.s.Restart(ctx, rm, "", nil); err != nil {
		t.Fatal(err)
	}
	gone := w.wait(rm, container.WaitRemoved)
	if err := w.s.Stop(ctx, rm, "", nil); err != nil {
		t.Fatal(err)
	}
	recv(t, gone)
}
