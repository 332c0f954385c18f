// Package supervise is the server side of the shim protocol: the process that owns one container. It creates the
// container when it starts, holds its terminal and pipes, writes its log and its exit file, and answers the requests of
// package shim.
//
// Invariants: before any client learns that the process has ended, its exit file is durable, unless the container is volatile, and all its output is in the
// log; no client, whether slow, dead or hostile, stops the container for longer than the stall limit; once the container
// is created, the shim does not need plyd. Only cmd/ply-shim imports this package, because it links libcontainer.
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
	"ply/internal/network/proxy"
	"ply/internal/procid"
	"ply/internal/record"
)

// StallLimit is how long a client may read nothing while there is output for it. Then its connection is closed.
const StallLimit = 2 * time.Minute

// maxFinished bounds the number of ended execs whose state is kept.
const maxFinished = 256

// server is the state of a shim.
type server struct {
	cfg     shim.Config
	version int // of the protocol, as plyd asked for in shim.json
	spec    *specs.Spec
	rt      runtime
	log     *logfile.Writer
	init    *process
	l       *net.UnixListener
	removed chan struct{} // closed when the container has ended and its runtime state is deleted
	stop    sync.Once
	stopped chan struct{} // closed to end the shim

	requestTime time.Duration
	names       resolving
	ports       proxy.Set

	mu       sync.Mutex
	paused   bool
	saving   bool // a checkpoint is made: the processes are frozen
	execs    map[string]*process
	finished []string     // ended execs, oldest first
	forks    sync.RWMutex // read-locked while a runtime may have children of its own; see guarded
	known    sync.Map     // keys: pids of children whose status another goroutine waits for
}

// Run runs a shim until it is told to end, and returns the exit status of the process. It writes one Response to ready
// when the container is created or could not be created. If spec is not nil, Run waits for a byte from it before it reads the runtime
// spec, and with hold for another before it creates anything. When the file ends without one, it creates nothing and writes nothing.
func Run(bundle string, ready, spec *os.File, hold bool) int {
	// The signals are caught before anything is created: ending halfway would leave a part of a container.
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM, unix.SIGINT)
	closeInherited(ready, spec)
	s, err := start(bundle, spec, hold)
	if errors.Is(err, errAbandoned) {
		return 0
	}
	if err != nil {
		resp := response(err)
		fmt.Fprintln(os.Stderr, err)
		// The file is for people, in case plyd is gone and the response is lost.
		_ = os.WriteFile(filepath.Join(bundle, shim.ErrorFile), []byte(err.Error()+"\n"), 0o600)
		_ = json.NewEncoder(ready).Encode(resp) // it fails only when plyd is gone
		return 1
	}
	body, err := os.ReadFile(filepath.Join(bundle, shim.PidFile))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go s.onTerminate(terminate)
	go s.serve()
	// If plyd is gone, the created container waits until the next plyd connects.
	_ = json.NewEncoder(ready).Encode(shim.Response{Version: s.version, Body: body})
	_ = ready.Close()
	time.AfterFunc(slimAfter, slim) // later, because the container is about to start
	<-s.stopped
	return 0
}

// closeInherited closes the descriptors that the parent process passed on by mistake: all but the standard streams that
// are not marked close-on-exec. Those of meant are for this process and get that mark first.
func closeInherited(meant ...*os.File) {
	for _, f := range meant {
		if f != nil {
			unix.CloseOnExec(int(f.Fd()))
		}
	}
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
			_ = unix.Close(fd) // an error would mean that it is closed
		}
	}
}

// onTerminate ends the shim on SIGTERM or SIGINT if its container was never started. Once the container runs, only
// requests end it.
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

// leave makes Run return.
func (s *server) leave() { s.stop.Do(func() { close(s.stopped) }) }

// errAbandoned means that plyd does not want the container any more.
var errAbandoned = errors.New("abandoned")

// await waits for plyd's next byte, if it sends any.
func await(f *os.File) error {
	if f == nil {
		return nil
	}
	if n, _ := f.Read(make([]byte, 1)); n == 0 {
		return errAbandoned
	}
	return nil
}

// start reads the bundle and creates the container. Before plyd has sent its last byte, it makes nothing that would be left.
func start(bundle string, spec *os.File, hold bool) (*server, error) {
	defer spec.Close() // only read from; nil is no error here
	s := &server{removed: make(chan struct{}), stopped: make(chan struct{}), execs: map[string]*process{}, requestTime: requestTime}
	var err error
	if s.cfg, s.version, err = shim.ReadConfig(bundle); err != nil {
		return nil, err
	}
	s.cfg.Bundle = bundle
	if err := s.prepareProcess(); err != nil {
		return nil, err
	}
	if err := await(spec); err != nil {
		return nil, err
	}
	if s.spec, err = readSpec(bundle); err != nil {
		return nil, err
	}
	var own *linked
	if s.cfg.Runtime == "" {
		if own, err = newLinked(s.cfg, s.spec); err != nil {
			return nil, err
		}
	}
	if hold {
		if own != nil {
			own.warm()
		}
		if err := await(spec); err != nil {
			return nil, err
		}
	}
	if s.log, err = logfile.Create(s.cfg.Log); err != nil {
		return nil, err
	}
	if err := s.writeIdentity(shim.PidFile, os.Getpid()); err != nil {
		return nil, err
	}
	if s.l, err = shim.Listen(bundle); err != nil {
		return nil, err
	}
	if own != nil {
		s.rt, err = own, own.open(s.cfg)
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
	s.spec = nil // it is large, with its seccomp profile, and not needed any more
	if s.rt.orphans() {
		go s.reap()
	}
	return s, nil
}

// readSpec reads the runtime spec of a bundle.
func readSpec(bundle string) (*specs.Spec, error) {
	data, err := durable.ReadFile(durable.OS, filepath.Join(bundle, shim.SpecFile), 64<<20)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", shim.SpecFile, err)
	}
	var spec *specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("%s: %w", shim.SpecFile, err)
	}
	if spec == nil || spec.Process == nil || spec.Linux == nil {
		return nil, fmt.Errorf("%s: no process", shim.SpecFile)
	}
	return spec, nil
}

