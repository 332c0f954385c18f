package ops

import (
	"encoding/json"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Limits of what Decode accepts.
const (
	maxVertices = 20_000
	maxOp       = 4 << 20 // bytes of one encoded operation
	maxList     = 20_000  // entries of any list in an operation
	maxText     = 1 << 20 // bytes of any text in an operation
)

// DecodeBytes decodes an encoded definition as Decode does.
func DecodeBytes(raw []byte) (*Graph, error) {
	def := &pb.Definition{}
	if err := def.UnmarshalVT(raw); err != nil {
		return nil, errs.New(errs.Invalid, "definition: %w", err)
	}
	return Decode(def)
}

// Decode decodes and checks a definition of LLB. A definition without operations is an empty file system. Errors: errs.Invalid for a
// definition that is malformed or too large, errs.Unimplemented for an operation or attribute that is not supported.
func Decode(def *pb.Definition) (*Graph, error) {
	if def == nil || len(def.Def) == 0 {
		return &Graph{}, nil
	}
	if len(def.Def) > maxVertices {
		return nil, invalid("it has %d operations, the limit is %d", len(def.Def), maxVertices)
	}
	d := decoder{meta: def.Metadata, source: def.Source, ops: make(map[string]*pb.Op, len(def.Def)), done: map[string]*Vertex{}}
	last := ""
	for _, raw := range def.Def {
		if len(raw) > maxOp {
			return nil, invalid("an operation has %d bytes, the limit is %d", len(raw), maxOp)
		}
		op := &pb.Op{}
		if err := op.UnmarshalVT(raw); err != nil {
			return nil, invalid("an operation is malformed: %v", err)
		}
		last = string(oci.DigestOf(raw))
		d.ops[last] = op
	}
	end := d.ops[last]
	if end.Op != nil || len(end.Inputs) != 1 {
		return nil, invalid("the last operation must refer to the result")
	}
	if err := d.files(); err != nil {
		return nil, err
	}
	root, err := d.edge(end.Inputs[0])
	if err != nil {
		return nil, err
	}
	d.graph.Root = root
	return &d.graph, nil
}

func invalid(format string, args ...any) error {
	return errs.New(errs.Invalid, "build definition: "+format, args...)
}

func unsupported(format string, args ...any) error {
	return errs.New(errs.Unimplemented, "build definition: "+format+" is not supported", args...)
}

type decoder struct {
	meta   map[string]*pb.OpMetadata
	source *pb.Source
	ops    map[string]*pb.Op
	done   map[string]*Vertex // nil while its inputs are decoded
	graph  Graph
}

func (d *decoder) files() error {
	if d.source == nil {
		return nil
	}
	for _, f := range d.source.Infos {
		if f == nil {
			return invalid("a source text is missing")
		}
		d.graph.Files = append(d.graph.Files, File{Name: f.Filename, Language: f.Language, Data: f.Data})
	}
	return nil
}

// edge decodes the vertex that in refers to, with all that it needs. It does not recurse: the depth is the client's choice.
func (d *decoder) edge(in *pb.Input) (Edge, error) {
	type frame struct {
		digest string
		next   int // the next input to visit
	}
	stack := []frame{{digest: in.GetDigest()}}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		op := d.ops[top.digest]
		switch {
		case op == nil:
			return Edge{}, invalid("operation %.80q is missing", top.digest)
		case top.next == 0 && d.done[top.digest] != nil:
			stack = stack[:len(stack)-1]
			continue
		case top.next == 0:
			if _, busy := d.done[top.digest]; busy {
				return Edge{}, invalid("operation %s depends on itself", top.digest)
			}
			d.done[top.digest] = nil
		}
		if top.next < len(op.Inputs) {
			sub := op.Inputs[top.next].GetDigest()
			top.next++
			if v, seen := d.done[sub]; v == nil {
				if seen {
					return Edge{}, invalid("operation %s depends on itself", sub)
				}
				stack = append(stack, frame{digest: sub})
			}
			continue
		}
		v, err := d.vertex(top.digest, op)
		if err != nil {
			return Edge{}, err
		}
		d.done[top.digest] = v
		d.graph.Vertices = append(d.graph.Vertices, v)
		stack = stack[:len(stack)-1]
	}
	return d.refer(in)
}

