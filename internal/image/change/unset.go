package change

import (
	"maps"
	"slices"
	"strings"

	"ply/internal/errs"
)

// unset takes something away that the image has from a base: UNSET INSTRUCTION [NAME…]. Without names it takes away all that the instruction has set. Docker has no such
// instruction, and a Dockerfile neither.
func (s *State) unset(line string) error {
	words := strings.Fields(line)
	if len(words) < 2 {
		return errs.New(errs.Invalid, "UNSET: name an instruction, such as UNSET VOLUME /data")
	}
	what, names := strings.ToUpper(words[1]), words[2:]
	switch what {
	case "VOLUME":
		return take(&s.Run.Volumes, what, names)
	case "LABEL":
		return take(&s.Run.Labels, what, names)
	case "EXPOSE":
		var all []string
		for _, n := range names {
			list, err := ports(n)
			if err != nil {
				return err
			}
			all = append(all, list...)
		}
		return take(&s.Run.ExposedPorts, what, all)
	case "ENV":
		if len(names) == 0 {
			return errs.New(errs.Invalid, "UNSET ENV: name the variables")
		}
		for _, n := range names {
			is := func(e string) bool { k, _, _ := strings.Cut(e, "="); return k == n }
			if !slices.ContainsFunc(s.Run.Env, is) {
				return errs.New(errs.NotFound, "UNSET ENV: the image has no %s", clip(n))
			}
			s.Run.Env = slices.DeleteFunc(slices.Clone(s.Run.Env), is)
			delete(s.vars, n)
		}
		return nil
	}
	if len(names) > 0 {
		return errs.New(errs.Invalid, "UNSET %s: it has no names", clip(what))
	}
	switch what {
	case "CMD":
		s.Run.Cmd, s.Run.ArgsEscaped = nil, false
	case "ENTRYPOINT":
		s.Run.Entrypoint = nil
	case "USER":
		s.Run.User = ""
	case "WORKDIR":
		s.Run.WorkingDir = ""
	case "STOPSIGNAL":
		s.Run.StopSignal = ""
	case "SHELL":
		s.Run.Shell = nil
	case "HEALTHCHECK":
		s.Run.Healthcheck = nil
	case "ONBUILD":
		s.Run.OnBuild = nil
	default:
		return errs.New(errs.Invalid, "UNSET %s: nothing of an image is set by it", clip(what))
	}
	return nil
}

// take removes keys of a map, or all of them, from a copy of it.
func take[V any](m *map[string]V, what string, names []string) error {
	if len(names) == 0 {
		*m = nil
		return nil
	}
	left := maps.Clone(*m)
	for _, n := range names {
		if _, ok := left[n]; !ok {
			return errs.New(errs.NotFound, "UNSET %s: the image has no %s", what, clip(n))
		}
		delete(left, n)
	}
	if len(left) == 0 {
		left = nil
	}
	*m = left
	return nil
}