// prepareProcess sets the attributes that a shim needs: working directory, signals, umask, subreaper and OOM score.
func (s *server) prepareProcess() error {
	if err := os.Chdir(s.cfg.Bundle); err != nil {
		return err
	}
	catchIgnored()
	// The container inherits the umask. The shim's own files have explicit modes.
	unix.Umask(0o022)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	// When memory is short, the kernel should kill the container and not its shim. Some hosts do not allow a lower score;
	// then the shim keeps plyd's.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)
	return nil
}

// writeIdentity writes PidFile or InitFile.
func (s *server) writeIdentity(name string, pid int) error {
	id, err := procid.Of(pid)
	if err != nil {
		return err
	}
	data, err := record.Marshal(s.version, shim.Identity(id))
	if err != nil {
		return err
	}
	tmp := durable.TempName(s.cfg.Bundle)
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.cfg.Bundle, name))
}

// create creates the container and its first process, which waits for OpStart. The process of a checkpoint is made by OpRestore.
func (s *server) create() (err error) {
	p := s.spec.Process
	if p.ConsoleSize == nil && s.cfg.Height > 0 && s.cfg.Width > 0 {
		p.ConsoleSize = &specs.Box{Height: s.cfg.Height, Width: s.cfg.Width}
	}
	p.Terminal = s.cfg.Tty
	s.init, err = newProcess("", p, s.cfg.Stdin, s.cfg.StdinOnce, false, s.log)
	if err != nil || s.cfg.Restore {
		return err
	}
	err = s.createFirst(func() (child, error) { return s.rt.create(p, s.init.io.childEnds()) })
	if err != nil {
		return errors.Join(err, s.rt.destroy())
	}
	return nil
}

// createFirst makes the first process with the function. After an error the runtime may have a part of it.
func (s *server) createFirst(with func() (child, error)) error {
	s.forks.RLock()
	c, err := with()
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
		return err
	}
	s.init.run(c)
	go s.watchInit(c)
	return nil
}

// watchInit waits for the end of the container, and then drains its output into the log, writes the exit file and answers
// the clients, in this order.
func (s *server) watchInit(c child) {
	code := c.wait()
	s.known.Delete(c.pid)
	at := time.Now()
	s.log.End()
	if err := s.rt.ended(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	s.init.drain()
	e := shim.Exit{Code: code, OOMKilled: s.rt.oomKilled(), At: at.UTC()}
	// Both are durable before a client is answered, unless the container is volatile. The exit file syncs the directory that also contains the log.
	var durably sync.WaitGroup
	durably.Go(s.closeLog)
	if err := writeExit(s.cfg, s.version, e); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	durably.Wait()
	if back := s.init.awaited(); back != nil {
		<-back // a client whose connection broke still gets the rest, and its end
	}
	s.init.finish(e)
	if err := s.rt.destroy(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	close(s.removed)
}

func (s *server) closeLog() {
	if err := s.log.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "log:", err)
	}
	if lost, err := s.log.Lost(); lost > 0 {
		fmt.Fprintf(os.Stderr, "log: %d records lost: %v\n", lost, err)
	}
}

// writeExit writes the exit file. When its disk is full or gone, it writes a copy in the bundle, which is in memory, where
// the next plyd finds it.
func writeExit(cfg shim.Config, version int, e shim.Exit) error {
	r := shim.ExitRecord{Exit: e, Run: cfg.Run}
	fsys := durable.OS
	if cfg.Volatile {
		fsys = durable.Unsynced(fsys)
	}
	err := record.WriteFile(fsys, cfg.ExitPath, version, r, 0o600)
	if err == nil {
		return nil
	}
	fmt.Fprintln(os.Stderr, "exit file:", err)
	if err := record.WriteFile(durable.OS, filepath.Join(cfg.Bundle, shim.ExitFile), version, r, 0o600); err != nil {
		return fmt.Errorf("copy of the exit file: %w", err)
	}
	return nil
}

// shutdown ends a container that was never started, and waits until the runtime state of an ended one is deleted.
func (s *server) shutdown() error {
	if s.cfg.Restore && s.init.withdraw() { // it was not restored, and will not be
		s.notRestored()
	}
	if s.init.running() {
		if s.init.begun() {
			return &failure{shim.ClassConflict, fmt.Sprintf("container %s is running", s.cfg.ID)}
		}
		s.init.abandonAway()
		err := s.rt.signal(unix.SIGKILL) // it also fails when the process is ending by itself
		select {
		case <-s.removed:
		case <-time.After(endTime):
			return errors.Join(fmt.Errorf("container %s: its first process does not end after SIGKILL", s.cfg.ID), err)
		}
	}
	<-s.removed
	if err := os.Remove(filepath.Join(s.cfg.Bundle, shim.SocketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// reap waits for orphans of the container. They become children of this process when the container shares another pid
// namespace, where no first process of its own adopts them.
func (s *server) reap() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	for range c {
		s.forks.Lock() // a runtime waits for the children that it forks
		for {
			pid, err := firstZombie()
			if err != nil || pid == 0 {
				break
			}
			if _, waited := s.known.Load(pid); waited {
				time.AfterFunc(10*time.Millisecond, func() { // look again when its waiter has run
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
