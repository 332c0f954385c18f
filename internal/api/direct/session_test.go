package direct

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/build"
	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/wire"
	"ply/internal/wire/frames"
)

// patience is how long a test waits for what should happen at once.
const patience = time.Minute

const token = "0123456789abcdef"

// builder runs a function as the build.
type builder struct {
	work     func(ctx context.Context, req *build.Request) error
	unpacked chan string
}

func (b *builder) Build(ctx context.Context, req build.Request, _ build.Listener) (*build.Result, error) {
	return &build.Result{}, b.work(ctx, &req)
}

// Unpack notes the bytes, and returns an empty directory.
func (b *builder) Unpack(_ context.Context, r io.Reader) (*build.Directory, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	b.unpacked <- string(data)
	root, err := os.Open(".")
	if err != nil {
		return nil, err
	}
	return b.Open(root), nil
}

func (b *builder) Open(root *os.File) *build.Directory { return (&build.Service{}).Open(root) }

func words(err error) string { return err.Error() }

func credentials(a wire.Auth) transfer.Credentials { return transfer.Credentials{Username: a.Username} }

func pair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conns[i], err = net.FileConn(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

// peer is the client of a build, as a test has it.
type peer struct {
	t    *testing.T
	conn net.Conn
	*frames.Conn
	server   *Server
	unpacked chan string
	done     chan error // what Serve returned
}

// serve runs work as a build with a client. The test ends the connection, and then everything of the build must be gone.
func serve(t *testing.T, work func(ctx context.Context, c build.Client) error) *peer {
	t.Helper()
	before, routines := openFiles(t), runtime.NumGoroutine()
	client, server := pair(t)
	return serveOn(t, client, server, before, routines, work)
}

func serveOn(t *testing.T, client, server net.Conn, before, routines int, work func(ctx context.Context, c build.Client) error) *peer {
	t.Helper()
	b := &builder{unpacked: make(chan string, 4), work: func(ctx context.Context, req *build.Request) error { return work(ctx, req.Client) }}
	percent := debug.SetGCPercent(-1) // a collection closes files that were forgotten
	p := &peer{t: t, conn: client, Conn: frames.New(client, nil), server: NewServer(b, credentials, words), unpacked: b.unpacked, done: make(chan error, 1)}
	go func() {
		p.done <- p.server.Serve(context.Background(), server, &wire.DirectBuild{Token: token}, &build.Request{})
	}()
	t.Cleanup(func() {
		defer debug.SetGCPercent(percent)
		_ = client.Close()
		select {
		case <-p.done:
		case <-time.After(patience):
			buf := make([]byte, 1<<20)
			t.Fatalf("the build does not end\n%s", buf[:runtime.Stack(buf, true)])
		}
		if n := len(p.server.sessions); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		var files, left int
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) { // goroutines end a moment later
			if files, left = openFiles(t), runtime.NumGoroutine(); files <= before && left <= routines {
				return
			}
		}
		t.Errorf("%d files and %d goroutines are left, before %d and %d", files, left, before, routines)
	})
	return p
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// next returns the next frame that is not an event.
func (p *peer) next() (f wire.BuildFrame) {
	p.t.Helper()
	if err := p.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	for {
		f = wire.BuildFrame{}
		files, err := p.Receive(&f)
		if err != nil {
			p.t.Fatalf("the engine ended: %v", err)
		}
		if len(files) > 0 {
			p.t.Fatal("the engine sent a file")
		}
		if f.Events == nil {
			return f
		}
	}
}

func (p *peer) want(kind string) *wire.BuildWant {
	p.t.Helper()
	f := p.next()
	if f.Want == nil || f.Want.Kind != kind {
		p.t.Fatalf("the engine sent %+v, want the want %s", f, kind)
	}
	return f.Want
}

func (p *peer) answer(a wire.BuildAnswer, files ...*os.File) {
	p.t.Helper()
	if err := p.Send(a, files...); err != nil {
		p.t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
}

// end returns the error of the last frame.
func (p *peer) end() string {
	p.t.Helper()
	f := p.next()
	if f.Done == nil {
		p.t.Fatalf("the engine sent %+v, want the end", f)
	}
	if f.Done.Error == nil {
		return ""
	}
	return f.Done.Error.Message
}

func open(t *testing.T, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// files are descriptors that a hostile client may send.
func hostileFile(t *testing.T, kind string) *os.File {
	t.Helper()
	dir := t.TempDir()
	switch kind {
	case "file":
		p := filepath.Join(dir, "f")
		if err := os.WriteFile(p, []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
		return open(t, p, os.O_RDONLY)
	case "fifo":
		p := filepath.Join(dir, "p")
		if err := unix.Mkfifo(p, 0o600); err != nil {
			t.Fatal(err)
		}
		return open(t, p, os.O_RDWR)
	case "device":
		return open(t, os.DevNull, os.O_RDONLY)
	case "memory":
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "event")
	case "socket":
		ours, theirs := pair(t)
		f, err := theirs.(*net.UnixConn).File()
		if err := errors.Join(err, ours.Close(), theirs.Close()); err != nil {
			t.Fatal(err)
		}
		return f
	case "path":
		p := filepath.Join(dir, "l")
		if err := os.Symlink("/", p); err != nil {
			t.Fatal(err)
		}
		return open(t, p, unix.O_PATH|unix.O_NOFOLLOW)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, dir, os.O_RDONLY)
}

func local(ctx context.Context, c build.Client) error {
	tr, err := c.Local(ctx, &ops.Local{Name: "context"})
	if err != nil {
		return err
	}
	data, err := tr.ReadFile("f", 0, 100)
	if err == nil && string(data) != "text" {
		err = fmt.Errorf("the directory has %q", data)
	}
	return err
}

func blob(ctx context.Context, c build.Client) error {
	dir, err := c.(build.CacheDirs).CacheDir(ctx, "cache")
	if err != nil {
		return err
	}
	r, err := dir.Open(ctx, oci.DigestOf(nil))
	if err != nil {
		return err
	}
	data, err := io.ReadAll(r)
	if err == nil && string(data) != "text" {
		err = fmt.Errorf("the blob has %q", data)
	}
	return errors.Join(err, r.Close())
}

func agent(ctx context.Context, c build.Client) error {
	conn, err := c.Agent(ctx, "")
	if err != nil {
		return err
	}
	return conn.Close()
}

func secret(ctx context.Context, c build.Client) error {
	data, err := c.Secret(ctx, "s")
	if err == nil && string(data) != "hush" {
		err = fmt.Errorf("the secret is %q", data)
	}
	return err
}

func userName(ctx context.Context, c build.Client) error {
	got, err := c.Credentials(ctx, "host")
	if err == nil && got.Username != "joe" {
		err = fmt.Errorf("the user is %q", got.Username)
	}
	return err
}

func takeOutput(ctx context.Context, c build.Client) error {
	w, err := c.OutputTar(ctx, 0, nil)
	if err != nil {
		return err
	}
	return w.Close()
}

// A client may answer with anything. What is not what was asked for is an error that says so, and no descriptor stays open.
func TestAnswersAreChecked(t *testing.T) {
	type answer = wire.BuildAnswer
	for _, c := range []struct {
		name  string
		work  func(context.Context, build.Client) error
		kind  string
		a     answer
		files []string
		want  string // in the error; "" = it succeeds
	}{
		{"directory", local, wire.WantLocal, answer{}, []string{"directory"}, ""},
		{"directory and more", local, wire.WantLocal, answer{}, []string{"directory", "file", "socket", "fifo", "directory", "memory", "path", "device"}, ""},
		{"no directory", local, wire.WantLocal, answer{}, nil, "sent no directory"},
		{"file as directory", local, wire.WantLocal, answer{}, []string{"file"}, "not a directory"},
		{"fifo as directory", local, wire.WantLocal, answer{}, []string{"fifo"}, "not a directory"},
		{"device as directory", local, wire.WantLocal, answer{}, []string{"device"}, "not a directory"},
		{"socket as directory", local, wire.WantLocal, answer{}, []string{"socket"}, "not a directory"},
		{"event as directory", local, wire.WantLocal, answer{}, []string{"memory"}, "not a directory"},
		{"link as directory", local, wire.WantLocal, answer{}, []string{"path"}, "not a directory"},
		{"directory comes second", local, wire.WantLocal, answer{}, []string{"file", "directory"}, "not a directory"},
		{"error", local, wire.WantLocal, answer{Error: "gone\xff"}, []string{"directory"}, "gone"},
		{"tar without a stream", local, wire.WantLocal, answer{Tar: true}, nil, "sent no stream"},
		{"tar with a directory", local, wire.WantLocal, answer{Tar: true}, []string{"directory"}, "not a stream"},
		{"tar with a fifo", local, wire.WantLocal, answer{Tar: true}, []string{"fifo"}, "not a stream"},
		{"blob", blob, wire.WantBlob, answer{}, []string{"file"}, ""},
		{"no blob", blob, wire.WantBlob, answer{}, nil, "sent no stream"},
		{"fifo as blob", blob, wire.WantBlob, answer{}, []string{"fifo"}, "not a file"},
		{"directory as blob", blob, wire.WantBlob, answer{}, []string{"directory"}, "not a file"},
		{"device as blob", blob, wire.WantBlob, answer{}, []string{"device"}, "not a file"},
		{"secret", secret, wire.WantSecret, answer{Data: []byte("hush")}, nil, ""},
		{"secret with a file", secret, wire.WantSecret, answer{Data: []byte("hush")}, []string{"file"}, ""},
		{"no secret", secret, wire.WantSecret, answer{Error: "none", NotFound: true}, nil, "none"},
		{"credentials", userName, wire.WantCredentials, answer{Data: []byte(`{"username":"joe"}`)}, []string{"fifo"}, ""},
		{"credentials of another form", userName, wire.WantCredentials, answer{Data: []byte(`["joe"]`)}, nil, "not a JSON object"},
		{"cut credentials", userName, wire.WantCredentials, answer{Data: []byte(`{"username":`)}, nil, "not a JSON object"},
		{"agent", agent, wire.WantAgent, answer{}, []string{"socket"}, ""},
		{"no agent", agent, wire.WantAgent, answer{}, nil, "sent no stream"},
		{"directory as agent", agent, wire.WantAgent, answer{}, []string{"directory"}, "not a stream"},
		{"no output", takeOutput, wire.WantOutput, answer{Has: true}, []string{"socket"}, "takes no output"},
		{"file as output", takeOutput, wire.WantOutput, answer{}, []string{"file"}, "not a stream"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := serve(t, c.work)
			w := p.want(c.kind)
			c.a.ID = w.ID
			var list []*os.File
			for _, kind := range c.files {
				list = append(list, hostileFile(t, kind))
			}
			p.answer(c.a, list...)
			got := p.end()
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("the build ended with %q, want %q", got, c.want)
			}
		})
	}
}

// The class of an error is that of the client's answer.
func TestErrorsHaveTheirClass(t *testing.T) {
	for _, notFound := range []bool{false, true} {
		p := serve(t, func(ctx context.Context, c build.Client) error {
			_, err := c.Secret(ctx, "s")
			if errors.Is(err, errs.NotFound) != notFound || errors.Is(err, errs.Invalid) == notFound {
				return fmt.Errorf("class of %w", err)
			}
			return nil
		})
		p.answer(wire.BuildAnswer{ID: p.want(wire.WantSecret).ID, Error: "none", NotFound: notFound})
		if got := p.end(); got != "" {
			t.Error(got)
		}
	}
}

// Answers come in any order and belong to the want with their ID. Those to nothing, and further ones, are dropped with their files.
func TestAnswersInAnyOrder(t *testing.T) {
	p := serve(t, func(ctx context.Context, c build.Client) error {
		results := make(chan error, 3)
		for _, name := range []string{"a", "b", "c"} {
			go func() {
				data, err := c.Secret(ctx, name)
				if err == nil && string(data) != name {
					err = fmt.Errorf("the secret %s is %q", name, data)
				}
				results <- err
			}()
		}
		return errors.Join(<-results, <-results, <-results, local(ctx, c))
	})
	p.answer(wire.BuildAnswer{ID: 1 << 63}, hostileFile(t, "directory"))
	p.answer(wire.BuildAnswer{ID: 0}, hostileFile(t, "file"))
	wants := []*wire.BuildWant{p.want(wire.WantSecret), p.want(wire.WantSecret), p.want(wire.WantSecret)}
	for i := range wants {
		w := wants[len(wants)-1-i]
		p.answer(wire.BuildAnswer{ID: w.ID, Data: []byte(w.Name)})
		for range 4 {
			p.answer(wire.BuildAnswer{ID: w.ID, Data: []byte("another")}, hostileFile(t, "file"))
		}
	}
	w := p.want(wire.WantLocal)
	p.answer(wire.BuildAnswer{ID: w.ID}, hostileFile(t, "directory"))
	if got := p.end(); got != "" {
		t.Error(got)
	}
}

// A build whose client goes, or sends what is no frame, ends at once, whatever it waits for.
func TestPeerVanishes(t *testing.T) {
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	for _, c := range []struct {
		name string
		sent []byte
		want string
	}{
		{"nothing", nil, "the client of the build has gone"},
		{"half a length", []byte{0, 0}, "unexpected EOF"},
		{"half a frame", frame(`{"ID":1}`)[:7], "unexpected EOF"},
		{"a frame that is too long", binary.BigEndian.AppendUint32(nil, frames.MaxSize+1), "at most"},
		{"no JSON", frame("abc"), "frame"},
		{"no object", frame("[1]"), "frame"},
		{"another type", frame(`{"ID":"x"}`), "frame"},
		{"more after the object", frame(`{"ID":9}{"ID":9}`), "frame"},
		{"a number that is too large", frame(`{"ID":18446744073709551616}`), "frame"},
		{"an empty frame", frame(""), "frame"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ended := make(chan error, 4)
			p := serve(t, func(ctx context.Context, client build.Client) error {
				for _, work := range []func(context.Context, build.Client) error{secret, agent, takeOutput} {
					go func() { ended <- work(ctx, client) }()
				}
				err := local(ctx, client)
				for range 3 {
					ended <- <-ended // the others have ended, too
				}
				if ctx.Err() == nil || context.Cause(ctx) == context.Canceled {
					return errors.New("the build goes on")
				}
				// After the end nothing is asked any more.
				if err := secret(context.Background(), client); err == nil {
					return errors.New("a secret came from nobody")
				}
				ended <- err
				return err
			})
			for range 4 {
				p.next()
			}
			if _, err := p.conn.Write(c.sent); err != nil {
				t.Fatal(err)
			}
			if err := p.conn.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-p.done:
				p.done <- err
			case <-time.After(patience):
				t.Fatal("the build goes on without its client")
			}
			n := 0
			for range len(ended) {
				if err := <-ended; err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %q", err, c.want)
				}
				n++
			}
			if n == 0 {
				t.Error("nothing waited")
			}
		})
	}
}