func (d *decoder) refer(in *pb.Input) (Edge, error) {
	v := d.done[in.GetDigest()]
	if v == nil {
		return Edge{}, invalid("operation %.80q is missing", in.GetDigest())
	}
	if in.Index < 0 || in.Index >= int64(v.Outputs()) {
		return Edge{}, invalid("operation %s has no output %d", v.Digest, in.Index)
	}
	return Edge{v, int(in.Index)}, nil
}

// Outputs returns how many outputs a vertex has.
func (v *Vertex) Outputs() int {
	n := 0
	switch op := v.Op.(type) {
	case *Exec:
		for _, m := range op.Mounts {
			n = max(n, m.Output+1)
		}
	case *Files:
		for _, a := range op.Actions {
			n = max(n, a.Output+1)
		}
	default:
		n = 1
	}
	return n
}

func (d *decoder) vertex(digest string, op *pb.Op) (*Vertex, error) {
	v := &Vertex{Digest: oci.Digest(digest), encoded: op}
	for _, in := range op.Inputs {
		e, err := d.refer(in)
		if err != nil {
			return nil, err
		}
		v.Inputs = append(v.Inputs, e)
	}
	v.refers = v.Inputs
	if p := op.Platform; p != nil {
		v.Platform = oci.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
	}
	if c := op.Constraints; c != nil && len(c.Filter) > 0 {
		return nil, unsupported("a filter of workers")
	}
	var err error
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		v.Op, err = source(o.Source)
	case *pb.Op_Exec:
		v.Op, err = exec(o.Exec, len(op.Inputs))
	case *pb.Op_File:
		v.Op, err = files(o.File, len(op.Inputs))
	case *pb.Op_Merge:
		v.Op = &Merge{}
		v.Inputs, err = d.reorder(v.Inputs, mergeInputs(o.Merge))
	case *pb.Op_Diff:
		v.Op = &Diff{}
		v.Inputs, err = d.reorder(v.Inputs, []int64{o.Diff.GetLower().GetInput(), o.Diff.GetUpper().GetInput()})
	case nil:
		return nil, invalid("operation %s does nothing", digest)
	default:
		return nil, unsupported("an operation of type %T", o)
	}
	if err != nil {
		return nil, err
	}
	d.describe(v, d.meta[digest])
	return v, nil
}

func mergeInputs(m *pb.MergeOp) (list []int64) {
	for _, in := range m.GetInputs() {
		list = append(list, in.GetInput())
	}
	return list
}

// reorder returns the edges in the order of list, in which -1 is an empty file system.
func (d *decoder) reorder(edges []Edge, list []int64) (out []Edge, err error) {
	if len(list) > maxList {
		return nil, invalid("a list has %d entries", len(list))
	}
	for _, i := range list {
		switch {
		case i == -1:
			out = append(out, Edge{})
		case i < -1 || i >= int64(len(edges)):
			return nil, invalid("there is no input %d", i)
		default:
			out = append(out, edges[i])
		}
	}
	return out, nil
}

// userInfo matches the beginning of an address with a user, up to the host.
var userInfo = regexp.MustCompile(`\b([a-zA-Z][a-zA-Z0-9+.-]*://)([^\s/?#]*)@`)

// withoutCredentials replaces users and passwords in the addresses of a name: names are shown and recorded. The user of ssh is no secret.
func withoutCredentials(name string) string {
	return userInfo.ReplaceAllStringFunc(name, func(found string) string {
		part := userInfo.FindStringSubmatch(found)
		scheme, user := part[1], part[2]
		if !strings.HasPrefix(scheme, "http") && !strings.Contains(user, ":") {
			return found
		}
		return scheme + "xxxxx@"
	})
}

