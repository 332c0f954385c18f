package source

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/buildkit/util/gitutil"
	"golang.org/x/sys/unix"

	"ply/internal/build/ops"
	"ply/internal/durable"
	"ply/internal/errs"
)

// repository runs git on a bare repository of ours. Settings and hooks of the machine, of a user, and of the remote have no effect.
type repository struct {
	fsys   durable.FS
	git    string
	remote string // without credentials
	from   string // the address that git gets: remote, or one of a forwarder to it
	limits Limits
	dir    string // of the repository, GIT_DIR
	inside string // where it is in the repository of the main checkout; "" for that itself
	env    []string
	auth   auth
	made   bool
	ssh    bool // the remote is one by ssh

	refused refusal
	undo    []func() error
}

// auth is the header for the remote and the addresses that it is for.
type auth struct{ header, scope string }

// maxMemory bounds the address space of each process of git, in bytes: a pack may hold objects that become very large.
const maxMemory = 6 << 30

// settings are those that every command has. They are in the environment, because arguments are visible to every user of the machine.
var settings = [][2]string{
	{"core.hooksPath", "/dev/null"}, {"core.fsmonitor", "false"}, {"core.attributesFile", "/dev/null"}, {"core.logAllRefUpdates", "false"},
	{"core.bigFileThreshold", "16m"}, {"core.packedGitLimit", "256m"}, {"core.packedGitWindowSize", "16m"}, {"core.deltaBaseCacheLimit", "32m"},
	{"credential.helper", ""}, {"gc.auto", "0"}, {"maintenance.auto", "false"}, {"pack.threads", "2"}, {"init.defaultBranch", "master"},
	{"fetch.recurseSubmodules", "false"}, {"submodule.recurse", "false"}, {"fetch.unpackLimit", "1"}, {"fetch.writeCommitGraph", "false"},
	{"transfer.bundleURI", "false"}, {"http.followRedirects", "initial"}, {"tar.umask", "0022"}, {"protocol.version", "2"},
}

