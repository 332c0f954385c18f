package shim

import (
	"encoding/json"
	"time"

	"ply/internal/network/proxy"
	"ply/internal/network/resolver"
)

// Version is the version of the protocol that this build speaks. The package comment says when to raise it.
//
//   - Version 1: files and messages of the first builds, which state no version. OpUpdate ignores every limit but those of
//     memory, CPU, the number of processes and the block I/O weight.
//   - Version 2: OpUpdate changes every limit of the runtime spec.
const Version = 2

// allLimits is the first version in which OpUpdate changes every limit.
const allLimits = 2

// MaxFrame bounds a frame's JSON, in bytes.
const MaxFrame = 4 << 20

// Names of files in a bundle directory.
const (
	ConfigFile = "shim.json"   // Config, written by plyd
	SpecFile   = "config.json" // OCI runtime spec, written by plyd
	SocketFile = "shim.sock"
	ExitFile   = "exit.json" // ExitRecord, written by the shim where Config.ExitPath cannot be written
	PidFile    = "shim.pid"  // Identity of the shim
	InitFile   = "init.pid"  // Identity of the container's first process
	ErrorFile  = "error.txt" // why create failed, for people
	RootfsDir  = "rootfs"
)

// Config says what a shim runs. All of it comes from plyd, none of it from an image.
type Config struct {
	ID        string `json:"id"`
	Bundle    string `json:"bundle"`
	StateDir  string `json:"stateDir"`          // libcontainer's root
	Runtime   string `json:"runtime,omitempty"` // path of another OCI runtime; "" means libcontainer
	Tty       bool   `json:"tty"`
	Stdin     bool   `json:"stdin"`     // keep stdin open for attached clients
	StdinOnce bool   `json:"stdinOnce"` // close stdin when the first attached client leaves
	Height    uint   `json:"height,omitempty"`
	Width     uint   `json:"width,omitempty"`
	Log       Log    `json:"log"`
	ExitPath  string `json:"exitPath"` // absolute path of the exit file, on durable storage

	// Volatile says that the container is removed at its end, so nothing of it has to survive a power cut: its log and its exit file
	// are written and not synced.
	Volatile bool `json:"volatile,omitempty"`
	// Run is the ID of this run. The shim puts it into the exit file, which says by it whose end it records.
	Run string `json:"run,omitempty"`
	// Restore says that the first process comes from a checkpoint: OpRestore makes it and runs it. A shim that does not know the field
	// refuses that operation.
	Restore bool `json:"restore,omitempty"`
	// Started is when the run began. The shim keeps it for the next plyd. It is zero before releases that set it.
	Started time.Time `json:"started,omitzero"`
}

// Log says where the container's output is stored, and where it is sent.
type Log struct {
	Driver   string `json:"driver"`  // json-file, local, none, or one that Forward belongs to
	Path     string `json:"path"`    // "" = there are no files
	MaxSize  int64  `json:"maxSize"` // bytes; 0 means no rotation
	MaxFiles int    `json:"maxFiles"`
	Compress bool   `json:"compress,omitempty"`
	Volatile bool   `json:"volatile,omitempty"` // see Config.Volatile

	Attributes map[string]string `json:"attributes,omitempty"` // of each record; json-file only
	Buffer     int64             `json:"buffer,omitempty"`     // bytes that wait to be written in the mode non-blocking; 0 means blocking

	// Forward says how the driver sends the output away; nil = it does not. The files are then a copy in the format of the driver local.
	Forward *Forward `json:"forward,omitempty"`
}

// Forward says how a log driver sends the output away.
type Forward struct {
	Program     string            `json:"program"`               // path of ply-log
	Options     map[string]string `json:"options"`               // those of the driver itself, checked
	NonBlocking bool              `json:"nonBlocking,omitempty"` // drop records instead of waiting for the receiver
	Buffer      int64             `json:"buffer"`                // of a driver that does not block, in bytes
	NoCache     bool              `json:"noCache,omitempty"`     // keep no files
	Tag         string            `json:"tag"`
	Attributes  map[string]string `json:"attributes,omitempty"` // labels and variables of the container that go with each record
	Container   LoggedContainer   `json:"container"`
}

