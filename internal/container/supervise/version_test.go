package supervise_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/container/runspec"
	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/procid"
	"ply/internal/record"
	"ply/test/private"
)

// runShim starts a shim on a bundle whose shim.json is text, and returns its response.
func (b *box) runShim(text string) (shim.Response, *exec.Cmd) {
	b.t.Helper()
	bin, err := private.Shim()
	if err != nil {
		b.t.Fatal(err)
	}
	spec, _, err := runspec.Build(b.in)
	if err != nil {
		b.t.Fatal(err)
	}
	writeJSON(b.t, filepath.Join(b.cfg.Bundle, shim.SpecFile), spec)
	if err := os.WriteFile(filepath.Join(b.cfg.Bundle, shim.ConfigFile), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	defer ready.Close()
	cmd := exec.Command(bin, "-bundle", b.cfg.Bundle)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = io.Discard
	if err := errors.Join(cmd.Start(), theirs.Close()); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var resp shim.Response
	if err := json.NewDecoder(ready).Decode(&resp); err != nil {
		b.t.Fatalf("response: %v", err)
	}
	return resp, cmd
}

// raw sends the text of a request frame and returns the response's.
func (b *box) raw(request string) string {
	b.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(b.cfg.Bundle, shim.SocketFile))
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "\x00\x00\x00"+string(rune(len(request)))+request); err != nil {
		b.t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || len(answer) < 4 {
		b.t.Fatalf("%s: %q, %v", request, answer, err)
	}
	return string(answer[4:])
}

