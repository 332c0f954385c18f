package buildkit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"ply/internal/build"
	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/errs"
)

// kept receives every directory of a key into the same place.
type kept struct {
	t    *testing.T
	dir  string
	last map[string]time.Time
}

func (k *kept) Receive(key string, fill func(*os.File, time.Time) (int64, error)) (*build.Directory, error) {
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.Open(k.dir)
	if err != nil {
		return nil, err
	}
	since := k.last[key]
	if k.last == nil {
		k.last = map[string]time.Time{}
	}
	k.last[key] = time.Now()
	if _, err := fill(root, since); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return (&build.Service{}).Open(root), nil
}

// open makes a session of BuildKit's own client library, which offers what is given, and returns its client.
func open(t *testing.T, all ...session.Attachable) *Client {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	sessions := NewSessions()
	s, err := session.NewSession(ctx, "key\x01é")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		s.Allow(a)
	}
	ended := make(chan error, 2)
	dial := func(_ context.Context, proto string, meta map[string][]string) (net.Conn, error) {
		client, server, err := pair()
		if err != nil {
			return nil, err
		}
		h := http.Header(meta)
		h.Set("Upgrade", proto)
		o, err := ParseOffer(h)
		if err != nil {
			return nil, err
		}
		go func() { ended <- sessions.Begin(ctx, o, func() (net.Conn, error) { return server, nil }) }()
		return client, nil
	}
	go func() { ended <- s.Run(ctx, dial) }()
	c := sessions.Client(s.ID(), &kept{t: t, dir: filepath.Join(t.TempDir(), "received")})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		for range 2 {
			select {
			case <-ended:
			case <-time.After(30 * time.Second):
				t.Error("the session does not end")
				return
			}
		}
	})
	return c
}

// pair returns both ends of a connection.
func pair() (client, server net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conns[i], err = net.FileConn(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, nil, err
		}
	}
	return conns[0], conns[1], nil
}

// dirs offers a directory under a name.
func dirs(t *testing.T, name, dir string) session.Attachable {
	t.Helper()
	f, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	return filesync.NewFSSyncProvider(filesync.StaticDirSource{name: f})
}

func write(t *testing.T, dir, name, text string, age time.Duration) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-age)
	if err := os.Chtimes(p, old, old); err != nil {
		t.Fatal(err)
	}
}

