package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/durable"
	"ply/internal/procid"
)

// killedExit is the status of a container whose shim was killed: nobody saw how it ended.
const killedExit = 137

// endTime is how long killed processes may take to go.
const endTime = 10 * time.Second

// Cleanup removes what a killed shim left: see shim.Cleanup, which runs it.
func Cleanup(bundle string) error {
	var s server
	if err := s.load(bundle); err != nil {
		return err
	}
	if s.cfg.Runtime != "" {
		if err := deleteByCommand(s.cfg); err != nil {
			return err
		}
	} else if err := cleanLinked(s.cfg); err != nil {
		return err
	}
	// The first process by its full name, in case the runtime knew nothing of it.
	if id, err := shim.ReadIdentity(filepath.Join(bundle, shim.InitFile)); err == nil {
		if err := procid.Kill(procid.ID(id), unix.SIGKILL); err != nil && !errors.Is(err, procid.ErrGone) {
			return err
		}
	}
	if err := os.Remove(filepath.Join(bundle, shim.SocketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := shim.ReadExit(s.cfg.ExitPath); err == nil {
		return nil
	}
	data, err := json.Marshal(shim.Exit{Code: killedExit, At: time.Now().UTC()})
	if err != nil {
		return err
	}
	return durable.WriteFile(durable.OS, s.cfg.ExitPath, data, 0o600)
}

func cleanLinked(cfg shim.Config) error {
	c, err := libcontainer.Load(cfg.StateDir, cfg.ID)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return os.RemoveAll(filepath.Join(cfg.StateDir, cfg.ID))
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", cfg.ID, err)
	}
	for deadline := time.Now().Add(endTime); ; {
		if err := c.Signal(unix.SIGKILL); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("container %s: %w", cfg.ID, err)
		}
		err := c.Destroy()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("container %s: %w", cfg.ID, err)
		}
		time.Sleep(20 * time.Millisecond) // processes need a moment to die
	}
}
