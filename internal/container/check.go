package container

import (
	"regexp"
	"runtime"

	"ply/internal/container/runspec"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/errs"
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

// check refuses options that cannot run, in docker's words, and fills in defaults. It returns warnings for the user.
func (e *env) check(sp *spec.Spec) (warnings []string, err error) {
	if warnings, err = sp.Check(); err != nil {
		return nil, err
	}
	if sp.Resources.PidsLimit == nil && !sp.Privileged && e.opts.PidsLimit > 0 { // a privileged container may be a host of containers
		limit := e.opts.PidsLimit
		sp.Resources.PidsLimit = &limit
	}
	if err := sp.Resources.CheckCPUs(runtime.NumCPU()); err != nil {
		return nil, err
	}
	sp.MergeLog(e.opts.LogDriver, e.opts.LogOpts)
	if _, err := session.LogConfig(sp.LogDriver, sp.LogOpts); err != nil {
		return nil, err
	}
	if _, err := e.runtimePath(sp.Runtime); err != nil {
		return nil, err
	}
	more, err := runspec.Check(sp)
	return append(warnings, more...), err
}
