package dockerfile

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"ply/internal/image/change"
)

// Limits of what the front end reads.
const (
	maxDockerfile   = 1 << 20 // bytes
	maxOptions      = 1 << 20 // bytes of all options
	maxConfig       = 8 << 20 // bytes of a base image's config
	maxConfigs      = 64 << 20
	maxInstructions = 4096
	maxStages       = 256
	maxName         = 255      // bytes of the name of a stage or variable
	maxTotal        = 64 << 20 // bytes that all words of all stages grow to
	maxWork         = 2 << 30  // byte comparisons in the search for similar names
	ownValue        = 256      // bytes of a variable that the front end sets: PATH, TARGETPLATFORM
)

// bounds estimates how large the front end would make the words of a Dockerfile, before it does so: variables that double with each
// line would fill the memory. An estimate counts for each variable the largest value that it can have.
type bounds struct {
	file    File
	args    map[string]string // build arguments
	stages  []boundedStage
	globals []bounded // ARG before the first FROM

	env      map[string]int // the variables of all base images
	unknown  int            // bytes of a variable that is not known, because an instruction computes the name of a variable
	configs  int            // bytes of the configs of all base images
	triggers []bounded      // ONBUILD instructions of base images
	total    int
	work     int
}

type boundedStage struct {
	name, base string
	list       []bounded
}

// bounded is an instruction and its line.
type bounded struct {
	line int
	cmd  any // *instructions.Stage or instructions.Command
}

// newBounds parses a Dockerfile. It returns bounds without instructions if that fails, because the front end says why.
func newBounds(f File, opts map[string]string) (*bounds, *Error) {
	b := &bounds{file: f, args: map[string]string{}, env: map[string]int{"PATH": ownValue}}
	for k, v := range opts {
		if name, ok := strings.CutPrefix(k, "build-arg:"); ok {
			b.args[name] = v
		}
	}
	if i := bytes.IndexByte(f.Data, 0); i >= 0 {
		return nil, refuse(f, 1+bytes.Count(f.Data[:i], []byte("\n")), "the Dockerfile holds a NUL")
	}
	if line := change.DeepLine(f.Data, escapeOf(f.Data)); line > 0 {
		return nil, refuse(f, line, "variables are nested deeper than %d", change.MaxDepth)
	}
	parsed, err := parser.Parse(bytes.NewReader(f.Data))
	if err != nil {
		return b, nil
	}
	if n := parsed.AST.Children; len(n) > maxInstructions {
		return nil, refuse(f, n[maxInstructions].StartLine, "the Dockerfile has more than %d instructions", maxInstructions)
	}
	for _, n := range parsed.AST.Children {
		cmd, err := instructions.ParseInstructionWithLinter(n, silent())
		if err != nil {
			return &bounds{file: f, env: map[string]int{}}, nil
		}
		at := bounded{n.StartLine, cmd}
		switch st, ok := cmd.(*instructions.Stage); {
		case ok && len(b.stages) == maxStages:
			return nil, refuse(f, n.StartLine, "the Dockerfile has more than %d stages", maxStages)
		case ok && len(st.Name) > maxName:
			return nil, refuse(f, n.StartLine, "the name of a stage is longer than %d bytes", maxName)
		case ok:
			b.stages = append(b.stages, boundedStage{name: st.Name, base: st.BaseName, list: []bounded{at}})
		case len(b.stages) == 0:
			b.globals = append(b.globals, at)
		default:
			s := &b.stages[len(b.stages)-1]
			s.list = append(s.list, at)
		}
	}
	for k, v := range opts {
		var meta map[string][]byte
		if strings.HasPrefix(k, "input-metadata:") && json.Unmarshal([]byte(v), &meta) == nil {
			if err := b.base(meta[exptypes.ExporterImageConfigKey]); err != nil {
				return nil, err
			}
		}
	}
	return b, nil
}