// A plyd that knows no versions can run a container with this shim.
func TestShimOfAnUnversionedConfig(t *testing.T) {
	b := sh(t, "echo out; exit 7")
	text, err := json.Marshal(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	resp, cmd := b.runShim(string(text))
	if resp.Error != "" {
		t.Fatal(resp.Error)
	}
	var self shim.Identity
	if err := json.Unmarshal(resp.Body, &self); err != nil || self.PID != cmd.Process.Pid {
		t.Errorf("response %s, %v; the shim has pid %d", resp.Body, err, cmd.Process.Pid)
	}
	for request, want := range map[string]string{`{"op":"state"}`: `"status":"created"`, `{"op":"stats","args":null}`: `"pidsCurrent":`} {
		if got := b.raw(request); !strings.Contains(got, want) || strings.Contains(got, `"error"`) {
			t.Errorf("%s: %s", request, got)
		}
	}
	if got := b.raw(`{"op":"start"}`); strings.Contains(got, `"error"`) {
		t.Error(got)
	}
	if got := b.raw(`{"op":"wait"}`); !strings.Contains(got, `"code":7`) {
		t.Error(got)
	}
	for _, name := range []string{b.cfg.ExitPath, filepath.Join(b.cfg.Bundle, shim.PidFile), filepath.Join(b.cfg.Bundle, shim.InitFile)} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := record.ReadHeader(name, data, shim.Version); err != nil || h.Version != 1 || h.Writer == "" {
			t.Errorf("%s: %s, %v", name, data, err)
		}
	}
	if out := b.output(); out != "out\n" {
		t.Errorf("log %q", out)
	}
	if got := b.raw(`{"op":"shutdown"}`); strings.Contains(got, `"error"`) {
		t.Error(got)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	b.noCgroups()
}

// A shim refuses a configuration of a newer version before it creates anything.
func TestShimRefusesANewerConfig(t *testing.T) {
	b := sh(t, "echo out")
	text, err := json.Marshal(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	resp, cmd := b.runShim(`{"version":4,"writer":"9.8.7",` + string(text[1:]))
	for _, part := range []string{"version 4, written by ply 9.8.7", "up to 2", "Install the ply-shim of the same release as plyd"} {
		if !strings.Contains(resp.Error, part) {
			t.Errorf("%q does not say %q", resp.Error, part)
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the shim ended with exit status 0")
	}
	for _, name := range []string{b.cfg.StateDir, b.cfg.ExitPath, b.cfg.Log.Path, filepath.Join(b.cfg.Bundle, shim.PidFile), filepath.Join(b.cfg.Bundle, shim.SocketFile)} {
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, want that it does not exist", name, err)
		}
	}
	b.noCgroups()
}

// Requests that this shim cannot know are refused and harm nothing.
func TestShimRefusesWhatItDoesNotKnow(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	for request, want := range map[string]string{
		`{"version":3,"op":"pause"}`:            "the request has version 3",
		`{"version":3,"op":"attach","args":{}}`: "the request has version 3",
		`{"version":1,"op":"teleport"}`:         `unknown request \"teleport\"`,
		`{"op":"teleport"}`:                     `unknown request \"teleport\"`,
	} {
		if got := b.raw(request); !strings.Contains(got, want) || !strings.Contains(got, `"class":"unsupported"`) || !strings.Contains(got, "this shim") {
			t.Errorf("%s: %s", request, got)
		}
	}
	if got := b.raw(`{"version":1,"op":"state","later":[1],"args":{"later":1}}`); !strings.Contains(got, `"status":"running"`) || !strings.HasPrefix(got, `{"version":2,`) {
		t.Errorf("a request with unknown fields: %s", got)
	}
}

// pretendNewer changes a file of the bundle to one that a newer version wrote.
func (b *box) pretendNewer(name string) {
	b.t.Helper()
	path := filepath.Join(b.cfg.Bundle, name)
	data, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	newer := bytes.Replace(data, []byte(`{"version":2,"writer":"`), []byte(`{"version":9,"writer":"9.8.7-`), 1)
	if bytes.Equal(newer, data) {
		b.t.Fatalf("%s: %s", name, data)
	}
	if err := os.WriteFile(path, newer, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// A container whose shim is newer keeps running; it can be looked at, killed, waited for and removed, and nothing else.
func TestContainerOfANewerShim(t *testing.T) {
	b := sh(t, "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done").launch().start()
	b.logged("up\n")
	for _, name := range []string{shim.ConfigFile, shim.PidFile, shim.InitFile} {
		b.pretendNewer(name)
	}
	c, err := shim.Connect(b.cfg.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := c.State(t.Context(), ""); err != nil || st.Status != "running" {
		t.Errorf("state: %+v, %v", st, err)
	}
	if err := c.Pause(t.Context()); !errors.Is(err, errs.Unimplemented) || !strings.Contains(err.Error(), "version 9") || !strings.Contains(err.Error(), "ply 9.8.7") {
		t.Errorf("pause: %v", err)
	}
	if _, err := shim.Cleanup(t.Context(), "/nosuch", b.cfg.Bundle); !errors.Is(err, errs.Conflict) {
		t.Errorf("cleanup of a running container: %v", err)
	}
	if err := c.Kill(t.Context(), "", shim.KillArgs{Signal: int(unix.SIGTERM)}); err != nil {
		t.Error(err)
	}
	if e, err := c.Wait(t.Context(), ""); err != nil || e.Code != 5 {
		t.Errorf("wait: %+v, %v", e, err)
	}
	if out := b.output(); out != "up\nbye\n" {
		t.Errorf("log %q", out)
	}
	if err := c.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// What a killed shim of a newer version leaves is removed.
func TestCleanupAfterANewerShim(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	first, err := shim.ReadIdentity(filepath.Join(b.cfg.Bundle, shim.InitFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{shim.ConfigFile, shim.PidFile, shim.InitFile} {
		b.pretendNewer(name)
	}
	self := procid.ID(b.c.Identity())
	if err := procid.Kill(self, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "end of the shim", func() bool { return !procid.Alive(self) })
	if _, err := shim.Connect(b.cfg.Bundle); !errors.Is(err, errs.NotFound) {
		t.Errorf("connect: %v", err)
	}
	bin, err := private.Shim()
	if err != nil {
		t.Fatal(err)
	}
	if e, err := shim.Cleanup(t.Context(), bin, b.cfg.Bundle); err != nil || e.Code != 137 {
		t.Errorf("cleanup: %+v, %v", e, err)
	}
	if procid.Alive(procid.ID(first)) {
		t.Error("the container's process still runs")
	}
	b.noCgroups()
}
