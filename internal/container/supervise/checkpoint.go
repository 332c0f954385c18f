package supervise

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/safepath"
)

// notRestoredExit is the exit code of a container that could not be restored, as of one that could not be started.
const notRestoredExit = 128

// receive receives the file that belongs to a request.
func (s *server) receive(conn *net.UnixConn, req shim.Request) (*os.File, error) {
	_ = conn.SetReadDeadline(time.Now().Add(s.requestTime)) // never fails for sockets
	f, err := shim.ReceiveFile(conn)
	if err != nil {
		return nil, &failure{shim.ClassInvalid, fmt.Sprintf("%s: its directory: %v", req.Op, err)}
	}
	_ = conn.SetReadDeadline(time.Time{})
	return f, nil
}

func (s *server) beingSaved() error {
	return &failure{shim.ClassConflict, fmt.Sprintf("a checkpoint of container %s is being made", s.cfg.ID)}
}

// checkpoint saves the processes. From the moment that is saved until they are killed, or the checkpoint is durable, they are frozen.
func (s *server) checkpoint(conn *net.UnixConn, req shim.Request) error {
	a, err := arguments[shim.CheckpointArgs](req)
	if err != nil {
		return err
	}
	if !isBase(a.Name) || !isBase(a.Temporary) || a.Name == a.Temporary {
		return &failure{shim.ClassInvalid, fmt.Sprintf("checkpoint: bad name %q or %q", a.Name, a.Temporary)}
	}
	dir, err := s.receive(conn, req)
	if err != nil {
		return err
	}
	defer dir.Close() // nothing is written to it
	if !s.init.running() || !s.init.begun() {
		return s.init.gone()
	}
	s.mu.Lock()
	if s.saving {
		s.mu.Unlock()
		return s.beingSaved()
	}
	frozen := s.paused
	if !frozen {
		err = s.rt.pause()
	}
	s.saving = err == nil
	s.mu.Unlock()
	if err != nil {
		return err
	}
	err = s.save(dir, a)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saving = false
	if err == nil && !a.LeaveRunning {
		s.paused = false // the runtime thaws what it kills
		time.AfterFunc(killedReturnLimit, s.init.abandonAway)
		return s.rt.signal(unix.SIGKILL)
	}
	if !frozen {
		err = errors.Join(err, s.rt.resume())
	}
	return err
}

// isBase reports whether a name is that of an entry of a directory.
func isBase(name string) bool {
	return name != "" && name != "." && name != ".." && name == filepath.Base(name)
}

// save makes the directory of a checkpoint, durable when save returns.
func (s *server) save(dir *os.File, a shim.CheckpointArgs) (err error) {
	at := int(dir.Fd())
	remove := func() error { return safepath.RemoveAll(dir, a.Temporary, nil) }
	if err := remove(); err != nil {
		return fmt.Errorf("checkpoint %s: %w", a.Name, err)
	}
	if err := unix.Mkdirat(at, a.Temporary, 0o700); err != nil {
		return fmt.Errorf("checkpoint %s: make its directory: %w", a.Name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove())
		}
	}()
	images, err := safepath.OpenNoLinks(dir, a.Temporary, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", a.Name, err)
	}
	defer images.Close() // what was written is synced
	if err := s.rt.checkpoint(images, a.Work); err != nil {
		return err
	}
	if err := syncFiles(images); err != nil {
		return fmt.Errorf("checkpoint %s: %w", a.Name, err)
	}
	if err := unix.Renameat2(at, a.Temporary, at, a.Name, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("checkpoint %s: name its directory: %w", a.Name, err)
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("checkpoint %s: %w", a.Name, err)
	}
	return nil
}

// syncFiles makes the files of a directory durable.
func syncFiles(dir *os.File) error {
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := safepath.OpenNoLinks(dir, e.Name(), unix.O_RDONLY)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return dir.Sync()
}

// restore makes the first process of the checkpoint that plyd sends, and runs it.
func (s *server) restore(conn *net.UnixConn, req shim.Request) error {
	a, err := arguments[shim.RestoreArgs](req)
	if err != nil {
		return err
	}
	images, err := s.receive(conn, req)
	if err != nil {
		return err
	}
	defer images.Close() // only read from
	p := s.init
	if !s.cfg.Restore {
		return &failure{shim.ClassInvalid, "the container was not created to be restored"}
	}
	if !p.withdraw() { // it counts as started from here
		return &failure{shim.ClassConflict, "process was started before"}
	}
	err = s.createFirst(func() (child, error) { return s.rt.restore(p.spec, p.io.childEnds(), images, a.Work) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		s.notRestored()
	}
	return err
}

// notRestored records the end of a container that has no process: its checkpoint could not be restored, or was not asked for.
func (s *server) notRestored() {
	p := s.init
	e := shim.Exit{Code: notRestoredExit, At: time.Now().UTC()}
	_ = s.rt.signal(unix.SIGKILL) // it fails when there is no process, which is the rule
	err := errors.Join(p.io.closeChild(), s.rt.destroy())
	s.log.End()
	for _, src := range p.sources {
		if src.log != nil {
			_ = src.log.Close() // never fails
		}
		close(src.done) // no goroutine reads it
	}
	s.closeLog()
	if err = errors.Join(err, writeExit(s.cfg, s.version, e)); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	p.finish(e)
	close(s.removed)
}
