package dockerroot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/wire"
)

// Container is one container. What a user asked for is in docker's own types.
type Container struct {
	ID           oci.ContainerID
	Name         string
	Created      time.Time
	Image        oci.ImageID // the digest of the config of its image
	ImageName    string      // as the user wrote it
	Config       wire.Config
	HostConfig   wire.HostConfig
	Networks     map[string]*Endpoint // by the name of the network
	Mounts       []Mount              // sorted by target
	State        State
	RestartCount int
	Stopped      bool // by a user

	driver string // of storage
}

// State is how the container was left.
type State struct {
	Running, Paused, Restarting, OOMKilled, RemovalInProgress, Dead bool

	Pid        int
	ExitCode   int
	Error      string
	StartedAt  time.Time
	FinishedAt time.Time
}

// Endpoint is the connection to a network: what a user asked for in the fields of the Engine API. The others hold what docker chose.
type Endpoint struct {
	wire.EndpointSettings
	DesiredMacAddress string
}

// Mount is a mount of a container as docker has resolved it.
type Mount struct {
	Type, Name, Source, Destination, Driver, Propagation string

	Mode        string `json:"Relabel"` // what is written after the second colon of -v
	RW          bool
	SkipMissing bool `json:"SkipMountpointCreation"` // of a bind: a missing source is not made
	Spec        MountSpec
}

// MountSpec is what a user asked for with --mount.
type MountSpec struct {
	Type          string `json:",omitempty"`
	Source        string `json:",omitempty"`
	BindOptions   *struct{ NonRecursive bool }
	VolumeOptions *struct{ Subpath string }
	TmpfsOptions  *struct {
		SizeBytes int64
		Mode      uint32
	}
}

// containerRecord is config.v2.json.
type containerRecord struct {
	ID                     string
	Created                time.Time
	Managed                bool
	Config                 *wire.Config
	Image                  string
	ImageManifest          *oci.Descriptor
	NetworkSettings        *struct{ Networks map[string]*Endpoint }
	Name                   string
	Driver                 string
	OS                     string
	RestartCount           int
	HasBeenManuallyStopped bool
	State                  State
	MountPoints            map[string]*Mount
}

// ErrTransient is in the error of a container that is not to be kept.
var ErrTransient = errors.New("docker removes it when it starts again")

const (
	maxContainers = 100_000
	maxMounts     = 10_000
)

// Containers returns the containers, sorted by name; only some of them when ctx ends.
func (r *Root) Containers(ctx context.Context) (all []Container, problems []Problem) {
	ids, err := list(r.dir, "containers")
	if err == nil && len(ids) > maxContainers {
		err = errs.New(errs.DataLoss, "there are more than %d containers", maxContainers)
	}
	if err != nil {
		return nil, []Problem{{KindContainer, "all containers", err}}
	}
	left := newBudget()
	for _, id := range ids {
		if ctx.Err() != nil {
			break
		}
		if !oci.IsHex64(id) {
			continue
		}
		c, err := r.container(id, left)
		if err != nil {
			problems = append(problems, Problem{KindContainer, titleOf(c.Name, id), err})
			continue
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Container) int { return strings.Compare(a.Name+string(a.ID), b.Name+string(b.ID)) })
	sortProblems(problems)
	return all, problems
}

func titleOf(name, id string) string {
	if name != "" {
		return clip(name)
	}
	return short(id)
}

func (r *Root) container(id string, left *budget) (c Container, err error) {
	var rec containerRecord
	dir := path.Join("containers", id)
	config, err := readFile(r.dir, dir+"/config.v2.json", maxFile)
	if err == nil {
		err = decode(dir+"/config.v2.json", config, &rec)
	}
	if err != nil {
		return c, err
	}
	c = Container{
		ID: oci.ContainerID(id), Name: strings.TrimPrefix(rec.Name, "/"), Created: rec.Created, Image: oci.ImageID(rec.Image), State: rec.State,
		RestartCount: rec.RestartCount, Stopped: rec.HasBeenManuallyStopped, driver: rec.Driver,
	}
	switch {
	case rec.ID != id:
		return c, errs.New(errs.DataLoss, "config.v2.json is of container %.64q", rec.ID)
	case rec.Config == nil:
		return c, errs.New(errs.DataLoss, "config.v2.json has no Config")
	case rec.Managed:
		return c, errs.New(errs.Unimplemented, "it is a task of a swarm")
	case rec.OS != "" && rec.OS != "linux":
		return c, errs.New(errs.Unimplemented, "its operating system is %.40q", rec.OS)
	case rec.State.Dead || rec.State.RemovalInProgress:
		return c, errs.New(errs.Unimplemented, "its removal was interrupted: %w", ErrTransient)
	case len(rec.MountPoints) > maxMounts:
		return c, errs.New(errs.DataLoss, "it has %d mounts", len(rec.MountPoints))
	}
	host, err := readFile(r.dir, dir+"/hostconfig.json", maxFile)
	if err == nil {
		err = decode(dir+"/hostconfig.json", host, &c.HostConfig)
	}
	if err == nil {
		err = left.take(config, host)
	}
	if err != nil {
		return c, err
	}
	if c.HostConfig.AutoRemove {
		return c, errs.New(errs.Unimplemented, "it was made with --rm: %w", ErrTransient)
	}
	c.Config, c.ImageName = *rec.Config, rec.Config.Image
	if rec.NetworkSettings != nil {
		c.Networks = rec.NetworkSettings.Networks
	}
	for target, m := range rec.MountPoints {
		if m == nil {
			return c, errs.New(errs.DataLoss, "its mount at %.100q is empty", target)
		}
		c.Mounts = append(c.Mounts, *m)
	}
	slices.SortFunc(c.Mounts, func(a, b Mount) int { return strings.Compare(a.Destination, b.Destination) })
	return c, r.imageOf(&c, &rec)
}

