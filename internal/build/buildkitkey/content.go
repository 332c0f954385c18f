package buildkitkey

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"

	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Source of content: a tree and how BuildKit sees its root.
type Files struct {
	Tree *tree.Tree // nil = an empty tree
	Sent bool       // the tree is a directory of a client: its root directory has no attributes
}

// Content returns the digest by which a record names content. Nil selections mean everything.
func Content(ctx context.Context, f Files, selections []Selection) (oci.Digest, error) {
	if len(selections) == 0 {
		selections = []Selection{{}}
	}
	sums := make([]string, len(selections))
	for i := range selections {
		s := &selections[i]
		sum, err := f.sum(ctx, path.Join("/", s.Path), s)
		if err != nil {
			return "", err
		}
		sums[i] = string(sum)
	}
	return Output(oci.DigestOf([]byte(strings.Join(sums, "\x00"))), contentOutput), nil
}

var ofNothing = oci.DigestOf(nil)

func (f *Files) sum(ctx context.Context, p string, s *Selection) (oci.Digest, error) {
	if f.Tree == nil {
		if p == "/" {
			return ofNothing, nil
		}
		return "", errs.New(errs.NotFound, "%q: not found", p)
	}
	if !s.filtered() {
		return f.all(ctx, p, s.Follow)
	}
	return f.some(ctx, p, s)
}

// openDir is a directory on the way down whose digest is not complete.
type openDir struct {
	rel string
	sum hash.Hash
}