// More files than a frame may have end the build, and none of them stays open.
func TestTooManyFiles(t *testing.T) {
	p := serve(t, local)
	w := p.want(wire.WantLocal)
	body, err := json.Marshal(wire.BuildAnswer{ID: w.ID})
	if err != nil {
		t.Fatal(err)
	}
	f := hostileFile(t, "directory")
	defer f.Close()
	var fds []int
	for range frames.MaxFiles + 1 {
		fds = append(fds, int(f.Fd()))
	}
	raw, err := p.conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...), unix.UnixRights(fds...), nil, 0)
		return true
	})
	if err := errors.Join(err, sent); err != nil {
		t.Fatal(err)
	}
	if got := p.end(); !strings.Contains(got, "more than 8 files") {
		t.Errorf("the build ended with %q", got)
	}
}

// A directory is asked for once, however many steps want it, and again only if the first one who wanted it was cancelled.
func TestDirectoryIsOpenedOnce(t *testing.T) {
	p := serve(t, func(ctx context.Context, c build.Client) error {
		cancelled, cancel := context.WithCancel(ctx)
		first := make(chan error, 1)
		go func() { first <- local(cancelled, c) }()
		for len(c.(*Session).questions()) == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			return fmt.Errorf("cancelled: %w", err)
		}
		err := local(ctx, c)
		if errors.Is(err, context.Canceled) {
			err = local(ctx, c) // the one after the cancelled one learns of it, and forgets it
		}
		return errors.Join(err, local(ctx, c), local(ctx, c))
	})
	p.want(wire.WantLocal)
	w := p.want(wire.WantLocal)
	p.answer(wire.BuildAnswer{ID: w.ID}, hostileFile(t, "directory"))
	if got := p.end(); got != "" {
		t.Error(got)
	}
}

