package source

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
)

// origin is a directory of repositories that a web server offers.
type origin struct {
	*requests
	t    *testing.T
	dir  string
	want string // the header Authorization that requests must have
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Fatal("the tests need git: ", err)
	}
	o := &origin{t: t, dir: t.TempDir()}
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"), Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + o.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}
	o.requests = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if o.want != "" && r.Header.Get("Authorization") != o.want {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	})
	return o
}

// git runs git in a repository of the origin.
func (o *origin) git(repo string, args ...string) string {
	o.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = filepath.Join(o.dir, repo)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a",
		"GIT_COMMITTER_EMAIL=a@b", "GIT_AUTHOR_DATE=1700000000 +0000", "GIT_COMMITTER_DATE=1700000000 +0000")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		o.t.Fatalf("git %v: %v\n%s", args, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// repo makes a repository.
func (o *origin) repo(name string) {
	o.t.Helper()
	if err := os.Mkdir(filepath.Join(o.dir, name), 0o755); err != nil {
		o.t.Fatal(err)
	}
	o.git(name, "init", "-q", "-b", "main")
}

// commit writes files and commits them. A content that begins with "-> " is a link, a name that ends in * is executable.
func (o *origin) commit(repo string, files map[string]string) string {
	o.t.Helper()
	for name, data := range files {
		p := filepath.Join(o.dir, repo, strings.TrimSuffix(name, "*"))
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if target, ok := strings.CutPrefix(data, "-> "); ok {
			err = errors.Join(err, os.Symlink(target, p))
		} else {
			mode := os.FileMode(0o644)
			if strings.HasSuffix(name, "*") {
				mode = 0o755
			}
			err = errors.Join(err, os.WriteFile(p, []byte(data), mode))
		}
		if err != nil {
			o.t.Fatal(err)
		}
	}
	o.git(repo, "add", "-A")
	o.git(repo, "commit", "-q", "-m", "change")
	return o.git(repo, "rev-parse", "HEAD")
}

// submodule adds a submodule with an address that git itself would not clone from.
func (o *origin) submodule(repo, path, address, commit string) {
	o.t.Helper()
	o.git(repo, "update-index", "--add", "--cacheinfo", "160000,"+commit+","+path)
	f, err := os.OpenFile(filepath.Join(o.dir, repo, ".gitmodules"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		o.t.Fatal(err)
	}
	_, err = fmt.Fprintf(f, "[submodule %q]\n\tpath = %s\n\turl = %s\n", path, path, address)
	if err := errors.Join(err, f.Close()); err != nil {
		o.t.Fatal(err)
	}
	o.git(repo, "add", ".gitmodules")
	o.git(repo, "commit", "-q", "-m", "submodule")
}

// text describes the files of a result in lines.
func text(files map[string]entry) string {
	var lines []string
	for name, e := range files {
		line := fmt.Sprintf("%s %c %o", name, e.Typeflag, e.Mode)
		switch e.Typeflag {
		case tar.TypeReg:
			line += " " + e.data
		case tar.TypeSymlink:
			line += " -> " + e.Linkname
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (w *world) fetch(op *ops.Git) (*solver.Result, error) {
	return w.build().Git(w.t.Context(), op, nil)
}

func (w *world) mustFetch(op *ops.Git) map[string]entry {
	w.t.Helper()
	r, err := w.fetch(op)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.files(r)
}

func TestGitRefs(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{})
	o.repo("r")
	first := o.commit("r", map[string]string{"f": "one", "run*": "#!", "d/g": "deep", "l": "-> d/g"})
	o.git("r", "tag", "-a", "-m", "t", "v1")
	o.git("r", "tag", "plain")
	tag := o.git("r", "rev-parse", "v1")
	o.git("r", "checkout", "-q", "-b", "side/way")
	side := o.commit("r", map[string]string{"f": "side"})
	o.git("r", "checkout", "-q", "main")
	second := o.commit("r", map[string]string{"f": "two"})
	o.git("r", "branch", "plain", side) // a branch comes before a tag of the same name

	remote := o.URL + "/r"
	for _, c := range []struct {
		ref, sum, want string
	}{
		{"", "", "two"}, {"main", "", "two"}, {"refs/heads/main", second, "two"}, {"side/way", side[:10], "side"}, {"v1", "", "one"}, {"refs/tags/v1", tag, "one"},
		{"v1", first, "one"}, {first, "", "one"}, {first, first[:7], "one"}, {side, "", "side"}, {"plain", "", "side"}, {"refs/tags/plain", "", "one"},
	} {
		r, err := w.fetch(&ops.Git{Remote: remote, Ref: c.ref, Checksum: c.sum})
		if err != nil {
			t.Errorf("%q: %v", c.ref, err)
			continue
		}
		if got := w.files(r)["f"].data; got != c.want {
			t.Errorf("%q: %q, want %q", c.ref, got, c.want)
		}
	}
	want := "d 5 755\nd/g 0 644 deep\nf 0 644 one\nl 2 777 -> d/g\nrun 0 755 #!"
	if got := text(w.mustFetch(&ops.Git{Remote: remote, Ref: first})); got != want {
		t.Errorf("files\n%s\nwant\n%s", got, want)
	}
	if got := text(w.mustFetch(&ops.Git{Remote: remote, Ref: first, Subdir: "/d/"})); got != "g 0 644 deep" {
		t.Errorf("a directory of it: %s", got)
	}
	n := o.count()
	w.mustFetch(&ops.Git{Remote: remote, Ref: first})
	if o.count() != n {
		t.Errorf("%d requests for a commit that is in the cache", o.count()-n)
	}
	for _, c := range []struct {
		op   ops.Git
		want error
	}{
		{ops.Git{Ref: "none"}, errs.NotFound}, {ops.Git{Ref: strings.Repeat("1", 40)}, errs.NotFound}, {ops.Git{Ref: "main", Checksum: first}, errs.Precondition},
		{ops.Git{Ref: first, Checksum: second}, errs.Precondition}, {ops.Git{Ref: "v1", Checksum: second}, errs.Precondition}, {ops.Git{Subdir: "none"}, errs.NotFound},
		{ops.Git{Subdir: "f"}, errs.NotFound}, {ops.Git{Subdir: "l"}, errs.NotFound}, {ops.Git{Ref: "main:x"}, errs.Invalid}, {ops.Git{Ref: "--upload-pack=x"}, errs.Invalid},
		{ops.Git{Ref: "main^{/x}"}, errs.Invalid}, {ops.Git{Checksum: "xyz"}, errs.Invalid}, {ops.Git{Remote: "file://" + o.dir + "/r"}, errs.Invalid},
		{ops.Git{Remote: o.dir + "/r"}, errs.Invalid}, {ops.Git{Remote: "ext::sh -c touch% x"}, errs.Invalid}, {ops.Git{Remote: "ssh://-oProxyCommand=x/y"}, errs.Invalid},
	} {
		op := c.op
		if op.Remote == "" {
			op.Remote = remote
		}
		if r, err := w.fetch(&op); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v %v, want %v", c.op, r, err, c.want)
		}
	}
	if tm, err := w.build().Time(t.Context(), &ops.Git{Remote: remote, Ref: "v1"}); err != nil || tm.Unix() != 1700000000 {
		t.Errorf("time of the commit %v, %v", tm, err)
	}
	if e := w.mustFetch(&ops.Git{Remote: remote, Ref: first, CommitTime: true})["d/g"]; e.ModTime.Unix() != 1700000000 {
		t.Errorf("a file has the time %s", e.ModTime)
	}
}

// A branch that moves gives the new commit to the next build, and the old one to a build that has asked for it already.
func TestGitBranchMoves(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{})
	o.repo("r")
	o.commit("r", map[string]string{"f": "one"})
	b, op := w.build(), &ops.Git{Remote: o.URL + "/r"}
	one, err := b.Git(t.Context(), op, nil)
	if err != nil {
		t.Fatal(err)
	}
	o.commit("r", map[string]string{"f": "two"})
	same, err := b.Git(t.Context(), &ops.Git{Remote: o.URL + "/r", SkipSubmodules: true}, nil)
	if err != nil || w.files(same)["f"].data != "one" || w.files(one)["f"].data != "one" {
		t.Errorf("the same build: %v", err)
	}
	if got := w.mustFetch(op)["f"].data; got != "two" {
		t.Errorf("the next build: %q", got)
	}
}

// What a repository says about itself has no effect: attributes, filters, hooks.
func TestGitRepositoryDecidesNothing(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{})
	o.repo("r")
	mark := filepath.Join(t.TempDir(), "ran")
	o.commit("r", map[string]string{
		".gitattributes": "hidden export-ignore\nsubst export-subst\nfiltered filter=evil\n", "hidden": "h", "subst": "$Format:%H$", "filtered": "f",
		"hooks/post-checkout*": "#!/bin/sh\ntouch " + mark, ".lfsconfig": "[filter \"evil\"]\n\tsmudge = touch " + mark,
	})
	for _, keep := range []bool{false, true} {
		files := w.mustFetch(&ops.Git{Remote: o.URL + "/r", KeepGitDir: keep})
		if files["hidden"].data != "h" || files["subst"].data != "$Format:%H$" || files["filtered"].data != "f" {
			t.Errorf("files %s", text(files))
		}
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("a program of the repository ran")
	}
}

// extract writes the files of a result to a directory.
func extract(t *testing.T, files map[string]entry) string {
	t.Helper()
	dir := t.TempDir()
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		e, p := files[name], filepath.Join(dir, name)
		var err error
		switch e.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(p, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(e.Linkname, p)
		default:
			err = os.WriteFile(p, []byte(e.data), os.FileMode(e.Mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// With keep-git-dir the checkout is a repository in which git finds nothing to do, submodules included.
func TestGitKeepDir(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{})
	o.repo("sub")
	sub := o.commit("sub", map[string]string{"s": "sub"})
	o.repo("r")
	o.commit("r", map[string]string{"f": "one", "l": "-> f", "run*": "x"})
	o.submodule("r", "mod", "../sub", sub)
	id := o.git("r", "rev-parse", "HEAD")
	o.git("r", "tag", "-a", "-m", "t", "v1")
	for _, ref := range []string{"", "v1", id} {
		files := w.mustFetch(&ops.Git{Remote: strings.Replace(o.URL, "//", "//user:pass-word@", 1) + "/r", Ref: ref, KeepGitDir: true})
		dir := extract(t, files)
		git := func(args ...string) string {
			cmd := exec.Command("git", append([]string{"-C", dir, "-c", "safe.directory=*"}, args...)...)
			cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%q: git %v: %v\n%s", ref, args, err, out)
			}
			return strings.TrimSpace(string(out))
		}
		if got := git("status", "--porcelain"); got != "" {
			t.Errorf("%q: status %q", ref, got)
		}
		if got := git("rev-parse", "HEAD"); got != id {
			t.Errorf("%q: HEAD %s, want %s", ref, got, id)
		}
		if got := git("submodule", "status"); !strings.HasPrefix(got, sub+" mod") {
			t.Errorf("%q: submodule %q", ref, got)
		}
		if got := git("config", "remote.origin.url"); got != o.URL+"/r" {
			t.Errorf("%q: origin %q", ref, got)
		}
		if ref == "v1" && git("describe") != "v1" {
			t.Errorf("describe %q", git("describe"))
		}
		for name := range files {
			if strings.HasPrefix(name, ".git/refs/ply") || strings.HasPrefix(name, ".git/hooks") || name == ".git/info/attributes" {
				t.Errorf("%q: the repository has %s", ref, name)
			}
		}
	}
	w.noWords("pass-word")
}

func TestGitSubmodules(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{Depth: 3})
	o.repo("leaf")
	leaf := o.commit("leaf", map[string]string{"leaf": "x"})
	o.commit("leaf", map[string]string{"leaf": "newer"})
	o.repo("mid")
	o.commit("mid", map[string]string{"m": "y"})
	o.submodule("mid", "deep/leaf", "../leaf", leaf)
	mid := o.git("mid", "rev-parse", "HEAD")
	o.repo("top")
	o.commit("top", map[string]string{"t": "z"})
	o.submodule("top", "mid", o.URL+"/mid", mid)
	want := ".gitmodules\nmid\nmid/.gitmodules\nmid/deep\nmid/deep/leaf\nmid/deep/leaf/leaf\nmid/m\nt"
	names := func(files map[string]entry) string {
		var list []string
		for name := range files {
			list = append(list, name)
		}
		slices.Sort(list)
		return strings.Join(list, "\n")
	}
	files := w.mustFetch(&ops.Git{Remote: o.URL + "/top"})
	if got := names(files); got != want || files["mid/deep/leaf/leaf"].data != "x" {
		t.Errorf("files\n%s\nwant\n%s", got, want)
	}
	if got := names(w.mustFetch(&ops.Git{Remote: o.URL + "/top", Subdir: "mid/deep"})); got != "leaf\nleaf/leaf" {
		t.Errorf("a directory in a submodule: %s", got)
	}
	if got := names(w.mustFetch(&ops.Git{Remote: o.URL + "/top", SkipSubmodules: true})); got != ".gitmodules\nmid\nt" {
		t.Errorf("without submodules: %s", got)
	}

	// Hostile ones.
	for i, c := range []struct {
		path, address string
		want          error
	}{
		{"m", "file://" + o.dir + "/leaf", errs.Forbidden}, {"m", o.dir + "/leaf", errs.Forbidden}, {"m", "ext::sh -c true", errs.Forbidden},
		{"m", "../../../../../etc", errs.Invalid}, {"m", "-x", errs.Forbidden}, {"m", "ssh://-oProxyCommand=x/y", errs.Invalid}, {"m", "http://169.254.169.254/x", errs.Forbidden},
	} {
		repo := fmt.Sprint("evil", i)
		o.repo(repo)
		o.commit(repo, map[string]string{"f": "x"})
		o.submodule(repo, c.path, c.address, leaf)
		if _, err := w.fetch(&ops.Git{Remote: o.URL + "/" + repo}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.address, err, c.want)
		}
	}
	o.repo("self") // a repository that is its own submodule, without end
	id := o.commit("self", map[string]string{"f": "x"})
	for range 6 {
		o.git("self", "rm", "-q", "--cached", "--ignore-unmatch", "m")
		o.submodule("self", "m", "../self", id)
		id = o.git("self", "rev-parse", "HEAD")
	}
	if _, err := w.fetch(&ops.Git{Remote: o.URL + "/self"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("submodules in each other: %v", err)
	}
	o.repo("bare")
	o.commit("bare", map[string]string{"f": "x"})
	o.git("bare", "update-index", "--add", "--cacheinfo", "160000,"+leaf+",m")
	o.git("bare", "commit", "-q", "-m", "link")
	if _, err := w.fetch(&ops.Git{Remote: o.URL + "/bare"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a submodule without an address: %v", err)
	}
}

// Trees that git would not check out are refused.
func TestGitHostileTrees(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{Entries: 2000})
	o.repo("r")
	o.commit("r", map[string]string{"f": "x"})
	blob := o.git("r", "rev-parse", "HEAD:f")
	tree := func(entries ...string) string {
		var raw []byte
		for _, e := range entries {
			mode, rest, _ := strings.Cut(e, " ")
			id, name, _ := strings.Cut(rest, " ")
			raw = append(raw, mode+" "+name+"\x00"...)
			for i := 0; i < len(id); i += 2 {
				var b byte
				_, _ = fmt.Sscanf(id[i:i+2], "%02x", &b)
				raw = append(raw, b)
			}
		}
		cmd := exec.Command("git", "hash-object", "--literally", "-t", "tree", "-w", "--stdin")
		cmd.Dir, cmd.Stdin = filepath.Join(o.dir, "r"), bytes.NewReader(raw)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	offer := func(id string) string {
		c := o.git("r", "commit-tree", "-m", "x", id)
		o.git("r", "update-ref", "refs/heads/hostile", c)
		return c
	}
	offer(tree("100644 "+blob+" fine", "40000 "+tree("100644 "+blob+" g")+" sub"))
	if got := text(w.mustFetch(&ops.Git{Remote: o.URL + "/r", Ref: "hostile"})); got != "fine 0 644 x\nsub 5 755\nsub/g 0 644 x" {
		t.Errorf("the benign twin: %s", got)
	}
	bomb := tree("100644 " + blob + " f")
	for range 12 { // 2^12 files
		bomb = tree("40000 "+bomb+" a", "40000 "+bomb+" b")
	}
	for name, id := range map[string]string{
		".git": tree("40000 " + tree("100644 "+blob+" config") + " .git"), "..": tree("40000 " + tree("100644 "+blob+" f") + " .."),
		".GIT": tree("40000 " + tree("100644 "+blob+" config") + " .GIT"), ".wh.f": tree("100644 " + blob + " .wh.f"), "a bomb": bomb,
	} {
		offer(id)
		for _, op := range []ops.Git{{}, {KeepGitDir: true}, {SkipSubmodules: true}} {
			op.Remote, op.Ref = o.URL+"/r", "hostile"
			if _, err := w.fetch(&op); !errors.Is(err, errs.Invalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if len(w.keys) != 1 {
		t.Errorf("%d records, want 1", len(w.keys))
	}
}

func TestGitBounds(t *testing.T) {
	o := newOrigin(t)
	o.repo("r")
	random := make([]byte, 1<<20)
	for i, x := 0, uint32(1); i < len(random); i++ {
		x = x*1664525 + 1013904223
		random[i] = byte(x >> 24)
	}
	o.commit("r", map[string]string{"big": string(random)})
	o.repo("zeros")
	o.commit("zeros", map[string]string{"big": string(make([]byte, 4<<20))})
	w := newWorld(t, Limits{Bytes: 3 << 20})
	w.mustFetch(&ops.Git{Remote: o.URL + "/r"})
	if _, err := w.fetch(&ops.Git{Remote: o.URL + "/zeros"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a small pack with a large file: %v", err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	w = newWorld(t, Limits{Time: time.Second})
	start := time.Now()
	_, err = w.fetch(&ops.Git{Remote: "http://" + silent.Addr().String() + "/r", Ref: strings.Repeat("1", 40)})
	if !errors.Is(err, errs.Unavailable) || time.Since(start) > 15*time.Second {
		t.Errorf("a server that is silent: %v after %s", err, time.Since(start))
	}
}

func TestGitFence(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{})
	w.hosts["meta.test"] = []netip.Addr{netip.MustParseAddr("169.254.169.254")}
	o.repo("r")
	o.commit("r", map[string]string{"f": "x"})
	if got := w.mustFetch(&ops.Git{Remote: o.at("friend.test", "/r")})["f"].data; got != "x" {
		t.Errorf("the benign twin: %q", got)
	}
	turn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254"+r.URL.String(), http.StatusFound)
	}))
	defer turn.Close()
	for _, remote := range []string{
		o.at("meta.test", "/r"), strings.Replace(o.at("meta.test", "/r"), "http:", "https:", 1), "http://169.254.169.254/r", "git://meta.test/r", "ssh://git@meta.test/r",
		"git@meta.test:r", turn.URL + "/r",
	} {
		if _, err := w.fetch(&ops.Git{Remote: remote}); !errors.Is(err, errs.Forbidden) {
			t.Errorf("%s: %v", remote, err)
		}
	}
}

func TestGitCredentials(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{})
	other := newOrigin(t)
	other.repo("sub")
	sub := other.commit("sub", map[string]string{"s": "x"})
	o.repo("r")
	o.commit("r", map[string]string{"f": "x"})
	o.submodule("r", "mod", other.at("other.test", "/sub"), sub)
	o.want = "basic eC1hY2Nlc3MtdG9rZW46c2VjcmV0LXdvcmQ="
	op := &ops.Git{Remote: o.at("own.test", "/r"), TokenSecret: "GIT_AUTH_TOKEN", HeaderSecret: "GIT_AUTH_HEADER"}
	if _, err := w.fetch(op); err == nil || strings.Contains(err.Error(), "secret-word") {
		t.Errorf("without a secret: %v", err)
	}
	w.secrets["GIT_AUTH_TOKEN"] = "secret-word"
	if got := w.mustFetch(op)["mod/s"].data; got != "x" {
		t.Errorf("the submodule has %q", got)
	}
	for _, r := range other.list {
		if h := r.Header.Get("Authorization"); h != "" {
			t.Errorf("the other host was told %q", h)
		}
	}
	o.want = "Basic dXNlcjpzZWNyZXQtd29yZA=="
	o.commit("r", map[string]string{"f": "y"})
	withPassword := &ops.Git{Remote: strings.Replace(o.at("own.test", "/r"), "//", "//user:secret-word@", 1), KeepGitDir: true}
	if got := w.mustFetch(withPassword)["f"].data; got != "y" {
		t.Errorf("with a password in the address: %q", got)
	}
	withPassword.Ref = "none"
	if _, err := w.fetch(withPassword); err == nil || strings.Contains(err.Error(), "secret-word") {
		t.Errorf("the error shows the password: %v", err)
	}
	w.noWords("secret-word", "c2VjcmV0LXdvcmQ", "pzZWNyZXQtd29yZA")
}

// The proxy serves only those who know its password.
func TestGitProxy(t *testing.T) {
	w := newWorld(t, Limits{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "auth="+r.Header.Get("Proxy-Authorization"))
	})
	p, err := w.newProxy(new(refusal))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		line string
		want string
	}{
		{"GET " + s.URL + "/x HTTP/1.1\r\nHost: x\r\n", "407"},
		{"CONNECT " + strings.TrimPrefix(s.URL, "http://") + " HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic Z2l0Og==\r\n", "407"},
	} {
		conn, err := net.Dial("tcp", p.l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, c.line+"Connection: close\r\n\r\n")
		answer, _ := io.ReadAll(conn)
		_ = conn.Close()
		if !bytes.HasPrefix(answer, []byte("HTTP/1.1 "+c.want)) {
			t.Errorf("%q: %q", c.line, answer)
		}
	}
	if s.count() != 0 {
		t.Errorf("a stranger was let through")
	}
}

// askAgent makes the test binary print what an ssh agent says.
const askAgent = "PLY_TEST_ASK_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(askAgent) == "" {
		os.Exit(m.Run())
	}
	c, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		os.Exit(1)
	}
	answer := make([]byte, 5)
	_, _ = io.ReadFull(c, answer)
	_, _ = os.Stdout.Write(answer)
}

