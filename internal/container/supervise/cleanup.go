package supervise

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/procid"
)

// killedExit is the exit code that is recorded when the shim was killed, because how the container ended is not known.
const killedExit = 137

// endTime is how long processes may take to end after SIGKILL.
const endTime = 10 * time.Second

// Cleanup removes what a killed shim left. It is the part of shim.Cleanup that runs in ply-shim. The killed shim may have
// been of a newer version.
func Cleanup(bundle string) error {
	cfg, err := shim.ReadConfigCore(bundle)
	if err != nil {
		return err
	}
	cfg.Bundle = bundle
	if cfg.Runtime != "" {
		err = deleteByCommand(cfg)
	} else {
		err = cleanLinked(cfg)
	}
	if err != nil {
		return err
	}
	// The shim may have been killed before the runtime stored its state: kill the first process by its identity too.
	if id, err := shim.ReadIdentity(filepath.Join(bundle, shim.InitFile)); err == nil {
		if err := procid.Kill(procid.ID(id), unix.SIGKILL); err != nil && !errors.Is(err, procid.ErrGone) {
			return err
		}
	}
	if err := os.Remove(filepath.Join(bundle, shim.SocketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := shim.FindExit(cfg.Run, cfg.ExitPath, bundle); err == nil {
		return nil
	}
	return writeExit(cfg, shim.Version, shim.Exit{Code: killedExit, At: time.Now().UTC()})
}

// cleanLinked ends the container's processes and deletes its state with libcontainer.
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
		time.Sleep(20 * time.Millisecond) // until the killed processes have ended
	}
}