// questions returns the IDs of the open wants.
func (s *Session) questions() (list []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.asked {
		list = append(list, id)
	}
	return list
}

// Over a connection that carries no files, directories and blobs come in streams that the client opens, before or after its answer.
func TestWithoutFiles(t *testing.T) {
	for _, early := range []bool{false, true} {
		before, routines := openFiles(t), runtime.NumGoroutine()
		client, server := net.Pipe()
		p := serveOn(t, client, server, before, routines, func(ctx context.Context, c build.Client) error {
			_, err := c.Local(ctx, &ops.Local{Name: "context"})
			return errors.Join(err, blob(ctx, c))
		})
		for _, kind := range []string{wire.WantLocal, wire.WantBlob} {
			w := p.want(kind)
			if !w.Stream {
				t.Errorf("%s: the engine does not say that it wants a stream", kind)
			}
			ours, theirs := pair(t)
			attach := func() {
				if err := p.server.Attach(token, w.ID, theirs); err != nil {
					t.Fatal(err)
				}
			}
			if early {
				attach()
				if err := p.server.Attach(token, w.ID, theirs); !errors.Is(err, errs.NotFound) {
					t.Errorf("a second stream: %v", err)
				}
			}
			p.answer(wire.BuildAnswer{ID: w.ID, Tar: kind == wire.WantLocal})
			if !early {
				attach()
			}
			if _, err := io.WriteString(ours, "text"); err != nil {
				t.Fatal(err)
			}
			if err := ours.Close(); err != nil {
				t.Fatal(err)
			}
			if kind == wire.WantLocal {
				if got := <-p.unpacked; got != "text" {
					t.Errorf("the tar is %q", got)
				}
			}
		}
		if got := p.end(); got != "" {
			t.Error(got)
		}
	}
}

