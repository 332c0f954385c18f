package source

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/util/gitutil"

	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/oci"
)

// commit is what a name of a repository means.
type commit struct {
	id  string // of the commit
	tag string // ID of the annotated tag, or ""
	ref string // full name of the branch or tag; "" when the source names the commit itself
}

// wanted returns the object to fetch.
func (c commit) wanted() string { return or(c.tag, c.id) }

// Git fetches a commit. The files are those that `git checkout` makes, with the permissions that it gives with the umask 022.
func (f *Fetches) Git(ctx context.Context, op *ops.Git, status func(solver.Status)) (*solver.Result, error) {
	if err := checkGit(op); err != nil {
		return nil, err
	}
	c, err := f.resolve(ctx, op)
	if err != nil {
		return nil, err
	}
	words := []string{"git", c.id, op.Subdir, fmt.Sprint(op.SkipSubmodules, " ", op.CommitTime)}
	if op.KeepGitDir && op.Subdir == "" {
		words = append(words, ".git", op.Remote, c.ref, c.tag)
	}
	key := solver.SourceKey(words...)
	done, err := f.s.wait(ctx, string(key))
	if err != nil {
		return nil, err
	}
	defer done()
	rec, err := f.find(ctx, key)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		if rec, err = f.checkout(ctx, op, c, key, status); err != nil {
			return nil, err
		}
	}
	return &solver.Result{Chain: rec.Outputs[0], Key: key, Origin: c.id}, nil
}

// checkGit refuses what would lead git elsewhere than to a repository of the allowed protocols.
func checkGit(op *ops.Git) error {
	u, err := gitutil.ParseURL(op.Remote)
	if err != nil || u.Host == "" || strings.HasPrefix(u.Host, "-") || strings.HasPrefix(op.Remote, "-") {
		return errs.New(errs.Invalid, "git: %.200q is not an address of a repository by http, https, git or ssh", redact(op.Remote))
	}
	if strings.ContainsFunc(op.Remote+op.Ref+op.Subdir, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return errs.New(errs.Invalid, "git: the address of the repository has a control character")
	}
	if strings.HasPrefix(op.Ref, "-") || strings.ContainsAny(op.Ref, " ~^:?*[\\") || strings.Contains(op.Ref, "..") || strings.Contains(op.Ref, "@{") || len(op.Ref) > 1000 {
		return errs.New(errs.Invalid, "git: %.200q is not the name of a branch, tag or commit", op.Ref)
	}
	if op.Checksum != "" && !isHex(op.Checksum) {
		return errs.New(errs.Invalid, "git: the checksum %.80q is not the hexadecimal ID of a commit", op.Checksum)
	}
	return nil
}

func isHex(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') && (r < 'A' || r > 'F') })
}

// resolve finds out which commit a source means.
func (f *Fetches) resolve(ctx context.Context, op *ops.Git) (commit, error) {
	check := func(c commit) (commit, error) {
		sum := strings.ToLower(op.Checksum)
		if !strings.HasPrefix(c.id, sum) && !strings.HasPrefix(c.tag, sum) {
			got := c.id
			if c.tag != "" {
				got = c.tag + " or " + c.id
			}
			return c, errs.New(errs.Precondition, "git %s: expected checksum to match %s, got %s", redact(op.Remote), op.Checksum, got)
		}
		return c, nil
	}
	if gitutil.IsCommitSHA(op.Ref) {
		return check(commit{id: op.Ref})
	}
	name := op.Remote + "#" + op.Ref
	done, err := f.s.wait(ctx, "git ref "+name)
	if err != nil {
		return commit{}, err
	}
	defer done()
	f.mu.Lock()
	c, ok := f.commits[name]
	f.mu.Unlock()
	if !ok {
		if c, err = f.askRemote(ctx, op); err != nil {
			return commit{}, err
		}
		f.mu.Lock()
		f.commits[name] = c
		f.mu.Unlock()
	}
	return check(c)
}

// maxRefs is how much of a list of references is read, in bytes.
const maxRefs = 4 << 20

