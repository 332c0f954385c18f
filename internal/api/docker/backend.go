// Package docker serves the Docker Engine API over HTTP.
//
// Only this package and package wire know the shapes of Docker's API: services have types of their own, and this package
// translates. Clients of the versions 1.24 to 1.51 get answers in the shape of their version.
//
// What ply adds to Docker's API:
//
//	GET  /images/{name}/layers   the layers of one image, bottom first
//	GET  /images/tree            the layers of all images as trees, each layer with Children; with listed=1, of the images that /images/json lists for the same
//	                             all and filters, with the names as people are shown them; with history=0, without CreatedBy
//	GET  /images/get?format=     save as hybrid (the default), oci, docker or legacy
//	POST /images/create?format=  with fromSrc: manifest format of the imported image, oci or docker
//	POST /commit?format=         the same for a commit; its answer may have Warnings
//	POST /system/check           examines the data root: progress, findings and a summary; full reads every byte, repair heals
//	POST /system/import-docker   takes over the data root dir of a docker engine: progress, what became of each object, and a summary
//	POST /build?version=2        also messages with an ID that begins with "ply.": see wire.BuildTrace and the following
//	POST /images/prune           with the filter unused: images that were not used since a time
//
// Invariants: an option that a client sets is either done or refused by its name. An error before the first byte of an answer
// has a status and a message. A later error cuts the connection or ends the stream of messages, so that no client takes an
// incomplete answer for a complete one. Bodies, queries and credentials are never logged.
package docker

import (
	"context"
	"io"
	"os"

	"ply/internal/api/buildkit"
	"ply/internal/build"
	"ply/internal/build/history"
	"ply/internal/container"
	"ply/internal/container/rootfs"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/image"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/system"
	"ply/internal/transfer"
	"ply/internal/volume"
)

// Builder makes images; build.Service implements it.
type Builder interface {
	buildkit.Builder
	Unpack(ctx context.Context, r io.Reader) (*build.Directory, error)
	Open(root *os.File) *build.Directory
	History() *history.History
}

// Images is what the image endpoints need; image.Service implements it.
type Images interface {
	// Get finds an image by name, name:tag, name@digest, ID or unambiguous prefix of an ID. It returns errs.NotFound with
	// the text "No such image: REF".
	Get(ctx context.Context, ref string) (*image.Image, error)
	// GetFor is Get for a platform, "" for any. Of an index it finds the image for the platform.
	GetFor(ctx context.Context, ref, platform string) (*image.Image, error)
	// Index returns the index that a name means; nil when it means an image only.
	Index(ref string) (*image.Index, error)
	// Platforms returns what an index lists, or the image.
	Platforms(ctx context.Context, ref string) ([]image.Platform, error)
	List(ctx context.Context, opts image.ListOptions) ([]*image.Image, error)
	History(ctx context.Context, ref string) ([]image.HistoryEntry, error)
	// Layers returns the layers of one image, bottom first.
	Layers(ctx context.Context, ref string) ([]*image.LayerView, error)
	// LayersSize returns the size of the layers of all images; a layer counts once.
	LayersSize(ctx context.Context) (int64, error)
	// Tree returns the layers of images as trees; the roots are the bottom layers.
	Tree(ctx context.Context, opts image.TreeOptions) ([]*image.LayerView, error)
	Tag(ctx context.Context, ref string, name oci.Reference) error
	Remove(ctx context.Context, ref string, opts image.RemoveOptions) ([]image.Removed, error)
	Prune(ctx context.Context, opts image.PruneOptions) ([]image.Removed, int64, error)
}

// imageGetter finds one image, or the index that a name means.
type imageGetter interface {
	Get(ctx context.Context, ref string) (*image.Image, error)
	GetFor(ctx context.Context, ref, platform string) (*image.Image, error)
	Index(ref string) (*image.Index, error)
}

// Puller is what a pull needs; pull.Puller implements it.
type Puller interface {
	Pull(ctx context.Context, ref oci.Reference, opts transfer.PullOptions, progress transfer.Sink) error
}

// Pusher is what a push needs; push.Pusher implements it.
type Pusher interface {
	Push(ctx context.Context, ref oci.Reference, opts transfer.PushOptions, progress transfer.Sink) error
}

// Archive is what save, load and import need; archive.Archive implements it.
type Archive interface {
	Save(ctx context.Context, refs []string, opts transfer.SaveOptions, w io.Writer) error
	Load(ctx context.Context, r io.Reader, opts transfer.LoadOptions, progress transfer.Sink) error
	Import(ctx context.Context, opts transfer.ImportOptions, progress transfer.Sink) (oci.ImageID, error)
}

// Registry is what login and search need; remote.Client implements it.
type Registry interface {
	// Login checks credentials. It returns an identity token to keep instead of the password, or "".
	Login(ctx context.Context, cred transfer.Credentials) (token string, err error)
	Search(ctx context.Context, term string, limit int, filters filter.Args, cred transfer.Credentials) ([]transfer.SearchResult, error)
	Inspect(ctx context.Context, name oci.Reference, cred transfer.Credentials) (transfer.Remote, error)
}

// Containers is what the container endpoints need; container.Service implements it. ref is an ID, an unambiguous prefix of an
// ID, or a name. Methods return errs.NotFound with the text "No such container: REF".
type Containers interface {
	Lifecycle
	ContainerState
	Committer
}

