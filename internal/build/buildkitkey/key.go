// Package buildkitkey computes the keys under which the caches of BuildKit know the work of a build, so that ply reads the caches that BuildKit wrote and
// writes caches that BuildKit reads.
//
// BuildKit knows a vertex by a digest of its operation and, for every input, by a link to the key of that input. A link has a selector, a digest of
// the paths that the operation reads. An input can also count by content: its key is then a digest of these files, and the link has no selector.
// The package follows version 0.33.1 of github.com/moby/buildkit: solver/llbsolver/ops for operations, cache/contenthash for content.
//
// Invariants: a key depends on the operation as the front end encoded it, and on nothing of this engine; ply's own cache never uses these keys.
package buildkitkey

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Map is how BuildKit knows a vertex.
type Map struct {
	Digest oci.Digest // of the operation; "" for a source, whose digest depends on what it is resolved to
	Deps   []Dep
}

// Dep is an input of a vertex.
type Dep struct {
	Edge      ops.Edge
	Selector  oci.Digest  // of the link to the key of the input; "" = none
	ByContent bool        // the input may also count by its content
	Content   []Selection // what counts then; nil = everything
}

// Selection is what an operation reads of an input.
type Selection struct {
	Path     string
	Wildcard bool
	Follow   bool
	Include  []string
	Exclude  []string
	Required []string
}

func (s *Selection) filtered() bool { return s.Wildcard || len(s.Include) > 0 || len(s.Exclude) > 0 }

// Output returns the digest by which a record names an output of an operation.
func Output(operation oci.Digest, index int) oci.Digest {
	return oci.DigestOf(fmt.Appendf(nil, "%s@%d", operation, index))
}

// contentOutput is the number of the output that stands for content.
const contentOutput = -1

