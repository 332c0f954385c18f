package dockerfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/util/system"

	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/image/change"
	"ply/internal/oci"
)

// Step is one instruction of the stage that was built, or of a stage that it begins from, and the image after it.
type Step struct {
	Name       string // "RUN", in upper case
	Text       string // as in the Dockerfile, without its heredocs
	Start, End int    // lines
	Stage      string // the name of its stage, or ""
	Trigger    bool   // an ONBUILD of the base image; its lines are those of FROM

	Author string
	// Vertex is the operation of the instruction that makes its file system: nil for one that changes the config only. A COPY --link
	// also has the vertex of its files, the last input of this one.
	Vertex *ops.Vertex
	Result ops.Edge // the file system after the step; zero = empty
	// History is how many entries of the history in Image.Config belong to the image after this step.
	History int

	dir string // the working directory
}

// Configs yields the config of the image after each of Steps, in their order. It makes each one when it is asked for: those of a long Dockerfile are large
// together, because each has all that the lines before it set. What it has yielded does not change later.
func (img *Image) Configs() iter.Seq[oci.RunConfig] { return img.configs }

// errEnough ends a program whose configs nobody takes any more.
var errEnough = errors.New("enough")

// setSteps sets the steps of an image whose config is c.
func (g *gateway) setSteps(img *Image, c *oci.Config) error {
	img.configs = func(func(oci.RunConfig) bool) {}
	f := g.run.file()
	if len(f.Data) == 0 {
		return nil
	}
	base, epoch, platform := img.BaseConfig, img.Epoch, img.Platform
	start := func() (*program, error) {
		p := newProgram(f, g.opts, platform, g.buildPlatform(), func(ref string) []byte { return g.run.config(ref, platform) })
		p.time = epoch
		return p, p.parse(f.Data) // anew, because applying an instruction changes it
	}
	p, err := start()
	if err != nil {
		return err
	}
	if err := p.run(base); err != nil {
		return err
	}
	if err := place(p.steps, img.Graph); err != nil {
		return err
	}
	if img.Steps, err = settle(p.steps, c); err != nil {
		return err
	}
	last := len(img.Steps) - 1
	img.configs = func(yield func(oci.RunConfig) bool) {
		p, err := start()
		if err != nil {
			return // it was nil above
		}
		p.each = func(r oci.RunConfig) error {
			if len(p.steps) > last {
				r = c.Config // exactly what the front end made
			}
			if !yield(r) {
				return errEnough
			}
			return nil
		}
		_ = p.run(base) // as above, or errEnough
	}
	return nil
}

// place finds the file system after each step. The graph of a stage is a line of operations, one for each instruction that changes
// files, on those of its base.
func place(steps []Step, g *ops.Graph) error {
	var line []ops.Edge // from the result to the base
	for e := g.Root; e.Vertex != nil; e = below(e) {
		line = append(line, e)
	}
	slices.Reverse(line)
	next := len(line)
	for _, s := range steps {
		if s.changesFiles() {
			next--
		}
	}
	if next < 0 {
		return errs.New(errs.Internal, "the steps of the Dockerfile have more operations than its graph")
	}
	var at ops.Edge
	if next > 0 {
		at = line[next-1]
		steps[0].Vertex = at.Vertex
	}
	for i := range steps {
		if steps[i].changesFiles() {
			at = line[next]
			steps[i].Vertex = at.Vertex
			next++
		}
		steps[i].Result = at
	}
	return nil
}

// changesFiles reports whether the front end makes an operation of the instruction.
func (s *Step) changesFiles() bool {
	switch s.Name {
	case "RUN", "COPY", "ADD":
		return true
	case "WORKDIR":
		return s.dir != "/"
	}
	return false
}

// below returns the file system that an operation changes, or the zero Edge.
func below(e ops.Edge) ops.Edge {
	v := e.Vertex
	input := func(n int) ops.Edge {
		if n < 0 || n >= len(v.Inputs) {
			return ops.Edge{}
		}
		return v.Inputs[n]
	}
	switch op := v.Op.(type) {
	case *ops.Exec:
		for _, m := range op.Mounts {
			if m.Target == "/" {
				return input(m.Input)
			}
		}
	case *ops.Files:
		for i := len(op.Actions) - 1; i >= 0; i-- {
			if op.Actions[i].Output != e.Index {
				continue
			}
			for i >= 0 && i < len(op.Actions) {
				base := op.Actions[i].Base
				if base < len(v.Inputs) {
					return input(base)
				}
				if base-len(v.Inputs) >= i {
					break
				}
				i = base - len(v.Inputs)
			}
		}
	case *ops.Merge:
		return input(0)
	}
	return ops.Edge{}
}

