package direct

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"ply/internal/build"
	"ply/internal/build/export"
	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/transfer"
	"ply/internal/wire"
	"ply/internal/wire/frames"
)

// Builder is what builds need of the engine; build.Service has it.
type Builder interface {
	Build(ctx context.Context, req build.Request, l build.Listener) (*build.Result, error)
	Unpack(ctx context.Context, r io.Reader) (*build.Directory, error)
	Open(root *os.File) *build.Directory
}

// Session is the connection to the client of one build.
type Session struct {
	conn        *frames.Conn
	builder     Builder
	credentials func(wire.Auth) transfer.Credentials
	end         context.CancelCauseFunc

	mu     sync.Mutex
	next   uint64
	asked  map[uint64]*question
	dirs   map[string]*directory
	closed error // why no more answers come
}

var _ build.Client = (*Session)(nil)

// question is a want that is open.
type question struct {
	answers chan reply
	stream  chan net.Conn // a stream that the client opened for the want; for connections that carry no files
}

// reply is an answer with its file.
type reply struct {
	wire.BuildAnswer
	file *os.File
}

// directory is one of the client that is opened once per build.
type directory struct {
	once sync.Once
	dir  *build.Directory
	err  error
}

// newSession returns the session on a connection. credentials translates those of the wire.
func newSession(conn net.Conn, b Builder, credentials func(wire.Auth) transfer.Credentials, end context.CancelCauseFunc) *Session {
	return &Session{
		conn: frames.New(conn, nil), builder: b, credentials: credentials, end: end, asked: map[uint64]*question{}, dirs: map[string]*directory{},
	}
}

// receive reads answers until the connection ends.
func (s *Session) receive() {
	defer s.conn.Discard()
	for {
		var a wire.BuildAnswer
		files, err := s.conn.Receive(&a)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errs.New(errs.Unavailable, "the client of the build has gone")
			}
			s.stop(err)
			return
		}
		r := reply{BuildAnswer: a}
		if len(files) > 0 {
			r.file, files = files[0], files[1:]
		}
		closeFiles(files)
		if !s.deliver(r) {
			r.drop()
		}
	}
}

// deliver hands an answer to those who wait for it. It reports whether there was someone.
func (s *Session) deliver(r reply) bool {
	s.mu.Lock() // done drops what was delivered before it, and nothing is delivered after it
	defer s.mu.Unlock()
	q := s.asked[r.ID]
	if q == nil {
		return false
	}
	select {
	case q.answers <- r:
		return true
	default: // more answers than a want has
		return false
	}
}

// drop closes the file of an answer that is not used.
func (r *reply) drop() {
	if r.file != nil {
		closeFiles([]*os.File{r.file})
	}
}

// stop ends the build and everything that waits for an answer.
func (s *Session) stop(err error) {
	s.mu.Lock()
	if s.closed == nil {
		s.closed = err
	}
	open := s.asked
	s.asked = map[uint64]*question{}
	s.mu.Unlock()
	for _, q := range open {
		close(q.answers)
	}
	s.end(err)
}

// ask sends a want and returns its first answer. The caller calls done when it expects no further one.
func (s *Session) ask(ctx context.Context, w wire.BuildWant) (q *question, r reply, done func(), err error) {
	q = &question{answers: make(chan reply, 2), stream: make(chan net.Conn, 1)}
	s.mu.Lock()
	if s.closed != nil {
		s.mu.Unlock()
		return nil, r, nil, s.closed
	}
	s.next++
	w.ID = s.next
	s.asked[w.ID] = q
	s.mu.Unlock()
	done = func() {
		s.mu.Lock()
		delete(s.asked, w.ID)
		s.mu.Unlock()
		q.drop()
	}
	if err := s.conn.Send(wire.BuildFrame{Want: &w}); err != nil {
		done()
		return nil, r, nil, err
	}
	r, err = s.await(ctx, q)
	if err != nil {
		done()
		return nil, r, nil, err
	}
	r.ID = w.ID
	return q, r, done, nil
}

// await returns the next answer of a want.
func (s *Session) await(ctx context.Context, q *question) (r reply, err error) {
	select {
	case got, ok := <-q.answers:
		if !ok {
			s.mu.Lock()
			defer s.mu.Unlock()
			return r, s.closed
		}
		if got.Error == "" {
			return got, nil
		}
		got.drop()
		var class error = errs.Invalid
		if got.NotFound {
			class = errs.NotFound
		}
		return r, errs.New(class, "%s", got.Error)
	case <-ctx.Done():
		return r, context.Cause(ctx)
	}
}

