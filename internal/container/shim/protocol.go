// Package shim is the wire between plyd and ply-shim, the process that owns one container: launching it,
// finding it again, and speaking with it.
//
// A shim serves a unix socket in its bundle. A connection starts with one request frame and gets one
// response frame; Attach then turns the connection into a stream of chunks. A frame is a 4-byte big-endian
// length (at most MaxFrame) and JSON; a chunk is Docker's 8-byte header (stream, 0, 0, 0, length) and bytes.
// The shim outlives plyd; its exit file, written by temp+fsync+rename, is the truth when the socket is gone.
package shim

import (
	"encoding/json"
	"time"
)

// MaxFrame bounds a frame's JSON.
const MaxFrame = 4 << 20

// Names of files in a bundle directory.
const (
	ConfigFile = "shim.json"   // Config, written by plyd
	SpecFile   = "config.json" // OCI runtime spec, written by plyd
	SocketFile = "shim.sock"
	ExitFile   = "exit.json" // Exit, written by the shim when the first process has ended
	PidFile    = "shim.pid"  // Identity of the shim
	InitFile   = "init.pid"  // Identity of the container's first process
	ErrorFile  = "error.txt" // why create failed, for people
	RootfsDir  = "rootfs"
)

// Config tells a shim what to run. It is data of plyd, never of an image.
type Config struct {
	ID        string `json:"id"`
	Bundle    string `json:"bundle"`
	StateDir  string `json:"stateDir"`          // libcontainer's root
	Runtime   string `json:"runtime,omitempty"` // path of another OCI runtime; "" = libcontainer
	Tty       bool   `json:"tty"`
	Stdin     bool   `json:"stdin"`     // keep stdin open for attachers
	StdinOnce bool   `json:"stdinOnce"` // close stdin when the first attacher leaves
	Height    uint   `json:"height,omitempty"`
	Width     uint   `json:"width,omitempty"`
	Log       Log    `json:"log"`
	ExitPath  string `json:"exitPath"` // absolute path of the exit file; on durable storage
}

// Log says where output goes.
type Log struct {
	Driver   string `json:"driver"` // json-file, local, none
	Path     string `json:"path"`
	MaxSize  int64  `json:"maxSize"` // bytes; 0 = no rotation
	MaxFiles int    `json:"maxFiles"`
	Compress bool   `json:"compress,omitempty"`
}

// Identity names a process for ever: a bare pid does not.
type Identity struct {
	Boot  string `json:"boot"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // field 22 of /proc/PID/stat
}

// Exit is how a process ended.
type Exit struct {
	Code      int       `json:"code"` // 128+n for signal n
	OOMKilled bool      `json:"oomKilled,omitempty"`
	At        time.Time `json:"at"`
}

// Op names a request.
type Op string

// The requests. Process "" is the container's first process, otherwise an exec's ID.
const (
	OpStart  Op = "start"  // run the created container
	OpState  Op = "state"  // → StateReply
	OpKill   Op = "kill"   // KillArgs
	OpWait   Op = "wait"   // WaitArgs → Exit, sent when the process has ended and its output is in the log
	OpResize Op = "resize" // ResizeArgs
	OpPause  Op = "pause"
	OpResume Op = "resume"
	OpExec   Op = "exec"     // ExecArgs: create an exec; it starts with OpStart of its ID
	OpAttach Op = "attach"   // AttachArgs; then chunks both ways
	OpUpdate Op = "update"   // UpdateArgs
	OpStats  Op = "stats"    // → StatsReply
	OpPids   Op = "pids"     // → []int, pids in the host's namespace
	OpStop   Op = "shutdown" // the container has ended: delete its runtime state and leave
)

// Request is the first frame of a connection.
type Request struct {
	Op      Op              `json:"op"`
	Process string          `json:"process,omitempty"`
	Args    json.RawMessage `json:"args,omitempty"`
}

// Response answers it.
type Response struct {
	Error string          `json:"error,omitempty"`
	Class string          `json:"class,omitempty"` // "notfound", "notexec", "conflict", "gone", "invalid", ""
	Body  json.RawMessage `json:"body,omitempty"`
}

// StateReply tells what the container does.
type StateReply struct {
	Status string `json:"status"` // created, running, paused, stopped
	PID    int    `json:"pid"`
	Exit   *Exit  `json:"exit,omitempty"`
}

// KillArgs of OpKill.
type KillArgs struct {
	Signal int  `json:"signal"`
	All    bool `json:"all,omitempty"`
}

// ResizeArgs of OpResize.
type ResizeArgs struct {
	Height uint `json:"height"`
	Width  uint `json:"width"`
}

// ExecArgs of OpExec: Process of the runtime spec as JSON.
type ExecArgs struct {
	ID      string          `json:"id"`
	Process json.RawMessage `json:"process"`
	Stdin   bool            `json:"stdin"`
	Detach  bool            `json:"detach"` // output goes nowhere
}

// AttachArgs of OpAttach. The shim sends output chunks (stream 1, 2) from the moment of its response, and an
// empty chunk of stream 3 when the process has ended and all is sent; the client sends stream 0 chunks, an
// empty one closes stdin.
type AttachArgs struct {
	Stdin  bool `json:"stdin"`
	Stdout bool `json:"stdout"`
	Stderr bool `json:"stderr"`
}

// UpdateArgs of OpUpdate: LinuxResources of the runtime spec as JSON.
type UpdateArgs struct {
	Resources json.RawMessage `json:"resources"`
}

// StatsReply is what cgroups tell; bytes and nanoseconds.
type StatsReply struct {
	Read          time.Time         `json:"read"`
	CPUTotal      uint64            `json:"cpuTotal"`
	CPUUser       uint64            `json:"cpuUser"`
	CPUSystem     uint64            `json:"cpuSystem"`
	PerCPU        []uint64          `json:"perCPU,omitempty"`
	Throttled     [3]uint64         `json:"throttled"` // periods, throttled periods, time
	MemoryUsage   uint64            `json:"memoryUsage"`
	MemoryMax     uint64            `json:"memoryMax"`
	MemoryLimit   uint64            `json:"memoryLimit"`
	MemoryStats   map[string]uint64 `json:"memoryStats,omitempty"`
	MemoryFailcnt uint64            `json:"memoryFailcnt"`
	PidsCurrent   uint64            `json:"pidsCurrent"`
	PidsLimit     uint64            `json:"pidsLimit"`
	Blkio         []BlkioEntry      `json:"blkio,omitempty"`
}

// BlkioEntry is one line of io_service_bytes.
type BlkioEntry struct {
	Major, Minor uint64
	Op           string
	Value        uint64
}