// listing describes the files of a tree.
func listing(t *testing.T, tr *tree.Tree) []string {
	t.Helper()
	var out []string
	err := tr.Walk("/", tree.WalkOptions{}, func(e *tree.Entry) error {
		if e.Rel == "" {
			return nil
		}
		line := e.Rel + " " + fs.FileMode(e.Info.Mode&0o7777).String()
		switch {
		case e.Info.IsLink():
			line += " -> " + e.Info.Link
		case e.Info.IsRegular():
			data, err := tr.ReadFile(e.Rel, 0, 1<<20)
			if err != nil {
				return err
			}
			line += " " + string(data)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func inode(t *testing.T, tr *tree.Tree, name string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstatat(int(tr.Root().Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// A directory arrives as the client has it; of a second transfer only what changed is sent, and what is gone there is gone here.
func TestLocal(t *testing.T) {
	src := t.TempDir()
	const old = time.Hour
	write(t, src, "same", "unchanged", old)
	write(t, src, "edited", "before", old)
	write(t, src, "dir/deep/ä b", "x", old)
	write(t, src, "dir.d/file", "", old)
	write(t, src, "becomes-dir", "file", old)
	write(t, src, "becomes-file/inner", "x", old)
	write(t, src, "skipped.log", "no", old)
	write(t, src, "young", "12345", 0)
	big := strings.Repeat("0123456789abcdef", 20_000)
	write(t, src, "big", big, old)
	for _, err := range []error{
		os.Symlink("/etc/passwd", filepath.Join(src, "link")), os.Link(filepath.Join(src, "same"), filepath.Join(src, "twin")),
		os.Chmod(filepath.Join(src, "edited"), 0o4751), os.Mkdir(filepath.Join(src, "empty"), 0o711), unix.Mkfifo(filepath.Join(src, "fifo"), 0o600),
		unix.Setxattr(filepath.Join(src, "dir.d/file"), "user.k", []byte("v"), 0),
	} {
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			t.Fatal(err)
		}
	}
	c := open(t, dirs(t, "context", src))
	want := &ops.Local{Name: "context", Exclude: []string{"*.log"}}
	tr, err := c.Local(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	got := listing(t, tr)
	expect := []string{
		"becomes-dir -rw-r--r-- file", "becomes-file -rwxr-xr-x", "becomes-file/inner -rw-r--r-- x", "big -rw-r--r-- " + big, "dir -rwxr-xr-x", "dir/deep -rwxr-xr-x",
		"dir/deep/ä b -rw-r--r-- x", "dir.d -rwxr-xr-x", "dir.d/file -rw-r--r-- ", "edited " + fs.FileMode(0o4751).String() + " before", "empty -rwx--x--x",
		"fifo -rw-------", "link -rwxrwxrwx -> /etc/passwd", "same -rw-r--r-- unchanged", "twin -rw-r--r-- unchanged", "young -rw-r--r-- 12345",
	}
	slices.Sort(got)
	slices.Sort(expect)
	if !slices.Equal(got, expect) {
		t.Fatalf("received:\n%.3000s\nwant:\n%.3000s", strings.Join(got, "\n"), strings.Join(expect, "\n"))
	}
	if inode(t, tr, "same") != inode(t, tr, "twin") {
		t.Error("two names of a file are two files")
	}
	i, err := tr.Stat("big", false)
	if err != nil || time.Since(i.Time) < old || i.UID != 0 {
		t.Errorf("%+v, %v", i, err)
	}
	big0 := inode(t, tr, "big")
	edited, err := os.Open(filepath.Join(c.dirs.(*kept).dir, "edited"))
	if err != nil {
		t.Fatal(err)
	}
	defer edited.Close()
	// The same size and the same time: within the clock's resolution of the transfer, that does not mean the same content.
	stat, err := os.Stat(filepath.Join(src, "young"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, src, "young", "54321", 0)
	write(t, src, "edited", "after!", old-time.Minute)
	for _, err := range []error{
		os.Chtimes(filepath.Join(src, "young"), stat.ModTime(), stat.ModTime()), os.Remove(filepath.Join(src, "becomes-dir")), os.RemoveAll(filepath.Join(src, "becomes-file")),
		os.RemoveAll(filepath.Join(src, "dir")), os.Remove(filepath.Join(src, "link")), os.Remove(filepath.Join(src, "fifo")), os.Remove(filepath.Join(src, "twin")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	write(t, src, "becomes-dir/inner", "x", old)
	write(t, src, "becomes-file", "now", old)
	if tr, err = c.Local(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	got = listing(t, tr)
	expect = []string{
		"becomes-dir -rwxr-xr-x", "becomes-dir/inner -rw-r--r-- x", "becomes-file -rw-r--r-- now", "big -rw-r--r-- " + big, "dir.d -rwxr-xr-x", "dir.d/file -rw-r--r-- ",
		"edited " + fs.FileMode(0o4751).String() + " after!", "empty -rwx--x--x", "same -rw-r--r-- unchanged", "young -rw-r--r-- 54321",
	}
	slices.Sort(got)
	slices.Sort(expect)
	if !slices.Equal(got, expect) {
		t.Fatalf("received again:\n%.3000s\nwant:\n%.3000s", strings.Join(got, "\n"), strings.Join(expect, "\n"))
	}
	if inode(t, tr, "big") != big0 {
		t.Error("an unchanged file was sent again")
	}
	if text, err := io.ReadAll(edited); err != nil || string(text) != "before" {
		t.Errorf("a file was changed in place: %q, %v", text, err)
	}
	if _, err := c.Local(t.Context(), &ops.Local{Name: "other"}); !errors.Is(err, errs.NotFound) {
		t.Errorf("a directory that the client does not offer: %v", err)
	}
}

// store has secrets, and fails as it is told.
type store struct{ fail error }

func (s store) GetSecret(_ context.Context, id string) ([]byte, error) {
	switch id {
	case "s":
		return []byte("secret"), nil
	case "large":
		return make([]byte, maxSecret+2048), nil
	case "broken":
		return nil, s.fail
	}
	return nil, secrets.ErrNotFound
}

func TestSecret(t *testing.T) {
	c := open(t, secretsprovider.NewSecretProvider(store{fail: errors.New("vault closed")}))
	if got, err := c.Secret(t.Context(), "s"); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.Secret(t.Context(), "none"); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "secret none: not found") {
		t.Errorf("no such secret: %v", err)
	}
	if _, err := c.Secret(t.Context(), "large"); err == nil {
		t.Error("a secret that is too large was taken")
	}
	if _, err := c.Secret(t.Context(), "broken"); err == nil || errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "vault closed") {
		t.Errorf("a store that fails: %v", err)
	}
	none := open(t)
	if _, err := none.Secret(t.Context(), "s"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a client without secrets: %v", err)
	}
}

// registries knows one account.
type registries struct{ auth.UnimplementedAuthServer }

func (r *registries) Register(s *grpc.Server) { auth.RegisterAuthServer(s, r) }

func (r *registries) Credentials(_ context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	switch req.Host {
	case "registry-1.docker.io":
		return &auth.CredentialsResponse{Username: "u", Secret: "p"}, nil
	case "token.example":
		return &auth.CredentialsResponse{Secret: "identity"}, nil
	case "broken.example":
		return nil, status.Error(codes.Internal, "helper failed")
	}
	return &auth.CredentialsResponse{}, nil
}

func TestCredentials(t *testing.T) {
	c := open(t, &registries{})
	for host, want := range map[string][3]string{"docker.io": {"u", "p", ""}, "token.example": {"", "", "identity"}, "other.example": {"", "", ""}} {
		got, err := c.Credentials(t.Context(), host)
		if err != nil || [3]string{got.Username, got.Password, got.IdentityToken} != want {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	if _, err := c.Credentials(t.Context(), "broken.example"); err == nil || !strings.Contains(err.Error(), "helper failed") {
		t.Errorf("a helper that fails: %v", err)
	}
	if got, err := open(t).Credentials(t.Context(), "docker.io"); err != nil || got.Username != "" {
		t.Errorf("a client without credentials: %+v, %v", got, err)
	}
}

// echo is an ssh agent that repeats what it is told.
type echo struct {
	sshforward.UnimplementedSSHServer
}

func (e *echo) Register(s *grpc.Server) { sshforward.RegisterSSHServer(s, e) }

func (e *echo) CheckAgent(_ context.Context, r *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	if r.ID != sshforward.DefaultID {
		return nil, errors.New("unset ssh forward key " + r.ID)
	}
	return &sshforward.CheckAgentResponse{}, nil
}

func (e *echo) ForwardAgent(stream sshforward.SSH_ForwardAgentServer) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

func TestAgent(t *testing.T) {
	c := open(t, &echo{})
	a, err := c.Agent(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	want := bytes.Repeat([]byte("agent"), 30_000)
	go func() {
		if _, err := a.Write(want); err != nil {
			t.Error(err)
		}
		if err := a.(*agent).CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	if got, err := io.ReadAll(a); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := c.Agent(t.Context(), "other"); !errors.Is(err, errs.NotFound) {
		t.Errorf("an agent that the client does not offer: %v", err)
	}
}

// Files go to the client as a tar and as a directory, whatever they are.
func TestOutputs(t *testing.T) {
	var tar bytes.Buffer
	meta := map[string]string{}
	dest := filepath.Join(t.TempDir(), "out")
	c := open(t, filesync.NewFSSyncTarget(
		filesync.WithFSSync(0, func(m map[string]string) (io.WriteCloser, error) { meta = m; return nopCloser{&tar}, nil }),
		filesync.WithFSSyncDir(1, dest),
		filesync.WithFSSync(2, func(map[string]string) (io.WriteCloser, error) { return nil, errors.New("disk full") }),
	))
	w, err := c.OutputTar(t.Context(), 0, map[string]string{"containerimage.digest": "sha256:x"})
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("tar"), 1<<20)
	if _, err := w.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil || !bytes.Equal(tar.Bytes(), want) || meta["containerimage.digest"] != "sha256:x" {
		t.Errorf("%d bytes, %v, %v", tar.Len(), meta, err)
	}
	if w, err = c.OutputTar(t.Context(), 2, nil); err == nil {
		for range 100 {
			if _, err = w.Write(want); err != nil {
				break
			}
		}
		err = errors.Join(err, w.Close())
	}
	if err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a client that cannot write: %v", err)
	}
	src := t.TempDir()
	write(t, src, "a/file", strings.Repeat("z", 100_000), time.Hour)
	write(t, src, "a.b", "", time.Hour)
	if err := errors.Join(os.Symlink("a/file", filepath.Join(src, "l")), os.Link(filepath.Join(src, "a/file"), filepath.Join(src, "twin"))); err != nil {
		t.Fatal(err)
	}
	if err := c.OutputDir(t.Context(), 1, files{t, src}); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dest)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	tr, err := tree.New(root, tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := listing(t, tr)
	z := strings.Repeat("z", 100_000)
	expect := []string{"a -rwxr-xr-x", "a/file -rw-r--r-- " + z, "a.b -rw-r--r-- ", "l -rwxrwxrwx -> a/file", "twin -rw-r--r-- " + z}
	slices.Sort(got)
	slices.Sort(expect)
	if !slices.Equal(got, expect) {
		t.Errorf("%.500s", strings.Join(got, "\n"))
	}
	if inode(t, tr, "twin") != inode(t, tr, "a/file") {
		t.Error("two names of a file are two files")
	}
	if err := c.OutputDir(t.Context(), 7, files{t, src}); err == nil {
		t.Error("an output that the client does not have was sent")
	}
	if _, err := open(t).OutputTar(t.Context(), 0, nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("a client that takes no files: %v", err)
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// files is a directory as an output.
type files struct {
	t   *testing.T
	dir string
}

func (f files) Walk(_ context.Context, visit func(string, tree.Info) error) error {
	root, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr, err := tree.New(root, tree.Options{})
	if err != nil {
		return err
	}
	var names []string
	infos := map[string]tree.Info{}
	err = tr.Walk("/", tree.WalkOptions{}, func(e *tree.Entry) error {
		names = append(names, e.Rel)
		infos[e.Rel] = e.Info
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(names, fsutil.ComparePath)
	for _, n := range names {
		if err := visit(n, infos[n]); err != nil {
			return err
		}
	}
	return nil
}

func (f files) Open(name string) (io.ReadCloser, error) { return os.Open(filepath.Join(f.dir, name)) }

// A session is known from its begin to its end; a build whose client has left ends.
func TestSessionEnds(t *testing.T) {
	sessions := NewSessions()
	h := http.Header{}
	h.Set("Upgrade", "h2c")
	h.Set(headerID, "one")
	o, err := ParseOffer(h)
	if err != nil {
		t.Fatal(err)
	}
	client, server, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sessions.Begin(t.Context(), o, func() (net.Conn, error) { return server, nil }) }()
	c := sessions.Client("one", nil)
	ctx, done, err := c.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if err := sessions.Begin(t.Context(), o, nil); !errors.Is(err, errs.Conflict) {
		t.Errorf("a second session of the same ID: %v", err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the build of a client that has left goes on")
	}
	if err := context.Cause(ctx); !errors.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	<-ended
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := sessions.get(short, "one"); err == nil {
		t.Error("the session is still known")
	}
	// The number of sessions is bounded.
	sessions.mu.Lock()
	for i := range maxSessions {
		sessions.byID[string(rune(i+1))] = &offering{}
	}
	sessions.mu.Unlock()
	if err := sessions.Begin(t.Context(), o, nil); !errors.Is(err, errs.Exhausted) {
		t.Errorf("too many sessions: %v", err)
	}
}

func TestParseOfferRefuses(t *testing.T) {
	for name, h := range map[string]map[string]string{
		"no ID":      {"Upgrade": "h2c"},
		"protocol":   {"Upgrade": "websocket", headerID: "x"},
		"long ID":    {"Upgrade": "h2c", headerID: strings.Repeat("x", maxID+1)},
		"ID":         {"Upgrade": "h2c", headerID: "a/b"},
		"long key":   {"Upgrade": "h2c", headerID: "x", headerSharedKey: strings.Repeat("k", maxKey+1)},
		"broken key": {"Upgrade": "h2c", headerID: "x", headerSharedKey: "%zz", headerEncoded: "1"},
	} {
		header := http.Header{}
		for k, v := range h {
			header.Set(k, v)
		}
		if _, err := ParseOffer(header); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// No headers make ParseOffer panic, and what it accepts is bounded and has no separators in its ID.
func FuzzParseOffer(f *testing.F) {
	f.Add("id", "key", "true", "/moby.filesync.v1.FileSync/DiffCopy\n/moby.buildkit.secrets.v1.Secrets/GetSecret", "h2c")
	f.Add("id", "a%zz", "1", "", "h2c")
	f.Add("a:b/c", "%C3%A9", "false", "\x00", "h2c")
	f.Add("", "", "", "", "websocket")
	f.Fuzz(func(t *testing.T, id, key, encoded, methods, upgrade string) {
		h := http.Header{}
		h.Set("Upgrade", upgrade)
		h.Set(headerID, id)
		h.Set(headerSharedKey, key)
		h.Set(headerEncoded, encoded)
		for m := range strings.SplitSeq(methods, "\n") {
			h.Add(headerMethod, m)
		}
		o, err := ParseOffer(h)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("class of %v", err)
			}
			return
		}
		if o.id == "" || len(o.id) > maxID || strings.ContainsAny(o.id, ":/\x00") || len(o.key) > maxKey || len(o.methods) > maxMethods {
			t.Errorf("%+v was taken", o)
		}
	})
}