// A remote by ssh gets the agent of the client, and the keys of its host.
func TestGitSSH(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{})
	o.repo("r")
	o.commit("r", map[string]string{"f": "x"})
	bin := t.TempDir()
	// It stands for ssh: it asks the agent, reads the known hosts, and runs the command of git here.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\nfor a; do last=$a; case $a in UserKnownHostsFile=*) grep -q thekey \"${a#*=}\" || exit 9;; esac; done\n" +
		"[ \"$(" + askAgent + "=1 " + self + ")\" = hello ] || exit 7\neval \"exec $last\"\n"
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	w.agent = func() (io.ReadWriteCloser, error) {
		near, far := net.Pipe()
		go func() { _, _ = far.Write([]byte("hello")) }()
		return near, nil
	}
	for _, remote := range []string{"ssh://git@own.test" + o.dir + "/r", "git@own.test:" + o.dir + "/r"} {
		op := &ops.Git{Remote: remote, KnownHosts: "own.test ssh-ed25519 thekey\n", SSHSocket: "default", CommitTime: remote[0] == 's'}
		if got := w.mustFetch(op)["f"].data; got != "x" {
			t.Errorf("%s: %q", remote, got)
		}
	}
	w.agent = nil
	if _, err := w.fetch(&ops.Git{Remote: "git@own.test:" + o.dir + "/r", Ref: "other", KnownHosts: "thekey", SSHSocket: "default"}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("without an agent: %v", err)
	}
}
