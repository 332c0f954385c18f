package change

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/system"

	"ply/internal/errs"
	"ply/internal/oci"
)

// State is the run configuration of an image between two instructions, and the variables that the next one sees. Apply changes nothing
// that a copy of Run shares.
type State struct {
	Run    oci.RunConfig
	Author string // of MAINTAINER

	lex    *shell.Lex
	vars   map[string]string
	cmdSet bool // a CMD was applied, so that ENTRYPOINT does not reset it
	grown  int  // the sum of all expansions
}

// MaxGrowth is the maximum size of all the words of a State together, in bytes.
const MaxGrowth = 16 << 20

// NewState returns a State that begins with cfg, which stays as it is. escape is the escape character: '\\' or '`'.
func NewState(cfg oci.RunConfig, escape rune) *State {
	s := &State{Run: cfg, lex: shell.NewLex(escape), vars: map[string]string{}}
	for _, e := range cfg.Env {
		k, v, _ := strings.Cut(e, "=")
		s.vars[k] = v
	}
	return s
}

// Get returns a variable. It makes State a shell.EnvGetter.
func (s *State) Get(name string) (string, bool) {
	v, ok := s.vars[name]
	return v, ok
}

// Keys returns the names of the variables.
func (s *State) Keys() []string {
	names := make([]string, 0, len(s.vars))
	for k := range s.vars {
		names = append(names, k)
	}
	return names
}

// Set sets a variable that is not in the environment of the image: a build argument.
func (s *State) Set(name, value string) { s.vars[name] = value }

// Unset removes a variable that Set has set.
func (s *State) Unset(name string) { delete(s.vars, name) }

// Expand removes quotes and escapes and replaces variables by their values. errs.Invalid when the word would grow too much.
func (s *State) Expand(word string) (string, error) {
	if err := s.grow(word); err != nil {
		return "", err
	}
	out, _, err := s.lex.ProcessWord(word, s)
	return out, err
}

func (s *State) grow(word string) error {
	if Depth(word) > MaxDepth {
		return errs.New(errs.Invalid, "variables are nested deeper than %d", MaxDepth)
	}
	n := Growth(word, func(name string) int { return len(s.vars[name]) })
	if n > MaxExpanded || s.grown > MaxGrowth {
		return errs.New(errs.Invalid, "value grows beyond %d bytes", MaxExpanded)
	}
	s.grown += n
	return nil
}

// Apply applies an instruction. Instructions that change no run configuration, such as RUN and COPY, have no effect.
func (s *State) Apply(c instructions.Command) error {
	if ex, ok := c.(instructions.SupportsSingleWordExpansion); ok {
		switch c.(type) {
		case *instructions.ArgCommand, *instructions.CopyCommand, *instructions.AddCommand:
		default:
			if err := ex.Expand(s.Expand); err != nil {
				return err
			}
		}
	}
	switch c := c.(type) {
	case *instructions.MaintainerCommand:
		s.Author = c.Maintainer
	case *instructions.EnvCommand:
		s.Run.Env = slices.Clone(s.Run.Env)
		for _, e := range c.Env {
			s.env(e.Key, e.Value)
		}
	case *instructions.LabelCommand:
		s.Run.Labels = editable(s.Run.Labels)
		for _, l := range c.Labels {
			s.Run.Labels[l.Key] = l.Value
		}
	case *instructions.WorkdirCommand:
		wd, err := system.NormalizeWorkdir(s.Run.WorkingDir, c.Path, "linux")
		if err != nil {
			return err
		}
		s.Run.WorkingDir = wd
	case *instructions.UserCommand:
		s.Run.User = c.User
	case *instructions.CmdCommand:
		s.Run.Cmd, s.Run.ArgsEscaped, s.cmdSet = s.command(c.ShellDependantCmdLine), true, true
	case *instructions.EntrypointCommand:
		s.Run.Entrypoint = s.command(c.ShellDependantCmdLine)
		if !s.cmdSet {
			s.Run.Cmd = nil // it belongs to the old entry point
		}
	case *instructions.HealthCheckCommand:
		h := c.Health
		s.Run.Healthcheck = &oci.Healthcheck{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
	case *instructions.ExposeCommand:
		return s.expose(c.Ports)
	case *instructions.VolumeCommand:
		return s.volume(c.Volumes)
	case *instructions.StopSignalCommand:
		if _, err := oci.ParseSignal(c.Signal); err != nil {
			return err
		}
		s.Run.StopSignal = c.Signal
	case *instructions.ShellCommand:
		s.Run.Shell = c.Shell
	case *instructions.OnbuildCommand:
		s.Run.OnBuild = append(slices.Clone(s.Run.OnBuild), c.Expression)
	}
	return nil
}

func (s *State) env(k, v string) {
	s.vars[k] = v
	for i, e := range s.Run.Env {
		if have, _, _ := strings.Cut(e, "="); have == k {
			s.Run.Env[i] = k + "=" + v
			return
		}
	}
	s.Run.Env = append(s.Run.Env, k+"="+v)
}

// command returns the words of the exec form, or those of the shell and the text of the shell form.
func (s *State) command(line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	sh := s.Run.Shell
	if len(sh) == 0 {
		sh = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(sh), strings.Join(line.CmdLine, " "))
}

// editable returns a copy of m that may be changed, since an earlier copy of Run may share m.
func editable[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

func (s *State) expose(words []string) error {
	s.Run.ExposedPorts = editable(s.Run.ExposedPorts)
	for _, w := range words {
		if err := s.grow(w); err != nil {
			return err
		}
		expanded, err := s.lex.ProcessWords(w, s)
		if err != nil {
			return err
		}
		for _, e := range expanded {
			list, err := ports(e)
			if err != nil {
				return err
			}
			for _, p := range list {
				s.Run.ExposedPorts[p] = struct{}{}
			}
		}
	}
	return nil
}

func (s *State) volume(paths []string) error {
	s.Run.Volumes = editable(s.Run.Volumes)
	for _, v := range paths {
		if v == "" {
			return errs.New(errs.Invalid, "VOLUME specified can not be an empty string")
		}
		s.Run.Volumes[v] = struct{}{}
	}
	return nil
}