// A stream for a build or a want that does not exist is refused, and one that nobody takes is closed.
func TestStreamsNobodyWaitsFor(t *testing.T) {
	p := serve(t, secret)
	w := p.want(wire.WantSecret)
	ours, theirs := pair(t)
	defer ours.Close()
	for what, err := range map[string]error{
		"another token": p.server.Attach("x"+token, w.ID, theirs), "no token": p.server.Attach("", w.ID, theirs), "another want": p.server.Attach(token, w.ID+1, theirs),
	} {
		if !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := p.server.Attach(token, w.ID, theirs); err != nil {
		t.Fatal(err)
	}
	p.answer(wire.BuildAnswer{ID: w.ID, Data: []byte("hush")})
	if got := p.end(); got != "" {
		t.Error(got)
	}
	if n, err := ours.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the stream is open: %d, %v", n, err)
	}
	if err := p.server.Attach(token, w.ID, theirs); !errors.Is(err, errs.NotFound) {
		t.Errorf("after the end: %v", err)
	}
}

// Two builds cannot have one token.
func TestTokensAreUnique(t *testing.T) {
	p := serve(t, secret)
	w := p.want(wire.WantSecret)
	client, server := pair(t)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // for a server that accepts it
	defer cancel()
	if err := p.server.Serve(ctx, server, &wire.DirectBuild{Token: token}, &build.Request{}); !errors.Is(err, errs.Conflict) {
		t.Errorf("a second build: %v", err)
	}
	p.answer(wire.BuildAnswer{ID: w.ID, Data: []byte("hush")})
	if got := p.end(); got != "" {
		t.Error(got)
	}
}

