package docker

import (
	"reflect"
	"sort"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/wire"
)

// runConfig returns the config that a commit asks for, or nil when nothing is set: clients send an empty object for that.
func runConfig(cfg *wire.Config) (*oci.RunConfig, error) {
	if reflect.DeepEqual(*cfg, wire.Config{}) {
		return nil, nil
	}
	ports, err := exposedPorts(cfg.ExposedPorts)
	if err != nil {
		return nil, err
	}
	rc := &oci.RunConfig{Hostname: cfg.Hostname, Domainname: cfg.Domainname, User: cfg.User, Env: cfg.Env, Entrypoint: cfg.Entrypoint, Cmd: cfg.Cmd,
		ArgsEscaped: cfg.ArgsEscaped, Volumes: cfg.Volumes, WorkingDir: cfg.WorkingDir, Labels: cfg.Labels, StopSignal: cfg.StopSignal,
		StopTimeout: cfg.StopTimeout, OnBuild: cfg.OnBuild, Shell: cfg.Shell, Healthcheck: cfg.Healthcheck}
	for _, p := range ports {
		if rc.ExposedPorts == nil {
			rc.ExposedPorts = map[string]struct{}{}
		}
		rc.ExposedPorts[p] = struct{}{}
	}
	return rc, nil
}

// applyConfig puts the config into a spec.
func applyConfig(cfg *wire.Config, sp *spec.Spec) error {
	ports, err := exposedPorts(cfg.ExposedPorts)
	if err != nil {
		return err
	}
	switch {
	case cfg.Image == "":
		return errs.New(errs.Invalid, "no image specified: config.Image is empty")
	case len(cfg.OnBuild) > 0:
		return unsupported("OnBuild", "it belongs to images, not to containers")
	}
	sp.Image, sp.Hostname, sp.Domainname, sp.User = cfg.Image, cfg.Hostname, cfg.Domainname, cfg.User
	sp.AttachStdin, sp.AttachStdout, sp.AttachStderr = cfg.AttachStdin, cfg.AttachStdout, cfg.AttachStderr
	sp.Tty, sp.OpenStdin, sp.StdinOnce = cfg.Tty, cfg.OpenStdin, cfg.StdinOnce
	sp.Env, sp.Cmd, sp.Entrypoint, sp.WorkingDir = cfg.Env, cfg.Cmd, cfg.Entrypoint, cfg.WorkingDir
	sp.ExposedPorts, sp.Volumes, sp.Labels = ports, sortedKeys(cfg.Volumes), cfg.Labels
	sp.NetworkDisabled, sp.MacAddress = cfg.NetworkDisabled, cfg.MacAddress
	sp.StopSignal, sp.StopTimeout, sp.Shell, sp.Healthcheck = cfg.StopSignal, cfg.StopTimeout, cfg.Shell, cfg.Healthcheck
	return nil
}

// configOf returns the Config of a spec.
func configOf(sp *spec.Spec, v int) wire.Config {
	cfg := wire.Config{Hostname: sp.Hostname, Domainname: sp.Domainname, User: sp.User, AttachStdin: sp.AttachStdin,
		AttachStdout: sp.AttachStdout, AttachStderr: sp.AttachStderr, Tty: sp.Tty, OpenStdin: sp.OpenStdin, StdinOnce: sp.StdinOnce,
		Env: notNil(sp.Env), Cmd: sp.Cmd, Healthcheck: sp.Healthcheck, Image: sp.Image, WorkingDir: sp.WorkingDir, Entrypoint: sp.Entrypoint,
		NetworkDisabled: sp.NetworkDisabled, Labels: sp.Labels, StopSignal: sp.StopSignal, StopTimeout: sp.StopTimeout, Shell: sp.Shell}
	if cfg.Labels == nil {
		cfg.Labels = map[string]string{}
	}
	if len(cfg.Entrypoint) == 0 {
		cfg.Entrypoint = nil
	}
	if v < 44 {
		cfg.MacAddress = sp.MacAddress
	}
	for _, p := range sp.ExposedPorts {
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = map[string]struct{}{}
		}
		cfg.ExposedPorts[p] = struct{}{}
	}
	for _, p := range sp.Volumes {
		if cfg.Volumes == nil {
			cfg.Volumes = map[string]struct{}{}
		}
		cfg.Volumes[p] = struct{}{}
	}
	return cfg
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	if len(keys) == 0 {
		return nil
	}
	return keys
}

// unsupported is the error for an option that a client set and this engine does not have.
func unsupported(option, why string) error {
	return errs.New(errs.Invalid, "%s is not supported: %s", option, why)
}
