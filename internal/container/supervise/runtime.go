package supervise

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
)

// runtime creates and controls one container. During its calls server.forks is locked.
type runtime interface {
	// create creates the container and its first process, which waits for start.
	create(p *specs.Process, io ends) (child, error)
	start() error
	// exec starts a process in the container.
	exec(id string, p *specs.Process, io ends) (child, error)
	// signal sends a signal to the first process. SIGKILL also ends a paused one.
	signal(sig unix.Signal) error
	// signalAll sends a signal to every process of the container.
	signalAll(sig unix.Signal) error
	// checkpoint saves the processes, which are frozen, in the directory images, and leaves them frozen. CRIU's log is in work.
	checkpoint(images *os.File, work string) error
	// restore makes and runs the processes that the directory images has, in place of create and start.
	restore(p *specs.Process, io ends, images *os.File, work string) (child, error)
	pause() error
	resume() error
	update(r *specs.LinuxResources) error
	stats() (shim.StatsReply, error)
	pids() ([]int, error)
	// ended kills what still runs of the container. It is called once, when the first process has ended.
	ended() error
	oomKilled() bool
	// destroy deletes the runtime state of a container that has ended or could not be created.
	destroy() error
	// orphans reports whether processes of the container can become children of this process.
	orphans() bool
}

// failure is an error with a class of the protocol.
type failure struct {
	class string
	msg   string
}

func (f *failure) Error() string { return f.msg }

// programFailure returns a failure with docker's words if a runtime's error says that the program to run was at fault,
// otherwise the error itself. The init process of the runtime sends its error as text, so this is the one place that reads
// that text; everything above it sees the class.
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

// inNamespaceOfOthers reports whether the container joins an existing namespace of type t.
func inNamespaceOfOthers(spec *specs.Spec, t specs.LinuxNamespaceType) bool {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == t {
			return ns.Path != ""
		}
	}
	return true
}