// imageOf finds the image of a container by its record. In containerd's store images have the digest of their manifest or index as an ID.
func (r *Root) imageOf(c *Container, rec *containerRecord) error {
	if _, err := oci.ParseDigest(rec.Image); err != nil {
		return errs.New(errs.DataLoss, "its image: %w", err)
	}
	if rec.Driver == "overlay2" {
		return nil
	}
	switch {
	case r.store == nil && rec.Driver == "overlayfs":
		return errs.New(errs.NotFound, "its image and its files are in the root of containerd, which is not here").
			WithHint("Name that root with --containerd, such as --containerd %s.", hostContainerd)
	case r.store == nil || r.store.snapshots[rec.Driver] == nil:
		return errs.New(errs.Unimplemented, "its files are with the storage driver %s", clip(rec.Driver)).
			WithHint("Commit it with docker, and move the image with docker save and ply load.")
	}
	target := oci.Descriptor{Digest: oci.Digest(rec.Image)}
	if rec.ImageManifest != nil {
		target = *rec.ImageManifest
	}
	id, err := r.store.configOf(target)
	if err != nil {
		return err
	}
	c.Image = id
	return nil
}

// Upper opens the upper directory of the container's overlay.
func (r *Root) Upper(c *Container) (*os.File, error) {
	var f *os.File
	var err error
	if c.driver == "overlay2" {
		f, err = r.upper(string(c.ID))
	} else {
		f, err = r.store.upper(c.driver, string(c.ID))
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = errs.New(errs.DataLoss, "its writable layer is not there: %v", err)
	}
	return f, err
}

// File opens one of the files hostname, hosts and resolv.conf of a container. The error is fs.ErrNotExist when docker has not made it.
func (r *Root) File(c *Container, name string) (*os.File, error) {
	return openFile(r.dir, path.Join("containers", string(c.ID), name))
}

// rotated are the names of rotated logs.
var rotated = regexp.MustCompile(`^\.[1-9][0-9]{0,2}(\.gz)?$`)

// Log returns the names of the files of a container's log, for LogFile: the current one first, as "", and the rotated ones by what is added to its
// name, such as ".1" or ".2.gz". There are none when the log driver keeps no files, or docker has not made them.
func (r *Root) Log(c *Container) ([]string, error) {
	dir, base := logAt(c)
	if dir == "" {
		return nil, nil
	}
	names, err := list(r.dir, dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range names {
		if rest, ok := strings.CutPrefix(n, base); ok && (rest == "" || rotated.MatchString(rest)) {
			out = append(out, rest)
		}
	}
	return out, nil
}

// LogFile opens one of the files that Log has named.
func (r *Root) LogFile(c *Container, name string) (*os.File, error) {
	dir, base := logAt(c)
	if name != "" && !rotated.MatchString(name) {
		return nil, errs.New(errs.Invalid, "log %q: not a name", name)
	}
	return openFile(r.dir, path.Join(dir, base+name))
}

// logAt returns where docker keeps the log of a container, below the root.
func logAt(c *Container) (dir, base string) {
	dir = path.Join("containers", string(c.ID))
	switch c.HostConfig.LogConfig.Type {
	case "json-file":
		return dir, string(c.ID) + "-json.log"
	case "local":
		return dir + "/local-logs", "container.log"
	}
	return "", ""
}

// refuseRunning refuses a root of which a container still runs, as live-restore lets them: what it writes now would be missing.
func (r *Root) refuseRunning(ctx context.Context) error {
	ids, err := list(r.dir, "containers")
	if err != nil {
		return nil //nolint:nilerr // Containers returns it
	}
	for _, id := range ids[:min(len(ids), maxContainers)] {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var rec struct {
			Name  string
			State State
		}
		if !oci.IsHex64(id) || readJSON(r.dir, path.Join("containers", id, "config.v2.json"), &rec) != nil || !rec.State.Running {
			continue
		}
		if runs(rec.State.Pid, id) {
			return errs.New(errs.Conflict, "container %s of this data root still runs, with process %d", titleOf(strings.TrimPrefix(rec.Name, "/"), id), rec.State.Pid).
				WithHint("Stop the containers with docker stop before the engine is stopped.")
		}
	}
	return nil
}

// runs reports whether a process is in the cgroup of a container.
func runs(pid int, id string) bool {
	if pid <= 0 {
		return false
	}
	data, err := os.ReadFile(path.Join("/proc", strconv.Itoa(pid), "cgroup"))
	return err == nil && strings.Contains(string(data), id)
}
