package supervise

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
)

// runtime runs one container. Calls that fork are made under server.forks.
type runtime interface {
	// create makes the container; its first process waits for start.
	create(p *specs.Process, io ends) (child, error)
	start() error
	// exec starts a process in the container.
	exec(id string, p *specs.Process, io ends) (child, error)
	// signal reaches the first process; SIGKILL also when the container is paused.
	signal(sig unix.Signal) error
	signalAll(sig unix.Signal) error
	pause() error
	resume() error
	update(r *specs.LinuxResources) error
	stats() (shim.StatsReply, error)
	pids() ([]int, error)
	// ended is called once, when the first process has ended: whatever of the container still runs is killed.
	ended() error
	oomKilled() bool
	// destroy removes the runtime state of a container that has ended or never came to be.
	destroy() error
	// orphans says that processes of the container may become children of this one.
	orphans() bool
}

// failure is an error with its class in the protocol.
type failure struct {
	class string
	msg   string
}

func (f *failure) Error() string { return f.msg }

// programFailure finds out of a runtime's error whether the program to run was at fault, and gives docker's
// words for it.
func programFailure(err error) error {
	if err == nil {
		return nil
	}
	msg := err.Error()
	if strings.Contains(msg, "seccomp not supported") {
		return fmt.Errorf("%w: this ply-shim was built without the tag \"seccomp\"", err)
	}
	i := strings.LastIndex(msg, `exec: "`)
	if i < 0 {
		if strings.Contains(msg, "error mounting") || strings.Contains(msg, "chdir to cwd") {
			return &failure{shim.ClassInvalid, msg}
		}
		return err
	}
	words := strings.TrimSpace(msg[i:])
	switch {
	case strings.Contains(words, "executable file not found"), strings.Contains(words, "no such file or directory"):
		return &failure{shim.ClassProgramNotFound, words}
	case strings.Contains(words, "permission denied"), strings.Contains(words, "is a directory"),
		strings.Contains(words, "exec format error"), strings.Contains(words, "not a directory"):
		return &failure{shim.ClassNotExecutable, words}
	}
	return err
}

func inNamespaceOfOthers(spec *specs.Spec, t specs.LinuxNamespaceType) bool {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == t {
			return ns.Path != ""
		}
	}
	return true
}