// open prepares git for the remote of op. parent is the repository that has it as a submodule, and inside its place in the main one, if it is to be kept.
func (f *Fetches) open(ctx context.Context, op *ops.Git, parent *repository, inside string) (_ *repository, err error) {
	dir, remove, err := f.s.scratch()
	if err != nil {
		return nil, err
	}
	g := &repository{
		fsys: f.s.o.FS, git: f.s.o.Git, remote: op.Remote, limits: f.s.o.Limits, dir: filepath.Join(dir, "git"), inside: inside, undo: []func() error{remove},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	if inside != "" {
		root := strings.TrimSuffix(parent.dir, "/"+parent.inside)
		g.dir = filepath.Join(root, inside)
		if _, err := os.Lstat(g.dir); err == nil {
			return nil, errs.New(errs.Invalid, "git: two submodules have the name %.200q", inside)
		}
		if err := f.s.o.FS.MkdirAll(filepath.Dir(g.dir), 0o700); err != nil {
			return nil, err
		}
	}
	u, err := gitutil.ParseURL(op.Remote)
	if err != nil {
		return nil, errs.New(errs.Invalid, "git: %.200q is not the address of a repository", redact(op.Remote))
	}
	g.env = []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + dir, "XDG_CONFIG_HOME=" + dir, "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=false", "SSH_ASKPASS=false",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_ATTR_NOSYSTEM=1", "GIT_NO_REPLACE_OBJECTS=1", "GIT_OPTIONAL_LOCKS=0",
		"GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir),
	}
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO"} {
		if v := os.Getenv(name); v != "" {
			g.env = append(g.env, name+"="+v)
		}
	}
	set := append([][2]string(nil), settings...)
	set = append(set, [2]string{"http.lowSpeedLimit", fmt.Sprint(g.limits.MinRate)}, [2]string{"http.lowSpeedTime", fmt.Sprint(max(1, int(g.limits.Quiet.Seconds())))})
	// What git takes for another protocol than we do is refused.
	protocols := u.Scheme
	switch u.Scheme {
	case gitutil.HTTPProtocol, gitutil.HTTPSProtocol:
		protocols = "http:https"
		var web [][2]string
		web, err = f.openWeb(ctx, g, op, parent)
		set = append(set, web...)
	case gitutil.GitProtocol:
		err = f.openGit(ctx, g, u.Host)
	case gitutil.SSHProtocol:
		err = f.openSSH(ctx, g, op, u.Host, dir)
	default:
		err = errs.New(errs.Invalid, "git: %.200q is not the address of a repository", redact(op.Remote))
	}
	if err != nil {
		return nil, err
	}
	if g.from == "" {
		g.from = g.remote
	}
	g.env = append(g.env, "GIT_ALLOW_PROTOCOL="+protocols)
	g.env = append(g.env, fmt.Sprint("GIT_CONFIG_COUNT=", len(set)))
	for i, kv := range set {
		g.env = append(g.env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	return g, nil
}

// openWeb returns the settings for a remote by http: the proxy that keeps git inside the fence, and the credentials.
func (f *Fetches) openWeb(ctx context.Context, g *repository, op *ops.Git, parent *repository) (set [][2]string, err error) {
	u, err := url.Parse(op.Remote)
	if err != nil {
		return nil, errs.New(errs.Invalid, "git: the address of the repository is malformed")
	}
	if parent != nil {
		g.auth = parent.auth // those of the client are for the remote that the client named
	}
	if user := u.User; user != nil {
		u.User = nil
		g.remote = u.String()
		if parent == nil {
			password, _ := user.Password()
			basic := base64.StdEncoding.EncodeToString([]byte(user.Username() + ":" + password))
			g.auth = auth{"Authorization: Basic " + basic, u.Scheme + "://" + u.Host + "/"}
		}
	} else if parent == nil {
		if g.auth, err = f.authOf(ctx, op, u); err != nil {
			return nil, err
		}
	}
	p, err := f.s.newProxy(&g.refused)
	if err != nil {
		return nil, err
	}
	g.undo = append(g.undo, p.Close)
	set = append(set, [2]string{"http.proxy", p.address()}, [2]string{"http.proxyAuthMethod", "basic"})
	if g.auth.header != "" {
		set = append(set, [2]string{"http." + g.auth.scope + ".extraHeader", g.auth.header})
	}
	return set, nil
}

// authOf returns the credentials that the client has for a remote.
func (f *Fetches) authOf(ctx context.Context, op *ops.Git, u *url.URL) (auth, error) {
	for _, s := range []struct {
		id    string
		token bool
	}{{op.HeaderSecret + "." + u.Host, false}, {op.TokenSecret + "." + u.Host, true}, {op.HeaderSecret, false}, {op.TokenSecret, true}} {
		if s.id == "" || strings.HasPrefix(s.id, ".") {
			continue
		}
		v, err := f.secret(ctx, s.id)
		if err != nil {
			return auth{}, err
		}
		if v == nil {
			continue
		}
		if s.token {
			v = []byte("basic " + base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "x-access-token:%s", v)))
		}
		scope := op.Remote
		for _, hub := range []string{"https://github.com/", "https://www.github.com/"} {
			if strings.HasPrefix(op.Remote, hub) {
				scope = hub // its submodules are mostly there, too
			}
		}
		return auth{"Authorization: " + string(v), scope}, nil
	}
	return auth{}, nil
}

// Close removes the repository and what it needed.
func (g *repository) Close() error {
	var all error
	for i := len(g.undo) - 1; i >= 0; i-- {
		all = errors.Join(all, g.undo[i]())
	}
	g.undo = nil
	return all
}

// tail keeps the end of what is written to it.
type tail struct {
	data []byte
	n    atomic.Int64
}

const maxTail = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.n.Add(int64(len(p)))
	t.data = append(t.data, p...)
	if len(t.data) > 2*maxTail {
		t.data = append([]byte(nil), t.data[len(t.data)-maxTail:]...)
	}
	return len(p), nil
}

