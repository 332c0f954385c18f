// Package change applies Dockerfile instructions that change only the run configuration of an image, for `commit --change`,
// `import --change` and the steps of a build.
//
// BuildKit's library parses the instructions and expands their words, so that they mean what they mean in a Dockerfile. Its types
// appear in the API of State, which only package build/dockerfile uses.
//
// Invariants: no text makes an expansion larger than MaxExpanded, or deeper than the stack allows, because State estimates both
// before the library sees a word. A State that refuses an instruction may have applied a part of it; Apply changes its config only
// when every instruction was applied.
package change

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"ply/internal/errs"
	"ply/internal/oci"
)

// MaxSize is the maximum size of the text of all changes together, in bytes.
const MaxSize = 1 << 20

// allowed has the instructions that need no build. Docker allows all but SHELL.
var allowed = map[string]bool{
	"CMD": true, "ENTRYPOINT": true, "ENV": true, "EXPOSE": true, "HEALTHCHECK": true, "LABEL": true, "ONBUILD": true,
	"SHELL": true, "STOPSIGNAL": true, "USER": true, "VOLUME": true, "WORKDIR": true,
}

// Apply applies instructions to cfg, in order. The lines together are one Dockerfile without FROM, as for docker: an instruction may
// span several of them. UNSET is one of ours. errs.Invalid for a malformed instruction, which is in the error; cfg is then unchanged.
func Apply(cfg *oci.RunConfig, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	text := strings.Join(lines, "\n")
	switch {
	case len(text) > MaxSize:
		return errs.New(errs.Invalid, "changes are longer than %d bytes", MaxSize)
	case strings.IndexByte(text, 0) >= 0:
		return errs.New(errs.Invalid, "a change holds a NUL")
	case DeepLine([]byte(text), '\\') > 0 || DeepLine([]byte(text), '`') > 0:
		return errs.New(errs.Invalid, "variables are nested deeper than %d", MaxDepth)
	}
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return errs.New(errs.Invalid, "changes: %w", err)
	}
	s := NewState(*cfg, parsed.EscapeToken)
	for _, n := range parsed.AST.Children {
		if err := s.change(n); err != nil {
			return errs.New(errs.Invalid, "change %q: %w", clip(strings.TrimSpace(n.Original)), err)
		}
	}
	*cfg = s.Run
	return nil
}

func (s *State) change(n *parser.Node) error {
	if strings.EqualFold(n.Value, "UNSET") {
		return s.unset(n.Original)
	}
	if !allowed[strings.ToUpper(n.Value)] {
		return errs.New(errs.Invalid, "%s is not a valid change command", clip(n.Value))
	}
	c, err := instructions.ParseCommand(n)
	if err != nil {
		return err
	}
	if err := s.Apply(c); err != nil {
		return err
	}
	s.Run.ArgsEscaped = false // docker sets it for Windows only, BuildKit for every CMD
	if w, ok := c.(*instructions.WorkdirCommand); ok {
		if w.Path == "" {
			return errs.New(errs.Invalid, "WORKDIR is empty")
		}
		s.Run.WorkingDir = path.Clean(s.Run.WorkingDir) // docker cleans it, BuildKit does not
	}
	for p := range s.Run.ExposedPorts {
		if strings.HasPrefix(p, "0/") {
			return errs.New(errs.Invalid, "invalid containerPort: 0")
		}
	}
	return nil
}

// Clone returns a copy of c that shares nothing that an instruction changes in place.
func Clone(c oci.RunConfig) oci.RunConfig {
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Volumes = maps.Clone(c.Volumes)
	c.Labels = maps.Clone(c.Labels)
	c.Env = slices.Clone(c.Env)
	c.OnBuild = slices.Clone(c.OnBuild)
	return c
}

// ports returns the ports that a word of EXPOSE names: "80", "80/udp", "8000-8010/tcp". As in BuildKit, an address and a port of the
// host before them are allowed and without effect.
func ports(word string) ([]string, error) {
	spec := word
	if i := strings.LastIndexByte(spec, ':'); i >= 0 {
		spec = spec[i+1:]
	}
	number, proto, _ := strings.Cut(spec, "/")
	switch proto = strings.ToLower(proto); proto {
	case "":
		proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, errs.New(errs.Invalid, "invalid proto: %s", clip(proto))
	}
	low, high, ranged := strings.Cut(number, "-")
	if !ranged {
		high = low
	}
	from, err1 := strconv.ParseInt(low, 10, 32)
	to, err2 := strconv.ParseInt(high, 10, 32)
	if err1 != nil || err2 != nil || from < 0 || to < from || to > 65535 {
		return nil, errs.New(errs.Invalid, "invalid containerPort: %s", clip(number))
	}
	out := make([]string, 0, to-from+1)
	for p := from; p <= to; p++ {
		out = append(out, strconv.FormatInt(p, 10)+"/"+proto)
	}
	return out, nil
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
