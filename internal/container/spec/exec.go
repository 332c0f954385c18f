package spec

import (
	"errors"
)

// ExecSpec says what to run beside a container's first process.
type ExecSpec struct {
	Cmd                                     []string
	Env                                     []string
	User, WorkingDir                        string
	Tty, Privileged                         bool
	AttachStdin, AttachStdout, AttachStderr bool
	DetachKeys                              string
	ConsoleSize                             [2]uint
}

// Check refuses an exec that cannot run.
func (e *ExecSpec) Check() error {
	if len(e.Cmd) == 0 {
		return invalid("No exec command specified")
	}
	return errors.Join(checkDir(e.WorkingDir), checkEnv(e.Env))
}