// text returns the last lines that report an error: those of git, and of ssh all that are not about progress.
func (t *tail) text(ssh bool) string {
	var lines []string
	for line := range strings.SplitSeq(strings.ReplaceAll(string(t.data), "\r", "\n"), "\n") {
		if strings.HasPrefix(line, "fatal: ") || strings.HasPrefix(line, "error: ") || strings.HasPrefix(line, "remote: ") || ssh && line != "" && !strings.Contains(line, "%") {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		lines = []string{strings.TrimSpace(string(t.data))}
	}
	text := strings.Join(lines, "; ")
	if len(text) > 1000 {
		text = text[len(text)-1000:]
	}
	return strings.ToValidUTF8(text, "?")
}

// bounded keeps up to limit bytes.
type bounded struct {
	bytes.Buffer
	limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.limit {
		return 0, errs.New(errs.Invalid, "git: an answer has more than %d bytes", b.limit)
	}
	return b.Buffer.Write(p)
}

// run executes git and returns its output, which may have limit bytes.
func (g *repository) run(ctx context.Context, limit int, args ...string) (string, error) {
	out := &bounded{limit: limit}
	err := g.execute(ctx, out, args...)
	return out.String(), err
}

// stream executes git while read reads its output. What read leaves is an error.
func (g *repository) stream(ctx context.Context, read func(io.Reader) error, args ...string) error {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() {
		err := g.execute(ctx, w, args...)
		_ = w.CloseWithError(err) // never fails
		ended <- err
	}()
	err := read(r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // padding behind the end of a tar
	}
	if err != nil {
		cancel(err)
		_ = r.CloseWithError(err) // never fails
	}
	if end := <-ended; err == nil {
		err = end
	}
	return err
}

func (g *repository) execute(ctx context.Context, out io.Writer, args ...string) error {
	_ = g.refused.take() // of an earlier command
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, g.git, args...)
	errout := &tail{}
	cmd.Stdout, cmd.Stderr, cmd.Env = out, errout, g.env
	cmd.Dir = filepath.Dir(g.dir)
	if g.inside != "" {
		cmd.Dir = strings.TrimSuffix(g.dir, "/"+g.inside)
	}
	if g.made {
		cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], "GIT_DIR="+g.dir)
	}
	// Helpers of git inherit its pipes, so the whole group ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return errs.New(errs.Unimplemented, "the program git is not installed").WithHint("Install git where plyd runs.")
		}
		return errs.New(errs.Internal, "git: %w", err)
	}
	limit := unix.Rlimit{Cur: maxMemory, Max: maxMemory}
	err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_AS, &limit, nil)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	stop := g.watch(cancel, errout)
	err = errors.Join(err, cmd.Wait())
	stop()
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err := g.refused.take(); err != nil {
		class := error(errs.Unavailable)
		if errors.Is(err, errs.Forbidden) {
			class = errs.Forbidden
		}
		return errs.New(class, "git %s: %w", g.remote, err)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		var class error = errs.Invalid // what was fetched is wrong
		if args[0] == "fetch" || args[0] == "ls-remote" {
			class = errs.Unavailable
		}
		return errs.New(class, "git %s %s: %s", args[0], g.remote, errout.text(g.ssh))
	}
	return err
}

// watch cancels a command whose repository has grown too large, or that has made no progress for long.
func (g *repository) watch(cancel context.CancelCauseFunc, out *tail) (stop func()) {
	end := make(chan struct{})
	go func() {
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		var last, at = int64(-1), time.Now()
		for {
			select {
			case <-end:
				return
			case <-t.C:
			}
			size, files := g.size()
			switch n := size + out.n.Load(); {
			case size > g.limits.Bytes || files > g.limits.Entries:
				cancel(errs.New(errs.Invalid, "git %s: the repository is larger than %d bytes", g.remote, g.limits.Bytes))
				return
			case n != last:
				last, at = n, time.Now()
			case time.Since(at) > 10*g.limits.Quiet:
				cancel(errs.New(errs.Unavailable, "git %s: no progress for %s", g.remote, 10*g.limits.Quiet))
				return
			}
		}
	}()
	return func() { close(end) }
}

