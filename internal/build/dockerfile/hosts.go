package dockerfile

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil"
	"google.golang.org/protobuf/proto"

	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/image/change"
	"ply/internal/oci"
)

// hosts hides the hosts of git repositories by ssh from the front end. As soon as it sees such an address, the front end connects to the host to ask for its
// key: to any host, without a limit of time, and before anything of the build is allowed. So it sees a name in place of the host that no resolver takes,
// and what it makes of the Dockerfile gets the host back. The key would prove nothing, because it comes from the host itself.
type hosts struct {
	mu    sync.Mutex
	mark  string // the names begin with it, and nothing else of the build has it
	names []string

	seen map[string]bool // the configs that check has evaluated
	work int             // how many instructions for that
}

// newHosts returns hosts whose names no Dockerfile can know.
func newHosts() *hosts {
	return &hosts{seen: map[string]bool{}, mark: "ply.." + strings.ToLower(rand.Text()) + ".."} // an empty label makes it no name of DNS
}

// hideContexts hides the hosts of the contexts among the options of a build.
func (h *hosts) hideContexts(opts map[string]string) error {
	for k, v := range opts {
		if k != "context" && !strings.HasPrefix(k, "context:") {
			continue
		}
		hidden, ok := h.hide(v)
		if !ok {
			return errs.New(errs.Invalid, "build context %q: the host of this address of a repository by ssh is not a host name", clip(v))
		}
		opts[k] = hidden
	}
	return nil
}

// bySSH reports whether the front end takes an address for one by ssh.
func bySSH(address string) bool {
	u, err := gitutil.ParseURL(address)
	return err == nil && u.Scheme == gitutil.SSHProtocol
}

// hide returns an address without its host if it is one by ssh. ok is false when it is, and its host can not be hidden.
func (h *hosts) hide(address string) (hidden string, ok bool) {
	if !bySSH(address) {
		return address, true
	}
	before, rest := "", address
	if scheme, after, found := strings.Cut(address, "://"); found {
		before, rest = scheme+"://", after
		if end := strings.IndexAny(rest, "/?#"); end >= 0 {
			rest = rest[:end]
		}
	} else {
		rest, _, _ = strings.Cut(address, ":")
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		before, rest = before+rest[:at+1], rest[at+1:]
	}
	after := address[len(before)+len(rest):]
	h.mu.Lock()
	defer h.mu.Unlock()
	if strings.HasPrefix(rest, h.mark) {
		return address, true
	}
	if !ops.IsSSHHost(rest) {
		return address, false
	}
	hidden = fmt.Sprint(before, h.mark, len(h.names), after)
	if u, err := gitutil.ParseURL(hidden); err != nil || u.Host != fmt.Sprint(h.mark, len(h.names)) {
		return address, false
	}
	h.names = append(h.names, rest)
	return hidden, true
}

// hidden reports whether the host of an address by ssh is hidden.
func (h *hosts) hidden(address string) bool {
	u, err := gitutil.ParseURL(address)
	return err == nil && strings.HasPrefix(u.Host, h.mark)
}

// show returns a text with the hosts in it.
func (h *hosts) show(text string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !strings.Contains(text, h.mark) {
		return text
	}
	for i := len(h.names) - 1; i >= 0; i-- { // the name of 10 begins with that of 1
		text = strings.ReplaceAll(text, fmt.Sprint(h.mark, i), h.names[i])
	}
	return text
}

// showAll gives the values of a map the hosts.
func (h *hosts) showAll(m map[string][]byte) {
	for k, v := range m {
		if bytes.Contains(v, []byte(h.mark)) {
			m[k] = []byte(h.show(string(v)))
		}
	}
}

// shownError is an error whose text has the hosts.
type shownError struct {
	text string
	err  error
}

func (e *shownError) Error() string { return e.text }
func (e *shownError) Unwrap() error { return e.err }

func (h *hosts) showError(err error) error {
	h.mu.Lock()
	none := len(h.names) == 0
	h.mu.Unlock()
	if none {
		return err
	}
	return &shownError{h.show(err.Error()), err}
}