func (f *Fetches) askRemote(ctx context.Context, op *ops.Git) (c commit, err error) {
	g, err := f.open(ctx, op, nil, "")
	if err != nil {
		return c, err
	}
	defer errs.Close(&err, g)
	args := []string{"ls-remote", "--symref", "--", g.from, "HEAD"}
	if op.Ref != "" {
		args = []string{"ls-remote", "--", g.from, op.Ref, op.Ref + "^{}"}
	}
	out, err := g.run(ctx, maxRefs, args...)
	if err != nil {
		return c, err
	}
	found := map[string]string{}
	for line := range strings.Lines(out) {
		left, right, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if to, symbolic := strings.CutPrefix(left, "ref: "); ok && symbolic {
			found["HEAD is"] = to
		} else if ok && gitutil.IsCommitSHA(left) {
			found[right] = left
		}
	}
	if op.Ref == "" {
		if c = (commit{id: found["HEAD"], ref: found["HEAD is"]}); c.id == "" {
			return c, errs.New(errs.NotFound, "git %s: the repository has no default branch", redact(op.Remote))
		}
		if !strings.HasPrefix(c.ref, "refs/heads/") {
			c.ref = ""
		}
		return c, nil
	}
	// As git checkout does: the full name, then a branch, then a tag.
	for _, ref := range []string{
		"refs/" + strings.TrimPrefix(op.Ref, "refs/"), "refs/heads/" + strings.TrimPrefix(op.Ref, "refs/heads/"), "refs/tags/" + strings.TrimPrefix(op.Ref, "refs/tags/"),
	} {
		if id := found[ref]; id != "" {
			c = commit{id: id, ref: ref}
			if peeled := found[ref+"^{}"]; peeled != "" {
				c.id, c.tag = peeled, id
			}
			return c, nil
		}
	}
	return c, errs.New(errs.NotFound, "git %s: repository does not contain ref %s", redact(op.Remote), op.Ref)
}

// checkout makes a layer of a commit and remembers it.
func (f *Fetches) checkout(ctx context.Context, op *ops.Git, c commit, key oci.Digest, status func(solver.Status)) (_ *solver.Record, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.s.o.Limits.Time, errs.New(errs.Unavailable, "git %s: not complete after %s", redact(op.Remote), f.s.o.Limits.Time))
	defer cancel()
	g, err := f.open(ctx, op, nil, "")
	if err != nil {
		return nil, err
	}
	defer errs.Close(&err, g)
	if status != nil {
		status(solver.Status{ID: "git " + redact(op.Remote)})
	}
	if err := g.fetch(ctx, c); err != nil {
		return nil, err
	}
	start := time.Now().UTC()
	w := &treeWriter{limits: f.s.o.Limits, time: start.Truncate(time.Second), subdir: cleanSubdir(op.Subdir)}
	if op.CommitTime {
		if w.time, err = g.commitTime(ctx, c.id); err != nil {
			return nil, err
		}
	}
	keep := op.KeepGitDir && w.subdir == ""
	chain, err := f.s.o.Layers.Layer(ctx, f.lease, nil, func(to io.Writer) error {
		w.tw = tar.NewWriter(to)
		if err := f.writeTree(ctx, g, op, c.id, "", w, 0, keep); err != nil {
			return err
		}
		if w.subdir != "" && !w.found {
			return errs.New(errs.NotFound, "git %s: %q is not a directory of the commit %s", redact(op.Remote), op.Subdir, c.id)
		}
		if keep {
			if err := g.finish(ctx, c); err != nil {
				return err
			}
			if err := w.gitDir(g.dir, ".git"); err != nil {
				return err
			}
		}
		return w.tw.Close()
	})
	if err != nil {
		return nil, err
	}
	if status != nil {
		status(solver.Status{ID: "git " + redact(op.Remote), Done: true})
	}
	rec := &solver.Record{
		ID: key, Outputs: map[int]oci.Chain{0: chain}, Name: "git " + redact(op.Remote) + "#" + or(op.Ref, c.ref), Created: start, Took: time.Since(start),
		Parts: []solver.Part{{What: "commit", Sum: c.id}},
	}
	return rec, f.s.o.Cache.Save(ctx, rec, key)
}

