package supervise

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
)

// consoleTime is how long a runtime may take to send the terminal.
const consoleTime = 10 * time.Second

// command runs a container with another OCI runtime, by that runtime's command line. The processes that the runtime
// starts become children of this process, which is a subreaper, when the runtime's own process ends.
type command struct {
	cfg       shim.Config
	privately bool // the container has its own pid namespace
	first     *os.Process
	memory    string // path of the container's memory events file
}

func newCommand(cfg shim.Config, spec *specs.Spec) (runtime, error) {
	return &command{cfg: cfg, privately: !inNamespaceOfOthers(spec, specs.PIDNamespace)}, nil
}

// scratch makes a directory for the files of one command. Commands run at the same time, so they must not share names.
func (r *command) scratch() (dir string, remove func(), err error) {
	if dir, err = os.MkdirTemp(r.cfg.Bundle, "command."); err != nil {
		return "", nil, err
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil // what stays is removed with the bundle
}

// run runs the runtime's command with a directory of its own. See runIn.
func (r *command) run(args ...string) ([]byte, error) {
	dir, remove, err := r.scratch()
	if err != nil {
		return nil, err
	}
	defer remove()
	return r.runIn(dir, ends{}, args...)
}

// runIn runs the runtime's command, which logs into dir, and returns its output, unless std names files for it. The error is
// the last one in the runtime's log.
func (r *command) runIn(dir string, std ends, args ...string) ([]byte, error) {
	log := filepath.Join(dir, "runtime.log")
	cmd := exec.Command(r.cfg.Runtime, append([]string{"--root", r.cfg.StateDir, "--log", log, "--log-format", "json"}, args...)...)
	cmd.Dir = r.cfg.Bundle
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	var out bytes.Buffer
	if std.stdin != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = std.stdin, std.stdout, std.stderr
	} else {
		cmd.Stdout = &out
	}
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	if msg := lastError(log); msg != "" {
		return nil, fmt.Errorf("%s %s: %s", filepath.Base(r.cfg.Runtime), args[0], msg)
	}
	return nil, fmt.Errorf("%s %s: %w", r.cfg.Runtime, args[0], err)
}

// lastError returns the last error in a runtime's log.
func lastError(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close() // only read from
	last := ""
	for dec := json.NewDecoder(io.LimitReader(f, 1<<20)); ; {
		var line struct{ Level, Msg string }
		if dec.Decode(&line) != nil {
			return last
		}
		if line.Level == "error" {
			last = line.Msg
		}
	}
}

// begin runs the command create or exec, which starts a process, and receives its terminal. The files of the command are in dir.
func (r *command) begin(dir string, std ends, verb string, args ...string) (*os.Process, error) {
	pidFile := filepath.Join(dir, "runtime.pid")
	args = append([]string{verb, "--pid-file", pidFile}, args...)
	var terminal func() error
	if std.console != nil {
		path, receive, err := consoleSocket(dir, std.console)
		if err != nil {
			return nil, err
		}
		terminal = receive
		args = append(args[:1:1], append([]string{"--console-socket", path}, args[1:]...)...)
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		defer null.Close() // nothing was written
		std = ends{stdin: null, stdout: null, stderr: null}
	}
	_, err := r.runIn(dir, std, args...)
	if terminal != nil {
		if terr := terminal(); err == nil {
			err = terr
		}
	}
	if err != nil {
		return nil, programFailure(err)
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", pidFile, err)
	}
	return os.FindProcess(pid)
}

// consoleSocket listens on a socket in the directory in, to which the runtime sends the terminal. path is its path. receive waits
// for the terminal and sends it to the socket to, from which receiveConsole reads it.
func consoleSocket(in string, to *os.File) (path string, receive func() error, err error) {
	dir, err := os.Open(in)
	if err != nil {
		return "", nil, err
	}
	// The path goes by way of a descriptor, because the kernel limits a socket's path and a bundle's may be longer.
	path = fmt.Sprintf("/proc/%d/fd/%d/console.sock", os.Getpid(), dir.Fd())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return "", nil, errors.Join(err, dir.Close())
	}
	return path, func() (err error) {
		defer func() { err = errors.Join(err, l.Close(), dir.Close()) }()
		if err := l.SetDeadline(time.Now().Add(consoleTime)); err != nil {
			return err
		}
		conn, err := l.AcceptUnix()
		if err != nil {
			return fmt.Errorf("console: %w", err)
		}
		defer conn.Close() // only read from
		sock, err := conn.File()
		if err != nil {
			return err
		}
		defer sock.Close() // only read from
		master, err := receiveFD(int(sock.Fd()))
		if err != nil {
			return err
		}
		defer master.Close() // the message carries a copy
		return unix.Sendmsg(int(to.Fd()), []byte("console"), unix.UnixRights(int(master.Fd())), nil, 0)
	}, nil
}

// asChild returns the child for a process that the runtime left to this subreaper.
func asChild(p *os.Process) child {
	return child{pid: p.Pid,
		wait: func() int {
			st, _ := p.Wait() // exitCode returns 255 for no status
			return exitCode(st)
		},
		signal: func(sig unix.Signal) error { return p.Signal(syscall.Signal(sig)) },
	}
}

func (r *command) create(p *specs.Process, std ends) (child, error) {
	if err := r.rewriteSpec(p); err != nil {
		return child{}, err
	}
	dir, remove, err := r.scratch()
	if err != nil {
		return child{}, err
	}
	defer remove()
	first, err := r.begin(dir, std, "create", "--bundle", r.cfg.Bundle, r.cfg.ID)
	if err != nil {
		return child{}, err
	}
	r.first = first
	r.memory = memoryEvents(first.Pid)
	return asChild(first), nil
}