// hideSources hides the hosts in the instructions ADD of a Dockerfile. It leaves those that it does not find as they were parsed: check refuses them.
func (h *hosts) hideSources(text []byte, b *bounds) []byte {
	lines := bytes.SplitAfter(text, []byte("\n"))
	changed := false
	for _, st := range b.stages {
		for _, at := range st.list {
			var adds []*instructions.AddCommand
			switch c := at.cmd.(type) {
			case *instructions.AddCommand:
				adds = append(adds, c)
			case *instructions.OnbuildCommand:
				adds = addsOf(parseTrigger(c.Expression))
			}
			if len(adds) == 0 {
				continue
			}
			c, ok := at.cmd.(instructions.Command)
			if !ok || len(c.Location()) == 0 {
				continue
			}
			start, end := c.Location()[0].Start.Line, c.Location()[len(c.Location())-1].End.Line
			if start < 1 || end < start || end > len(lines) {
				continue
			}
			for _, add := range adds {
				if len(add.SourceContents) > 0 {
					continue // the lines have the text of a file, too
				}
				for _, src := range add.SourcePaths {
					word := strings.TrimLeft(src, `"'`)
					hidden, ok := h.hide(word)
					part := bytes.Join(lines[start-1:end], nil)
					if !ok || hidden == word || bytes.Count(part, []byte(word)) != 1 {
						continue
					}
					lines[start-1] = bytes.Replace(part, []byte(word), []byte(hidden), 1)
					for i := start; i < end; i++ {
						lines[i] = nil
					}
					changed = true
				}
			}
		}
	}
	if !changed {
		return text
	}
	return bytes.Join(lines, nil)
}

func addsOf(list []bounded) (adds []*instructions.AddCommand) {
	for _, at := range list {
		if c, ok := at.cmd.(*instructions.AddCommand); ok {
			adds = append(adds, c)
		}
	}
	return adds
}

// restore returns a definition with the hosts.
func (h *hosts) restore(def *pb.Definition) (*pb.Definition, error) {
	h.mu.Lock()
	none := len(h.names) == 0
	h.mu.Unlock()
	if def == nil || none {
		return def, nil
	}
	out := &pb.Definition{Metadata: map[string]*pb.OpMetadata{}}
	renamed := map[string]string{}
	for _, raw := range def.Def { // every operation comes after those that it needs
		op := &pb.Op{}
		if err := op.UnmarshalVT(raw); err != nil {
			return nil, err
		}
		changed := false
		for _, in := range op.Inputs {
			if d, ok := renamed[in.Digest]; ok {
				in.Digest, changed = d, true
			}
		}
		if s := op.GetSource(); s != nil {
			changed = h.restoreSource(s) || changed
		}
		if changed {
			old := string(oci.DigestOf(raw))
			var err error
			if raw, err = (proto.MarshalOptions{Deterministic: true}).Marshal(op); err != nil {
				return nil, err
			}
			renamed[old] = string(oci.DigestOf(raw))
		}
		out.Def = append(out.Def, raw)
	}
	name := func(d string) string {
		if n, ok := renamed[d]; ok {
			return n
		}
		return d
	}
	for d, m := range def.Metadata {
		m = m.CloneVT()
		for k, v := range m.GetDescription() {
			m.Description[k] = h.show(v)
		}
		if g := m.GetProgressGroup(); g != nil {
			g.Name = h.show(g.Name)
		}
		out.Metadata[name(d)] = m
	}
	if def.Source != nil {
		out.Source = &pb.Source{Locations: map[string]*pb.Locations{}}
		for d, l := range def.Source.Locations {
			out.Source.Locations[name(d)] = l
		}
		for _, info := range def.Source.Infos {
			if info = info.CloneVT(); info != nil {
				info.Data = []byte(h.show(string(info.Data)))
				restored, err := h.restore(info.Definition)
				if err != nil {
					return nil, err
				}
				info.Definition = restored
			}
			out.Source.Infos = append(out.Source.Infos, info)
		}
	}
	return out, nil
}

// restoreSource gives a source its host back and reports whether it had none.
func (h *hosts) restoreSource(s *pb.SourceOp) bool {
	id := h.show(s.Identifier)
	changed := id != s.Identifier
	s.Identifier = id
	for k, v := range s.Attrs {
		if n := h.show(v); n != v {
			s.Attrs[k], changed = n, true
		}
	}
	return changed
}