// size returns the size of the repository, and how many files it has.
func (g *repository) size() (bytes int64, files int) {
	_ = filepath.WalkDir(g.dir, func(_ string, d fs.DirEntry, err error) error { // what vanishes meanwhile does not count
		if err != nil {
			return nil
		}
		files++
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			bytes += info.Size()
		}
		return nil
	})
	return bytes, files
}

// wantRef keeps what was fetched.
const wantRef = "refs/ply/want"

// fetch gets a commit, without its history where the server allows that.
func (g *repository) fetch(ctx context.Context, c commit) error {
	if err := g.init(ctx, len(c.id) == 64); err != nil {
		return err
	}
	fetch := func(args ...string) error {
		_, err := g.run(ctx, maxRefs, append([]string{"fetch", "--progress", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance"}, args...)...)
		if err != nil {
			return err
		}
		return g.verify(ctx, c)
	}
	err := fetch("--depth=1", "--no-tags", "--", g.from, "+"+c.wanted()+":"+wantRef)
	if err != nil && c.ref != "" && ctx.Err() == nil { // a server that gives only what it advertises
		err = fetch("--depth=1", "--no-tags", "--", g.from, "+"+c.ref+":"+wantRef)
	}
	if err != nil && ctx.Err() == nil { // or one that does not know depths
		err = fetch("--tags", "--", g.from, "+refs/heads/*:refs/ply/heads/*")
	}
	if err != nil && context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return err
}

func (g *repository) init(ctx context.Context, sha256 bool) error {
	if g.made {
		return nil
	}
	args := []string{"init", "-q", "--bare", "--template="}
	if sha256 {
		args = append(args, "--object-format=sha256")
	}
	if _, err := g.run(ctx, maxTail, append(args, "--", g.dir)...); err != nil {
		return err
	}
	g.made = true
	// These attributes come before those of the commit, which would leave files out and change others.
	if err := g.fsys.MkdirAll(filepath.Join(g.dir, "info"), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(g.dir, "info", "attributes"), []byte("* -export-ignore -export-subst\n"), 0o600)
}

// verify checks that the commit is there, and that a tag leads to it.
func (g *repository) verify(ctx context.Context, c commit) error {
	if _, err := g.run(ctx, maxTail, "cat-file", "-e", c.id+"^{commit}"); err != nil {
		return errs.New(errs.NotFound, "git %s: the commit %s is not there", g.remote, c.id)
	}
	if c.tag == "" {
		return nil
	}
	out, err := g.run(ctx, maxTail, "rev-parse", "--verify", c.tag+"^{commit}")
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(out); got != c.id {
		return errs.New(errs.Invalid, "git %s: the tag %s leads to %s, the server said to %s", g.remote, c.tag, got, c.id)
	}
	return nil
}

// archive has git write the files of a commit as a tar.
func (g *repository) archive(ctx context.Context, id string, read func(io.Reader) error) error {
	return g.stream(ctx, read, "archive", "--format=tar", id)
}

// finish makes the repository what is in the directory .git of a checkout.
func (g *repository) finish(ctx context.Context, c commit) error {
	commands := [][]string{
		{"config", "core.bare", "false"}, {"config", "remote.origin.url", g.remote},
		{"config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"}, {"update-ref", "--no-deref", "HEAD", c.id},
	}
	if c.ref != "" {
		commands = append(commands, []string{"update-ref", c.ref, c.wanted()})
	}
	commands = append(commands, []string{"read-tree", c.id})
	for _, args := range commands {
		if _, err := g.run(ctx, maxTail, args...); err != nil {
			return err
		}
	}
	for _, name := range []string{"refs/ply", "info/attributes", "FETCH_HEAD"} {
		if err := g.fsys.RemoveAll(filepath.Join(g.dir, name)); err != nil {
			return err
		}
	}
	return nil
}