// base takes the environment and the triggers of a base image into account.
func (b *bounds) base(config []byte) *Error {
	var c struct {
		Config struct{ Env, OnBuild []string } `json:"config"`
	}
	if json.Unmarshal(config, &c) != nil {
		return nil // the front end says so
	}
	for _, e := range c.Config.Env {
		k, v, _ := strings.Cut(e, "=")
		b.env[k] = max(b.env[k], len(v))
	}
	if b.configs += len(config) * max(1, len(b.stages)); b.configs > maxConfigs {
		return refuse(b.file, 0, "the configs of the base images are larger than %d bytes", maxConfigs)
	}
	for _, t := range c.Config.OnBuild {
		if change.DeepLine([]byte(t), '\\') > 0 {
			return refuse(b.file, 0, "a trigger of a base image nests variables deeper than %d", change.MaxDepth)
		}
		list := parseTrigger(t)
		if b.triggers = append(b.triggers, list...); len(b.triggers) > maxInstructions {
			return refuse(b.file, 0, "the base images have more than %d triggers", maxInstructions)
		}
	}
	return b.check()
}

// silent returns a linter that says nothing. The library needs one where a comment has options of the linter.
func silent() *linter.Linter { return linter.New(&linter.Config{SkipAll: true}) }

func parseTrigger(text string) (list []bounded) {
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return nil
	}
	for _, n := range parsed.AST.Children {
		if cmd, err := instructions.ParseInstructionWithLinter(n, silent()); err == nil {
			list = append(list, bounded{0, cmd})
		}
	}
	return list
}

// ownArgs are the arguments that the front end sets before the first FROM.
var ownArgs = []string{
	"BUILDPLATFORM", "BUILDOS", "BUILDOSVERSION", "BUILDARCH", "BUILDVARIANT",
	"TARGETPLATFORM", "TARGETOS", "TARGETOSVERSION", "TARGETARCH", "TARGETVARIANT", "TARGETSTAGE",
}

// sizes are the variables of a stage and the sizes that their values can have.
type sizes struct {
	vars map[string]int
	sum  int
	keys int
}

func (s *sizes) set(name string, n int) {
	if old, ok := s.vars[name]; ok {
		s.sum += n - old
	} else {
		s.sum += len(name) + 1 + n
		s.keys += len(name)
	}
	s.vars[name] = n
}

func (s *sizes) clone() *sizes {
	c := &sizes{vars: make(map[string]int, len(s.vars)), sum: s.sum, keys: s.keys}
	for k, v := range s.vars {
		c.vars[k] = v
	}
	return c
}

// check estimates every stage. The first error is that of the first line that goes beyond a limit.
func (b *bounds) check() *Error {
	b.total, b.work = 0, 0
	global := &sizes{vars: map[string]int{}}
	for _, name := range ownArgs {
		global.set(name, max(ownValue, len(b.args[name])))
	}
	image := &sizes{vars: map[string]int{}}
	for k, n := range b.env {
		image.set(k, n)
	}
	for _, at := range b.globals {
		if err := b.instruction(global, global, at); err != nil {
			return err
		}
	}
	stages := map[string]*sizes{}
	onbuild := map[string][]bounded{}
	for _, st := range b.stages {
		vars, triggers := image.clone(), b.triggers
		if from, ok := stages[strings.ToLower(st.base)]; ok {
			vars, triggers = from.clone(), onbuild[strings.ToLower(st.base)]
		}
		var own []bounded
		for _, at := range triggers {
			if err := b.instruction(vars, global, bounded{st.list[0].line, at.cmd}); err != nil {
				return err
			}
		}
		for _, at := range st.list {
			if err := b.instruction(vars, global, at); err != nil {
				return err
			}
			if ob, ok := at.cmd.(*instructions.OnbuildCommand); ok {
				own = append(own, parseTrigger(ob.Expression)...)
			}
		}
		if st.name != "" {
			stages[st.name], onbuild[st.name] = vars, own
		}
	}
	return nil
}