// settle sets the author of the last step to that of the image, and checks that the steps explain its history.
func settle(steps []Step, c *oci.Config) ([]Step, error) {
	if len(steps) == 0 {
		return nil, nil
	}
	last := &steps[len(steps)-1]
	if last.History != len(c.History) {
		return nil, errs.New(errs.Internal, "the steps of the Dockerfile make %d entries of history, the front end %d", last.History, len(c.History))
	}
	last.Author = c.Author
	return steps, nil
}

func (g *gateway) buildPlatform() oci.Platform {
	if len(g.req.Platforms) > 0 {
		return g.req.Platforms[0]
	}
	return oci.HostPlatform()
}

// config returns the config of a base image that the front end asked for.
func (r *run) config(ref string, p oci.Platform) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.configs[configKey(ref, &p)]; ok {
		return c
	}
	if c, ok := r.configs[ref]; ok {
		return c
	}
	for k, c := range r.configs {
		name, _, _ := strings.Cut(k, " ")
		if name == ref || strings.HasPrefix(ref, "@") && strings.HasSuffix(name, ref) {
			return c
		}
	}
	return nil
}

// program is a Dockerfile whose instructions are applied to a config, one by one.
type program struct {
	opts     map[string]string
	args     map[string]string // build arguments
	platform oci.Platform
	build    oci.Platform
	config   func(ref string) []byte
	time     *time.Time // SOURCE_DATE_EPOCH

	escape  rune
	stages  []instructions.Stage
	meta    []instructions.ArgCommand
	globals *change.State // the arguments before the first FROM

	file  File
	steps []Step

	each  func(oci.RunConfig) error                             // sees the config after each step; nil = no one
	added func(c *instructions.AddCommand, source string) error // sees each source of an ADD; nil = no one
}

func newProgram(f File, opts map[string]string, platform, build oci.Platform, config func(ref string) []byte) *program {
	p := &program{file: f, opts: opts, platform: platform, build: build, args: map[string]string{}, config: config}
	if opts["platform"] == "" {
		p.platform = build
	}
	for k, v := range opts {
		if name, ok := strings.CutPrefix(k, "build-arg:"); ok {
			p.args[name] = v
		}
	}
	return p
}

func (p *program) parse(data []byte) error {
	parsed, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		return err
	}
	p.escape = parsed.EscapeToken
	p.stages, p.meta, err = instructions.Parse(parsed.AST, silent())
	return err
}

// epoch replaces a SOURCE_DATE_EPOCH that names a source by the time of that source, in arguments that have one.
func (p *program) epoch() {
	if v := p.args["SOURCE_DATE_EPOCH"]; v != "" {
		if p.time == nil {
			delete(p.args, "SOURCE_DATE_EPOCH")
		} else {
			p.args["SOURCE_DATE_EPOCH"] = strconv.FormatInt(p.time.Unix(), 10)
		}
	}
	if v, _ := p.globals.Get("SOURCE_DATE_EPOCH"); v != "" {
		if p.time == nil {
			p.globals.Unset("SOURCE_DATE_EPOCH")
		} else {
			p.globals.Set("SOURCE_DATE_EPOCH", strconv.FormatInt(p.time.Unix(), 10))
		}
	}
}

// run applies the stages that lead to the target.
func (p *program) run(baseConfig []byte) error {
	if err := p.setGlobals(); err != nil {
		return err
	}
	p.epoch()
	chain, context, err := p.chain()
	if err != nil {
		return err
	}
	if context != "" {
		if raw := p.contextConfig(context); raw != nil {
			baseConfig = raw
		} else {
			baseConfig = []byte("{}")
		}
	}
	base, err := p.baseConfig(baseConfig)
	if err != nil {
		return err
	}
	at := cursor{run: base.Config, author: base.Author, history: len(base.History), triggers: base.Config.OnBuild, vars: map[string]string{}}
	for i, n := range chain {
		st := p.stages[n]
		if i == 0 && context != "" {
			at.triggers = nil
			if err := p.add(&at, "FROM", st.SourceCode, st.Location, st.Name, false); err != nil {
				return err
			}
			continue // the context replaces the whole stage
		}
		if err := p.stage(&at, st); err != nil {
			return err
		}
	}
	return nil
}