// describe takes what does not change the result.
func (d *decoder) describe(v *Vertex, m *pb.OpMetadata) {
	if m != nil {
		v.Name = m.Description["llb.customname"]
		v.IgnoreCache = m.IgnoreCache
		if m.ExportCache != nil {
			v.ExportCache = &m.ExportCache.Value
		}
		if g := m.ProgressGroup; g != nil {
			v.Group = &Group{ID: g.Id, Name: g.Name, Weak: g.Weak}
		}
		if r := m.LinuxResources; r != nil {
			v.Limits = &Limits{
				Memory: r.Memory, MemorySwap: r.MemorySwap, CPUShares: r.CpuShares, CPUPeriod: r.CpuPeriod, CPUQuota: r.CpuQuota,
				CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems,
			}
		}
	}
	if v.Name == "" {
		v.Name = v.defaultName()
	}
	v.Name = withoutCredentials(v.Name)
	if d.source == nil {
		return
	}
	for _, l := range d.source.Locations[string(v.Digest)].GetLocations() {
		if l.GetSourceIndex() < 0 || int(l.GetSourceIndex()) >= len(d.graph.Files) {
			continue
		}
		for _, r := range l.Ranges {
			v.Locations = append(v.Locations, Location{
				File: int(l.SourceIndex), Start: int(r.GetStart().GetLine()), StartChar: int(r.GetStart().GetCharacter()),
				End: int(r.GetEnd().GetLine()), EndChar: int(r.GetEnd().GetCharacter()),
			})
		}
	}
}

func (v *Vertex) defaultName() string {
	switch o := v.Op.(type) {
	case *Image:
		return "docker-image://" + o.Ref
	case *Layout:
		return "oci-layout://" + o.Ref
	case *Local:
		return "local://" + o.Name
	case *Git:
		return "git://" + o.Remote
	case *HTTP:
		return o.URL
	case *Exec:
		return strings.Join(o.Args, " ")
	case *Merge:
		return "merge"
	case *Diff:
		return "diff"
	case *Files:
		var names []string
		for _, a := range o.Actions {
			names = append(names, a.name())
		}
		return strings.Join(names, ", ")
	}
	return ""
}

func (a *Action) name() string {
	switch do := a.Do.(type) {
	case *Copy:
		return "copy " + do.Src + " " + do.Dest
	case *MakeFile:
		return "mkfile " + do.Path
	case *MakeDir:
		return "mkdir " + do.Path
	case *Remove:
		return "rm " + do.Path
	case *Symlink:
		return "symlink " + do.Target + " -> " + do.Path
	}
	return ""
}

// attrs reads the attributes of a source and remembers which were read.
type attrs struct {
	all  map[string]string
	read map[string]bool
	err  error
}

func (a *attrs) text(key string) string {
	a.read[key] = true
	return a.all[key]
}

func (a *attrs) number(key string, def int) int {
	s := a.text(key)
	if s == "" {
		return def
	}
	n, err := strconv.ParseInt(s, 0, 32)
	if err != nil && a.err == nil {
		a.err = invalid("attribute %s: %.40q is not a number", key, s)
	}
	return int(n)
}

func (a *attrs) flag(key string) bool {
	s := a.text(key)
	if s == "" {
		return false
	}
	b, err := strconv.ParseBool(s)
	if err != nil && a.err == nil {
		a.err = invalid("attribute %s: %.40q is not a truth value", key, s)
	}
	return b
}

func (a *attrs) list(key string) (list []string) {
	s := a.text(key)
	if s == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(s), &list); err != nil && a.err == nil {
		a.err = invalid("attribute %s is not a list of texts: %v", key, err)
	}
	if len(list) > maxList && a.err == nil {
		a.err = invalid("attribute %s has %d entries, the limit is %d", key, len(list), maxList)
	}
	return list
}

func (a *attrs) digest(key string) oci.Digest {
	s := a.text(key)
	if s == "" {
		return ""
	}
	d, err := oci.ParseDigest(s)
	if err != nil && a.err == nil {
		a.err = invalid("attribute %s: %w", key, err)
	}
	return d
}

// finish returns the first error; an attribute that was not read is one.
func (a *attrs) finish() error {
	if a.err != nil {
		return a.err
	}
	for key, value := range a.all {
		if len(value) > maxText {
			return invalid("attribute %.80q has %d bytes", key, len(value))
		}
		if !a.read[key] && value != "" {
			return unsupported("the attribute %.80q", key)
		}
	}
	return nil
}