// drop closes what came for a want and was not used.
func (q *question) drop() {
	answers := q.answers
	for {
		select {
		case r, ok := <-answers:
			if !ok {
				answers = nil // no more come
				continue
			}
			r.drop()
		case c := <-q.stream:
			_ = c.Close() // nothing was written
		default:
			return
		}
	}
}

// Attach hands over a stream that the client opened for a want. Errors: errs.NotFound when nothing waits for it.
func (s *Session) Attach(id uint64, conn net.Conn) error {
	s.mu.Lock() // as in deliver
	defer s.mu.Unlock()
	if q := s.asked[id]; q != nil {
		select {
		case q.stream <- conn:
			return nil
		default:
		}
	}
	return errs.New(errs.NotFound, "the build waits for no stream %d", id)
}

// streamOf returns the stream of an answer: its file, or the connection that the client has opened.
func (s *Session) streamOf(ctx context.Context, q *question, r reply) (net.Conn, error) {
	if r.file != nil {
		defer closeFiles([]*os.File{r.file})
		conn, err := net.FileConn(r.file)
		if err != nil {
			return nil, errs.New(errs.Invalid, "the client sent something that is not a stream: %v", err)
		}
		return conn, nil
	}
	if s.conn.CarriesFiles() {
		return nil, errs.New(errs.Invalid, "the client sent no stream")
	}
	select {
	case conn := <-q.stream:
		return conn, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Local implements build.Client.
func (s *Session) Local(ctx context.Context, l *ops.Local) (*tree.Tree, error) {
	place := s.directory(l.Name)
	place.once.Do(func() {
		place.dir, place.err = s.open(ctx, wire.BuildWant{Kind: wire.WantLocal, Name: l.Name, Stream: !s.conn.CarriesFiles()})
	})
	if place.err != nil {
		if ctx.Err() == nil && errors.Is(place.err, context.Canceled) {
			s.forget(l.Name) // another part of the build asked for it, and was cancelled
		}
		return nil, fmt.Errorf("directory %q of the client: %w", l.Name, place.err)
	}
	return place.dir.Local(l)
}

func (s *Session) directory(name string) *directory {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dirs[name]
	if d == nil {
		d = &directory{}
		s.dirs[name] = d
	}
	return d
}

func (s *Session) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dirs, name)
}

// open opens a directory of the client: in place, or as a copy that the client sends.
func (s *Session) open(ctx context.Context, w wire.BuildWant) (*build.Directory, error) {
	q, r, done, err := s.ask(ctx, w)
	if err != nil {
		return nil, err
	}
	defer done()
	if r.Tar {
		conn, err := s.streamOf(ctx, q, r)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		return s.builder.Unpack(ctx, conn)
	}
	if r.file == nil {
		return nil, errs.New(errs.Invalid, "the client sent no directory")
	}
	err = readable(r.file)
	if err == nil {
		return s.builder.Open(r.file), nil
	}
	closeFiles([]*os.File{r.file})
	if w.Stream || !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		return nil, err
	}
	// A file system of the user may refuse root. Then only the client can read it.
	w.Stream = true
	return s.open(ctx, w)
}

// readable checks that an open file is a directory that this process may read.
func readable(f *os.File) error {
	fd, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "directory", Err: err}
	}
	return unix.Close(fd)
}

// Secret implements build.Client.
func (s *Session) Secret(ctx context.Context, id string) ([]byte, error) {
	return s.data(ctx, wire.BuildWant{Kind: wire.WantSecret, Name: id})
}

// data asks for something that has no file.
func (s *Session) data(ctx context.Context, w wire.BuildWant) ([]byte, error) {
	_, r, done, err := s.ask(ctx, w)
	if err != nil {
		return nil, err
	}
	defer done()
	r.drop()
	return r.Data, nil
}

// Agent implements build.Client.
func (s *Session) Agent(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	if id == "" {
		id = "default" // as in BuildKit
	}
	q, r, done, err := s.ask(ctx, wire.BuildWant{Kind: wire.WantAgent, Name: id})
	if err != nil {
		return nil, err
	}
	defer done()
	return s.streamOf(ctx, q, r)
}

