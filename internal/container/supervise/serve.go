package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/version"
)

// requestTime is how long a connection may take to send its request, unless a test sets another limit.
const requestTime = 10 * time.Second

// maxSignal is the highest real-time signal.
const maxSignal = 64

// response returns the response for a request that ended with err.
func response(err error) shim.Response {
	var f *failure
	switch {
	case err == nil:
		return shim.Response{}
	case errors.As(err, &f):
		return shim.Response{Error: f.msg, Class: f.class}
	case errors.Is(err, os.ErrProcessDone), errors.Is(err, unix.ESRCH):
		return shim.Response{Error: "process has ended", Class: shim.ClassGone}
	}
	return shim.Response{Error: err.Error()}
}

// serve accepts connections until the shim ends.
func (s *server) serve() {
	for {
		conn, err := s.l.AcceptUnix()
		if err != nil {
			select {
			case <-s.stopped:
				return
			default:
			}
			fmt.Fprintln(os.Stderr, "accept:", err)
			time.Sleep(100 * time.Millisecond) // out of descriptors or memory, which may pass
			continue
		}
		go s.handle(conn)
	}
}

// handle serves one connection.
func (s *server) handle(conn *net.UnixConn) {
	defer conn.Close() // an error would mean nothing to the peer
	if !samePeer(conn) {
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(s.requestTime)) // never fails for sockets
	req, err := shim.ReadFrame[shim.Request](conn)
	if err != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	if req.Op == shim.OpAttach && req.Version <= s.version {
		s.attach(conn, req)
		return
	}
	body, err := s.dispatch(conn, req)
	s.reply(conn, body, err)
	if req.Op == shim.OpStop && err == nil {
		s.leave()
	}
}

// reply sends a response. It fails only when the client is gone.
func (s *server) reply(conn *net.UnixConn, body json.RawMessage, err error) {
	resp := response(err)
	resp.Version, resp.Body = s.version, body
	_ = shim.WriteFrame(conn, resp)
}

// samePeer reports whether the peer runs as root or as the shim's own user. The mode of the socket admits no others either.
func samePeer(conn *net.UnixConn) bool {
	rc, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	err = rc.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ok = err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
	})
	return ok && err == nil
}

// arguments decodes the arguments of a request.
func arguments[T any](req shim.Request) (v T, err error) {
	if err := json.Unmarshal(req.Args, &v); err != nil {
		return v, &failure{shim.ClassInvalid, fmt.Sprintf("%s: bad arguments: %v", req.Op, err)}
	}
	return v, nil
}