// baseConfig decodes the config of a base image. Without one it returns that of an empty image.
func (p *program) baseConfig(raw []byte) (base oci.Config, err error) {
	if len(raw) == 0 {
		base.Config.WorkingDir = "/"
		base.Config.Env = []string{"PATH=" + system.DefaultPathEnv(p.platform.OS)}
		return base, nil
	}
	if err := json.Unmarshal(raw, &base); err != nil {
		return base, errs.New(errs.Invalid, "config of the base image: %w", err)
	}
	return base, nil
}

// setGlobals evaluates the arguments before the first FROM.
func (p *program) setGlobals() error {
	p.globals = change.NewState(oci.RunConfig{}, p.escape)
	target := p.opts["target"]
	if target == "" {
		target = p.stages[len(p.stages)-1].Name
	}
	if target == "" {
		target = "default"
	}
	b, t := p.build, p.platform
	for _, kv := range [][2]string{
		{"BUILDPLATFORM", b.String()}, {"BUILDOS", b.OS}, {"BUILDOSVERSION", b.OSVersion}, {"BUILDARCH", b.Architecture}, {"BUILDVARIANT", b.Variant},
		{"TARGETPLATFORM", platforms.FormatAll(spec(t))}, {"TARGETOS", t.OS}, {"TARGETOSVERSION", t.OSVersion}, {"TARGETARCH", t.Architecture},
		{"TARGETVARIANT", t.Variant}, {"TARGETSTAGE", target},
	} {
		v := kv[1]
		if o, ok := p.args[kv[0]]; ok {
			v = o
		}
		p.globals.Set(kv[0], v)
	}
	for _, c := range p.meta {
		for _, a := range c.Args {
			if v, ok := p.args[a.Key]; ok {
				p.globals.Set(a.Key, v)
			} else if a.Value != nil {
				v, err := p.globals.Expand(*a.Value)
				if err != nil {
					return err
				}
				p.globals.Set(a.Key, v)
			}
		}
	}
	return nil
}

// chain returns the stages that the target consists of, the first one first. context is the named context that replaces that one.
func (p *program) chain() (chain []int, context string, err error) {
	bases := make([]int, len(p.stages))
	contexts := make([]string, len(p.stages))
	names := map[string]int{}
	for i, st := range p.stages {
		name, err := p.globals.Expand(st.BaseName)
		if err != nil {
			return nil, "", err
		}
		bases[i] = -1
		if st.Name != "" {
			contexts[i] = p.namedContext(st.Name)
		}
		if n, ok := names[name]; ok && contexts[i] == "" {
			bases[i] = n
		}
		if st.Name != "" {
			names[strings.ToLower(st.Name)] = i
		}
	}
	at := len(p.stages) - 1
	if t := p.opts["target"]; t != "" {
		n, ok := names[strings.ToLower(t)]
		if !ok {
			return nil, "", errs.New(errs.Invalid, "target stage %q could not be found", clip(t))
		}
		at = n
	}
	for at >= 0 {
		chain = append(chain, at)
		if context = contexts[at]; context != "" {
			break
		}
		at = bases[at]
	}
	slices.Reverse(chain)
	return chain, context, nil
}

// namedContext returns the context of a name, or "".
func (p *program) namedContext(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return ""
	}
	name = strings.TrimSuffix(reference.FamiliarString(named), ":latest")
	if v, ok := p.opts["context:"+name+"::"+platforms.FormatAll(spec(p.platform))]; ok {
		return v
	}
	return p.opts["context:"+name]
}

// contextConfig returns the image config of a context, or nil.
func (p *program) contextConfig(context string) []byte {
	kind, rest, _ := strings.Cut(context, ":")
	rest = strings.TrimPrefix(rest, "//")
	switch kind {
	case "docker-image":
		if rest == "scratch" {
			return nil
		}
		if named, err := reference.ParseNormalizedNamed(rest); err == nil {
			return p.config(reference.TagNameOnly(named).String())
		}
	case "oci-layout":
		if _, digest, ok := strings.Cut(rest, "@"); ok {
			return p.config("@" + digest)
		}
	case "input":
		var meta map[string][]byte
		if json.Unmarshal([]byte(p.opts["input-metadata:"+rest]), &meta) == nil {
			return meta[exptypes.ExporterImageConfigKey]
		}
	}
	return nil
}

