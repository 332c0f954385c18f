// Package ops is the vocabulary of a build: the graph of operations that a front end makes and the solver executes. It decodes
// the graph from the protocol of BuildKit, LLB (solver/pb of github.com/moby/buildkit), in one place.
//
// Invariants: the types are plain data that nothing changes after Decode; a graph has no cycle, and every edge of it leads to an output
// that exists; every number and list was bounded; an operation that the solver cannot execute is an error of Decode.
package ops

import (
	"regexp"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"ply/internal/oci"
)

// Graph is a build: the vertices that its root needs.
type Graph struct {
	Vertices []*Vertex // every vertex comes after its inputs
	Root     Edge      // the result; the zero Edge for a graph without operations, which means an empty file system
	Files    []File    // the files that Location refers to
}

// Edge refers to one output of a vertex.
type Edge struct {
	Vertex *Vertex
	Index  int
}

// IsZero reports whether e refers to nothing, which means an empty file system.
func (e Edge) IsZero() bool { return e.Vertex == nil }

// Vertex is one operation.
type Vertex struct {
	Digest   oci.Digest // of the encoded operation, and by that of all that it depends on. It names the vertex in progress
	Op       Op
	Inputs   []Edge
	Platform oci.Platform // zero = that of the host

	// What follows does not change the result.

	Name        string // for people: "[2/3] RUN make"
	IgnoreCache bool   // execute it, even if its result is known
	ExportCache *bool  // whether an exported cache has its result; nil = as the export says
	Group       *Group
	Limits      *Limits
	Locations   []Location

	encoded *pb.Op // as the front end made it
	refers  []Edge // its inputs in the order of encoded
}

// Encoded returns the operation as the front end made it, with its inputs in that order. The caller changes neither. It is nil for a vertex that Decode did
// not make. Keys of BuildKit's caches are made from it.
func (v *Vertex) Encoded() (*pb.Op, []Edge) { return v.encoded, v.refers }

// Source returns the address of a source as BuildKit has it, such as git://HOST/PATH#REF, and its attributes, which the caller does not change. ok is false
// for what is no source.
func (v *Vertex) Source() (address string, attrs map[string]string, ok bool) {
	s := v.encoded.GetSource()
	return s.GetIdentifier(), s.GetAttrs(), s != nil
}

// Group joins vertices that progress shows as one.
type Group struct {
	ID, Name string
	Weak     bool
}

// Limits bound the resources of an Exec. They do not change its cache key.
type Limits struct {
	Memory, MemorySwap int64
	CPUShares          uint64
	CPUPeriod          uint64
	CPUQuota           int64
	CpusetCpus         string
	CpusetMems         string
}

// File is a source text, such as a Dockerfile.
type File struct {
	Name     string
	Language string
	Data     []byte
}

// Location is where in a source text a vertex comes from. Lines count from 1.
type Location struct {
	File             int // index in Graph.Files
	Start, StartChar int
	End, EndChar     int
}

// Op is Image, Local, Git, HTTP, Layout, Blob, Exec, Files, Merge or Diff.
type Op interface{ op() }

// ResolveMode says where an image is looked for.
type ResolveMode string

// The modes.
const (
	ResolveDefault ResolveMode = "default" // the local image, and otherwise the registry
	ResolvePull    ResolveMode = "pull"    // ask the registry
	ResolveLocal   ResolveMode = "local"   // the local image if there is one
)

// Image is the file system of an image.
type Image struct {
	Ref        string // normalised, with a tag or digest
	Mode       ResolveMode
	Checksum   oci.Digest // "" = any
	LayerLimit int        // take that many layers only; 0 = all
}

// Layout is the file system of an image in an OCI layout that the client has.
type Layout struct {
	Ref        string
	Session    string
	Store      string
	LayerLimit int
}

// Local is a directory of the client.
type Local struct {
	Name      string // as the client calls it: "context", "dockerfile"
	Session   string
	Include   []string
	Exclude   []string
	Follow    []string // take only these paths, and what links among them lead to
	SharedKey string   // names the copy of an earlier build that a transfer can start from
}

// Git is a checkout.
type Git struct {
	Remote         string
	Ref            string // branch, tag or commit; "" = the default branch
	Subdir         string
	KeepGitDir     bool
	TokenSecret    string // secrets of the client with the credentials for https
	HeaderSecret   string
	KnownHosts     string
	SSHSocket      string // ID of the client's ssh agent
	Checksum       string // the commit must have it; "" = any
	SkipSubmodules bool
	CommitTime     bool // files have the time of the commit
}

var sshHost = regexp.MustCompile(`^(?:[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?$`)

// IsSSHHost reports whether s can be the host of a repository by ssh, with or without a port: it means itself in an address and on the command line of ssh, which
// git passes to a shell, and is no option.
func IsSSHHost(s string) bool { return sshHost.MatchString(s) }

// HTTP is a file from a web server.
type HTTP struct {
	URL          string
	Checksum     oci.Digest
	Filename     string
	Mode         int // -1 = 0600
	UID, GID     int
	HeaderSecret string
	Headers      map[string]string
}

