package container_test

import (
	"context"
	"strings"
	"testing"

	"ply/internal/container"
	"ply/internal/container/spec"
	"ply/internal/errs"
)

func TestRunExitCodes(t *testing.T) { onDrivers(t, runExitCodes) }

func runExitCodes(t *testing.T, w *world) {
	for _, c := range []struct {
		line, out, err string
		code           int
	}{
		{"echo out; echo err >&2", "out\n", "err\n", 0},
		{"exit 7", "", "", 7},
		{"hostname", "", "", 0},
	} {
		code, out, errOut := w.run(sh(c.line))
		if c.line == "hostname" {
			if len(strings.TrimSpace(out)) != 12 {
				t.Errorf("host name %q is not the short ID", out)
			}
			continue
		}
		if code != c.code || out != c.out || errOut != c.err {
			t.Errorf("%s: %d %q %q, want %d %q %q", c.line, code, out, errOut, c.code, c.out, c.err)
		}
	}
}

func TestStartErrors(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	for _, c := range []struct {
		cmd  []string
		code int
		text string
	}{
		{[]string{"no-such-program"}, 127, "executable file not found in $PATH"},
		{[]string{"/etc/passwd"}, 126, "permission denied"},
		{[]string{"/no/such/file"}, 127, "no such file or directory"},
	} {
		id := w.create(spec.Spec{Image: "box", Cmd: c.cmd, NetworkMode: "none"})
		wantErr(t, w.s.Start(ctx, id), errs.Invalid, c.text)
		st := w.get(id).State
		if st.ExitCode != c.code || st.Status != container.StatusCreated || !strings.Contains(st.Error, c.text) {
			t.Errorf("%v: state %+v, want code %d", c.cmd, st, c.code)
		}
	}
	spec := sh("true")
	spec.AutoRemove, spec.Cmd = true, []string{"nothing-here"}
	id := w.create(spec)
	if err := w.s.Start(ctx, id); err == nil {
		t.Error("a missing program started")
	}
	_, err := w.s.Get(ctx, id, false)
	wantErr(t, err, errs.NotFound, "No such container: "+id)
	if len(w.net.up) != 0 {
		t.Error("networks are left after failed starts")
	}
}

func TestStartIsIdempotentAndStopToo(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.up(nil)
	if err := w.s.Start(ctx, id); err != container.ErrNotModified {
		t.Errorf("second start: %v", err)
	}
	if err := w.s.Stop(ctx, id, "", nil); err != nil {
		t.Fatal(err)
	}
	if st := w.get(id).State; st.Status != container.StatusExited || st.ExitCode != 3 {
		t.Errorf("state after stop %+v", st)
	}
	if err := w.s.Stop(ctx, id, "", nil); err != container.ErrNotModified {
		t.Errorf("second stop: %v", err)
	}
	w.start(id) // the container still works
	one := 0
	if err := w.s.Restart(ctx, id, "", &one); err != nil {
		t.Fatal(err)
	}
	if st := w.get(id).State; st.Status != container.StatusRunning || st.PID == 0 {
		t.Errorf("state after restart %+v", st)
	}
	if err := w.s.Kill(ctx, id, ""); err != nil {
		t.Fatal(err)
	}
	if st := w.get(id).State; st.ExitCode != 137 {
		t.Errorf("state after kill %+v", st)
	}
	wantErr(t, w.s.Kill(ctx, id, ""), errs.Conflict, "is not running")
}

func TestStopKillsWhoDoesNotListen(t *testing.T) {
	w := newWorld(t)
	id := w.up(func(s *spec.Spec) {
		s.Cmd = []string{"sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"}
	})
	zero := 0
	if err := w.s.Stop(context.Background(), id, "", &zero); err != nil {
		t.Fatal(err)
	}
	if c := w.get(id).State.ExitCode; c != 137 {
		t.Errorf("exit code %d", c)
	}
}

