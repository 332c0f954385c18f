// Package supervise is the server side of a shim: one process that owns one container. It creates the container
// at launch, holds its terminal and pipes, writes its log and its exit file, and serves the protocol of package shim.
//
// Invariants: the exit file is durable, and all that the process printed is in the log, before anybody is told that
// it ended; no client, slow, dead or hostile, stops the container for longer than the stall limit; nothing of plyd
// is needed once the container is created. Only cmd/ply-shim imports this package: it links libcontainer.
package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/logfile"
	"ply/internal/container/shim"
	"ply/internal/durable"
	"ply/internal/procid"
)

// StallLimit is how long a client may take nothing while the process has output for it, before it is cut off.
const StallLimit = 2 * time.Minute

// maxFinished bounds how many ended execs are remembered.
const maxFinished = 256

type server struct {
	cfg     shim.Config
	spec    *specs.Spec
	rt      runtime
	log     *logfile.Writer
	init    *process
	l       *net.UnixListener
	removed chan struct{} // closed when the runtime state was deleted after the end
	stop    sync.Once
	stopped chan struct{} // closed to leave

	mu       sync.Mutex
	paused   bool
	execs    map[string]*process
	finished []string // ended execs, oldest first
	forks    sync.RWMutex
	known    sync.Map // pid → nothing: children that somebody waits for
}

// Run is the life of a shim: it returns the process' exit status. ready gets one Response when the container is
// created or could not be.
func Run(bundle string, ready *os.File) int {
	// Caught from the beginning: to end in the midst of creating would leave half a container.
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM, unix.SIGINT)
	closeInherited(int(ready.Fd()))
	s, err := start(bundle)
	if err != nil {
		resp := response(err)
		fmt.Fprintln(os.Stderr, err)
		// People look here when the answer is lost; the answer itself goes to who launched us.
		_ = os.WriteFile(filepath.Join(bundle, shim.ErrorFile), []byte(err.Error()+"\n"), 0o600)
		_ = json.NewEncoder(ready).Encode(resp) // nobody listens: nobody needs it
		return 1
	}
	self, err := procid.Self()
	body, merr := json.Marshal(self)
	if err = errors.Join(err, merr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go s.onTerminate(terminate)
	go s.serve()
	_ = json.NewEncoder(ready).Encode(shim.Response{Body: body}) // plyd may have died: the container waits for its next life
	_ = ready.Close()
	time.AfterFunc(slimAfter, slim) // not now: the container is just about to start
	<-s.stopped
	return 0
}

// closeInherited closes what our parent left open by mistake. What is ours is marked close-on-exec, except the ready
// descriptor, which becomes so.
func closeInherited(ready int) {
	unix.CloseOnExec(ready)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < 3 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd) // not ours
		}
	}
}