func cleanSubdir(s string) string { return strings.TrimPrefix(path.Clean("/"+s), "/") }

// commitTime returns when a source's commit was made.
func (f *Fetches) commitTime(ctx context.Context, op *ops.Git) (t time.Time, err error) {
	if err := checkGit(op); err != nil {
		return t, err
	}
	c, err := f.resolve(ctx, op)
	if err != nil {
		return t, err
	}
	f.mu.Lock()
	t, ok := f.times[c.id]
	f.mu.Unlock()
	if ok {
		return t, nil
	}
	g, err := f.open(ctx, op, nil, "")
	if err != nil {
		return t, err
	}
	defer errs.Close(&err, g)
	if err := g.fetch(ctx, c); err != nil {
		return t, err
	}
	if t, err = g.commitTime(ctx, c.id); err == nil {
		f.mu.Lock()
		f.times[c.id] = t
		f.mu.Unlock()
	}
	return t, err
}

func (g *repository) commitTime(ctx context.Context, id string) (time.Time, error) {
	out, err := g.run(ctx, 100, "log", "-1", "--format=%ct", id, "--")
	if err != nil {
		return time.Time{}, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return time.Time{}, errs.New(errs.Invalid, "git: the time of commit %s is malformed", id)
	}
	return time.Unix(n, 0).UTC(), nil
}

// writeTree writes the files of a commit, and those of its submodules, below prefix.
func (f *Fetches) writeTree(ctx context.Context, g *repository, op *ops.Git, id, prefix string, w *treeWriter, depth int, keep bool) error {
	if err := g.archive(ctx, id, func(r io.Reader) error { return w.copy(ctx, r, prefix) }); err != nil {
		return err
	}
	if op.SkipSubmodules {
		return nil
	}
	mods, err := g.submodules(ctx, id, op.Remote)
	if err != nil {
		return err
	}
	for _, m := range mods {
		at := path.Join(prefix, m.path)
		if !w.wants(at) {
			continue
		}
		if w.modules++; w.modules > f.s.o.Limits.Modules {
			return errs.New(errs.Invalid, "git %s: more than %d submodules", redact(op.Remote), f.s.o.Limits.Modules)
		}
		if depth >= f.s.o.Limits.Depth {
			return errs.New(errs.Invalid, "git %s: more than %d submodules in each other", redact(op.Remote), f.s.o.Limits.Depth)
		}
		if err := f.submodule(ctx, g, op, m, at, w, depth, keep); err != nil {
			return fmt.Errorf("submodule %s: %w", at, err)
		}
	}
	return nil
}

func (f *Fetches) submodule(ctx context.Context, parent *repository, op *ops.Git, m submodule, at string, w *treeWriter, depth int, keep bool) (err error) {
	sub := *op
	sub.Remote, sub.Ref, sub.Checksum, sub.Subdir = m.url, m.commit, "", ""
	if err := checkGit(&sub); err != nil {
		return err
	}
	inside := ""
	if keep {
		inside = path.Join(parent.inside, "modules", m.name)
	}
	g, err := f.open(ctx, &sub, parent, inside)
	if err != nil {
		return err
	}
	defer errs.Close(&err, g)
	c := commit{id: m.commit}
	if err := g.fetch(ctx, c); err != nil {
		return err
	}
	if err := f.writeTree(ctx, g, &sub, m.commit, at, w, depth+1, keep); err != nil {
		return err
	}
	if !keep {
		return nil
	}
	// What `git submodule update` leaves: the repository in that of the parent, and a file that leads there.
	up, err := filepath.Rel(at, filepath.Join(".git", g.inside))
	if err != nil {
		return errs.New(errs.Internal, "%w", err)
	}
	if err := w.file(path.Join(at, ".git"), []byte("gitdir: "+filepath.ToSlash(up)+"\n")); err != nil {
		return err
	}
	tree, err := filepath.Rel(filepath.Join(".git", g.inside), at)
	if err != nil {
		return errs.New(errs.Internal, "%w", err)
	}
	if err := g.finish(ctx, c); err != nil {
		return err
	}
	if _, err := g.run(ctx, 1000, "config", "core.worktree", tree); err != nil {
		return err
	}
	for key, value := range map[string]string{"url": g.remote, "active": "true"} {
		if _, err := parent.run(ctx, 1000, "config", "submodule."+m.name+"."+key, value); err != nil {
			return err
		}
	}
	return nil
}