// rewriteSpec replaces the process in the bundle's spec by p, in which the shim has set terminal and size.
func (r *command) rewriteSpec(p *specs.Process) error {
	name := filepath.Join(r.cfg.Bundle, shim.SpecFile)
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var spec map[string]json.RawMessage
	if err := json.Unmarshal(b, &spec); err != nil {
		return err
	}
	if spec["process"], err = json.Marshal(p); err != nil {
		return err
	}
	if b, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(name, b, 0o600)
}

func (r *command) start() error {
	_, err := r.run("start", r.cfg.ID)
	return programFailure(err)
}

func (r *command) exec(id string, p *specs.Process, std ends) (child, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return child{}, err
	}
	dir, remove, err := r.scratch()
	if err != nil {
		return child{}, err
	}
	defer remove()
	name := filepath.Join(dir, "exec.json")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		return child{}, err
	}
	proc, err := r.begin(dir, std, "exec", "--detach", "--process", name, r.cfg.ID)
	if err != nil {
		return child{}, err
	}
	return asChild(proc), nil
}

func (r *command) signal(sig unix.Signal) error {
	if err := r.first.Signal(syscall.Signal(sig)); err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		_, _ = r.run("resume", r.cfg.ID) // with cgroup v1 a frozen process does not end; it fails if none is frozen
	}
	return nil
}

func (r *command) signalAll(sig unix.Signal) error {
	_, err := r.run("kill", "--all", r.cfg.ID, strconv.Itoa(int(sig)))
	return err
}

func (r *command) pause() error {
	_, err := r.run("pause", r.cfg.ID)
	return err
}

func (r *command) resume() error {
	_, err := r.run("resume", r.cfg.ID)
	return err
}

func (r *command) update(res *specs.LinuxResources) error {
	b, err := json.Marshal(res)
	if err != nil {
		return err
	}
	dir, remove, err := r.scratch()
	if err != nil {
		return err
	}
	defer remove()
	name := filepath.Join(dir, "update.json")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		return err
	}
	_, err = r.runIn(dir, ends{}, "update", "--resources", name, r.cfg.ID)
	return err
}

// runtimeStats is the output of "events --stats".
type runtimeStats struct {
	Data struct {
		CPU struct {
			Usage struct {
				Total, Kernel, User uint64
				Percpu              []uint64
			}
			Throttling struct{ Periods, ThrottledPeriods, ThrottledTime uint64 }
		}
		Memory struct {
			Usage struct{ Limit, Usage, Max, Failcnt uint64 }
			Raw   map[string]uint64
		}
		Pids  struct{ Current, Limit uint64 }
		Blkio struct {
			IoServiceBytesRecursive []struct {
				Major, Minor uint64
				Op           string
				Value        uint64
			}
		}
	}
}

func (r *command) stats() (shim.StatsReply, error) {
	b, err := r.run("events", "--stats", r.cfg.ID)
	if err != nil {
		return shim.StatsReply{}, err
	}
	var st runtimeStats
	if err := json.Unmarshal(b, &st); err != nil {
		return shim.StatsReply{}, fmt.Errorf("%s events: %w", r.cfg.Runtime, err)
	}
	d := &st.Data
	out := shim.StatsReply{
		Read: time.Now().UTC(), CPUTotal: d.CPU.Usage.Total, CPUUser: d.CPU.Usage.User, CPUSystem: d.CPU.Usage.Kernel,
		PerCPU:      d.CPU.Usage.Percpu,
		Throttled:   [3]uint64{d.CPU.Throttling.Periods, d.CPU.Throttling.ThrottledPeriods, d.CPU.Throttling.ThrottledTime},
		MemoryUsage: d.Memory.Usage.Usage, MemoryMax: d.Memory.Usage.Max, MemoryLimit: d.Memory.Usage.Limit,
		MemoryFailcnt: d.Memory.Usage.Failcnt, MemoryStats: d.Memory.Raw,
		PidsCurrent: d.Pids.Current, PidsLimit: d.Pids.Limit,
	}
	for _, e := range d.Blkio.IoServiceBytesRecursive {
		out.Blkio = append(out.Blkio, shim.BlkioEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
	}
	if out.MemoryLimit >= noLimit {
		out.MemoryLimit = 0
	}
	return out, nil
}

func (r *command) pids() ([]int, error) {
	b, err := r.run("ps", "--format", "json", r.cfg.ID)
	if err != nil {
		return nil, err
	}
	var pids []int
	if err := json.Unmarshal(b, &pids); err != nil {
		return nil, fmt.Errorf("%s ps: %w", r.cfg.Runtime, err)
	}
	return pids, nil
}

func (r *command) orphans() bool { return true }

func (r *command) ended() error {
	if r.privately {
		return nil
	}
	return r.signalAll(unix.SIGKILL)
}

func (r *command) oomKilled() bool { return r.memory != "" && counted(r.memory, "oom_kill") }

func (r *command) destroy() error { return deleteByCommand(r.cfg) }

// deleteByCommand ends the container's processes and deletes its state with another runtime.
func deleteByCommand(cfg shim.Config) error {
	r := &command{cfg: cfg}
	_, err := r.run("delete", "--force", cfg.ID)
	return err
}

// memoryEvents returns the path of the file that counts the OOM kills in a process' cgroup, "" if there is none.
func memoryEvents(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && f[1] == "memory" {
			return filepath.Join("/sys/fs/cgroup/memory", f[2], "memory.oom_control")
		}
		if len(f) == 3 && f[1] == "" {
			if name := filepath.Join("/sys/fs/cgroup", f[2], "memory.events"); exists(name) {
				return name
			}
		}
	}
	return ""
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