// Of returns how BuildKit knows a vertex. The error's class is errs.Unimplemented for an operation that it does not export.
func Of(v *ops.Vertex) (*Map, error) {
	op, inputs := v.Encoded()
	if op == nil {
		return nil, errs.New(errs.Unimplemented, "%s has no encoded operation", v.Name)
	}
	m := &Map{Deps: make([]Dep, len(inputs))}
	for i, e := range inputs {
		m.Deps[i].Edge = e
	}
	var err error
	switch o := op.Op.(type) {
	case *pb.Op_Source:
	case *pb.Op_Exec:
		err = m.exec(o.Exec, v.Platform)
	case *pb.Op_File:
		err = m.file(o.File)
	case *pb.Op_Merge:
		m.Digest, err = digestJSON(struct {
			Type  string
			Merge *pb.MergeOp
		}{"buildkit.merge.v0", o.Merge})
	case *pb.Op_Diff:
		m.Digest, err = digestJSON(struct {
			Type string
			Diff *pb.DiffOp
		}{"buildkit.diff.v0", o.Diff})
	default:
		err = errs.New(errs.Unimplemented, "%s: an operation of type %T has no key", v.Name, o)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

func digestJSON(v any) (oci.Digest, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return "", errs.New(errs.Internal, "key of a build step: %w", err)
	}
	return oci.DigestOf(data), nil
}

// platform returns p as BuildKit normalises it.
func platform(p oci.Platform) oci.Platform {
	if p.Architecture == "" {
		p = oci.HostPlatform()
	}
	if p.Architecture == "arm64" && p.Variant == "v8" || p.Architecture == "amd64" && p.Variant == "v1" {
		p.Variant = ""
	}
	return p
}

// Image returns the digest of the source that is an image, by the digest of its manifest or index.
func Image(top oci.Digest, p oci.Platform, layerLimit int) oci.Digest {
	p = platform(p)
	var limit *int
	if layerLimit > 0 {
		limit = &layerLimit
	}
	key, err := digestJSON(struct {
		Digest     oci.Digest
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
		Limit      *int     `json:",omitempty"`
	}{top, p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures, limit})
	if err != nil {
		return "" // strings and numbers can always be encoded
	}
	return Source(string(key))
}

// Source returns the digest of a source, by what BuildKit calls its cache key.
func Source(key string) oci.Digest { return oci.DigestOf([]byte("buildkit.source.v0:" + key)) }

// exec computes the digest of a command and how it reads its inputs.
func (m *Map) exec(e *pb.ExecOp, p oci.Platform) error {
	if err := m.mounts(e); err != nil {
		return err
	}
	e = e.CloneVT()
	if e.Meta != nil {
		for _, h := range e.Meta.ExtraHosts {
			h.IP = ""
		}
		e.Meta.ProxyEnv = nil
	}
	for _, mnt := range e.Mounts {
		mnt.Selector = ""
		if c := mnt.CacheOpt; c != nil && !namedAfterTarget(c, mnt.Dest) {
			c.ID, c.Sharing = "", 0
		}
	}
	if len(e.Mounts) == 1 {
		// A command that has the root file system only: its mounts are not in the key.
		if r := e.Mounts[0]; r.Dest == "/" && !r.Readonly && r.MountType == pb.MountType_BIND && r.CacheOpt == nil && r.SSHOpt == nil && r.SecretOpt == nil && r.ResultID == "" {
			e.Mounts = nil
		}
	}
	p = platform(p)
	var err error
	m.Digest, err = digestJSON(struct {
		Type       string
		Exec       *pb.ExecOp
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
	}{"buildkit.exec.v0", e, p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures})
	return err
}

// namedAfterTarget reports whether a cache mount has the name that the Dockerfile front end chooses.
func namedAfterTarget(c *pb.CacheOpt, target string) bool {
	if c.Sharing != 0 {
		return false
	}
	_, rest, ok := strings.Cut(c.ID, "/")
	return c.ID == target || ok && rest == target
}

// mounts fills the Deps of a command.
func (m *Map) mounts(e *pb.ExecOp) error {
	paths := make([][]string, len(m.Deps))
	for _, mnt := range e.Mounts {
		switch mnt.MountType {
		case pb.MountType_SECRET, pb.MountType_SSH, pb.MountType_TMPFS:
			continue
		}
		if mnt.Input == int64(pb.Empty) {
			continue
		}
		if mnt.Input < 0 || mnt.Input >= int64(len(m.Deps)) {
			return errs.New(errs.Invalid, "a mount refers to input %d", mnt.Input)
		}
		selector := path.Join("/", mnt.Selector)
		paths[mnt.Input] = append(paths[mnt.Input], selector)
		byContent := mnt.Output == int64(pb.SkipOutput) || mnt.Readonly || selector == "/"
		switch mnt.ContentCache {
		case pb.MountContentCache_OFF:
			byContent = false
		case pb.MountContentCache_DEFAULT:
			byContent = byContent && mnt.Dest != "/"
		}
		m.Deps[mnt.Input].ByContent = byContent
	}
	for i, list := range paths {
		d := &m.Deps[i]
		if len(list) > 0 {
			d.Selector = oci.DigestOf([]byte(strings.Join(list, "\x00")))
		}
		if !d.ByContent {
			continue
		}
		for _, p := range outermost(list) {
			if p == "/" {
				d.Content = nil
				break
			}
			d.Content = append(d.Content, Selection{Path: p, Follow: true})
		}
	}
	return nil
}

// outermost returns the paths that lie in no other one, each once. A single path stays as it is.
func outermost(paths []string) []string {
	if len(paths) <= 1 {
		return paths
	}
	sorted := slices.Clone(paths)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	return slices.DeleteFunc(slices.Clone(sorted), func(p string) bool {
		return slices.ContainsFunc(sorted, func(up string) bool { return up != p && strings.HasPrefix(p, strings.TrimSuffix(up, "/")+"/") })
	})
}

// file computes the digest of file operations and what they read of their inputs.
func (m *Map) file(f *pb.FileOp) error {
	read := make([][]Selection, len(m.Deps))
	changed := map[int64]bool{}
	var actions [][]byte
	var indexes [][]int
	for _, a := range f.Actions {
		changed[a.Input] = true
		var encoded any
		var owner *pb.ChownOpt
		switch do := a.Action.(type) {
		case *pb.FileAction_Mkdir:
			encoded, owner = do.Mkdir, do.Mkdir.GetOwner()
		case *pb.FileAction_Mkfile:
			encoded, owner = do.Mkfile, do.Mkfile.GetOwner()
		case *pb.FileAction_Symlink:
			encoded, owner = do.Symlink, do.Symlink.GetOwner()
		case *pb.FileAction_Rm:
			encoded = do.Rm
		case *pb.FileAction_Copy:
			c := do.Copy.CloneVT()
			owner = c.GetOwner()
			if n := a.SecondaryInput; n >= 0 && n < int64(len(m.Deps)) {
				read[n] = append(read[n], Selection{
					Path: c.Src, Wildcard: c.AllowWildcard && wildcards(c.Src), Follow: c.FollowSymlink,
					Include: c.IncludePatterns, Exclude: c.ExcludePatterns, Required: c.RequiredPaths,
				})
				c.Src = path.Base(c.Src)
			}
			encoded = c
		default:
			return errs.New(errs.Unimplemented, "a file action of type %T has no key", do)
		}
		if err := m.owner(read, owner); err != nil {
			return err
		}
		data, err := json.Marshal(encoded)
		if err != nil {
			return errs.New(errs.Internal, "key of a build step: %w", err)
		}
		actions = append(actions, data)
		indexes = append(indexes, []int{int(a.Input), int(a.SecondaryInput), int(a.Output)})
	}
	if plainIndexes(indexes) {
		indexes = nil
	}
	for i, list := range read {
		if len(list) == 0 || changed[int64(i)] {
			continue
		}
		var paths []string
		for _, s := range list {
			paths = append(paths, s.Path)
		}
		slices.Sort(paths)
		slices.Reverse(paths)
		d := &m.Deps[i]
		d.Selector, d.ByContent, d.Content = oci.DigestOf([]byte(strings.Join(paths, "\x00"))), true, merged(list)
	}
	var err error
	m.Digest, err = digestJSON(struct {
		Type    string
		Actions [][]byte
		Indexes [][]int `json:"indexes,omitempty"`
	}{"buildkit.file.v0", actions, indexes})
	return err
}

// owner adds the files that have the numbers of named owners.
func (m *Map) owner(read [][]Selection, o *pb.ChownOpt) error {
	for _, u := range []struct {
		opt  *pb.UserOpt
		file string
	}{{o.GetUser(), "/etc/passwd"}, {o.GetGroup(), "/etc/group"}} {
		named, ok := u.opt.GetUser().(*pb.UserOpt_ByName)
		if !ok {
			continue
		}
		n := named.ByName.GetInput()
		if named.ByName == nil || n < 0 {
			return errs.New(errs.Invalid, "a named owner refers to no file system")
		}
		if n < int64(len(read)) {
			read[n] = append(read[n], Selection{Path: u.file, Follow: true})
		}
	}
	return nil
}

// merged returns the selections without those that others contain, in the order in which their digests count.
func merged(list []Selection) (out []Selection) {
	plain := map[bool][]string{}
	for i := range list {
		if !list[i].filtered() {
			plain[list[i].Follow] = append(plain[list[i].Follow], list[i].Path)
		}
	}
	for _, follow := range []bool{false, true} {
		for _, p := range outermost(plain[follow]) {
			out = append(out, Selection{Path: p, Follow: follow})
		}
	}
	for i := range list {
		if list[i].filtered() {
			out = append(out, list[i])
		}
	}
	slices.SortStableFunc(out, func(a, b Selection) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// plainIndexes reports whether actions form the usual line: each one changes the result of the one before, all copy from the second input, and the last one
// has the result. Such numbers are not in the key.
func plainIndexes(list [][]int) bool {
	for i, n := range list {
		input, output := len(list)+i-1, -1
		if i == 0 {
			input = 0
		}
		if i == len(list)-1 {
			output = 0
		}
		if n[0] != input || n[1] != -1 && n[1] != 1 || n[2] != output {
			return false
		}
	}
	return len(list) > 0
}

// wildcards reports whether a pattern of path.Match has a wildcard.
func wildcards(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '*', '?', '[':
			return true
		case '\\':
			i++
		}
	}
	return false
}