// An output is complete when the client says so; what it says in place of that is the error, and a build that fails tells the client so.
func TestOutputs(t *testing.T) {
	broken := errors.New("the layer is damaged")
	for _, c := range []struct {
		name   string
		answer wire.BuildAnswer // after the stream
		fail   bool             // the build ends in the middle
		want   string
	}{
		{"complete", wire.BuildAnswer{}, false, ""},
		{"refused", wire.BuildAnswer{Error: "no space left"}, false, "no space left"},
		{"failed", wire.BuildAnswer{}, true, broken.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := serve(t, func(ctx context.Context, client build.Client) error {
				ctx, cancel := context.WithCancelCause(ctx)
				defer cancel(nil)
				w, err := client.OutputTar(ctx, 3, map[string]string{"k": "v"})
				if err != nil {
					return err
				}
				if _, err := io.WriteString(w, "text"); err != nil {
					return err
				}
				if c.fail {
					cancel(broken)
				}
				return w.Close()
			})
			w := p.want(wire.WantOutput)
			if w.Index != 3 || w.Meta["k"] != "v" {
				t.Errorf("the want is %+v", w)
			}
			ours, theirs := pair(t)
			f, err := theirs.(*net.UnixConn).File()
			if err := errors.Join(err, theirs.Close()); err != nil {
				t.Fatal(err)
			}
			p.answer(wire.BuildAnswer{ID: w.ID}, f)
			data, err := io.ReadAll(ours)
			if err := errors.Join(err, ours.Close()); err != nil || string(data) != "text" {
				t.Errorf("%q, %v", data, err)
			}
			if f := p.next(); f.Ended == nil || f.Ended.ID != w.ID || f.Ended.Failed != c.fail {
				t.Errorf("the engine sent %+v", f)
			}
			if !c.fail {
				c.answer.ID = w.ID
				p.answer(c.answer)
			}
			if got := p.end(); c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("the build ended with %q, want %q", got, c.want)
			}
		})
	}
}

