// Package direct runs a build for which the client stays connected to the engine (POST /build/direct): it answers the engine's wants for
// directories, secrets, agents, credentials and outputs, and hands on what happens.
//
// On a unix socket the engine gets an open file of a directory and reads it in place. On another connection, and where the engine cannot
// read a file system of the user, it gets a tar.
//
// Invariants: nothing but what the command line names is sent, whatever the engine asks for; an output appears under its name when all
// of it is there; the files of a directory that is taken stay below it.
package direct

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"ply/internal/cli/client"
	"ply/internal/errs"
	"ply/internal/wire"
	"ply/internal/wire/frames"
)

// Resources are what the engine may ask for.
type Resources struct {
	Dirs    map[string]string // by name
	Context io.Reader         // a tar stream in place of the directory "context"; nil = none
	// Pack writes the tar of a directory, for an engine that cannot read it in place.
	Pack    func(ctx context.Context, w io.Writer, name, dir string) error
	Secrets map[string]Secret
	Agents  map[string]Agent
	// Credentials returns those for a registry; the zero value when there are none.
	Credentials func(ctx context.Context, host string) wire.Auth
	Outputs     []Output // one per wire.DirectBuild.Exports
	// Check is asked about each file and directory of this machine when it is open, and returns an error when the build must not use it; nil allows all. Agents are not asked about.
	Check func(f *os.File, write bool) error
	// Blobs are directories with blobs, by name: OCI layouts, and the caches of the type local.
	Blobs map[string]string
}

// check asks about a file that is open.
func (r *Resources) check(f *os.File, write bool) error {
	if r.Check == nil {
		return nil
	}
	return r.Check(f, write)
}

// Secret is a file or the value of a variable.
type Secret struct {
	File string
	Env  string // used when File is empty
}

// Build runs a build. It calls events in the order in which things happened. Errors: *client.Error when the engine refuses the request or does
// not know this kind of build. A build that failed is no error; Error of the result says why.
func Build(ctx context.Context, api *client.Client, req wire.DirectBuild, res Resources, events func(*wire.BuildEvents) error) (*wire.BuildDone, error) {
	var token [16]byte
	rand.Read(token[:])
	req.Token = hex.EncodeToString(token[:])
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := api.Hijack(ctx, client.Request{Path: "/build/direct", Body: req})
	if err != nil {
		return nil, err
	}
	b := &running{ctx: ctx, api: api, token: req.Token, res: res, conn: frames.New(conn.Conn, conn), outputs: map[uint64]chan bool{}}
	defer func() {
		cancel(nil)
		_ = conn.Close() // everything was read
		b.work.Wait()
	}()
	for {
		var f wire.BuildFrame
		files, err := b.conn.Receive(&f)
		for _, file := range files {
			_ = file.Close() // the engine sends none
		}
		switch {
		case err != nil:
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			} else if errors.Is(err, io.EOF) {
				err = errs.New(errs.Unavailable, "the engine closed the connection before the build ended")
			}
			return nil, err
		case f.Events != nil:
			if err := events(f.Events); err != nil {
				return nil, err
			}
		case f.Want != nil:
			b.want(f.Want)
		case f.Ended != nil:
			b.ended(f.Ended)
		case f.Done != nil:
			return f.Done, nil
		}
	}
}

// running is one build.
type running struct {
	ctx   context.Context //nolint:containedctx // of one build
	api   *client.Client
	token string
	res   Resources
	conn  *frames.Conn
	work  sync.WaitGroup

	mu      sync.Mutex
	tarRead bool                 // Resources.Context was handed out
	outputs map[uint64]chan bool // open outputs; true = all of it was sent
}

// want answers a want in the background.
func (b *running) want(w *wire.BuildWant) {
	if w.Kind == wire.WantOutput || w.Kind == wire.WantOutputDir || w.Kind == wire.WantPutBlob {
		b.mu.Lock()
		b.outputs[w.ID] = make(chan bool, 1)
		b.mu.Unlock()
	}
	b.work.Go(func() {
		a := wire.BuildAnswer{ID: w.ID}
		if err := b.answer(w, &a); err != nil {
			a = wire.BuildAnswer{ID: w.ID, Error: err.Error(), NotFound: errors.Is(err, errs.NotFound)}
		} else if a.ID == 0 {
			return // it was sent
		}
		_ = b.conn.Send(a) // when it fails, reading fails too
	})
}

