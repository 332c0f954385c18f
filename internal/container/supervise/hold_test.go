package supervise_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"ply/internal/container/runspec"
	"ply/internal/container/shim"
	"ply/internal/record"
	"ply/test/private"
)

// A shim that has its spec creates nothing before it is told to.
func TestNothingIsCreatedBeforeTheSecondByte(t *testing.T) {
	bin, err := private.Shim()
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "/bin/true")
	spec, _, err := runspec.Build(b.in)
	if err != nil {
		t.Fatal(err)
	}
	s, err := shim.Begin(bin, b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Offer(spec); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // longer than a creation takes
	for _, path := range []string{filepath.Join(b.cfg.StateDir, b.cfg.ID), b.cfg.Log.Path, filepath.Join(b.cfg.Bundle, shim.PidFile), filepath.Join(b.cfg.Bundle, shim.SocketFile)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there before the container may be created (%v)", path, err)
		}
	}
	if err := s.Abandon(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(b.cfg.Bundle, shim.SpecFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the spec of a container that was not created is left (%v)", err)
	}
	b.run() // the same bundle can be used again
}

// An engine that is older than the shim says with one byte that all is there.
func TestShimOfAnOlderEngine(t *testing.T) {
	bin, err := private.Shim()
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "/bin/true")
	spec, _, err := runspec.Build(b.in)
	if err != nil {
		t.Fatal(err)
	}
	config, err := record.Marshal(shim.Version, b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.cfg.Bundle, shim.ConfigFile), config, 0o600); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, filepath.Join(b.cfg.Bundle, shim.SpecFile), spec)
	ready, theirReady, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	theirSpec, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-bundle", b.cfg.Bundle, "-wait")
	cmd.Dir, cmd.ExtraFiles, cmd.Stderr = b.cfg.Bundle, []*os.File{theirReady, theirSpec}, os.Stderr
	if err := errors.Join(cmd.Start(), theirReady.Close(), theirSpec.Close()); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
	if _, err := tell.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := tell.Close(); err != nil {
		t.Fatal(err)
	}
	var resp shim.Response
	if err := json.NewDecoder(ready).Decode(&resp); err != nil || resp.Error != "" {
		t.Fatalf("the shim answered %+v, %v", resp, err)
	}
	if b.c, err = shim.Connect(b.cfg.Bundle); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.clean)
	if err := b.c.Start(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if e, err := b.c.Wait(t.Context(), ""); err != nil || e.Code != 0 {
		t.Errorf("the program ended with %+v, %v", e, err)
	}
}
