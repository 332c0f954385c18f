package docker

import (
	"encoding/json"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
)

// words is a list of strings that old clients also write as one string.
type words []string

func (w *words) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var one string
		if err := json.Unmarshal(b, &one); err != nil {
			return err
		}
		*w = words{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(w))
}

// containerConfig is docker's Config of a container: what create takes and inspect gives back.
type containerConfig struct {
	Hostname        string
	Domainname      string
	User            string
	AttachStdin     bool
	AttachStdout    bool
	AttachStderr    bool
	ExposedPorts    map[string]struct{} `json:",omitempty"`
	Tty             bool
	OpenStdin       bool
	StdinOnce       bool
	Env             []string
	Cmd             words
	Healthcheck     *oci.Healthcheck `json:",omitempty"`
	ArgsEscaped     bool             `json:",omitempty"`
	Image           string
	Volumes         map[string]struct{}
	WorkingDir      string
	Entrypoint      words
	NetworkDisabled bool   `json:",omitempty"`
	MacAddress      string `json:",omitempty"`
	OnBuild         []string
	Labels          map[string]string
	StopSignal      string   `json:",omitempty"`
	StopTimeout     *int     `json:",omitempty"`
	Shell           []string `json:",omitempty"`
}

// configRequest is the Config that commit takes.
type configRequest struct{ containerConfig }

// runConfig gives nil when nothing is set: clients send an empty object to say nothing.
func (r configRequest) runConfig() (*oci.RunConfig, error) {
	if reflect.DeepEqual(r, configRequest{}) {
		return nil, nil
	}
	cfg := r.containerConfig
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

// apply puts the config into a spec.
func (cfg *containerConfig) apply(sp *spec.Spec) error {
	ports, err := exposedPorts(cfg.ExposedPorts)
	if err != nil {
		return err
	}
	switch {
	case cfg.Image == "":
		return errs.New(errs.Invalid, "no image specified: config.Image is empty")
	case len(cfg.OnBuild) > 0:
		return unsupported("OnBuild", "it belongs to images, not to containers")
	case cfg.StopTimeout != nil && *cfg.StopTimeout < -1:
		return errs.New(errs.Invalid, "StopTimeout: %d is neither seconds nor -1", *cfg.StopTimeout)
	}
	sp.Image, sp.Hostname, sp.Domainname, sp.User = cfg.Image, cfg.Hostname, cfg.Domainname, cfg.User
	sp.AttachStdin, sp.AttachStdout, sp.AttachStderr = cfg.AttachStdin, cfg.AttachStdout, cfg.AttachStderr
	sp.Tty, sp.OpenStdin, sp.StdinOnce = cfg.Tty, cfg.OpenStdin, cfg.StdinOnce
	sp.Env, sp.Cmd, sp.Entrypoint, sp.WorkingDir = cfg.Env, cfg.Cmd, cfg.Entrypoint, cfg.WorkingDir
	if len(sp.Entrypoint) == 1 && sp.Entrypoint[0] == "" { // how clients say "none"
		sp.Entrypoint = []string{}
	}
	sp.ExposedPorts, sp.Volumes, sp.Labels = ports, sortedKeys(cfg.Volumes), cfg.Labels
	sp.NetworkDisabled, sp.MacAddress = cfg.NetworkDisabled, cfg.MacAddress
	sp.StopSignal, sp.StopTimeout, sp.Shell, sp.Healthcheck = cfg.StopSignal, cfg.StopTimeout, cfg.Shell, cfg.Healthcheck
	return checkHealth(cfg.Healthcheck)
}

// checkHealth refuses what no health check can mean; the words are docker's.
func checkHealth(h *oci.Healthcheck) error {
	if h == nil {
		return nil
	}
	if len(h.Test) > 0 && !slices.Contains([]string{"NONE", "CMD", "CMD-SHELL"}, h.Test[0]) {
		return errs.New(errs.Invalid, "Unknown type %q in Healthcheck: want NONE, CMD or CMD-SHELL", clip(h.Test[0]))
	}
	for name, d := range map[string]int64{"Interval": int64(h.Interval), "Timeout": int64(h.Timeout), "StartPeriod": int64(h.StartPeriod), "StartInterval": int64(h.StartInterval)} {
		if d != 0 && d < 1_000_000 {
			return errs.New(errs.Invalid, "%s in Healthcheck cannot be less than 1ms", name)
		}
	}
	if h.Retries < 0 {
		return errs.New(errs.Invalid, "Retries in Healthcheck cannot be negative")
	}
	return nil
}

// containerConfigOf gives a spec back.
func containerConfigOf(sp *spec.Spec, v int) containerConfig {
	cfg := containerConfig{Hostname: sp.Hostname, Domainname: sp.Domainname, User: sp.User, AttachStdin: sp.AttachStdin,
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

// exposedPorts normalises to number/protocol, one a port, sorted by number.
func exposedPorts(set map[string]struct{}) ([]string, error) {
	type port struct {
		num   uint16
		proto string
	}
	var ports []port
	for key := range set {
		first, last, proto, err := parsePort(key)
		if err != nil {
			return nil, err
		}
		for n := int(first); n <= int(last); n++ {
			ports = append(ports, port{uint16(n), proto})
		}
	}
	slices.SortFunc(ports, func(a, b port) int {
		if a.num != b.num {
			return int(a.num) - int(b.num)
		}
		return strings.Compare(a.proto, b.proto)
	})
	var list []string
	for _, p := range slices.Compact(ports) {
		list = append(list, portText(p.num, p.proto))
	}
	return list, nil
}

func portText(num uint16, proto string) string { return strconv.Itoa(int(num)) + "/" + proto }

// parsePort reads number[-number][/protocol].
func parsePort(s string) (first, last uint16, proto string, err error) {
	bad := func() (uint16, uint16, string, error) {
		return 0, 0, "", errs.New(errs.Invalid, "invalid port %q: want a number from 1 to 65535, perhaps a range, and /tcp, /udp or /sctp", clip(s))
	}
	numbers, proto, hasProto := strings.Cut(s, "/")
	proto = strings.ToLower(proto)
	if !hasProto {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return bad()
	}
	first, last, ok := parseRange(numbers)
	if !ok || first == 0 {
		return bad()
	}
	return first, last, proto, nil
}

func parseRange(s string) (first, last uint16, ok bool) {
	from, to, isRange := strings.Cut(s, "-")
	a, err := strconv.ParseUint(from, 10, 16)
	if err != nil {
		return 0, 0, false
	}
	b := a
	if isRange {
		if b, err = strconv.ParseUint(to, 10, 16); err != nil || b < a {
			return 0, 0, false
		}
	}
	return uint16(a), uint16(b), true
}

// unsupported is the error for an option that a client set and this engine does not have.
func unsupported(option, why string) error {
	return errs.New(errs.Invalid, "%s is not supported: %s", option, why)
}