// all returns the digest of a file, or of a directory with all that is in it.
func (f *Files) all(ctx context.Context, p string, follow bool) (sum oci.Digest, err error) {
	var open []openDir
	closeTo := func(rel string) {
		for len(open) > 0 {
			top := open[len(open)-1]
			if top.rel == "" && rel != "" || rel != "" && strings.HasPrefix(rel, top.rel+"/") {
				return
			}
			open = open[:len(open)-1]
			sum = oci.DigestOfHash(top.sum)
			if len(open) > 0 {
				add(open[len(open)-1].sum, path.Base(top.rel), sum)
			}
		}
	}
	err = f.Tree.Walk(p, tree.WalkOptions{Follow: follow, Context: ctx}, func(e *tree.Entry) error {
		if e.Rel != "" {
			closeTo(e.Rel)
		}
		own, err := f.header(e, p == "/" && e.Rel == "")
		if err != nil {
			return err
		}
		switch {
		case e.Info.IsDir():
			d := openDir{e.Rel, sha256.New()}
			add(d.sum, "", own)
			open = append(open, d)
		case len(open) == 0:
			sum = own
		default:
			add(open[len(open)-1].sum, path.Base(e.Rel), own)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	closeTo("")
	return sum, nil
}

// add adds a file of a directory, or with the name "" the attributes of the directory.
func add(h hash.Hash, name string, sum oci.Digest) {
	_, _ = io.WriteString(h, "\x00"+name+string(sum)) // never fails
}

// taken is a file that a filter selects.
type taken struct {
	path    string
	sum     oci.Digest
	follow  bool
	used    bool // it is in the list
	include patternmatcher.MatchInfo
	exclude patternmatcher.MatchInfo
}

// filter is the state of a walk that selects files.
type filter struct {
	f                *Files
	s                *Selection
	p                string // what is selected, "" for the root
	include, exclude *patternmatcher.PatternMatcher
	matched          string // the last path that the wildcards matched
	up               []*taken
	list             []*taken
}

// some returns the digest of the files that wildcards and filters select.
func (f *Files) some(ctx context.Context, p string, s *Selection) (oci.Digest, error) {
	w := &filter{f: f, s: s, p: strings.TrimSuffix(p, "/")}
	var err error
	if len(s.Include) > 0 {
		if w.include, err = patternmatcher.New(s.Include); err != nil {
			return "", errs.New(errs.Invalid, "pattern: %v", err)
		}
	}
	if len(s.Exclude) > 0 {
		if w.exclude, err = patternmatcher.New(s.Exclude); err != nil {
			return "", errs.New(errs.Invalid, "pattern: %v", err)
		}
	}
	prefix, follow := w.p, false
	if s.Wildcard {
		prefix, follow = fixedPart(w.p), true
	}
	start := prefix
	if start == "" {
		start = "/"
	}
	err = f.Tree.Walk(start, tree.WalkOptions{Follow: follow, Context: ctx}, func(e *tree.Entry) error {
		name := prefix
		if e.Rel != "" {
			name += "/" + e.Rel
		}
		return w.visit(e, name)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return "", err
	}
	for _, r := range s.Required {
		if !slices.ContainsFunc(w.list, func(t *taken) bool { return strings.HasPrefix(t.path, r) }) {
			return "", errs.New(errs.NotFound, "%q: not found", r)
		}
	}
	for _, t := range w.list {
		if t.follow {
			if t.sum, err = f.all(ctx, t.path, true); err != nil {
				return "", err
			}
		}
	}
	switch {
	case len(w.list) == 0:
		return ofNothing, nil
	case len(w.list) == 1 && path.Base(p) == path.Base(w.list[0].path):
		return w.list[0].sum, nil
	}
	h := sha256.New()
	for _, t := range w.list {
		key := strings.ReplaceAll(strings.TrimPrefix(t.path, prefix), "/", "\x00")
		if key == "" {
			key = "\x00"
		}
		_, _ = io.WriteString(h, key+string(t.sum)) // never fails
	}
	return oci.DigestOfHash(h), nil
}

// fixedPart returns the directories before the first part of a path that has wildcards; "" for the root.
func fixedPart(p string) string {
	parts := strings.Split(p, "/")
	for i, part := range parts {
		if wildcards(part) {
			parts = parts[:i]
			break
		}
	}
	return strings.Join(parts, "/")
}

func (w *filter) visit(e *tree.Entry, name string) error {
	dir := e.Info.IsDir()
	if dir && name == "" && w.p == "" {
		return nil // the attributes of the root are not copied
	}
	for len(w.up) > 0 && !strings.HasPrefix(name, w.up[len(w.up)-1].path+"/") {
		w.up = w.up[:len(w.up)-1]
	}
	var parent *taken
	if len(w.up) > 0 {
		parent = w.up[len(w.up)-1]
	}
	t := &taken{path: name, follow: parent == nil && w.s.Follow && e.Info.IsLink()}
	base := w.p
	if w.s.Wildcard {
		if w.matched == "" || name != w.matched && !strings.HasPrefix(name, w.matched+"/") {
			ok, err := path.Match(w.p, name)
			if err != nil {
				return errs.New(errs.Invalid, "pattern %q: %v", w.p, err)
			}
			if !ok {
				return nil
			}
			w.matched = name
		}
		base = w.matched
	}
	candidate := strings.TrimSuffix(strings.TrimPrefix(name+"/", base+"/"), "/")
	selected, err := w.selects(candidate, t, parent)
	if err != nil {
		return err
	}
	if !selected && !dir {
		return nil
	}
	if t.sum, err = w.f.header(e, false); err != nil {
		return err
	}
	if selected {
		for _, u := range w.up {
			if !u.used {
				u.used = true
				w.list = append(w.list, u)
			}
		}
		t.used = true
		w.list = append(w.list, t)
	}
	if dir {
		w.up = append(w.up, t)
	}
	return nil
}

// selects reports whether the patterns select a path.
func (w *filter) selects(candidate string, t, parent *taken) (bool, error) {
	var up taken
	if parent != nil {
		up = *parent
	}
	if w.include != nil {
		ok, info, err := w.include.MatchesUsingParentResults(candidate, up.include)
		if err != nil {
			return false, errs.New(errs.Invalid, "pattern: %v", err)
		}
		if t.include = info; !ok {
			return false, nil
		}
	}
	if w.exclude != nil {
		ok, info, err := w.exclude.MatchesUsingParentResults(candidate, up.exclude)
		if err != nil {
			return false, errs.New(errs.Invalid, "pattern: %v", err)
		}
		if t.exclude = info; ok {
			return false, nil
		}
	}
	return true, nil
}

// header returns the digest of a file: its attributes in the form of version 1 of docker's tarsum, without a name and times, and then its content. For a
// directory these are the attributes only. root says that it is the root directory of the tree.
func (f *Files) header(e *tree.Entry, root bool) (oci.Digest, error) {
	i := &e.Info
	if root && f.Sent {
		return ofNothing, nil
	}
	kind, size, mode := byte('0'), int64(0), i.Mode&0o7777
	switch i.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		size = i.Size
	case unix.S_IFDIR:
		kind = '5'
	case unix.S_IFLNK:
		kind, mode = '2', 0o777
	case unix.S_IFCHR:
		kind = '3'
	case unix.S_IFBLK:
		kind = '4'
	case unix.S_IFIFO:
		kind = '6'
	}
	h := sha256.New()
	fmt.Fprintf(h, "namemode%duid%dgid%dsize%dtypeflag%clinkname%sunamegnamedevmajor0devminor0", mode, i.UID, i.GID, size, kind, i.Link)
	var names []string
	for name := range i.Xattrs {
		if name == "security.capability" || !strings.HasPrefix(name, "security.") && !strings.HasPrefix(name, "system.") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		_, _ = io.WriteString(h, name+i.Xattrs[name]) // never fails
	}
	if i.IsRegular() && i.Size > 0 {
		r, err := e.Open()
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return "", err
		}
	}
	return oci.DigestOfHash(h), nil
}
