// Package importer takes over what a docker engine has in its data root: images, networks, volumes and containers.
//
// The source is read with package dockerroot and never changed. Objects come over one by one, each with its whole content or not at all, and those
// that came over are recognised: an import that was interrupted, or that met an obstacle, is repeated and goes on with what is missing.
//
// Invariants: what is here is never changed or replaced: a name that something else has is a conflict, unless a prefix makes another name of it. An object
// comes over after those that it refers to, and not without them. An object that cannot come over keeps no other one from it.
package importer

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/sys/unix"

	"ply/internal/container"
	"ply/internal/container/spec"
	"ply/internal/dockerroot"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/volume"
	"ply/internal/wire"
)

// Images is what an import needs of the images; image.Service has it.
type Images interface {
	Find(ref string) (oci.ImageID, oci.Reference, error)
	Put(ctx context.Context, lease *store.Lease, o image.PutOptions) (oci.ImageID, error)
	Publish(action string, id oci.ImageID, name string)
}

// Archive loads images; archive.Archive has it.
type Archive interface {
	Load(ctx context.Context, r io.Reader, opts transfer.LoadOptions, progress transfer.Sink) error
}

// Volumes is what an import needs of the volumes; volume.Contents has it.
type Volumes interface {
	Get(ctx context.Context, name string) (*volume.Volume, error)
	Adopt(ctx context.Context, o volume.AdoptOptions) (*volume.Volume, error)
}

// Networks is what an import needs of the networks; network.Service has it.
type Networks interface {
	Get(ctx context.Context, ref string) (*network.Network, error)
	Create(ctx context.Context, o network.CreateOptions) (string, error)
}

// Containers finds containers; container.Service has it.
type Containers interface {
	Get(ctx context.Context, ref string, size bool) (*container.Container, error)
}

// Adopter makes containers; container.Adopter has it.
type Adopter interface {
	Adopt(ctx context.Context, o container.AdoptOptions) error
}

// Services are what New needs. All are required.
type Services struct {
	Store      *store.Store
	Images     Images
	Archive    Archive
	Volumes    Volumes
	Networks   Networks
	Containers Containers
	Adopter    Adopter
}

// Service imports data roots, one at a time. Safe for concurrent use.
type Service struct {
	to   Services
	busy sync.Mutex // held during an import
}

// New returns the service.
func New(s Services) *Service { return &Service{to: s} }

// Options are the options of Import.
type Options struct {
	Dir        string // the data root, an absolute path
	Containerd string // the root of containerd; "" = see dockerroot.Options
	// Prefix is put before a name that something else has here; "" = such an object is a conflict. Of the name of an image, it is put before the last
	// part of the repository.
	Prefix string
	DryRun bool // report what would come over, and change nothing
	// Spec translates the options of a container.
	Spec func(*wire.CreateBody) (spec.Spec, error)
}

// State is what became of an object.
type State string

// The states. An object that is Left, or in Conflict, or Failed is not here.
const (
	Imported State = "imported"
	Planned  State = "planned"  // it would be imported
	Present  State = "present"  // it came over before
	Conflict State = "conflict" // something else has its name
	Left     State = "left"     // it has no counterpart here, or docker would remove it
	Failed   State = "failed"   // it is damaged, or something that it needs is missing
)

// Object is what became of one object.
type Object struct {
	Kind  string // see package dockerroot
	Name  string // or, of an object without one, the short ID
	ID    string // of an image, a network, or a container
	As    string // the name here, if it is another one
	State State
	Note  string // why it is not here or, of one that is, what is different
	Minor bool   // its absence is no loss: other engines have nothing of the kind, or docker would remove it
}

// Progress is how far the import is with one object.
type Progress struct {
	Kind, Name  string
	Done, Total int64 // bytes; a total of 0 is unknown
}

// Listener hears of an import. The functions are called one at a time.
type Listener struct {
	Object   func(Object)
	Progress func(Progress)
}

// Summary counts the objects by their states.
type Summary map[State]int

// Complete reports whether everything came over. Minor objects are in no Summary.
func (s Summary) Complete() bool { return s[Conflict] == 0 && s[Left] == 0 && s[Failed] == 0 }

// Import imports a data root. An error means that the import was not carried through: what came over stays. Errors: those of dockerroot.Open; errs.Conflict
// when another import is under way; errs.Exhausted when the disk is full.
func (s *Service) Import(ctx context.Context, o Options, l Listener) (Summary, error) {
	if !s.busy.TryLock() {
		return nil, errs.New(errs.Conflict, "another import is under way").WithHint("Wait until it has ended: it may import the same.")
	}
	defer s.busy.Unlock()
	if err := checkPrefix(o.Prefix); err != nil {
		return nil, err
	}
	root, err := dockerroot.Open(ctx, o.Dir, dockerroot.Options{Containerd: o.Containerd})
	if err != nil {
		return nil, err
	}
	r := &run{
		to: s.to, o: o, l: l, root: root, sum: Summary{}, bad: map[oci.ChainID]error{}, images: map[oci.ImageID]bool{},
		networks: map[string]string{}, volumes: map[string]dockerroot.Volume{}, volumeNames: map[string]string{}, containers: map[oci.ContainerID]string{},
	}
	for _, step := range []func(context.Context) error{r.importImages, r.importNetworks, r.importVolumes, r.importContainers} {
		if err = step(ctx); err != nil {
			break
		}
	}
	if err == nil {
		for _, p := range root.Rest() {
			r.problem(p)
		}
	}
	return r.sum, errors.Join(err, root.Close())
}

