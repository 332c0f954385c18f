// Package container runs containers: it creates, starts, stops, removes and commits them, restores them when the engine
// starts, and lists them. A container's process is a child of a ply-shim, never of plyd.
//
// Service has the life cycle; Files and Sessions are views of the same containers for copying files and for attach, logs
// and exec. The work on files is in package rootfs, that on streams in session, and the run options are in spec.
//
// Invariants: the state of a container can be derived from its record in the database and the shim's exit file after any
// crash; a process is identified by boot ID, pid and start time, never by its pid alone; the output of a container is in
// its log before a client is told of its end.
package container

import (
	"time"

	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/filter"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/volume"
)

// Status of a container, in docker's words.
type Status string

// The states.
const (
	StatusCreated    Status = "created"
	StatusRunning    Status = "running"
	StatusPaused     Status = "paused"
	StatusRestarting Status = "restarting"
	StatusRemoving   Status = "removing"
	StatusExited     Status = "exited"
	StatusDead       Status = "dead"
)

// active reports whether a container in this state has a process, or a policy will start one again.
func (s Status) active() bool {
	return s == StatusRunning || s == StatusPaused || s == StatusRestarting
}

// State is the part of a container that changes while it runs. It is stored in the container's record, so the names in
// its tags stay as they are; the Engine API has types of its own.
type State struct {
	Status    Status    `json:"Status"`
	PID       int       `json:"PID"`
	ExitCode  int       `json:"ExitCode"`
	Error     string    `json:"Error"`
	OOMKilled bool      `json:"OOMKilled"`
	Started   time.Time `json:"Started"`
	Finished  time.Time `json:"Finished"`
	Health    *Health   `json:"Health"`
	Restarts  int       `json:"Restarts"`
}

// Health is the outcome of the last health checks.
type Health struct {
	Status        string         `json:"Status"` // starting, healthy, unhealthy
	FailingStreak int            `json:"FailingStreak"`
	Log           []HealthResult `json:"Log"`
}

// HealthResult is one run of the health check.
type HealthResult struct {
	Start    time.Time `json:"Start"`
	End      time.Time `json:"End"`
	ExitCode int       `json:"ExitCode"`
	Output   string    `json:"Output"`
}

// Container is a snapshot of one container for list and inspect.
type Container struct {
	ID                                      oci.ContainerID
	Name                                    string // without a leading slash
	Created                                 time.Time
	Image                                   oci.ImageID
	ImageName                               string // as the user wrote it at create
	Path                                    string // what runs
	Args                                    []string
	Spec                                    spec.Spec // as resolved: image defaults merged in
	State                                   State
	Mounts                                  []volume.Mount
	Networks                                map[string]network.Endpoint // by network name
	Ports                                   []network.PortBinding       // as bound now; host port filled in
	Execs                                   []string
	LinkedAs                                []string // what other containers call it by their links: CONTAINER/ALIAS. List only
	LogPath                                 string
	Driver                                  string  // storage driver
	AppArmor                                string  // profile; "" on a host without AppArmor
	InForce                                 InForce // Get only
	NetnsPath                               string  // of the network namespace that the engine made; "" = none
	HostnamePath, HostsPath, ResolvConfPath string
	Step                                    bool  // made by Steps.CreateFrom
	SizeRw, SizeRootFs                      int64 // -1 when not asked for
	Damaged                                 error // why only its ID and name are known: its record is damaged. List only; nil = it is whole
}

// InForce has those options that a container takes from the engine where its spec leaves them open.
type InForce struct {
	Runtime                    string
	ShmSize                    int64 // bytes
	CgroupnsMode               string
	MaskedPaths, ReadonlyPaths []string // none = everything can be seen and written
}

// ListOptions are the options of List; ListFilters lists the filters.
type ListOptions struct {
	All     bool
	Limit   int // newest N, whatever their state; 0 = no limit
	Size    bool
	Filters filter.Args
}

// CommitOptions of Commit.
type CommitOptions struct {
	Name    oci.Reference // zero = no name
	Author  string
	Message string
	Changes []string // Dockerfile instructions: CMD ENTRYPOINT ENV EXPOSE LABEL ONBUILD USER VOLUME WORKDIR HEALTHCHECK STOPSIGNAL
	Pause   bool
	Config  *oci.RunConfig // overrides; nil = the container's
	Format  oci.Format     // "" = the base image's
}

// CommitResult of Commit: LeftOut names the mount points whose content is not in the image.
type CommitResult struct {
	ID      oci.ImageID
	LeftOut []string
}

// Exit is how a container's process ended.
type Exit struct {
	Code      int
	OOMKilled bool
	At        time.Time
	Error     string
}

// WaitCondition of Wait.
type WaitCondition string

// The conditions, as docker has them.
const (
	WaitNotRunning WaitCondition = "not-running"
	WaitNextExit   WaitCondition = "next-exit"
	WaitRemoved    WaitCondition = "removed"
)

// Process is one line of top: fields in the order of the titles.
type Process []string

// Stats is one reading of the resources that a container uses, in bytes and nanoseconds.
type Stats struct {
	ID, Name   string
	Read       time.Time
	Cgroup     shim.StatsReply
	SystemCPU  uint64 // host CPU time, ns
	OnlineCPUs int
	Networks   map[string]network.Counters // by interface
}

// Change is one line of diff.
type Change = layer.Change
