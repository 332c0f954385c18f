package spec

import (
	"errors"
)

// ExecSpec describes an exec: a process that is started in a running container.
type ExecSpec struct {
	Cmd                                     []string
	Env                                     []string
	User, WorkingDir                        string
	Tty, Privileged                         bool
	AttachStdin, AttachStdout, AttachStderr bool
	DetachKeys                              string
	ConsoleSize                             [2]uint
}

// Check refuses an exec that cannot be started.
func (e *ExecSpec) Check() error {
	if len(e.Cmd) == 0 {
		return invalid("No exec command specified")
	}
	return errors.Join(checkDir(e.WorkingDir), checkEnv(e.Env))
}