// LoggedContainer is what a receiver is told of the container.
type LoggedContainer struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	ImageID   string    `json:"imageID"`
	ImageName string    `json:"imageName"`
	Command   string    `json:"command"`
	Created   time.Time `json:"created"`
}

// Identity names one process. Unlike a pid, it is never reused.
type Identity struct {
	Boot  string `json:"boot"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // field 22 of /proc/PID/stat
}

// Exit says how a process ended.
type Exit struct {
	Code      int       `json:"code"` // 128+n for signal n
	OOMKilled bool      `json:"oomKilled,omitempty"`
	At        time.Time `json:"at"`
}

// ExitRecord is the content of an exit file.
type ExitRecord struct {
	Exit
	Run string `json:"run,omitempty"` // Config.Run; "" from a shim that does not know it
}

// Op names an operation.
type Op string

// The operations. The arrow shows the type of the result.
const (
	OpStart  Op = "start"  // run the created process
	OpState  Op = "state"  // → StateReply
	OpKill   Op = "kill"   // KillArgs
	OpWait   Op = "wait"   // → Exit, sent when the process has ended and its output is in the log
	OpResize Op = "resize" // ResizeArgs
	OpPause  Op = "pause"
	OpResume Op = "resume"
	OpExec   Op = "exec"   // ExecArgs: create an exec; OpStart with its ID runs it
	OpAttach Op = "attach" // AttachArgs → AttachReply; then chunks in both directions
	OpUpdate Op = "update" // UpdateArgs
	OpStats  Op = "stats"  // → StatsReply
	OpPids   Op = "pids"   // → []int, pids in the host's namespace
	OpNames  Op = "names"  // ResolveArgs: answer DNS queries in the container, in place of what an earlier request said
	OpPorts  Op = "ports"  // PortsArgs: carry published ports, in place of what an earlier request said
	// OpCheckpoint (CheckpointArgs) saves the processes in a new directory.
	OpCheckpoint Op = "checkpoint"
	// OpRestore (RestoreArgs) makes the processes that a checkpoint has, and runs them. It is there in place of OpStart if Config.Restore is set.
	OpRestore Op = "restore"
	OpStop    Op = "shutdown" // the container has ended: delete its runtime state and exit
)

// isCore reports whether an operation has the same form in every version.
func (o Op) isCore() bool {
	return o == OpState || o == OpKill || o == OpWait || o == OpStop
}

// Request is the first frame of a connection.
type Request struct {
	Version int             `json:"version,omitempty"` // that the request is written in; 0 means 1
	Op      Op              `json:"op"`
	Process string          `json:"process,omitempty"` // ID of an exec; "" is the container's first process
	Args    json.RawMessage `json:"args,omitempty"`
}

// Response answers a request.
type Response struct {
	Version int             `json:"version,omitempty"` // that the shim speaks; 0 means 1
	Error   string          `json:"error,omitempty"`
	Class   string          `json:"class,omitempty"` // of the error; "" for an error without a class
	Body    json.RawMessage `json:"body,omitempty"`
}

// Classes of errors in a Response.
const (
	ClassProgramNotFound = "notfound" // the program to run is missing
	ClassNotExecutable   = "notexec"  // the program to run cannot be executed
	ClassConflict        = "conflict"
	ClassGone            = "gone"        // the process has ended
	ClassInvalid         = "invalid"     // the request is wrong
	ClassUnknown         = "unknown"     // there is no such exec
	ClassExists          = "exists"      // the exec's ID is in use
	ClassMissing         = "missing"     // the host lacks a program that the operation needs
	ClassUnsupported     = "unsupported" // the shim does not know the operation or the version of the request
)

// StateReply is the state of the container or of an exec.
type StateReply struct {
	Status string `json:"status"` // created, running, paused or stopped
	PID    int    `json:"pid"`
	Exit   *Exit  `json:"exit,omitempty"`
}

// KillArgs are the arguments of OpKill.
type KillArgs struct {
	Signal int  `json:"signal"`
	All    bool `json:"all,omitempty"` // every process of the container
}

// ResizeArgs are the arguments of OpResize.
type ResizeArgs struct {
	Height uint `json:"height"`
	Width  uint `json:"width"`
}

// ExecArgs are the arguments of OpExec.
type ExecArgs struct {
	ID      string          `json:"id"`
	Process json.RawMessage `json:"process"` // Process of the runtime spec
	Stdin   bool            `json:"stdin"`
	Detach  bool            `json:"detach"` // discard the output
}

// AttachArgs are the arguments of OpAttach. After its response the shim sends output chunks (streams 1 and 2), and an
// empty chunk of stream 3 when the process has ended and all output was sent. The client sends chunks of stream 0; an
// empty one closes stdin.
type AttachArgs struct {
	Stdin  bool `json:"stdin"`
	Stdout bool `json:"stdout"`
	Stderr bool `json:"stderr"`

	// Resume identifies a client that comes back when its connection breaks; the shim then keeps the newest output for it. Such a client says that
	// it leaves by a chunk of stream 3. A shim that does not know the field answers without an AttachReply.
	Resume string `json:"resume,omitempty"`
	// From is where a client that comes back goes on; nil = with the output that follows.
	From *Position `json:"from,omitempty"`
}

// Position is a place in the output of a process: the number of bytes of each stream before it.
type Position struct {
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
}

// AttachReply answers OpAttach.
type AttachReply struct {
	Resumes bool  `json:"resumes,omitempty"` // AttachArgs.Resume is in force
	Stdout  int64 `json:"stdout,omitempty"`  // position of the first byte that follows
	Stderr  int64 `json:"stderr,omitempty"`
}

// UpdateArgs are the arguments of OpUpdate.
type UpdateArgs struct {
	Resources json.RawMessage `json:"resources"` // LinuxResources of the runtime spec
}

// ResolveArgs are the arguments of OpNames.
type ResolveArgs = resolver.Config

// PortsArgs are the arguments of OpPorts. After the request the client sends one byte for each port that says Socket, with the socket as its control message.
type PortsArgs struct {
	Ports []proxy.Port `json:"ports"`
}

// CheckpointArgs are the arguments of OpCheckpoint. After the request the client sends one byte with a descriptor of the directory that the
// checkpoint is made in. The processes are frozen meanwhile. Unless LeaveRunning is set they are killed, frozen as they are, when the checkpoint is durable. Its
// directory has its name only then.
type CheckpointArgs struct {
	Name         string `json:"name"`
	Temporary    string `json:"temporary"` // name until the checkpoint is complete; what has that name is removed
	Work         string `json:"work"`      // directory in which CRIU writes its log
	LeaveRunning bool   `json:"leaveRunning"`
}

// RestoreArgs are the arguments of OpRestore. After the request the client sends one byte with a descriptor of the checkpoint's directory.
type RestoreArgs struct {
	Work string `json:"work"` // directory in which CRIU writes its log
}

// MaxPorts bounds the published ports of one request.
const MaxPorts = 1 << 17

// StatsReply holds the counters of the container's cgroups, in bytes and nanoseconds.
type StatsReply struct {
	Read          time.Time         `json:"read"`
	CPUTotal      uint64            `json:"cpuTotal"`
	CPUUser       uint64            `json:"cpuUser"`
	CPUSystem     uint64            `json:"cpuSystem"`
	PerCPU        []uint64          `json:"perCPU,omitempty"`
	Throttled     [3]uint64         `json:"throttled"` // periods, throttled periods, throttled time
	MemoryUsage   uint64            `json:"memoryUsage"`
	MemoryMax     uint64            `json:"memoryMax"`
	MemoryLimit   uint64            `json:"memoryLimit"`
	MemoryStats   map[string]uint64 `json:"memoryStats,omitempty"`
	MemoryFailcnt uint64            `json:"memoryFailcnt"`
	PidsCurrent   uint64            `json:"pidsCurrent"`
	PidsLimit     uint64            `json:"pidsLimit"`
	Blkio         []BlkioEntry      `json:"blkio,omitempty"`
}

// BlkioEntry is one line of io_service_bytes. Its names are the capitalised ones that the first builds sent.
type BlkioEntry struct {
	Major uint64 `json:"Major"`
	Minor uint64 `json:"Minor"`
	Op    string `json:"Op"`
	Value uint64 `json:"Value"`
}