// submodule is a submodule of a commit.
type submodule struct{ name, path, url, commit string }

const maxModulesFile = 1 << 20

// submodules returns the submodules of a commit that a checkout fetches.
func (g *repository) submodules(ctx context.Context, id, remote string) (list []submodule, err error) {
	links := map[string]string{} // path → commit
	var order []string
	err = g.stream(ctx, func(r io.Reader) error {
		in := bufio.NewReader(r)
		for n := 0; ; n++ {
			line, err := in.ReadSlice(0)
			if errors.Is(err, io.EOF) && len(line) == 0 {
				return nil
			}
			if err != nil {
				return errs.New(errs.Invalid, "git: a name in the commit %s is too long", id)
			}
			if n > g.limits.Entries {
				return errs.New(errs.Invalid, "git: the commit %s has more than %d files", id, g.limits.Entries)
			}
			about, name, _ := strings.Cut(strings.TrimSuffix(string(line), "\x00"), "\t")
			if word := strings.Fields(about); len(word) == 3 && word[0] == "160000" {
				links[name] = word[2]
				order = append(order, name)
			}
		}
	}, "ls-tree", "-r", "-z", "--full-tree", id)
	if err != nil || len(links) == 0 {
		return nil, err
	}
	out, err := g.run(ctx, maxModulesFile, "config", "--blob", id+":.gitmodules", "--no-includes", "--list", "-z")
	if err != nil {
		return nil, errs.New(errs.Invalid, "git: the commit %s has submodules and no readable .gitmodules: %w", id, err)
	}
	set := map[string]map[string]string{}
	for entry := range strings.SplitSeq(out, "\x00") {
		key, value, _ := strings.Cut(entry, "\n")
		rest, ok := strings.CutPrefix(key, "submodule.")
		if at := strings.LastIndexByte(rest, '.'); ok && at > 0 {
			name := rest[:at]
			if set[name] == nil {
				set[name] = map[string]string{}
			}
			set[name][rest[at+1:]] = value
		}
	}
	byPath := map[string]string{}
	for name, s := range set {
		byPath[path.Clean(s["path"])] = name
	}
	for _, p := range order {
		name, ok := byPath[p]
		if !ok || set[name]["url"] == "" {
			return nil, errs.New(errs.Invalid, "git: no url found for submodule path %.200q in .gitmodules", p)
		}
		if set[name]["update"] == "none" {
			continue
		}
		if err := checkName(name); err != nil {
			return nil, err
		}
		if err := checkName(p); err != nil {
			return nil, err
		}
		for _, other := range list {
			if strings.HasPrefix(name+"/", other.name+"/") || strings.HasPrefix(other.name, name+"/") {
				return nil, errs.New(errs.Invalid, "git: the submodules %.200q and %.200q would have their repositories in each other", other.name, name)
			}
		}
		address, err := submoduleURL(remote, set[name]["url"])
		if err != nil {
			return nil, err
		}
		list = append(list, submodule{name: name, path: p, url: address, commit: links[p]})
	}
	return list, nil
}

// submoduleURL resolves the address of a submodule, which may be relative to that of the repository.
func submoduleURL(remote, address string) (string, error) {
	if strings.HasPrefix(address, "./") || strings.HasPrefix(address, "../") {
		base := strings.TrimSuffix(remote, "/")
		rest := address
		for {
			if r, ok := strings.CutPrefix(rest, "./"); ok {
				rest = r
				continue
			}
			r, ok := strings.CutPrefix(rest, "../")
			if !ok {
				break
			}
			rest = r
			at := strings.LastIndexAny(base, "/:")
			if at < 0 || strings.HasSuffix(base[:at], "/") || strings.HasSuffix(base[:at+1], "://") {
				return "", errs.New(errs.Invalid, "git: the submodule's address %.200q leads above %s", address, redact(remote))
			}
			base = base[:at]
		}
		address = base + "/" + rest
	}
	u, err := gitutil.ParseURL(address)
	if err != nil || u.Host == "" {
		return "", errs.New(errs.Forbidden, "git: the submodule's address %.200q is not one by http, https, git or ssh", redact(address))
	}
	return address, nil
}

