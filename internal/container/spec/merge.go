package spec

import (
	"maps"
	"slices"
	"strings"

	"ply/internal/oci"
)

// Merge sets the options that the user did not set to those of the image, by docker's rules.
func (s *Spec) Merge(img *oci.RunConfig) {
	if s.User == "" {
		s.User = img.User
	}
	if s.WorkingDir == "" {
		s.WorkingDir = img.WorkingDir
	}
	if s.StopSignal == "" {
		s.StopSignal = img.StopSignal
	}
	if s.StopTimeout == nil {
		s.StopTimeout = img.StopTimeout
	}
	if s.Shell == nil {
		s.Shell = img.Shell
	}
	s.ExposedPorts = union(s.ExposedPorts, img.ExposedPorts)
	s.Volumes = union(s.Volumes, img.Volumes)
	s.Env = mergeEnv(img.Env, s.Env)
	labels := maps.Clone(img.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, s.Labels)
	s.Labels = labels
	if len(s.Entrypoint) == 0 {
		if len(s.Cmd) == 0 {
			s.Cmd = img.Cmd
		}
		if s.Entrypoint == nil {
			s.Entrypoint = img.Entrypoint
		}
	}
	if len(s.Entrypoint) == 1 && s.Entrypoint[0] == "" { // --entrypoint "" means none, and drops the image's CMD as well
		s.Entrypoint = nil
	}
	s.Healthcheck = mergeHealth(s.Healthcheck, img.Healthcheck)
}

// MergeLog fills in the log driver and its options from the engine's defaults. The default options are for the default driver: a
// container that names it, or no driver, gets those that it does not set itself, one by one.
func (s *Spec) MergeLog(driver string, opts map[string]string) {
	if s.LogDriver == "" {
		s.LogDriver = driver
	}
	if s.LogDriver != driver || driver == "none" || len(opts) == 0 {
		return
	}
	merged := maps.Clone(opts)
	maps.Copy(merged, s.LogOpts)
	s.LogOpts = merged
}

func union(have []string, more map[string]struct{}) []string {
	out := slices.Clone(have)
	for _, k := range slices.Sorted(maps.Keys(more)) {
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// mergeEnv returns the user's variables, followed by those of the image that the user does not set.
func mergeEnv(image, user []string) []string {
	set := map[string]bool{}
	for _, e := range user {
		k, _, _ := strings.Cut(e, "=")
		set[k] = true
	}
	out := slices.Clone(user)
	for _, e := range image {
		if k, _, _ := strings.Cut(e, "="); !set[k] {
			out = append(out, e)
		}
	}
	return out
}

func mergeHealth(user, image *oci.Healthcheck) *oci.Healthcheck {
	if user == nil || image == nil {
		if user == nil {
			return image
		}
		return user
	}
	h := *user
	if len(h.Test) == 0 {
		h.Test = image.Test
	}
	if h.Interval == 0 {
		h.Interval = image.Interval
	}
	if h.Timeout == 0 {
		h.Timeout = image.Timeout
	}
	if h.StartPeriod == 0 {
		h.StartPeriod = image.StartPeriod
	}
	if h.StartInterval == 0 {
		h.StartInterval = image.StartInterval
	}
	if h.Retries == 0 {
		h.Retries = image.Retries
	}
	return &h
}

// Command returns the program that the container runs, and its arguments. path is "" when there is none.
func (s *Spec) Command() (path string, args []string) {
	all := append(slices.Clone(s.Entrypoint), s.Cmd...)
	if len(all) == 0 {
		return "", nil
	}
	return all[0], all[1:]
}

// RunConfig returns the options that a commit keeps in the image's config.
func (s *Spec) RunConfig() oci.RunConfig {
	return oci.RunConfig{
		User: s.User, Env: slices.Clone(s.Env), Entrypoint: slices.Clone(s.Entrypoint), Cmd: slices.Clone(s.Cmd),
		WorkingDir: s.WorkingDir, Labels: maps.Clone(s.Labels), StopSignal: s.StopSignal, StopTimeout: s.StopTimeout,
		Shell: slices.Clone(s.Shell), Healthcheck: s.Healthcheck, ExposedPorts: set(s.ExposedPorts), Volumes: set(s.Volumes),
	}
}

func set(list []string) map[string]struct{} {
	if len(list) == 0 {
		return nil
	}
	m := make(map[string]struct{}, len(list))
	for _, v := range list {
		m[v] = struct{}{}
	}
	return m
}

// Take sets the options that an image's config has.
func (s *Spec) Take(r *oci.RunConfig) {
	s.User, s.Env, s.Entrypoint, s.Cmd = r.User, r.Env, r.Entrypoint, r.Cmd
	s.WorkingDir, s.Labels, s.StopSignal, s.StopTimeout = r.WorkingDir, r.Labels, r.StopSignal, r.StopTimeout
	s.Shell, s.Healthcheck = r.Shell, r.Healthcheck
	s.ExposedPorts = slices.Sorted(maps.Keys(r.ExposedPorts))
	s.Volumes = slices.Sorted(maps.Keys(r.Volumes))
}