// instruction adds what an instruction grows to.
func (b *bounds) instruction(vars, global *sizes, at bounded) (fail *Error) {
	grow := func(word string) (string, error) {
		if fail == nil {
			_, fail = b.word(vars, at.line, word)
		}
		return word, nil
	}
	switch c := at.cmd.(type) {
	case *instructions.Stage:
		if _, fail = b.word(global, at.line, c.BaseName); fail == nil {
			_, fail = b.word(global, at.line, c.Platform)
		}
		return fail
	case *instructions.ArgCommand:
		return b.arg(vars, global, at.line, c)
	case *instructions.EnvCommand:
		n := make([]int, len(c.Env))
		for i, e := range c.Env {
			if n[i], fail = b.word(vars, at.line, e.Value); fail != nil {
				return fail
			}
			if _, fail = b.word(vars, at.line, e.Key); fail != nil {
				return fail
			}
		}
		for i, e := range c.Env {
			if strings.ContainsAny(e.Key, "$\\\"'`") {
				b.unknown = max(b.unknown, n[i]) // any variable may be meant
				vars.sum += n[i] + change.MaxExpanded
				continue
			}
			vars.set(e.Key, n[i])
		}
		return nil
	case *instructions.ExposeCommand:
		for _, p := range c.Ports {
			if _, fail = b.word(vars, at.line, p); fail != nil {
				return fail
			}
			if b.total += portsSize(p); b.total > maxTotal {
				return b.tooLarge(at.line)
			}
		}
		return nil
	case *instructions.RunCommand:
		b.total += 2 * (vars.sum + len(c.String()))
		for _, f := range c.Files {
			b.total += len(f.Data)
		}
		_, _ = grow(c.String()) // the name of the step
	case *instructions.CopyCommand:
		_, _ = grow(c.String())
	case *instructions.AddCommand:
		_, _ = grow(c.String())
	}
	if ex, ok := at.cmd.(instructions.SupportsSingleWordExpansion); ok {
		_ = ex.Expand(grow)
	}
	if ex, ok := at.cmd.(instructions.SupportsSingleWordExpansionRaw); ok {
		_ = ex.ExpandRaw(grow)
	}
	if fail == nil && b.total > maxTotal {
		return b.tooLarge(at.line)
	}
	return fail
}

// portsSize returns the size of the list that a word of EXPOSE becomes.
func portsSize(word string) int {
	const most = 65536 * len("65535/sctp, ")
	if strings.Contains(word, "$") {
		return most / 8 // hardly a range; the largest word has several
	}
	number, _, _ := strings.Cut(word, "/")
	low, high, ranged := strings.Cut(number, "-")
	if !ranged {
		return len("65535/sctp, ")
	}
	from, err1 := strconv.Atoi(low)
	to, err2 := strconv.Atoi(high)
	if err1 != nil || err2 != nil {
		return most
	}
	return max(1, to-from+1) * len("65535/sctp, ")
}

func (b *bounds) arg(vars, global *sizes, line int, c *instructions.ArgCommand) *Error {
	for _, a := range c.Args {
		n, known := 0, false
		if v, ok := b.args[a.Key]; ok {
			n, known = len(v), true
		}
		if v, ok := global.vars[a.Key]; ok {
			n, known = max(n, v), true
		}
		if a.Value != nil {
			grown, err := b.word(vars, line, *a.Value)
			if err != nil {
				return err
			}
			n, known = max(n, grown), true
		}
		if old, ok := vars.vars[a.Key]; ok {
			n = max(n, old)
		}
		if len(a.Key) > maxName {
			return refuse(b.file, line, "the name of a variable is longer than %d bytes", maxName)
		}
		if known {
			vars.set(a.Key, n)
		}
		b.total += n + len(a.Key)
	}
	if b.total > maxTotal {
		return b.tooLarge(line)
	}
	return nil
}

// word returns an upper bound of the size of a word, and adds it to the total.
func (b *bounds) word(vars *sizes, line int, word string) (int, *Error) {
	long := false
	n := change.Growth(word, func(name string) int {
		if len(name) > maxName {
			long = true
		}
		size, ok := vars.vars[name]
		if ok {
			return size
		}
		b.work += len(name) * (vars.keys + 256)
		return b.unknown
	})
	switch b.total += 2 * n; {
	case long:
		return 0, refuse(b.file, line, "the name of a variable is longer than %d bytes", maxName)
	case change.Depth(word) > change.MaxDepth:
		return 0, refuse(b.file, line, "variables are nested deeper than %d", change.MaxDepth)
	case n > max(change.MaxExpanded, 2*len(word)), b.total > maxTotal:
		return 0, b.tooLarge(line)
	case b.work > maxWork:
		return 0, refuse(b.file, line, "the Dockerfile uses too many variables that nothing sets")
	}
	return n, nil
}

func (b *bounds) tooLarge(line int) *Error {
	return refuse(b.file, line, "the values of this line may grow beyond %d bytes, or those of the whole Dockerfile beyond %d bytes", change.MaxExpanded, maxTotal)
}
