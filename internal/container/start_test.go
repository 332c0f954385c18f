package container_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ply/internal/container"
	"ply/internal/errs"
	"ply/internal/network"
)

// shims returns the processes that have the bundle of a container in their command line.
func (w *world) shims(id string) (pids []int) {
	w.t.Helper()
	bundle := filepath.Join(w.dir, "run", "containers", id)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range dirs {
		line, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err == nil && strings.Contains(string(line), bundle+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(d))
			pids = append(pids, pid)
		}
	}
	return pids
}

// waitsForSpec waits until the shim of a container runs. Then it has nothing to do but wait for its spec.
func (w *world) waitsForSpec(id string) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); len(w.shims(id)) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("no shim was started while the network is made")
		}
	}
}

// nothingRuns checks that a start that has failed left no process, no network and no runtime state.
func (w *world) nothingRuns(id string) {
	w.t.Helper()
	if left := w.shims(id); len(left) > 0 {
		w.t.Errorf("processes %v are left after a failed start", left)
	}
	if len(w.net.up) != 0 {
		w.t.Error("a network is left after a failed start")
	}
	for _, name := range []string{"shim.sock", "shim.pid", "init.pid", "config.json", "error.txt"} {
		if _, err := os.Lstat(filepath.Join(w.dir, "run", "containers", id, name)); err == nil {
			w.t.Errorf("%s is left after a failed start", name)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(w.dir, "run", "runtime")); err == nil && len(entries) > 0 {
		w.t.Errorf("runtime state is left after a failed start: %s", entries[0].Name())
	}
	if st := w.get(id).State; st.Status != container.StatusCreated || st.PID != 0 || st.Error == "" {
		w.t.Errorf("state after a failed start = %+v", st)
	}
}

// The network fails while the shim starts: the shim ends, nothing is left, and the next start works.
func TestNetworkFailsWhileShimStarts(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	s := sh("echo started; exit 7")
	s.NetworkMode = "bridge"
	id := w.create(s)
	w.net.fail = errors.New("no addresses are left")
	w.net.attaching = func(network.AttachRequest) { w.waitsForSpec(id) }
	for range 3 {
		wantErr(t, w.s.Start(ctx, id), nil, "no addresses are left")
		w.nothingRuns(id)
	}
	w.net.fail = nil
	ended := w.wait(id, container.WaitNextExit)
	if err := w.s.Start(ctx, id); err != nil {
		t.Fatalf("Start after the network works again: %v", err)
	}
	if e := recv(t, ended); e.Code != 7 {
		t.Errorf("exit code %d, want 7", e.Code)
	}
}

// The shim fails, at once or later, while the network is made: the network is taken down.
func TestShimFailsWhileNetworkIsMade(t *testing.T) {
	for name, script := range map[string]string{
		"ends at once":         "exit 3",
		"ends after the spec":  "head -c 1 <&4 >/dev/null; exit 3",
		"answers with garbage": "head -c 1 <&4 >/dev/null; echo garbage >&3",
		"cannot be executed":   "",
	} {
		t.Run(name, func(t *testing.T) {
			bad := filepath.Join(t.TempDir(), "shim")
			if script != "" {
				script = "#!/bin/sh\n" + script + "\n"
			}
			if err := os.WriteFile(bad, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			w := newWorldWith(t, func(o *container.Options) { o.ShimPath = bad })
			s := sh("true")
			s.NetworkMode = "bridge"
			id := w.create(s)
			if err := w.s.Start(context.Background(), id); err == nil {
				t.Fatal("a container started without a shim")
			}
			_ = os.Remove(filepath.Join(w.dir, "run", "containers", id, "config.json")) // the spec of a container that was not created may stay
			w.nothingRuns(id)
			if err := w.s.Remove(context.Background(), id, false, true, false); err != nil && !errors.Is(err, errs.NotFound) {
				t.Errorf("Remove: %v", err)
			}
		})
	}
}