// DecodeSource decodes and checks one source: an Image, Layout, Local, Git or HTTP. Its errors are those of Decode.
func DecodeSource(s *pb.SourceOp) (Op, error) { return source(s) }

func source(s *pb.SourceOp) (Op, error) {
	scheme, rest, ok := strings.Cut(s.GetIdentifier(), "://")
	if !ok || len(rest) > maxText {
		return nil, invalid("source %.80q is not an address", s.GetIdentifier())
	}
	a := &attrs{all: s.Attrs, read: map[string]bool{}}
	var op Op
	var err error
	switch scheme {
	case "docker-image":
		op = &Image{
			Ref: rest, Mode: resolveMode(a), Checksum: a.digest(pb.AttrImageChecksum), LayerLimit: a.number(pb.AttrImageLayerLimit, 0),
		}
		a.text(pb.AttrImageRecordType) // how BuildKit's own cache lists it
	case "oci-layout":
		op = &Layout{
			Ref: rest, Session: a.text(pb.AttrOCILayoutSessionID), Store: a.text(pb.AttrOCILayoutStoreID),
			LayerLimit: a.number(pb.AttrOCILayoutLayerLimit, 0),
		}
	case "local":
		op = &Local{
			Name: rest, Session: a.text(pb.AttrLocalSessionID), Include: a.list(pb.AttrIncludePatterns), Exclude: a.list(pb.AttrExcludePatterns),
			Follow: a.list(pb.AttrFollowPaths), SharedKey: a.text(pb.AttrSharedKeyHint),
		}
		a.text(pb.AttrLocalUniqueID) // keeps the sources of two builds apart; a source is read once per build in any case
		a.text(pb.AttrLocalDiffer)   // how a transfer finds what changed, which is ours to decide
	case "git":
		op, err = git(rest, a)
	case "http", "https":
		op = web(s.Identifier, a)
	default:
		return nil, unsupported("a source of type %.40q", scheme)
	}
	if err != nil {
		return nil, err
	}
	return op, a.finish()
}

func resolveMode(a *attrs) ResolveMode {
	switch s := a.text(pb.AttrImageResolveMode); s {
	case "", pb.AttrImageResolveModeDefault:
		return ResolveDefault
	case pb.AttrImageResolveModeForcePull:
		return ResolvePull
	case pb.AttrImageResolveModePreferLocal:
		return ResolveLocal
	default:
		a.err = invalid("attribute %s: %.40q", pb.AttrImageResolveMode, s)
		return ""
	}
}

func git(rest string, a *attrs) (Op, error) {
	remote := rest
	if full := a.text(pb.AttrFullRemoteURL); full != "" {
		remote = full
	}
	if !gitutil.IsGitTransport(remote) {
		remote = "https://" + remote
	}
	u, err := gitutil.ParseURL(remote)
	if err != nil {
		return nil, invalid("git source %.200q: %v", remote, err)
	}
	g := &Git{
		Remote: u.Remote, KeepGitDir: a.flag(pb.AttrKeepGitDir), TokenSecret: a.text(pb.AttrAuthTokenSecret), HeaderSecret: a.text(pb.AttrAuthHeaderSecret),
		KnownHosts: a.text(pb.AttrKnownSSHHosts), SSHSocket: a.text(pb.AttrMountSSHSock), Checksum: a.text(pb.AttrGitChecksum),
		SkipSubmodules: a.flag(pb.AttrGitSkipSubmodules),
	}
	if u.Opts != nil {
		g.Ref, g.Subdir = u.Opts.Ref, u.Opts.Subdir
	}
	// The identifier has the fragment; the full address need not.
	if _, fragment, ok := strings.Cut(rest, "#"); ok && u.Opts == nil {
		g.Ref, g.Subdir, _ = strings.Cut(fragment, ":")
	}
	if strings.HasPrefix(g.Ref, "-") || strings.HasPrefix(g.Remote, "-") {
		return nil, invalid("git source %.200q starts with a hyphen", remote)
	}
	switch m := a.text(pb.AttrGitMTime); m {
	case "", "checkout":
	case "commit":
		g.CommitTime = true
	default:
		return nil, invalid("attribute %s: %.40q", pb.AttrGitMTime, m)
	}
	a.flag(pb.AttrGitAdvice)        // whether git prints advice
	a.flag(pb.AttrGitFetchByCommit) // a way to fetch the same commit
	return g, nil
}