// answer fills in an answer, or sends it itself and clears its ID.
func (b *running) answer(w *wire.BuildWant, a *wire.BuildAnswer) error {
	switch w.Kind {
	case wire.WantLocal:
		return b.local(w, a)
	case wire.WantSecret:
		s, ok := b.res.Secrets[w.Name]
		if !ok {
			return errs.New(errs.NotFound, "secret %s: not found", w.Name)
		}
		var err error
		a.Data, err = s.read(w.Name, &b.res)
		return err
	case wire.WantAgent:
		agent, ok := b.res.Agents[w.Name]
		if !ok {
			return errs.New(errs.NotFound, "ssh agent %s: not found", w.Name)
		}
		return b.stream(a, func(conn net.Conn) error { return agent.serve(b.ctx, conn) })
	case wire.WantCredentials:
		return marshal(b.res.Credentials(b.ctx, w.Name), &a.Data)
	case wire.WantOutput, wire.WantOutputDir:
		if w.Index < 0 || w.Index >= len(b.res.Outputs) || b.res.Outputs[w.Index].dest == "" {
			return errs.New(errs.NotFound, "output %d has no destination", w.Index)
		}
		return b.output(w, a, b.res.Outputs[w.Index])
	case wire.WantBlob, wire.WantPutBlob:
		return b.blob(w, a)
	}
	return errs.New(errs.Unimplemented, "the engine wants %q, which this ply does not know", w.Kind)
}

// local answers with a directory.
func (b *running) local(w *wire.BuildWant, a *wire.BuildAnswer) error {
	if w.Name == "context" && b.res.Context != nil {
		b.mu.Lock()
		again := b.tarRead
		b.tarRead = true
		b.mu.Unlock()
		if again {
			return errs.New(errs.Conflict, "the context on the standard input was read already")
		}
		a.Tar = true
		return b.stream(a, func(conn net.Conn) error { _, err := io.Copy(conn, b.res.Context); return err })
	}
	dir, ok := b.res.Dirs[w.Name]
	if !ok {
		return errs.New(errs.NotFound, "no directory has this name")
	}
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := b.res.check(f, false); err != nil {
		return err
	}
	if w.Stream || !b.conn.CarriesFiles() {
		a.Tar = true
		open := fmt.Sprintf("/proc/self/fd/%d/", f.Fd()) // what was checked, wherever its name leads now
		return b.stream(a, func(conn net.Conn) error { return b.res.Pack(b.ctx, conn, w.Name, open) })
	}
	err = b.conn.Send(*a, f)
	a.ID = 0
	return err
}

// stream sends an answer with a stream and serves the other end of it.
func (b *running) stream(a *wire.BuildAnswer, serve func(net.Conn) error) error {
	conn, err := b.open(a)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(b.ctx, func() { _ = conn.Close() })()
	id := a.ID
	a.ID = 0
	if err := serve(conn); err != nil {
		_ = b.conn.Send(wire.BuildAnswer{ID: id, Error: err.Error()}) // the engine may have had enough of the stream
	}
	return nil
}

// open sends an answer with a stream and returns the other end.
func (b *running) open(a *wire.BuildAnswer) (net.Conn, error) {
	if !b.conn.CarriesFiles() {
		if err := b.conn.Send(*a); err != nil {
			return nil, err
		}
		return b.api.Hijack(b.ctx, client.Request{Path: "/build/direct/stream", Query: url.Values{"token": {b.token}, "id": {strconv.FormatUint(a.ID, 10)}}})
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, errs.New(errs.Internal, "stream to the engine: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "stream"), os.NewFile(uintptr(fds[1]), "stream")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, errs.New(errs.Internal, "stream to the engine: %w", err)
	}
	if err := b.conn.Send(*a, theirs); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// ended notes that the stream of an output has ended.
func (b *running) ended(e *wire.BuildEnded) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.outputs[e.ID]; c != nil {
		select {
		case c <- !e.Failed:
		default:
		}
	}
}

// output takes an output of the build.
func (b *running) output(w *wire.BuildWant, a *wire.BuildAnswer, dest Output) error {
	b.mu.Lock()
	whole := b.outputs[w.ID]
	b.mu.Unlock()
	complete := func() error {
		select {
		case ok := <-whole:
			if !ok {
				return errs.New(errs.Unavailable, "the output was not completed")
			}
			return nil
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		}
	}
	id := a.ID
	dest.check = b.res.Check
	return b.stream(a, func(conn net.Conn) error {
		take := dest.takeFile
		if w.Kind == wire.WantOutputDir {
			take = dest.takeDir
		}
		if err := take(conn, complete); err != nil {
			return err
		}
		return b.conn.Send(wire.BuildAnswer{ID: id})
	})
}