// onTerminate gives up on a container that never ran. A running one is only ended by its owner's request.
func (s *server) onTerminate(c <-chan os.Signal) {
	for range c {
		if s.init.begun() {
			continue
		}
		if err := s.shutdown(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		s.leave()
	}
}

func (s *server) leave() { s.stop.Do(func() { close(s.stopped) }) }

func start(bundle string) (*server, error) {
	s := &server{removed: make(chan struct{}), stopped: make(chan struct{}), execs: map[string]*process{}}
	if err := s.load(bundle); err != nil {
		return nil, err
	}
	if err := s.settle(); err != nil {
		return nil, err
	}
	var err error
	if s.log, err = logfile.Create(s.cfg.Log); err != nil {
		return nil, err
	}
	if err := s.writeIdentity(shim.PidFile, os.Getpid()); err != nil {
		return nil, err
	}
	if s.l, err = shim.Listen(bundle); err != nil {
		return nil, err
	}
	if s.cfg.Runtime == "" {
		s.rt, err = newLibcontainer(s.cfg, s.spec)
	} else {
		s.rt, err = newCommand(s.cfg, s.spec)
	}
	if err != nil {
		return nil, err
	}
	s.rt = guarded{s.rt, &s.forks}
	if err := s.create(); err != nil {
		return nil, err
	}
	s.spec = nil // with its seccomp profile it is big, and not needed any more
	if s.rt.orphans() {
		go s.reap()
	}
	return s, nil
}

func (s *server) load(bundle string) error {
	for name, to := range map[string]func([]byte) error{
		shim.ConfigFile: func(b []byte) error { return json.Unmarshal(b, &s.cfg) },
		shim.SpecFile:   func(b []byte) error { return json.Unmarshal(b, &s.spec) },
	} {
		data, err := durable.ReadFile(durable.OS, filepath.Join(bundle, name), 64<<20)
		if err == nil {
			err = to(data)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if s.spec == nil || s.spec.Process == nil || s.spec.Linux == nil {
		return errors.New("config.json: no process")
	}
	s.cfg.Bundle = bundle
	return nil
}

// settle makes this process fit to live long beside the container.
func (s *server) settle() error {
	if err := os.Chdir(s.cfg.Bundle); err != nil {
		return err
	}
	catchIgnored()
	// The umask is inherited too; files of our own have explicit modes.
	unix.Umask(0o022)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	// The shim should outlive its container when memory is short. Lowering needs a right that not every host
	// gives; then it is as likely a victim as plyd.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)
	return nil
}

func (s *server) writeIdentity(name string, pid int) error {
	id, err := procid.Of(pid)
	if err != nil {
		return err
	}
	data, err := json.Marshal(id)
	if err != nil {
		return err
	}
	tmp := durable.TempName(s.cfg.Bundle)
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.cfg.Bundle, name))
}

// create makes the container and its first process, which waits for OpStart.
func (s *server) create() (err error) {
	p := s.spec.Process
	if p.ConsoleSize == nil && s.cfg.Height > 0 && s.cfg.Width > 0 {
		p.ConsoleSize = &specs.Box{Height: s.cfg.Height, Width: s.cfg.Width}
	}
	p.Terminal = s.cfg.Tty
	s.init, err = newProcess("", p, s.cfg.Stdin, s.cfg.StdinOnce, false, s.log)
	if err != nil {
		return err
	}
	s.forks.RLock()
	c, err := s.rt.create(p, s.init.io.childEnds())
	if err == nil {
		s.known.Store(c.pid, nil)
	}
	s.forks.RUnlock()
	if err = errors.Join(err, s.init.io.closeChild()); err == nil && s.cfg.Tty {
		err = s.init.receiveConsole()
	}
	if err == nil {
		err = s.writeIdentity(shim.InitFile, c.pid)
	}
	if err != nil {
		return errors.Join(err, s.rt.destroy())
	}
	s.init.run(c)
	go s.watchInit(c)
	return nil
}

// watchInit waits for the end of the container and records it.
func (s *server) watchInit(c child) {
	code := c.wait()
	s.known.Delete(c.pid)
	at := time.Now()
	if err := s.rt.ended(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	s.init.drain()
	e := shim.Exit{Code: code, OOMKilled: s.rt.oomKilled(), At: at.UTC()}
	if err := s.log.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "log:", err)
	}
	if lost, err := s.log.Lost(); lost > 0 {
		fmt.Fprintf(os.Stderr, "log: %d records lost: %v\n", lost, err)
	}
	s.writeExit(e)
	s.init.finish(e)
	if err := s.rt.destroy(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	close(s.removed)
}

func (s *server) writeExit(e shim.Exit) {
	data, err := json.Marshal(e)
	if err == nil {
		err = durable.WriteFile(durable.OS, s.cfg.ExitPath, data, 0o600)
	}
	if err != nil {
		// The disk is full or gone. While this shim lives it answers; a copy lies where disks are seldom full.
		fmt.Fprintln(os.Stderr, "exit file:", err)
		if err := os.WriteFile(filepath.Join(s.cfg.Bundle, shim.ExitFile), data, 0o600); err != nil {
			fmt.Fprintln(os.Stderr, "exit file:", err)
		}
	}
}

// shutdown ends a container that is not running and waits until nothing is left of it.
func (s *server) shutdown() error {
	if s.init.running() {
		if s.init.begun() {
			return &failure{shim.ClassConflict, fmt.Sprintf("container %s is running", s.cfg.ID)}
		}
		err := s.rt.signal(unix.SIGKILL) // fails as well when it is just ending
		select {
		case <-s.removed:
		case <-time.After(endTime):
			return errors.Join(fmt.Errorf("container %s: it does not end", s.cfg.ID), err)
		}
	}
	<-s.removed
	if err := os.Remove(filepath.Join(s.cfg.Bundle, shim.SocketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// reap takes the status of orphans, which become children of this process when the container shares the host's
// process numbers.
func (s *server) reap() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	for range c {
		s.forks.Lock() // not while a runtime forks: those children are its own
		for {
			pid, err := firstZombie()
			if err != nil || pid == 0 {
				break
			}
			if _, waited := s.known.Load(pid); waited {
				time.AfterFunc(10*time.Millisecond, func() { // look again when its waiter took it
					select {
					case c <- syscall.SIGCHLD:
					default:
					}
				})
				break
			}
			if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
				break
			}
		}
		s.forks.Unlock()
	}
}