func web(address string, a *attrs) Op {
	h := &HTTP{
		URL: address, Checksum: a.digest(pb.AttrHTTPChecksum), Filename: a.text(pb.AttrHTTPFilename), Mode: a.number(pb.AttrHTTPPerm, -1),
		UID: a.number(pb.AttrHTTPUID, 0), GID: a.number(pb.AttrHTTPGID, 0), HeaderSecret: a.text(pb.AttrHTTPAuthHeaderSecret), Headers: map[string]string{},
	}
	for key := range a.all {
		if name, ok := strings.CutPrefix(key, pb.AttrHTTPHeaderPrefix); ok {
			h.Headers[name] = a.text(key)
		}
	}
	return h
}

func exec(e *pb.ExecOp, inputs int) (Op, error) {
	m := e.GetMeta()
	if m == nil || len(m.Args) == 0 {
		return nil, invalid("a command is empty")
	}
	for _, list := range []int{len(m.Args), len(m.Env), len(m.ExtraHosts), len(m.Ulimit), len(m.ValidExitCodes), len(e.Mounts), len(e.Secretenv)} {
		if list > maxList {
			return nil, invalid("a command has a list of %d entries", list)
		}
	}
	if len(e.CdiDevices) > 0 {
		for _, d := range e.CdiDevices {
			if !d.GetOptional() {
				return nil, unsupported("the device %.80q", d.GetName())
			}
		}
	}
	x := &Exec{Args: m.Args, Env: m.Env, Dir: m.Cwd, User: m.User, Hostname: m.Hostname, Cgroup: m.CgroupParent}
	if x.Dir == "" {
		x.Dir = "/"
	}
	if p := m.ProxyEnv; p != nil {
		x.Proxy = Proxy{HTTP: p.HttpProxy, HTTPS: p.HttpsProxy, FTP: p.FtpProxy, No: p.NoProxy, All: p.AllProxy}
	}
	for _, h := range m.ExtraHosts {
		x.ExtraHosts = append(x.ExtraHosts, Host{h.GetHost(), h.GetIP()})
	}
	for _, u := range m.Ulimit {
		x.Ulimits = append(x.Ulimits, Ulimit{u.GetName(), u.GetSoft(), u.GetHard()})
	}
	for _, c := range m.ValidExitCodes {
		x.ValidExit = append(x.ValidExit, int(c))
	}
	for _, s := range e.Secretenv {
		x.SecretEnv = append(x.SecretEnv, SecretEnv{s.GetID(), s.GetName(), s.GetOptional()})
	}
	switch e.Network {
	case pb.NetMode_UNSET:
		x.Network = NetworkDefault
	case pb.NetMode_HOST:
		x.Network = NetworkHost
	case pb.NetMode_NONE:
		x.Network = NetworkNone
	default:
		return nil, unsupported("the network mode %d", e.Network)
	}
	switch e.Security {
	case pb.SecurityMode_SANDBOX:
	case pb.SecurityMode_INSECURE:
		x.Privileged = true
	default:
		return nil, unsupported("the security mode %d", e.Security)
	}
	root := false
	for _, m := range e.Mounts {
		one, err := mount(m, inputs)
		if err != nil {
			return nil, err
		}
		root = root || one.Target == "/"
		x.Mounts = append(x.Mounts, one)
	}
	if !root {
		return nil, invalid("a command has no root file system")
	}
	return x, uniqueOutputs(x)
}

func uniqueOutputs(x *Exec) error {
	seen := map[int]bool{}
	for _, m := range x.Mounts {
		if m.Output >= 0 && seen[m.Output] {
			return invalid("two mounts of a command have the output %d", m.Output)
		}
		seen[m.Output] = true
	}
	return nil
}

