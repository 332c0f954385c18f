package wire

// ExecBody is the body of an exec create.
type ExecBody struct {
	User         string
	Privileged   bool
	Tty          bool
	ConsoleSize  *[2]uint `json:",omitempty"`
	AttachStdin  bool
	AttachStderr bool
	AttachStdout bool
	DetachKeys   string
	Env          []string
	WorkingDir   string
	Cmd          []string
}

// ExecDetail is an exec as inspected.
type ExecDetail struct {
	ID       string `json:"ID"`
	Running  bool
	ExitCode *int
	Pid      int
}

// ExecStart is the body of an exec start.
type ExecStart struct {
	Detach      bool
	Tty         bool
	ConsoleSize *[2]uint `json:",omitempty"`
}
