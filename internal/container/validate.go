package container

import (
	"path/filepath"
	"regexp"
	"runtime"

	"ply/internal/container/runspec"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
)

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

const maxName = 255

func invalid(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }

func checkName(name string) error {
	if !nameRE.MatchString(name) || len(name) > maxName {
		return invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", clip(name))
	}
	return nil
}

// check refuses what cannot run, in docker's words, and fills in defaults. It returns warnings for the user.
func (s *Service) check(sp *spec.Spec) (warnings []string, err error) {
	if warnings, err = sp.Check(); err != nil {
		return nil, err
	}
	if err := sp.Resources.CheckCPUs(runtime.NumCPU()); err != nil {
		return nil, err
	}
	if err := s.checkLog(sp); err != nil {
		return nil, err
	}
	if _, err := s.runtimePath(sp.Runtime); err != nil {
		return nil, err
	}
	more, err := runspec.Check(sp)
	return append(warnings, more...), err
}

func (s *Service) checkLog(sp *spec.Spec) error {
	if sp.LogDriver == "" {
		sp.LogDriver = s.opts.LogDriver
		if sp.LogOpts == nil {
			sp.LogOpts = s.opts.LogOpts
		}
	}
	_, err := logConfig(sp.LogDriver, sp.LogOpts)
	return err
}

// runtimePath gives the program of a runtime; "" is the one built in.
func (s *Service) runtimePath(name string) (string, error) {
	if name == "" {
		name = s.opts.Runtime
	}
	switch name {
	case "", "runc", "ply", "io.containerd.runc.v2": // docker's names for its default
		if p := s.opts.Runtimes[name]; p == "" {
			return "", nil
		}
	}
	p := s.opts.Runtimes[name]
	if p == "" {
		return "", invalid("unknown or invalid runtime name: %s", clip(name))
	}
	if !filepath.IsAbs(p) {
		return "", invalid("runtime %s: path %q is not absolute", name, p)
	}
	return p, nil
}

// checkPlatform holds an image against --platform.
func checkPlatform(want string, cfg *oci.Config, ref string) error {
	if want == "" {
		return nil
	}
	p, err := oci.ParsePlatform(want)
	if err != nil {
		return err
	}
	have := oci.Platform{OS: cfg.OS, Architecture: cfg.Architecture, Variant: cfg.Variant}
	if p.OS != have.OS || p.Architecture != have.Architecture || (p.Variant != "" && have.Variant != "" && p.Variant != have.Variant) {
		return errs.New(errs.NotFound, "image with reference %s was found but does not provide the specified platform (%s): it is for %s", ref, p, have)
	}
	return nil
}