// The body of a request is bounded and checked.
func TestRequest(t *testing.T) {
	s := NewServer(&builder{}, credentials, words)
	many := make([]wire.BuildOption, maxList+1)
	for name, c := range map[string]struct {
		b    wire.DirectBuild
		want string
	}{
		"short token":       {wire.DirectBuild{Token: token[1:]}, "token"},
		"many tags":         {wire.DirectBuild{Token: token, Tags: make([]string, maxList+1)}, "more than 1000"},
		"many outputs":      {wire.DirectBuild{Token: token, Exports: many}, "more than 1000"},
		"many caches":       {wire.DirectBuild{Token: token, CacheFrom: many}, "more than 1000"},
		"many caches to":    {wire.DirectBuild{Token: token, CacheTo: many}, "more than 1000"},
		"malformed tag":     {wire.DirectBuild{Token: token, Tags: []string{"A b"}}, "invalid reference"},
		"tag with a digest": {wire.DirectBuild{Token: token, Tags: []string{"a@" + string(oci.DigestOf(nil))}}, "digest reference"},
		"entitlement":       {wire.DirectBuild{Token: token, Allow: []string{"network"}}, "unknown entitlement"},
		"empty entitlement": {wire.DirectBuild{Token: token, Allow: []string{""}}, "unknown entitlement"},
		"several in one":    {wire.DirectBuild{Token: token, Allow: []string{"network.host,security.insecure"}}, "unknown entitlement"},
	} {
		if _, err := s.Request(&c.b); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, allow := range [][]string{nil, {"network.host"}, {"security.insecure"}, {"security.insecure", "network.host"}} {
		req, err := s.Request(&wire.DirectBuild{Token: token, Allow: allow, Tags: []string{"a"}})
		all := strings.Join(allow, " ")
		if err != nil || req.HostNetwork != strings.Contains(all, "network.host") || req.Insecure != strings.Contains(all, "security.insecure") || req.Tags[0].Familiar() != "a:latest" {
			t.Errorf("%q: %+v, %v", allow, req, err)
		}
	}
}

// memory is a connection whose peer has sent data and reads everything.
type memory struct {
	net.Conn
	io.Reader
}

func (memory) LocalAddr() net.Addr          { return nil }
func (memory) Write(p []byte) (int, error)  { return len(p), nil }
func (m memory) Read(p []byte) (int, error) { return m.Reader.Read(p) }
func (memory) Close() error                 { return nil }

// No answers of a client make the engine panic, wait for ever, or take what it did not ask for.
func FuzzAnswers(f *testing.F) {
	add := func(list ...any) {
		var all []byte
		for _, a := range list {
			body, err := json.Marshal(a)
			if err != nil {
				f.Fatal(err)
			}
			all = append(binary.BigEndian.AppendUint32(all, uint32(len(body))), body...)
		}
		f.Add(all)
	}
	add()
	add(wire.BuildAnswer{ID: 1, Data: []byte("hush")})
	add(wire.BuildAnswer{ID: 1, Data: []byte("hush")}, wire.BuildAnswer{ID: 2, Data: []byte(`{"username":"joe"}`)}, wire.BuildAnswer{ID: 3, Has: true}, wire.BuildAnswer{ID: 4, Tar: true})
	add(wire.BuildAnswer{ID: 2, Error: "no", NotFound: true}, wire.BuildAnswer{ID: 1, Error: "no"})
	add([]int{1}, "x")
	f.Add([]byte{0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		b := &builder{unpacked: make(chan string, 4)}
		b.work = func(ctx context.Context, req *build.Request) error {
			return errors.Join(secret(ctx, req.Client), userName(ctx, req.Client), takeOutput(ctx, req.Client), agent(ctx, req.Client))
		}
		err := NewServer(b, credentials, words).Serve(context.Background(), memory{Reader: bytes.NewReader(data)}, &wire.DirectBuild{Token: token}, &build.Request{})
		if err != nil {
			t.Errorf("the last frame was not sent: %v", err)
		}
	})
}