// errVisible ends an evaluation at an address that the front end must not see.
var errVisible = errors.New("an address by ssh")

// maxChecks bounds how many instructions check evaluates.
const maxChecks = 1 << 16

// check refuses a Dockerfile with an ADD whose address, by ssh, has a host that is not hidden: variables made it, or a trigger of a base image. It is called again
// for the config of every base image, and evaluates each config once.
func (h *hosts) check(r *run, text []byte, opts map[string]string, build oci.Platform, config []byte) *Error {
	if r.bound == nil {
		return nil
	}
	evaluate := len(addsOf(r.bound.triggers)) > 0
	work := len(r.bound.globals) + len(r.bound.triggers)
	for _, st := range r.bound.stages {
		work += len(st.list)
		for _, at := range st.list {
			adds := addsOf([]bounded{at})
			if o, ok := at.cmd.(*instructions.OnbuildCommand); ok {
				adds = addsOf(parseTrigger(o.Expression))
			}
			for _, add := range adds {
				for _, src := range add.SourcePaths {
					evaluate = evaluate || !harmless(src)
				}
			}
		}
	}
	if !evaluate {
		return nil
	}
	if h.seen[string(config)] {
		return nil
	}
	h.seen[string(config)] = true
	targets := []oci.Platform{build}
	for name := range strings.SplitSeq(opts["platform"], ",") {
		if p, err := platforms.Parse(name); err == nil {
			targets = append(targets, oci.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures})
		}
	}
	if h.work += work * len(targets); h.work > maxChecks {
		return refuse(r.df, 0, "the Dockerfile has too many base images and platforms for an ADD of variables")
	}
	for _, target := range targets {
		if fail := h.evaluate(r.df, text, opts, build, target, config); fail != nil {
			return fail
		}
	}
	return nil
}

// harmless reports whether a word of ADD is no address by ssh, whatever its variables are.
func harmless(word string) bool {
	if !strings.ContainsAny(word, "$\\`\"'") {
		return !bySSH(word)
	}
	word = strings.TrimLeft(word, `"'`)
	for _, p := range []string{"http://", "https://", "git://", "./", "../", "/"} {
		if strings.HasPrefix(word, p) {
			return true
		}
	}
	return false
}

// evaluate applies every stage for one platform. Images that are not stages have the given config.
func (h *hosts) evaluate(df File, text []byte, opts map[string]string, build, target oci.Platform, config []byte) (fail *Error) {
	p := newProgram(File{Name: df.Name, Data: text}, opts, target, build, func(string) []byte { return config })
	p.added = func(c *instructions.AddCommand, address string) error {
		if !bySSH(address) || h.hidden(address) {
			return nil
		}
		line := 0
		if where := c.Location(); len(where) > 0 {
			line = where[0].Start.Line
		}
		fail = refuse(df, line, "ADD %s: a variable or a base image makes this address of a repository by ssh; write its user and host in the ADD itself", clip(h.show(address)))
		return errVisible
	}
	if p.parse(text) != nil || p.setGlobals() != nil {
		return nil // the front end says why
	}
	p.epoch()
	ends := make([]cursor, len(p.stages))
	names := map[string]int{}
	for i, st := range p.stages {
		at := p.fromImage(config)
		name, err := p.globals.Expand(st.BaseName)
		if n, ok := names[strings.ToLower(name)]; ok && err == nil {
			at = ends[n]
		}
		if p.stage(&at, st) != nil && fail != nil {
			return fail
		} // any other error is also the front end's
		if ends[i] = at; p.namedContext(st.Name) != "" {
			ends[i] = p.fromImage(config)
		}
		if st.Name != "" {
			names[strings.ToLower(st.Name)] = i
		}
		p.steps = nil
	}
	return nil
}

// fromImage returns the beginning of a stage that is based on an image.
func (p *program) fromImage(config []byte) cursor {
	base, err := p.baseConfig(config)
	if err != nil {
		base = oci.Config{}
	}
	return cursor{run: change.Clone(base.Config), author: base.Author, history: len(base.History), triggers: base.Config.OnBuild, vars: map[string]string{}}
}