// run is one import.
type run struct {
	to   Services
	o    Options
	l    Listener
	root *dockerroot.Root
	sum  Summary

	listening sync.Mutex

	bad    map[oci.ChainID]error // layers that cannot be read
	images map[oci.ImageID]bool  // those that are here, or would be

	// The names here of what is here, or would be, by the names there.
	networks, volumeNames map[string]string
	volumes               map[string]dockerroot.Volume     // by the names there
	containers            map[oci.ContainerID]string       // the names here of those that are here, or would be
	there                 map[string]*dockerroot.Container // those that can be read; see byReference
}

// report tells what became of an object.
func (r *run) report(o Object) {
	if o.As == o.Name {
		o.As = ""
	}
	o.Name, o.Note = visible(o.Name), visible(o.Note)
	r.listening.Lock()
	defer r.listening.Unlock()
	if !o.Minor {
		r.sum[o.State]++
	}
	r.l.Object(o)
}

func (r *run) progress(kind, name string, done, total int64) {
	r.listening.Lock()
	defer r.listening.Unlock()
	r.l.Progress(Progress{kind, visible(name), done, total})
}

// visible replaces the control characters of a text, which may drive a terminal: names and notes have parts of a root that is not trusted.
func visible(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '\n': // between errors that were joined
			return ' '
		case unicode.IsControl(c):
			return unicode.ReplacementChar
		}
		return c
	}, s)
}

// problem reports an object that cannot be read.
func (r *run) problem(p dockerroot.Problem) {
	r.report(Object{
		Kind: p.Kind, Name: p.Object, State: stateOf(p.Err), Note: p.Err.Error(), Minor: p.Kind == dockerroot.KindOther || errors.Is(p.Err, dockerroot.ErrTransient),
	})
}

// stateOf returns the state of an object that did not come over.
func stateOf(err error) State {
	switch {
	case errors.Is(err, errs.Unimplemented):
		return Left
	case errors.Is(err, errs.Conflict), errors.Is(err, errs.Exists):
		return Conflict
	}
	return Failed
}

// done reports an object that was imported or would be, or the error of one that was not. It returns an error that ends the whole import.
func (r *run) done(ctx context.Context, o Object, err error) error {
	if err == nil {
		if o.State = Imported; r.o.DryRun {
			o.State = Planned
		}
		r.report(o)
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, errs.Exhausted) {
		return errs.New(errs.Exhausted, "%s %s: %w", o.Kind, o.Name, err)
	}
	o.State, o.Note, o.As = stateOf(err), err.Error(), ""
	r.report(o)
	return nil
}

// maxPrefix bounds the prefix of names.
const maxPrefix = 64

// checkPrefix refuses a prefix with which no name of an image, network, volume or container could begin.
func checkPrefix(p string) error {
	for i, c := range []byte(p) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (i == 0 || c != '-' && c != '_' && c != '.') || len(p) > maxPrefix {
			return errs.New(errs.Invalid, "prefix %.80q: it has lower-case letters and digits, and after the first character also - _ and ., at most %d of them", p, maxPrefix)
		}
	}
	return nil
}

// taken returns the error for a name that something else has.
func (r *run) taken(kind, name string) error {
	if r.o.Prefix != "" {
		return errs.New(errs.Conflict, "other %ss here have the names %s and %s", kind, name, r.o.Prefix+name).WithHint("Choose another --prefix.")
	}
	return errs.New(errs.Conflict, "another %s here has the name %s", kind, name).
		WithHint("Remove or rename that one, or let --prefix make another name for this one.")
}

// placed is an object at a name that it has or may have here.
type placed int

const (
	absent placed = iota // nothing has the name
	same                 // the object is here under this name
	other                // something else has the name
)

// place chooses the name of an object. look tells what is at a name.
func (r *run) place(kind, name string, look func(name string) (placed, error)) (as string, present bool, err error) {
	names := []string{name}
	if r.o.Prefix != "" {
		names = append(names, r.o.Prefix+name)
	}
	free := ""
	for _, n := range names {
		at, err := look(n)
		switch {
		case err != nil:
			return "", false, err
		case at == same:
			return n, true, nil
		case at == absent && free == "":
			free = n
		}
	}
	if free == "" {
		return "", false, r.taken(kind, name)
	}
	return free, false, nil
}

// closing closes files that were only read.
func closing(files map[string]*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