func mount(m *pb.Mount, inputs int) (out Mount, err error) {
	if m == nil || m.Input < -1 || m.Input >= int64(inputs) || m.Output < -1 || m.Output > maxList {
		return out, invalid("a mount has the input %d and the output %d of %d inputs", m.GetInput(), m.GetOutput(), inputs)
	}
	if strings.ContainsRune(m.Dest, 0) || len(m.Dest) > 4096 || len(m.Selector) > 4096 {
		return out, invalid("the target %.80q of a mount", m.Dest)
	}
	out = Mount{
		Input: int(m.Input), Selector: m.Selector, Target: path.Clean("/" + m.Dest), Output: int(m.Output), ReadOnly: m.Readonly,
	}
	switch m.ContentCache {
	case pb.MountContentCache_DEFAULT:
	case pb.MountContentCache_ON, pb.MountContentCache_OFF:
		on := m.ContentCache == pb.MountContentCache_ON
		out.ByContent = &on
	default:
		return out, unsupported("the content cache mode %d", m.ContentCache)
	}
	switch m.MountType {
	case pb.MountType_BIND:
		out.Kind = MountBind
	case pb.MountType_CACHE:
		out.Kind, out.CacheID = MountCache, m.CacheOpt.GetID()
		if out.CacheID == "" {
			out.CacheID = out.Target
		}
		switch m.CacheOpt.GetSharing() {
		case pb.CacheSharingOpt_SHARED:
			out.Sharing = SharingShared
		case pb.CacheSharingOpt_PRIVATE:
			out.Sharing = SharingPrivate
		case pb.CacheSharingOpt_LOCKED:
			out.Sharing = SharingLocked
		default:
			return out, unsupported("the sharing mode %d", m.CacheOpt.GetSharing())
		}
	case pb.MountType_TMPFS:
		out.Kind, out.TmpfsSize = MountTmpfs, m.TmpfsOpt.GetSize()
		if out.TmpfsSize < 0 {
			return out, invalid("a tmpfs of %d bytes", out.TmpfsSize)
		}
	case pb.MountType_SECRET:
		o := m.SecretOpt
		out.Kind, out.SecretID, out.UID, out.GID, out.Mode, out.Optional = MountSecret, o.GetID(), int(o.GetUid()), int(o.GetGid()), o.GetMode()&0o7777, o.GetOptional()
	case pb.MountType_SSH:
		o := m.SSHOpt
		out.Kind, out.SecretID, out.UID, out.GID, out.Mode, out.Optional = MountSSH, o.GetID(), int(o.GetUid()), int(o.GetGid()), o.GetMode()&0o7777, o.GetOptional()
	default:
		return out, unsupported("a mount of type %d", m.MountType)
	}
	if out.Kind != MountBind && out.Target == "/" {
		return out, invalid("the root file system of a command is a mount of type %s", out.Kind)
	}
	if out.Kind != MountBind {
		out.Output = -1 // the field is not set for these, which reads as 0
	}
	return out, nil
}

func files(f *pb.FileOp, inputs int) (Op, error) {
	if len(f.GetActions()) == 0 || len(f.Actions) > maxList {
		return nil, invalid("a file operation has %d actions", len(f.GetActions()))
	}
	out := &Files{}
	seen := map[int64]bool{}
	for i, a := range f.Actions {
		limit := int64(inputs + i)
		if a.Input < -1 || a.Input >= limit || a.SecondaryInput < -1 || a.SecondaryInput >= limit || a.Output < -1 || a.Output > maxList {
			return nil, invalid("action %d of a file operation has an input or output that does not exist", i)
		}
		if a.Output >= 0 && seen[a.Output] {
			return nil, invalid("two actions of a file operation have the output %d", a.Output)
		}
		seen[a.Output] = true
		do, err := action(a, inputs)
		if err != nil {
			return nil, err
		}
		out.Actions = append(out.Actions, Action{Base: int(a.Input), From: int(a.SecondaryInput), Output: int(a.Output), Do: do})
	}
	return out, nil
}