// Credentials implements build.Client.
func (s *Session) Credentials(ctx context.Context, host string) (transfer.Credentials, error) {
	data, err := s.data(ctx, wire.BuildWant{Kind: wire.WantCredentials, Name: host})
	if err != nil || len(data) == 0 {
		return transfer.Credentials{}, err
	}
	var a wire.Auth
	if err := json.Unmarshal(data, &a); err != nil {
		return transfer.Credentials{}, errs.New(errs.Invalid, "credentials of the client: not a JSON object")
	}
	return s.credentials(a), nil
}

// OutputTar implements build.Client.
func (s *Session) OutputTar(ctx context.Context, index int, meta map[string]string) (io.WriteCloser, error) {
	o, err := s.output(ctx, wire.BuildWant{Kind: wire.WantOutput, Index: index, Meta: meta})
	if err == nil && o == nil {
		err = errs.New(errs.Invalid, "the client takes no output")
	}
	return o, err
}

// OutputDir implements build.Client.
func (s *Session) OutputDir(ctx context.Context, index int, files export.Files) error {
	o, err := s.output(ctx, wire.BuildWant{Kind: wire.WantOutputDir, Index: index})
	if err == nil && o == nil {
		err = errs.New(errs.Invalid, "the client takes no output")
	}
	if err != nil {
		return err
	}
	if err := writeTar(ctx, o, files); err != nil {
		o.fail()
		return err
	}
	return o.Close()
}

// output is a stream in which the client takes an output.
type output struct {
	s     *Session
	ctx   context.Context //nolint:containedctx // of one output
	conn  net.Conn
	q     *question
	id    uint64
	done  func()
	unset func() bool
	once  sync.Once
	err   error
}

// output returns the stream for an output; nil when the client needs none.
func (s *Session) output(ctx context.Context, w wire.BuildWant) (*output, error) {
	q, r, done, err := s.ask(ctx, w)
	if err != nil {
		return nil, err
	}
	if r.Has {
		r.drop()
		done()
		return nil, nil
	}
	conn, err := s.streamOf(ctx, q, r)
	if err != nil {
		done()
		return nil, err
	}
	o := &output{s: s, ctx: ctx, conn: conn, q: q, id: r.ID, done: done}
	o.unset = context.AfterFunc(ctx, o.fail)
	return o, nil
}

// Write sends a part of the output. When the client has refused it, the error is what the client said.
func (o *output) Write(p []byte) (int, error) {
	n, err := o.conn.Write(p)
	if err != nil {
		select {
		case r := <-o.q.answers:
			if r.Error != "" {
				err = errs.New(errs.Invalid, "%s", r.Error)
			}
		default:
		}
	}
	return n, err
}

// fail tells the client that there is no more of the output.
func (o *output) fail() {
	o.once.Do(func() {
		defer o.done()
		o.err = context.Cause(o.ctx)
		if o.err == nil {
			o.err = errs.New(errs.Unavailable, "the output failed")
		}
		_ = o.s.conn.Send(wire.BuildFrame{Ended: &wire.BuildEnded{ID: o.id, Failed: true}}) // without a client there is no one to tell
		_ = o.conn.Close()
	})
}

// Close waits until the client has everything.
func (o *output) Close() error {
	if !o.unset() {
		o.fail() // the context has ended, or this is not the first Close
		return o.err
	}
	o.once.Do(func() {
		defer o.done()
		defer o.conn.Close()
		if o.err = o.s.conn.Send(wire.BuildFrame{Ended: &wire.BuildEnded{ID: o.id}}); o.err != nil {
			return
		}
		if half, ok := o.conn.(interface{ CloseWrite() error }); ok {
			o.err = half.CloseWrite()
		}
		if o.err == nil {
			_, o.err = o.s.await(o.ctx, o.q)
		}
	})
	return o.err
}

// close closes the directories, after the build.
func (s *Session) close() error {
	s.mu.Lock()
	dirs := s.dirs
	s.dirs = map[string]*directory{}
	s.mu.Unlock()
	var all error
	for _, d := range dirs {
		if d.dir != nil {
			all = errors.Join(all, d.dir.Close())
		}
	}
	return all
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written
	}
}
