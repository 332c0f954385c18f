package supervise

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/seccomp"
	"ply/internal/container/shim"
)

// linked runs a container with libcontainer, which is linked into this program.
type linked struct {
	config    *configs.Config // until open
	c         *libcontainer.Container
	stateDir  string
	program   *seccomp.Program
	first     int  // pid of the first process
	privately bool // the container has its own pid namespace
}

// newLinked reads the spec of a container and finds its seccomp program. The container is created by open and create.
func newLinked(cfg shim.Config, spec *specs.Spec) (*linked, error) {
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: cfg.ID, Spec: spec})
	if err != nil {
		return nil, fmt.Errorf("runtime spec: %w", err)
	}
	r := &linked{config: config, privately: !inNamespaceOfOthers(spec, specs.PIDNamespace)}
	if config.Seccomp != nil {
		profile, err := json.Marshal(config.Seccomp)
		if err != nil {
			return nil, fmt.Errorf("seccomp profile: %w", err)
		}
		r.program = seccomp.Find(cfg.StateDir+"-seccomp", profile)
	}
	return r, nil
}

// warm lets package json learn the types in which libcontainer writes the container's state and passes its configuration to init, which takes 2 ms. It is for
// the time in which the shim waits.
func (r *linked) warm() {
	state := libcontainer.State{BaseState: libcontainer.BaseState{Config: *r.config}}
	_ = json.NewEncoder(io.Discard).Encode(&state) // what cannot be encoded fails where it is needed
}

// open makes the runtime's state directory.
func (r *linked) open(cfg shim.Config) error {
	c, err := libcontainer.Create(cfg.StateDir, cfg.ID, r.config)
	if errors.Is(err, libcontainer.ErrExist) {
		// A shim that was killed left its state. The state is deleted only if no process of the container runs.
		if err := removeDead(cfg); err != nil {
			return err
		}
		c, err = libcontainer.Create(cfg.StateDir, cfg.ID, r.config)
	}
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	r.c, r.config, r.stateDir = c, nil, cfg.StateDir
	return nil
}

// removeDead deletes the state of an ended container. It returns a conflict if the container runs.
func removeDead(cfg shim.Config) error {
	old, err := libcontainer.Load(cfg.StateDir, cfg.ID)
	if errors.Is(err, libcontainer.ErrNotExist) {
		// libcontainer wrote no state, so it had not created the container.
		return os.RemoveAll(filepath.Join(cfg.StateDir, cfg.ID))
	}
	if err != nil {
		return fmt.Errorf("earlier state of the container: %w", err)
	}
	st, err := old.Status()
	if err != nil {
		return fmt.Errorf("earlier state of the container: %w", err)
	}
	if st != libcontainer.Stopped {
		return &failure{shim.ClassConflict, fmt.Sprintf("container %s is %s under another shim", cfg.ID, st)}
	}
	return old.Destroy()
}

// process converts a process of the runtime spec.
func (r *linked) process(p *specs.Process, io ends, first bool) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args: p.Args, Env: p.Env, UID: int(p.User.UID), GID: int(p.User.GID), Cwd: p.Cwd,
		Label: p.SelinuxLabel, NoNewPrivileges: &p.NoNewPrivileges, AppArmorProfile: p.ApparmorProfile,
		Scheduler: p.Scheduler, IOPriority: p.IOPriority, Init: first, LogLevel: "3", ConsoleSocket: io.console,
	}
	if io.console == nil {
		lp.Stdin, lp.Stdout, lp.Stderr = io.stdin, io.stdout, io.stderr
	}
	if b := p.ConsoleSize; b != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(b.Width), uint16(b.Height)
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{Bounding: c.Bounding, Effective: c.Effective,
			Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient}
	}
	for _, l := range p.Rlimits {
		t, ok := rlimits[l.Type]
		if !ok {
			return nil, fmt.Errorf("rlimit %s: unknown", l.Type)
		}
		lp.Rlimits = append(lp.Rlimits, capped(configs.Rlimit{Type: t, Soft: l.Soft, Hard: l.Hard}, l.Type))
	}
	return lp, nil
}

var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// capped lowers a limit to what this process may set. plyd built the spec and may be allowed more.
func capped(l configs.Rlimit, name string) configs.Rlimit {
	var own unix.Rlimit
	if unix.Getrlimit(l.Type, &own) != nil || l.Hard <= own.Max {
		return l
	}
	if unix.Prlimit(0, l.Type, &unix.Rlimit{Cur: own.Cur, Max: l.Hard}, nil) == nil {
		_ = unix.Prlimit(0, l.Type, &own, nil) // lowering it again is always allowed
		return l
	}
	fmt.Fprintf(os.Stderr, "warning: %s: this host does not allow more than %d, which is used\n", name, own.Max)
	l.Hard, l.Soft = own.Max, min(l.Soft, own.Max)
	return l
}

// begin starts the container's first process or an exec.
func (r *linked) begin(p *specs.Process, io ends, first bool) (child, error) {
	lp, err := r.process(p, io, first)
	if err != nil {
		return child{}, err
	}
	files, done := r.program.Files()
	lp.ExtraFiles = files
	err = r.c.Start(lp)
	done(err == nil)
	if err != nil {
		return child{}, programFailure(err)
	}
	return begun(lp)
}