func action(a *pb.FileAction, inputs int) (FileAction, error) {
	switch x := a.Action.(type) {
	case *pb.FileAction_Copy:
		return copyAction(x.Copy, inputs)
	case *pb.FileAction_Mkfile:
		o, err := owner(x.Mkfile.GetOwner(), inputs)
		return &MakeFile{
			Path: x.Mkfile.GetPath(), Mode: uint32(x.Mkfile.GetMode()) & 0o7777, Data: x.Mkfile.GetData(), Owner: o, Time: stamp(x.Mkfile.GetTimestamp()),
		}, err
	case *pb.FileAction_Mkdir:
		o, err := owner(x.Mkdir.GetOwner(), inputs)
		return &MakeDir{
			Path: x.Mkdir.GetPath(), Mode: uint32(x.Mkdir.GetMode()) & 0o7777, Parents: x.Mkdir.GetMakeParents(), Owner: o, Time: stamp(x.Mkdir.GetTimestamp()),
		}, err
	case *pb.FileAction_Rm:
		return &Remove{Path: x.Rm.GetPath(), AllowMissing: x.Rm.GetAllowNotFound(), Wildcards: x.Rm.GetAllowWildcard()}, nil
	case *pb.FileAction_Symlink:
		o, err := owner(x.Symlink.GetOwner(), inputs)
		return &Symlink{Target: x.Symlink.GetOldpath(), Path: x.Symlink.GetNewpath(), Owner: o, Time: stamp(x.Symlink.GetTimestamp())}, err
	default:
		return nil, unsupported("a file action of type %T", x)
	}
}

func copyAction(c *pb.FileActionCopy, inputs int) (FileAction, error) {
	o, err := owner(c.GetOwner(), inputs)
	if err != nil {
		return nil, err
	}
	mode := c.ModeStr
	if mode == "" && c.Mode >= 0 {
		mode = strconv.FormatInt(int64(c.Mode)&0o7777, 8)
	}
	if max(len(c.IncludePatterns), len(c.ExcludePatterns), len(c.RequiredPaths)) > maxList {
		return nil, invalid("a copy has too many patterns")
	}
	return &Copy{
		Src: c.Src, Dest: c.Dest, Owner: o, Mode: mode, Follow: c.FollowSymlink, ContentsOnly: c.DirCopyContents, Unpack: c.AttemptUnpackDockerCompatibility,
		MakeDest: c.CreateDestPath, Wildcards: c.AllowWildcard, AllowEmpty: c.AllowEmptyWildcard, Time: stamp(c.Timestamp),
		Include: slices.Clone(c.IncludePatterns), Exclude: slices.Clone(c.ExcludePatterns), ReplaceExisting: c.AlwaysReplaceExistingDestPaths,
		Required: slices.Clone(c.RequiredPaths),
	}, nil
}

// stamp returns the time of a file action, which is in nanoseconds; -1 is none.
func stamp(ns int64) *time.Time {
	if ns == -1 {
		return nil
	}
	t := time.Unix(0, ns).UTC()
	return &t
}

func owner(o *pb.ChownOpt, inputs int) (*Owner, error) {
	if o == nil {
		return nil, nil
	}
	u, err := identity(o.User, inputs)
	if err != nil {
		return nil, err
	}
	g, err := identity(o.Group, inputs)
	return &Owner{User: u, Group: g}, err
}

func identity(u *pb.UserOpt, inputs int) (*Identity, error) {
	switch x := u.GetUser().(type) {
	case nil:
		return nil, nil
	case *pb.UserOpt_ByID:
		return &Identity{ID: x.ByID, Input: -1}, nil
	case *pb.UserOpt_ByName:
		in := x.ByName.GetInput()
		if in < -1 || in >= int64(inputs)+maxList {
			return nil, invalid("the owner %.80q has the input %d", x.ByName.GetName(), in)
		}
		return &Identity{Name: x.ByName.GetName(), Input: int(in)}, nil
	default:
		return nil, unsupported("an owner of type %T", x)
	}
}