// cursor is where a program has come.
type cursor struct {
	run      oci.RunConfig
	author   string
	history  int
	vars     map[string]string // those of earlier stages, with their arguments
	triggers []string
}

func (p *program) add(at *cursor, name, text string, where []parser.Range, stage string, trigger bool) error {
	s := Step{
		Name: strings.ToUpper(name), Text: text, Stage: stage, Trigger: trigger, Author: at.author, History: at.history, dir: at.run.WorkingDir,
	}
	for i, r := range where {
		if i == 0 || r.Start.Line < s.Start {
			s.Start = r.Start.Line
		}
		s.End = max(s.End, r.End.Line)
	}
	p.steps = append(p.steps, s)
	if p.each != nil {
		return p.each(at.run)
	}
	return nil
}

// stage applies one stage.
func (p *program) stage(at *cursor, st instructions.Stage) error {
	at.run.OnBuild = nil
	if !slices.ContainsFunc(at.run.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		at.run.Env = append(slices.Clone(at.run.Env), "PATH="+system.DefaultPathEnv(p.platform.OS))
	}
	s := change.NewState(at.run, p.escape)
	s.Author = at.author
	for k, v := range at.vars {
		if _, ok := s.Get(k); !ok {
			s.Set(k, v)
		}
	}
	if wd := s.Run.WorkingDir; wd != "" {
		if err := s.Apply(&instructions.WorkdirCommand{Path: quote(wd)}); err != nil {
			return err
		}
	}
	at.run = s.Run
	if err := p.add(at, "FROM", st.SourceCode, st.Location, st.Name, false); err != nil {
		return err
	}

	var own []string
	for _, t := range at.triggers {
		parsed, err := parser.Parse(strings.NewReader(t))
		if err != nil {
			return err
		}
		for _, n := range parsed.AST.Children {
			c, err := instructions.ParseCommand(n)
			if err != nil {
				return err
			}
			if err := p.apply(at, s, c, st, st.Location); err != nil {
				return err
			}
		}
	}
	for _, c := range st.Commands {
		if o, ok := c.(*instructions.OnbuildCommand); ok {
			own = append(own, o.Expression)
		}
		if err := p.apply(at, s, c, st, nil); err != nil {
			return err
		}
	}
	at.triggers = own
	at.vars = map[string]string{}
	for _, k := range s.Keys() {
		at.vars[k], _ = s.Get(k)
	}
	return nil
}

// quote makes a path survive its expansion.
func quote(path string) string {
	return "'" + strings.ReplaceAll(path, "'", `'"'"'`) + "'"
}

// apply applies an instruction. from is where a trigger comes from, and nil for an instruction of the Dockerfile.
func (p *program) apply(at *cursor, s *change.State, c instructions.Command, st instructions.Stage, from []parser.Range) error {
	var err error
	if a, ok := c.(*instructions.ArgCommand); ok {
		err = p.arg(s, a)
	} else {
		err = s.Apply(c)
	}
	if err != nil {
		return err
	}
	if add, ok := c.(*instructions.AddCommand); ok && p.added != nil {
		for _, src := range add.SourcePaths {
			if src, err = s.Expand(src); err != nil {
				return err
			}
			if err := p.added(add, src); err != nil {
				return err
			}
		}
	}
	at.run, at.author = s.Run, s.Author
	if _, ok := c.(*instructions.OnbuildCommand); !ok {
		at.history++
	}
	where := c.Location()
	if from != nil {
		where = from
	}
	text := c.Name()
	if t, ok := c.(interface{ String() string }); ok {
		text = t.String()
	}
	return p.add(at, c.Name(), text, where, st.Name, from != nil)
}

// arg sets build arguments: from the request, from the instruction, or from before the first FROM.
func (p *program) arg(s *change.State, c *instructions.ArgCommand) error {
	for _, a := range c.Args {
		v, ok := p.args[a.Key]
		switch {
		case ok:
		case a.Value != nil:
			var err error
			if v, err = s.Expand(*a.Value); err != nil {
				return err
			}
		default:
			if v, ok = p.globals.Get(a.Key); !ok {
				continue
			}
		}
		if a.Key != "BUILDKIT_SBOM_SCAN_CONTEXT" && a.Key != "BUILDKIT_SBOM_SCAN_STAGE" {
			s.Set(a.Key, v)
		}
	}
	return nil
}
