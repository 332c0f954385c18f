// Package docker serves the Docker Engine API over HTTP.
//
// Docker's shapes, wording and status codes live here and nowhere below: services speak their own types,
// this package translates. Versions 1.24 to 1.51 are answered, each in its own shape.
//
// What ply adds to Docker's API:
//
//	GET  /images/{name}/layers   the stack of one image, bottom first
//	GET  /images/tree            the forest of all stacks, each layer with Children
//	GET  /images/get?format=     save as hybrid (the default), oci, docker or legacy
//	POST /images/create?format=  with fromSrc: manifest format of the imported image, oci or docker
//	POST /commit?format=         the same for a commit; its answer may hold Warnings
//
// Invariants: an option that a client sets is done or refused by name; an error that comes before the first byte has a
// status and a message, and one that comes later cuts the connection or ends the stream of messages, so that nobody takes a
// part for the whole; nothing of a body, query or credential is logged.
package docker

import (
	"context"
	"io"

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

// Images is what the image endpoints need; image.Service has it.
type Images interface {
	// Get finds by name, name:tag, name@digest, ID or unambiguous prefix of an ID. errs.NotFound says "No such image: REF".
	Get(ctx context.Context, ref string) (*image.Image, error)
	List(ctx context.Context, opts image.ListOptions) ([]*image.Image, error)
	History(ctx context.Context, ref string) ([]image.HistoryEntry, error)
	// Layers gives the stack of one image, bottom first.
	Layers(ctx context.Context, ref string) ([]*image.LayerView, error)
	// Tree gives the forest of all stacks.
	Tree(ctx context.Context) ([]*image.LayerView, error)
	Tag(ctx context.Context, ref string, name oci.Reference) error
	Remove(ctx context.Context, ref string, opts image.RemoveOptions) ([]image.Removed, error)
	Prune(ctx context.Context, opts image.PruneOptions) ([]image.Removed, int64, error)
}

// imageGetter finds one image.
type imageGetter interface {
	Get(ctx context.Context, ref string) (*image.Image, error)
}

// Puller is what a pull needs; pull.Puller has it.
type Puller interface {
	Pull(ctx context.Context, ref oci.Reference, opts transfer.PullOptions, progress transfer.Sink) error
}

// Pusher is what a push needs; push.Pusher has it.
type Pusher interface {
	Push(ctx context.Context, ref oci.Reference, opts transfer.PushOptions, progress transfer.Sink) error
}

// Archive is what save, load and import need; archive.Archive has it.
type Archive interface {
	Save(ctx context.Context, refs []string, opts transfer.SaveOptions, w io.Writer) error
	Load(ctx context.Context, r io.Reader, opts transfer.LoadOptions, progress transfer.Sink) error
	Import(ctx context.Context, opts transfer.ImportOptions, progress transfer.Sink) (oci.ImageID, error)
}

// Registry is what login and search need; remote.Client has it.
type Registry interface {
	// Login checks credentials. It returns an identity token to keep instead of the password, or "".
	Login(ctx context.Context, cred transfer.Credentials) (token string, err error)
	Search(ctx context.Context, term string, limit int, filters filter.Args, cred transfer.Credentials) ([]transfer.SearchResult, error)
}

// Containers is what the container endpoints need; container.Service has it. ref is an ID, an unambiguous
// prefix or a name; errs.NotFound says "No such container: REF".
type Containers interface {
	Lifecycle
	ContainerState
	Committer
}

// Lifecycle makes containers, starts, changes and removes them.
type Lifecycle interface {
	Create(ctx context.Context, spec spec.Spec) (id oci.ContainerID, warnings []string, err error)
	Start(ctx context.Context, ref string) error
	Stop(ctx context.Context, ref, signal string, timeout *int) error // timeout in seconds; nil = the container's
	Restart(ctx context.Context, ref, signal string, timeout *int) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Remove(ctx context.Context, ref string, force, volumes, link bool) error
	Rename(ctx context.Context, ref, name string) error
	Update(ctx context.Context, ref string, r spec.Resources, policy *spec.RestartPolicy) ([]string, error)
	// Wait returns a channel that gets one Exit, registered before Wait returns.
	Wait(ctx context.Context, ref string, cond container.WaitCondition) (<-chan container.Exit, error)
	Prune(ctx context.Context, filters filter.Args) ([]oci.ContainerID, int64, error)
}

// ContainerState reports how containers are.
type ContainerState interface {
	containerGetter
	containerLister
	Top(ctx context.Context, ref string, psArgs []string) (titles []string, rows []container.Process, err error)
	Changes(ctx context.Context, ref string) ([]Change, error)
	// Stats sends a reading now and, when stream, every second until ctx ends.
	Stats(ctx context.Context, ref string, stream bool, send func(container.Stats) error) error
}

// Committer makes images of containers.
type Committer interface {
	Commit(ctx context.Context, ref string, opts container.CommitOptions) (container.CommitResult, error)
}

type containerGetter interface {
	Get(ctx context.Context, ref string, size bool) (*container.Container, error)
}

type containerLister interface {
	List(ctx context.Context, opts container.ListOptions) ([]*container.Container, error)
}

// Files is what the endpoints of docker cp and export need; container.Files has it.
type Files interface {
	PathStat(ctx context.Context, ref, path string) (rootfs.Info, error)
	CopyFrom(ctx context.Context, ref, path string, w io.Writer) error
	CopyTo(ctx context.Context, ref, path string, stream io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error
	Export(ctx context.Context, ref string, w io.Writer) error
}

// Sessions is what the endpoints of attach, logs and exec need; container.Sessions has it.
type Sessions interface {
	Attach(ctx context.Context, ref string, opts session.AttachOptions) error
	Logs(ctx context.Context, ref string, opts session.LogOptions, stdout, stderr io.Writer) error
	Resize(ctx context.Context, ref string, height, width uint) error
	ExecCreate(ctx context.Context, ref string, spec spec.ExecSpec) (string, error)
	ExecStart(ctx context.Context, id string, opts session.AttachOptions, detach bool, consoleSize [2]uint) error
	ExecResize(ctx context.Context, id string, height, width uint) error
	ExecGet(ctx context.Context, id string) (*session.ExecInfo, error)
}

// Change is container.Change by the layer package's name for it.
type Change = container.Change

// Volumes is what the volume endpoints need; volume.Service has it.
type Volumes interface {
	Create(ctx context.Context, name, driver string, labels, options map[string]string) (*volume.Volume, error)
	Get(ctx context.Context, name string) (*volume.Volume, error)
	List(ctx context.Context, filters filter.Args) ([]*volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	// Size sums what a volume holds, in bytes: a walk through its files.
	Size(ctx context.Context, name string) (int64, error)
	Prune(ctx context.Context, filters filter.Args) (names []string, reclaimed int64, err error)
}

// Networks is what the network endpoints need; network.Service has it.
type Networks interface {
	Get(ctx context.Context, ref string) (*network.Network, error)
	List(ctx context.Context, filters filter.Args) ([]*network.Network, error)
}

// Events is what /events needs; *events.Bus has it.
type Events interface {
	Listen(ctx context.Context) ([]events.Event, <-chan events.Event)
}

// System is what /info and /version need; system.Service has it.
type System interface {
	Info(ctx context.Context) (system.Info, error)
	Version() system.Version
}
