package wire

// ExecBody is the body of POST /containers/{id}/exec.
type ExecBody struct {
	User         string
	Privileged   bool
	Tty          bool
	ConsoleSize  *[2]uint `json:",omitempty"` // height, width
	AttachStdin  bool
	AttachStderr bool
	AttachStdout bool
	DetachKeys   string
	Env          []string
	WorkingDir   string
	Cmd          Words
}

// ExecCreated is the answer of POST /containers/{id}/exec.
type ExecCreated struct {
	ID string `json:"Id"`
}

// ExecStart is the body of POST /exec/{id}/start.
type ExecStart struct {
	Detach      bool
	Tty         bool
	ConsoleSize *[2]uint `json:",omitempty"` // height, width
}

// ExecDetail is the answer of GET /exec/{id}/json.
type ExecDetail struct {
	ID            string
	Running       bool
	ExitCode      *int
	ProcessConfig ExecProcess
	OpenStdin     bool
	OpenStderr    bool
	OpenStdout    bool
	CanRemove     bool
	ContainerID   string
	DetachKeys    string
	Pid           int
}

// ExecProcess is the command of an exec.
type ExecProcess struct {
	Tty        bool     `json:"tty"`
	Entrypoint string   `json:"entrypoint"`
	Arguments  []string `json:"arguments"`
	Privileged bool     `json:"privileged"`
	User       string   `json:"user,omitempty"`
}