func TestAutoRemove(t *testing.T) {
	w := newWorld(t)
	spec := sh("echo x > /data/f")
	spec.AutoRemove, spec.Volumes = true, []string{"/data"}
	id := w.create(spec)
	vols, err := w.vols.List(context.Background(), nil)
	if err != nil || len(vols) != 1 {
		t.Fatalf("volumes %v, %v", vols, err)
	}
	gone := w.wait(id, container.WaitRemoved)
	w.start(id)
	if e := recv(t, gone); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if vols, _ := w.vols.List(context.Background(), nil); len(vols) != 0 {
		t.Error("anonymous volume outlived --rm")
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	sp := sh("true")
	sp.Name = "twice"
	id := w.create(sp)
	_, _, err := w.s.Create(ctx, sp)
	wantErr(t, err, errs.Conflict, `Conflict. The container name "/twice" is already in use by container "`+id+`". You have to remove (or rename) that container to be able to reuse that name.`)
	for _, n := range []string{"a", "-x", "a b", "ä", "a/b", strings.Repeat("x", 300)} {
		sp.Name = n
		_, _, err := w.s.Create(ctx, sp)
		wantErr(t, err, errs.Invalid, "Invalid container name")
	}
	if err := w.s.Rename(ctx, "twice", "other"); err != nil {
		t.Fatal(err)
	}
	if c := w.get("other"); string(c.ID) != id || c.Name != "other" {
		t.Errorf("got %s %s", c.ID, c.Name)
	}
	if w.get(id[:7]).Name != "other" {
		t.Error("not found by prefix")
	}
	_, err = w.s.Get(ctx, "twice", false)
	wantErr(t, err, errs.NotFound, "No such container: twice")
	free := sh("true")
	if n := w.get(w.create(free)).Name; !strings.Contains(n, "_") {
		t.Errorf("invented name %q", n)
	}
	wantErr(t, w.s.Rename(ctx, id, "other"), errs.Invalid, "same name")
	_, _, err = w.s.Create(ctx, spec.Spec{Image: "absent"})
	wantErr(t, err, errs.NotFound, "No such image: absent")
}

func TestRemove(t *testing.T) { onDrivers(t, remove) }

func remove(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.up(func(s *spec.Spec) { s.Name = "busy" })
	wantErr(t, w.s.Remove(ctx, id, false, false, false), errs.Conflict, `cannot remove container "/busy": container is running: stop the container before removing or force remove`)
	if err := w.s.Pause(ctx, id); err != nil {
		t.Fatal(err)
	}
	wantErr(t, w.s.Remove(ctx, id, false, false, false), errs.Conflict, "must be unpaused first")
	if err := w.s.Remove(ctx, id, true, false, false); err != nil {
		t.Fatal(err)
	}
	_, err := w.s.Get(ctx, id, false)
	wantErr(t, err, errs.NotFound, "No such container")
	if _, err := w.s.Wait(ctx, id, container.WaitRemoved); err == nil {
		t.Error("a removed container can be waited for")
	}
}

func TestPauseAndTop(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.up(nil)
	titles, rows, err := w.s.Top(ctx, id, nil)
	if err != nil || titles[0] != "UID" || len(rows) == 0 || len(rows[0]) != len(titles) {
		t.Errorf("top: %v %v %v", titles, rows, err)
	}
	if err := w.s.Pause(ctx, id); err != nil {
		t.Fatal(err)
	}
	wantErr(t, w.s.Pause(ctx, id), errs.Conflict, "already paused")
	_, err = w.sessions.ExecCreate(ctx, id, spec.ExecSpec{Cmd: []string{"true"}})
	wantErr(t, err, errs.Conflict, "is paused, unpause the container before exec")
	wantErr(t, w.s.Start(ctx, id), errs.Conflict, "cannot start a paused container, try unpause instead")
	if err := w.s.Unpause(ctx, id); err != nil {
		t.Fatal(err)
	}
	wantErr(t, w.s.Unpause(ctx, id), errs.Conflict, "is not paused")
	var st container.Stats
	if err := w.s.Stats(ctx, id, false, func(s container.Stats) error { st = s; return nil }); err != nil {
		t.Fatal(err)
	}
	if st.Cgroup.PidsCurrent == 0 || st.SystemCPU == 0 {
		t.Errorf("stats %+v", st)
	}
	if err := w.s.Pause(ctx, id); err != nil { // so that the stop has to thaw it
		t.Fatal(err)
	}
	if err := w.s.Stop(ctx, id, "", nil); err != nil {
		t.Fatal(err)
	}
	if c := w.get(id).State.ExitCode; c != 3 {
		t.Errorf("exit code %d", c)
	}
}

func TestRestartPolicy(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	sp := sh("echo run; exit 5")
	sp.RestartPolicy = spec.RestartPolicy{Name: "on-failure", MaxRetries: 2}
	id := w.create(sp)
	w.start(id)
	w.eventually("three runs", func() bool {
		o, _ := w.logs(id)
		return strings.Count(o, "run") == 3 && w.get(id).State.Status == container.StatusExited
	})
	if n := w.get(id).State.Restarts; n != 2 {
		t.Errorf("restarts %d", n)
	}
	always := sh("exit 1")
	always.RestartPolicy.Name = "always"
	id = w.create(always)
	w.start(id)
	w.eventually("restarting", func() bool { return w.get(id).State.Status == container.StatusRestarting })
	w.eventually("stopped", func() bool { return w.s.Stop(ctx, id, "", nil) == nil })
	w.eventually("exited", func() bool { return w.get(id).State.Status == container.StatusExited })
}