// checkName refuses a path that leads elsewhere, or that git itself would not check out.
func checkName(name string) error {
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || strings.EqualFold(part, ".git") || strings.HasPrefix(part, ".wh.") || strings.ContainsRune(part, 0) {
			return errs.New(errs.Invalid, "git: the commit has the name %.200q", name)
		}
	}
	if len(name) > 4096 {
		return errs.New(errs.Invalid, "git: the commit has a name of %d bytes", len(name))
	}
	return nil
}

// treeWriter writes the layer of a checkout.
type treeWriter struct {
	tw     *tar.Writer
	limits Limits
	time   time.Time
	subdir string // only what is below it is written, and without it
	found  bool   // subdir is a directory

	entries, modules int
	bytes            int64
}

// wants reports whether something at or below a path belongs into the layer.
func (w *treeWriter) wants(p string) bool {
	return w.subdir == "" || p == w.subdir || strings.HasPrefix(p, w.subdir+"/") || strings.HasPrefix(w.subdir, p+"/")
}

// add writes the header of an entry. It returns false when the entry does not belong into the layer.
func (w *treeWriter) add(h *tar.Header) (bool, error) {
	w.entries++
	w.bytes += h.Size
	if w.entries > w.limits.Entries {
		return false, errs.New(errs.Invalid, "git: the checkout has more than %d files", w.limits.Entries)
	}
	if w.bytes > w.limits.Bytes {
		return false, errs.New(errs.Invalid, "git: the checkout has more than %d bytes", w.limits.Bytes)
	}
	if w.subdir != "" {
		if h.Name == w.subdir && h.Typeflag == tar.TypeDir {
			w.found = true
		}
		rest, ok := strings.CutPrefix(h.Name, w.subdir+"/")
		if !ok {
			return false, nil
		}
		h.Name = rest
	}
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	h.ModTime, h.Format = w.time, tar.FormatPAX
	return true, w.tw.WriteHeader(h)
}

// copy writes the files of an archive that git makes.
func (w *treeWriter) copy(ctx context.Context, r io.Reader, prefix string) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		name := strings.TrimSuffix(h.Name, "/")
		switch h.Typeflag {
		case tar.TypeXGlobalHeader:
			continue
		case tar.TypeReg, tar.TypeDir, tar.TypeSymlink:
		default:
			return errs.New(errs.Invalid, "git: the commit has an entry of type %q", h.Typeflag)
		}
		if err := checkName(name); err != nil {
			return err
		}
		entry := &tar.Header{Typeflag: h.Typeflag, Name: path.Join(prefix, name), Linkname: h.Linkname, Size: h.Size, Mode: h.Mode & 0o777}
		if h.Typeflag == tar.TypeSymlink {
			entry.Mode = 0o777
		}
		wanted, err := w.add(entry)
		if err != nil {
			return err
		}
		if wanted {
			if _, err := io.Copy(w.tw, tr); err != nil {
				return err
			}
		}
	}
}

func (w *treeWriter) file(name string, data []byte) error {
	if _, err := w.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o644}); err != nil {
		return err
	}
	_, err := w.tw.Write(data)
	return err
}

// gitDir writes a repository.
func (w *treeWriter) gitDir(dir, as string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		name := path.Join(as, filepath.ToSlash(rel))
		if d.IsDir() {
			_, err := w.add(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755})
			return err
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() || d.Name() == "FETCH_HEAD" {
			return err
		}
		if _, err := w.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: int64(info.Mode().Perm() &^ 0o022)}); err != nil {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		_, err = io.Copy(w.tw, f)
		return errors.Join(err, f.Close())
	})
}