// begun returns a process that libcontainer has started.
func begun(lp *libcontainer.Process) (child, error) {
	pid, err := lp.Pid()
	if err != nil {
		return child{}, err
	}
	return child{pid: pid,
		wait: func() int {
			st, _ := lp.Wait() // Wait returns an error for every exit code but 0
			return exitCode(st)
		},
		signal: func(sig unix.Signal) error { return lp.Signal(sig) },
	}, nil
}

func (r *linked) create(p *specs.Process, io ends) (child, error) {
	c, err := r.begin(p, io, true)
	r.first = c.pid
	return c, err
}

// start runs the first process and returns when it has become the user's program. A signal that is sent earlier would
// reach the runtime's code, and SIGTERM would end it with the runtime's exit code.
func (r *linked) start() error {
	if err := r.c.Exec(); err != nil {
		return err
	}
	deadline := time.Now().Add(execLimit)
	for pause := 50 * time.Microsecond; becoming(r.first) && time.Now().Before(deadline); pause = min(2*pause, 5*time.Millisecond) {
		time.Sleep(pause)
	}
	return nil
}

// execLimit is how long start waits for the execve, which may have to read the program from a slow disk.
const execLimit = 10 * time.Second

// becoming reports whether a process still runs the runtime's code and has not become the user's program yet.
func becoming(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	at := strconv.Itoa(pid)
	state, ours := bytes.CutPrefix(b, []byte(at+" (runc:[2:INIT]) "))
	if ours {
		return len(state) > 0 && state[0] != 'Z' && state[0] != 'X'
	}
	state, ours = bytes.CutPrefix(b, []byte(at+" (docker-init) "))
	return ours && len(state) > 0 && state[0] != 'Z' && state[0] != 'X' && childless("/proc/"+at+"/task")
}

// childless reports whether no thread of a process has a child. For the first process of --init it means that the program
// was not started yet. childless returns false on a kernel that does not list children.
func childless(tasks string) bool {
	threads, err := os.ReadDir(tasks)
	if err != nil {
		return false
	}
	for _, t := range threads {
		if b, err := os.ReadFile(filepath.Join(tasks, t.Name(), "children")); err != nil || len(b) > 0 {
			return false
		}
	}
	return true
}

func (r *linked) exec(_ string, p *specs.Process, io ends) (child, error) {
	if st, err := r.c.Status(); err == nil && st == libcontainer.Paused {
		return child{}, &failure{shim.ClassConflict, fmt.Sprintf("container %s is paused, unpause the container before exec", r.c.ID())}
	}
	return r.begin(p, io, false)
}

func (r *linked) signal(sig unix.Signal) error { return r.c.Signal(sig) }

func (r *linked) signalAll(sig unix.Signal) error {
	pids, err := r.c.Processes()
	if err != nil {
		return err
	}
	var all error
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			all = errors.Join(all, fmt.Errorf("kill %d: %w", pid, err))
		}
	}
	return all
}

func (r *linked) pause() error  { return r.c.Pause() }
func (r *linked) resume() error { return r.c.Resume() }

func (r *linked) pids() ([]int, error) { return r.c.Processes() }

func (r *linked) orphans() bool { return !r.privately }

func (r *linked) ended() error {
	if r.privately {
		return nil // the kernel killed them with their first process
	}
	// Twice, because a process may have forked after the processes were listed.
	for range 2 {
		if err := r.signalAll(unix.SIGKILL); err != nil {
			return err
		}
	}
	return nil
}

// oomKilled reads the kernel's counter, because an event could be missed.
func (r *linked) oomKilled() bool {
	st, err := r.c.State()
	if err != nil {
		return false
	}
	if cgroups.IsCgroup2UnifiedMode() {
		return counted(filepath.Join(st.CgroupPaths[""], "memory.events"), "oom_kill")
	}
	return counted(filepath.Join(st.CgroupPaths["memory"], "memory.oom_control"), "oom_kill")
}

// counted reports whether the value of a key in a flat keyed file is above zero.
func counted(name, key string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close() // only read from
	for sc := bufio.NewScanner(f); sc.Scan(); {
		k, v, _ := strings.Cut(sc.Text(), " ")
		if n, err := strconv.ParseUint(v, 10, 64); k == key && err == nil {
			return n > 0
		}
	}
	return false
}

func (r *linked) destroy() error {
	return r.c.Destroy()
}

// update changes the limits that res names and keeps the others.
func (r *linked) update(res *specs.LinuxResources) error {
	asked, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{Spec: &specs.Spec{Linux: &specs.Linux{Resources: res}}}, nil)
	if err != nil {
		return err
	}
	config := r.c.Config()
	var next cgroups.Resources
	for _, limits := range []*cgroups.Resources{config.Cgroups.Resources, asked.Resources} {
		b, err := json.Marshal(limits)
		if err != nil {
			return err
		}
		// A limit that is not set is absent from the JSON, so it does not replace the one before.
		if err := json.Unmarshal(b, &next); err != nil {
			return err
		}
	}
	next.SkipDevices = true // the device rules do not change
	cg := *config.Cgroups
	cg.Resources = &next
	config.Cgroups = &cg
	err = r.c.Set(config)
	next.SkipDevices = false // libcontainer keeps next, and an exec needs the device rules
	return err
}