// find returns the container's first process for "", otherwise an exec.
func (s *server) find(id string) (*process, error) {
	if id == "" {
		return s.init, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.execs[id]; p != nil {
		return p, nil
	}
	return nil, &failure{shim.ClassUnknown, fmt.Sprintf("exec %s: no such exec in container %s", id, s.cfg.ID)}
}

func (s *server) attach(conn *net.UnixConn, req shim.Request) {
	a, err := arguments[shim.AttachArgs](req)
	var p *process
	if err == nil {
		p, err = s.find(req.Process)
	}
	if err != nil {
		s.reply(conn, nil, err)
		return
	}
	p.attach(conn, a, func(reply shim.AttachReply, err error) error {
		resp := response(err)
		resp.Version = s.version
		if err == nil {
			resp.Body, err = json.Marshal(reply)
		}
		return errors.Join(err, shim.WriteFrame(conn, resp))
	})
}

// dispatch runs one request.
func (s *server) dispatch(conn *net.UnixConn, req shim.Request) (json.RawMessage, error) {
	if req.Version > s.version {
		return nil, &failure{shim.ClassUnsupported, fmt.Sprintf("%s: the request has version %d; this shim is of ply %s and speaks version %d",
			req.Op, req.Version, version.Version, s.version)}
	}
	p, err := s.find(req.Process)
	if err != nil && req.Op != shim.OpExec {
		return nil, err
	}
	switch req.Op {
	case shim.OpStart:
		return nil, s.startProcess(p)
	case shim.OpState:
		if p == s.init && s.cfg.Restore && p.begun() {
			select { // until it is known whether there is a process
			case <-p.ready:
			case <-p.done:
			}
		}
		return json.Marshal(s.state(p))
	case shim.OpKill:
		return nil, s.kill(p, req)
	case shim.OpWait:
		return s.wait(conn, p)
	case shim.OpResize:
		a, err := arguments[shim.ResizeArgs](req)
		if err != nil {
			return nil, err
		}
		return nil, p.resize(a.Height, a.Width)
	case shim.OpPause, shim.OpResume:
		return nil, s.freeze(req.Op == shim.OpPause)
	case shim.OpExec:
		return nil, s.newExec(req)
	case shim.OpUpdate:
		return nil, s.update(req)
	case shim.OpNames:
		a, err := arguments[shim.ResolveArgs](req)
		if err != nil {
			return nil, err
		}
		s.forks.RLock() // the child that the resolver starts is not the reaper's
		defer s.forks.RUnlock()
		return nil, s.names.serve(a)
	case shim.OpPorts:
		return nil, s.carry(conn, req)
	case shim.OpCheckpoint:
		return nil, s.checkpoint(conn, req)
	case shim.OpRestore:
		return nil, s.restore(conn, req)
	case shim.OpStats:
		if !s.init.running() {
			return nil, s.init.gone()
		}
		st, err := s.rt.stats()
		if err != nil {
			return nil, err
		}
		return json.Marshal(st)
	case shim.OpPids:
		if !s.init.running() {
			return nil, s.init.gone()
		}
		pids, err := s.rt.pids()
		if err != nil {
			return nil, err
		}
		return json.Marshal(pids)
	case shim.OpStop:
		return nil, s.shutdown()
	}
	return nil, &failure{shim.ClassUnsupported, fmt.Sprintf("unknown request %q; this shim is of ply %s", req.Op, version.Version)}
}

// startProcess runs a created process.
func (s *server) startProcess(p *process) error {
	p.mu.Lock()
	if p.started {
		p.mu.Unlock()
		return &failure{shim.ClassConflict, "process was started before"}
	}
	if p.exit != nil {
		p.mu.Unlock()
		return p.gone()
	}
	if p == s.init && s.cfg.Restore {
		p.mu.Unlock()
		return &failure{shim.ClassInvalid, "the container is restored from a checkpoint, and not started"}
	}
	p.started = true
	p.mu.Unlock()
	if p == s.init {
		return s.rt.start()
	}
	return s.startExec(p)
}

// state returns what OpState reports of a process.
func (s *server) state(p *process) shim.StateReply {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := shim.StateReply{Status: "created", Exit: p.exit}
	switch {
	case p.exit != nil:
		r.Status = "stopped"
		return r
	case p.started:
		r.Status = "running"
	}
	if p.child != nil {
		r.PID = p.child.pid
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused && r.Status == "running" {
		r.Status = "paused"
	}
	return r
}

// kill sends a signal.
func (s *server) kill(p *process, req shim.Request) error {
	a, err := arguments[shim.KillArgs](req)
	if err != nil {
		return err
	}
	if a.Signal < 0 || a.Signal > maxSignal {
		return &failure{shim.ClassInvalid, fmt.Sprintf("invalid signal: %d", a.Signal)}
	}
	if a.Signal == int(unix.SIGKILL) && p != s.init && p.withdraw() {
		_ = p.io.closeChild() // nothing was written to them
		s.failExec(p, p.gone())
		return nil
	}
	if !p.running() {
		return p.gone()
	}
	sig := unix.Signal(a.Signal)
	switch {
	case a.All && p == s.init:
		err = s.rt.signalAll(sig)
	case p == s.init && sig == unix.SIGKILL:
		s.mu.Lock() // not during a freeze: it would end after the runtime has thawed the processes, and they could not die
		if err = s.rt.signal(sig); err == nil {
			s.paused = false // the runtime thawed it, so that it could die
		}
		s.mu.Unlock()
		time.AfterFunc(killedReturnLimit, p.abandonAway)
	case p == s.init:
		err = s.rt.signal(sig)
	default:
		err = p.child.signal(sig)
	}
	if err != nil && p.over() {
		return p.gone()
	}
	return err
}

// wait returns the process' Exit when it has ended, or an error when the client is gone.
func (s *server) wait(conn *net.UnixConn, p *process) (json.RawMessage, error) {
	left := make(chan struct{})
	go func() {
		defer close(left)
		var b [1]byte
		_, _ = conn.Read(b[:]) // returns when either side closes the connection
	}()
	select {
	case <-p.done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return json.Marshal(p.exit)
	case <-left:
		return nil, errors.New("the client is gone")
	}
}

// freeze pauses or resumes the container.
func (s *server) freeze(on bool) error {
	if !s.init.running() {
		return s.init.gone()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.saving {
		return s.beingSaved()
	}
	if s.paused == on {
		word := map[bool]string{true: "already", false: "not"}[on]
		return &failure{shim.ClassConflict, fmt.Sprintf("container %s is %s paused", s.cfg.ID, word)}
	}
	act := s.rt.resume
	if on {
		act = s.rt.pause
	}
	if err := act(); err != nil {
		return err
	}
	s.paused = on
	return nil
}

// update changes limits.
func (s *server) update(req shim.Request) error {
	a, err := arguments[shim.UpdateArgs](req)
	if err != nil {
		return err
	}
	if !s.init.running() {
		return s.init.gone()
	}
	var r specs.LinuxResources
	if err := json.Unmarshal(a.Resources, &r); err != nil {
		return &failure{shim.ClassInvalid, fmt.Sprintf("update: %v", err)}
	}
	s.forks.Lock() // a process must not start while only some limits are set
	defer s.forks.Unlock()
	return s.rt.update(&r)
}

// newExec creates an exec, which startExec runs.
func (s *server) newExec(req shim.Request) error {
	a, err := arguments[shim.ExecArgs](req)
	if err != nil {
		return err
	}
	if a.ID == "" {
		return &failure{shim.ClassInvalid, "exec: empty ID"}
	}
	var p specs.Process
	if err := json.Unmarshal(a.Process, &p); err != nil || len(p.Args) == 0 || p.Cwd == "" {
		return &failure{shim.ClassInvalid, fmt.Sprintf("exec %s: bad process", a.ID)}
	}
	if !s.init.running() || !s.init.begun() {
		return &failure{shim.ClassGone, fmt.Sprintf("container %s is not running", s.cfg.ID)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.execs[a.ID] != nil {
		return &failure{shim.ClassExists, fmt.Sprintf("exec %s: ID is in use", a.ID)}
	}
	proc, err := newProcess(a.ID, &p, a.Stdin, true, a.Detach, nil)
	if err != nil {
		return fmt.Errorf("exec %s: %w", a.ID, err)
	}
	s.execs[a.ID] = proc
	return nil
}

// startExec runs an exec. It refuses one in a paused container: a process that starts frozen blocks its runtime.
func (s *server) startExec(p *process) error {
	s.mu.Lock()
	paused, saving := s.paused, s.saving
	s.mu.Unlock()
	p.mu.Lock()
	if p.size != nil { // an exec runs at once, so its terminal is created with the size that it should have
		p.spec.ConsoleSize = &specs.Box{Height: uint(p.size.Row), Width: uint(p.size.Col)}
	}
	p.mu.Unlock()
	var c child
	var err error
	s.forks.RLock()
	if saving {
		err = s.beingSaved()
	} else if paused {
		err = &failure{shim.ClassConflict, fmt.Sprintf("container %s is paused, unpause the container before exec", s.cfg.ID)}
	} else if c, err = s.rt.exec(p.id, p.spec, p.io.childEnds()); err == nil {
		s.known.Store(c.pid, nil)
	}
	s.forks.RUnlock()
	if err = errors.Join(err, p.io.closeChild()); err == nil && p.tty {
		err = p.receiveConsole()
	}
	if err != nil {
		s.failExec(p, err)
		return err
	}
	p.run(c)
	go func() {
		code := c.wait()
		s.known.Delete(c.pid)
		at := time.Now()
		p.drain()
		p.finish(shim.Exit{Code: code, At: at.UTC()})
		s.forget(p)
	}()
	return nil
}

// failExec records that an exec could not be started. Its clients see that it has ended.
func (s *server) failExec(p *process, err error) {
	code := 255
	var f *failure
	if errors.As(err, &f) {
		switch f.class {
		case shim.ClassProgramNotFound:
			code = 127
		case shim.ClassNotExecutable, shim.ClassInvalid:
			code = 126
		}
	}
	for _, src := range p.sources {
		close(src.done) // no goroutine reads it
	}
	p.finish(shim.Exit{Code: code, At: time.Now().UTC()})
	s.forget(p)
}

// forget counts p among the ended execs and drops the state of the oldest one when there are too many.
func (s *server) forget(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished = append(s.finished, p.id)
	if len(s.finished) > maxFinished {
		delete(s.execs, s.finished[0])
		s.finished = s.finished[1:]
	}
}