// Exec runs a command in a container.
type Exec struct {
	Args       []string
	Env        []string
	Dir        string
	User       string
	Proxy      Proxy
	ExtraHosts []Host
	Hostname   string
	Ulimits    []Ulimit
	Cgroup     string
	ValidExit  []int // nil = 0 only
	KeepStubs  bool  // leave the mount points that the runtime made

	Mounts     []Mount
	Network    Network
	Privileged bool // the mode "insecure"
	SecretEnv  []SecretEnv
	Devices    []Device
}

// Proxy has the proxies of the client. They are in the environment of the command, and neither in the image nor in the cache key.
type Proxy struct{ HTTP, HTTPS, FTP, No, All string }

// HostGateway is the address that stands for this machine in Exec.ExtraHosts, whose own address is known only when a step starts. It is of the prefix 100::/64, to which
// nothing is ever sent (RFC 6666).
const HostGateway = "100::706c:79"

// Host is a line of /etc/hosts.
type Host struct{ Name, IP string }

// Ulimit is a resource limit.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// Network is the network of an Exec.
type Network string

// The networks.
const (
	NetworkDefault Network = "default"
	NetworkHost    Network = "host"
	NetworkNone    Network = "none"
)

// SecretEnv puts a secret of the client into the environment.
type SecretEnv struct {
	ID, Name string
	Optional bool
}

// Device is a CDI device.
type Device struct {
	Name     string
	Optional bool
}

// MountKind is a kind of mount.
type MountKind string

// The kinds.
const (
	MountBind   MountKind = "bind"
	MountCache  MountKind = "cache"
	MountTmpfs  MountKind = "tmpfs"
	MountSecret MountKind = "secret"
	MountSSH    MountKind = "ssh"
)

// Sharing says who may use a cache mount at the same time.
type Sharing string

// The modes.
const (
	SharingShared  Sharing = "shared"  // everyone
	SharingPrivate Sharing = "private" // another user gets another directory
	SharingLocked  Sharing = "locked"  // another user waits
)

// Mount is a file system that the command of an Exec sees.
type Mount struct {
	Kind     MountKind
	Input    int    // index in Vertex.Inputs; -1 = an empty file system
	Selector string // the part of the input
	Target   string // "/" for the root
	Output   int    // the output that has the changes; -1 = none
	ReadOnly bool

	CacheID   string
	Sharing   Sharing
	TmpfsSize int64

	SecretID string // of a secret or an ssh agent
	UID, GID int
	Mode     uint32
	Optional bool

	// ByContent: the cache key has the content of the input, and not how it was made. nil = when it is read-only
	ByContent *bool
}

// Files changes files without a container.
type Files struct{ Actions []Action }

// Action is one step of a Files.
type Action struct {
	// Base is what the action changes and From what it copies from: an input of the vertex, or with the number of inputs added the result of an earlier
	// action; -1 = an empty file system.
	Base, From int
	Output     int // the output of the vertex that has the result; -1 = none
	Do         FileAction
}

// FileAction is Copy, MakeFile, MakeDir, Remove or Symlink.
type FileAction interface{ action() }

// Owner sets the owner of files.
type Owner struct {
	User, Group *Identity // nil = 0, or the owner of the source for a copy without an owner
}

// Identity is a user or group by number, or by its name in the image of an input.
type Identity struct {
	Name  string // "" = by number
	Input int    // whose /etc/passwd or /etc/group has the name; -1 = none
	ID    uint32
}

// Copy copies from From to Base.
type Copy struct {
	Src, Dest       string
	Owner           *Owner
	Mode            string // "" = that of the source; octal, or symbolic as chmod(1) reads it
	Follow          bool
	ContentsOnly    bool // copy the content of a directory, not the directory
	Unpack          bool // archives are unpacked
	MakeDest        bool
	Wildcards       bool
	AllowEmpty      bool
	Time            *time.Time
	Include         []string
	Exclude         []string
	ReplaceExisting bool
	Required        []string
}

// MakeFile creates a file.
type MakeFile struct {
	Path  string
	Mode  uint32
	Data  []byte
	Owner *Owner
	Time  *time.Time
}

// MakeDir creates a directory.
type MakeDir struct {
	Path    string
	Mode    uint32
	Parents bool
	Owner   *Owner
	Time    *time.Time
}

// Remove removes a path.
type Remove struct {
	Path         string
	AllowMissing bool
	Wildcards    bool
}

// Symlink creates a symbolic link at Path.
type Symlink struct {
	Target, Path string
	Owner        *Owner
	Time         *time.Time
}

// Merge lays its inputs on each other, the last one on top.
type Merge struct{}

// Diff is what its second input changes in its first one. An input may be the zero Edge.
type Diff struct{}

func (*Image) op()  {}
func (*Layout) op() {}
func (*Local) op()  {}
func (*Git) op()    {}
func (*HTTP) op()   {}
func (*Exec) op()   {}
func (*Files) op()  {}
func (*Merge) op()  {}
func (*Diff) op()   {}

func (*Copy) action()     {}
func (*MakeFile) action() {}
func (*MakeDir) action()  {}
func (*Remove) action()   {}
func (*Symlink) action()  {}