// Lifecycle creates, starts, stops, changes and removes containers.
type Lifecycle interface {
	Create(ctx context.Context, spec spec.Spec) (id oci.ContainerID, warnings []string, err error)
	Start(ctx context.Context, ref string) error
	Stop(ctx context.Context, ref, signal string, timeout *int) error // timeout in seconds; nil is that of the container
	Restart(ctx context.Context, ref, signal string, timeout *int) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Remove(ctx context.Context, ref string, force, volumes, link bool) error
	Rename(ctx context.Context, ref, name string) error
	Update(ctx context.Context, ref string, change container.Settings) ([]string, error)
	// Wait returns a channel that receives one Exit. No exit after the return of Wait is missed.
	Wait(ctx context.Context, ref string, cond container.WaitCondition) (<-chan container.Exit, error)
	Prune(ctx context.Context, filters filter.Args) ([]oci.ContainerID, int64, error)
}

// Checkpoints makes, lists, removes and restores checkpoints; container.Checkpoints implements it.
type Checkpoints interface {
	Create(ctx context.Context, ref string, p container.Checkpoint, leaveRunning bool) error
	List(ctx context.Context, ref, dir string) ([]string, error)
	Remove(ctx context.Context, ref string, p container.Checkpoint) error
	Start(ctx context.Context, ref string, from container.Checkpoint) error
}

// ContainerState reports the state of containers.
type ContainerState interface {
	containerGetter
	containerLister
	Top(ctx context.Context, ref string, psArgs []string) (titles []string, rows []container.Process, err error)
	Changes(ctx context.Context, ref string) ([]Change, error)
	// Stats sends one reading, or with stream one per second until ctx ends.
	Stats(ctx context.Context, ref string, stream bool, send func(container.Stats) error) error
}

// Committer makes images from containers.
type Committer interface {
	Commit(ctx context.Context, ref string, opts container.CommitOptions) (container.CommitResult, error)
}

type containerGetter interface {
	Get(ctx context.Context, ref string, size bool) (*container.Container, error)
}

type containerLister interface {
	List(ctx context.Context, opts container.ListOptions) ([]*container.Container, error)
}

// Files is what the endpoints of docker cp and export need; container.Files implements it.
type Files interface {
	PathStat(ctx context.Context, ref, path string) (rootfs.Info, error)
	CopyFrom(ctx context.Context, ref, path string, found func(rootfs.Info) error, w io.Writer) error
	CopyTo(ctx context.Context, ref, path string, stream io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error
	Export(ctx context.Context, ref string, w io.Writer) error
}

// Sessions is what the endpoints of attach, logs and exec need; container.Sessions implements it.
type Sessions interface {
	Attach(ctx context.Context, ref string, opts session.AttachOptions) error
	Logs(ctx context.Context, ref string, opts session.LogOptions, stdout, stderr io.Writer) error
	Resize(ctx context.Context, ref string, height, width uint) error
	ExecCreate(ctx context.Context, ref string, spec spec.ExecSpec) (string, error)
	ExecStart(ctx context.Context, id string, opts session.AttachOptions, detach bool, consoleSize [2]uint) error
	ExecResize(ctx context.Context, id string, height, width uint) error
	ExecGet(ctx context.Context, id string) (*session.ExecInfo, error)
}

// Change is one path that differs from the image.
type Change = container.Change

// Volumes is what the volume endpoints need; volume.Service implements it.
type Volumes interface {
	Create(ctx context.Context, name, driver string, labels, options map[string]string) (*volume.Volume, error)
	Get(ctx context.Context, name string) (*volume.Volume, error)
	List(ctx context.Context, filters filter.Args) ([]*volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	// Size returns the size of all files of a volume, in bytes. It reads the whole directory tree.
	Size(ctx context.Context, name string) (int64, error)
	Prune(ctx context.Context, filters filter.Args) (names []string, reclaimed int64, err error)
	Rename(ctx context.Context, from, to string) error
	Copy(ctx context.Context, from, to string) (*volume.Volume, error)
	Export(ctx context.Context, name string, w io.Writer) error
	Import(ctx context.Context, name string, r io.Reader) (*volume.Volume, error)
}

// Networks is what the network endpoints need; network.Service implements it.
type Networks interface {
	Get(ctx context.Context, ref string) (*network.Network, error)
	List(ctx context.Context, filters filter.Args) ([]*network.Network, error)
	Create(ctx context.Context, o network.CreateOptions) (id string, err error)
	Remove(ctx context.Context, ref string) error
	Prune(ctx context.Context, filters filter.Args) (names []string, err error)
}

// Connector is what the endpoints need that connect containers to networks; container.Connector implements it.
type Connector interface {
	Connect(ctx context.Context, ref, network string, ep network.EndpointSpec) error
	Disconnect(ctx context.Context, ref, network string, force bool) error
}

// Events is what /events needs; *events.Bus implements it.
type Events interface {
	Listen(ctx context.Context) ([]events.Event, <-chan events.Event)
}

// System is what /info and /version need; system.Service implements it.
type System interface {
	Info(ctx context.Context) (system.Info, error)
	Version() system.Version
}
