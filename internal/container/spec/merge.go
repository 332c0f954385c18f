package spec

import (
	"maps"
	"slices"
	"strings"

	"ply/internal/network"
	"ply/internal/oci"
)

// Merge fills what the user left open from the image, as docker does.
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
	if len(s.Entrypoint) == 1 && s.Entrypoint[0] == "" { // --entrypoint "": none, and the image's CMD goes with it
		s.Entrypoint = nil
	}
	s.Healthcheck = mergeHealth(s.Healthcheck, img.Healthcheck)
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

// mergeEnv keeps the image's order, lets the user's values replace, and appends what is new.
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

// Command returns what runs: program and arguments.
func (s *Spec) Command() (path string, args []string) {
	all := append(slices.Clone(s.Entrypoint), s.Cmd...)
	if len(all) == 0 {
		return "", nil
	}
	return all[0], all[1:]
}

// RunConfig returns the part of a spec that an image keeps.
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

// Take fills a spec from an image's config.
func (s *Spec) Take(r *oci.RunConfig) {
	s.User, s.Env, s.Entrypoint, s.Cmd = r.User, r.Env, r.Entrypoint, r.Cmd
	s.WorkingDir, s.Labels, s.StopSignal, s.StopTimeout = r.WorkingDir, r.Labels, r.StopSignal, r.StopTimeout
	s.Shell, s.Healthcheck = r.Shell, r.Healthcheck
	s.ExposedPorts = slices.Sorted(maps.Keys(r.ExposedPorts))
	s.Volumes = slices.Sorted(maps.Keys(r.Volumes))
}

// Overlay takes over what r sets.
func (r *Resources) Overlay(n Resources) {
	set := func(dst *int64, v int64) {
		if v != 0 {
			*dst = v
		}
	}
	set(&r.Memory, n.Memory)
	set(&r.MemoryReservation, n.MemoryReservation)
	set(&r.MemorySwap, n.MemorySwap)
	set(&r.CPUShares, n.CPUShares)
	set(&r.CPURealtimePeriod, n.CPURealtimePeriod)
	set(&r.CPURealtimeRuntime, n.CPURealtimeRuntime)
	if n.NanoCPUs != 0 {
		r.NanoCPUs, r.CPUPeriod, r.CPUQuota = n.NanoCPUs, 0, 0
	}
	if n.CPUPeriod != 0 || n.CPUQuota != 0 {
		r.NanoCPUs = 0
	}
	set(&r.CPUPeriod, n.CPUPeriod)
	set(&r.CPUQuota, n.CPUQuota)
	if n.CpusetCpus != "" {
		r.CpusetCpus = n.CpusetCpus
	}
	if n.CpusetMems != "" {
		r.CpusetMems = n.CpusetMems
	}
	if n.PidsLimit != nil {
		r.PidsLimit = n.PidsLimit
	}
	if n.MemorySwappiness != nil {
		r.MemorySwappiness = n.MemorySwappiness
	}
	if n.BlkioWeight != 0 {
		r.BlkioWeight = n.BlkioWeight
	}
}

// PublishedPorts returns -p and, with -P, every exposed port that no -p names.
func (s *Spec) PublishedPorts() ([]network.PortBinding, error) {
	ports := append([]network.PortBinding(nil), s.Ports...)
	if !s.PublishAll {
		return ports, nil
	}
	for _, e := range s.ExposedPorts {
		first, last, proto, err := ParsePort(e)
		if err != nil {
			return nil, err
		}
		for n := int(first); n <= int(last); n++ {
			have := false
			for _, b := range s.Ports {
				have = have || b.Proto == proto && int(b.ContainerPort) == n
			}
			if !have {
				ports = append(ports, network.PortBinding{Proto: proto, ContainerPort: uint16(n)})
			}
		}
	}
	return ports, nil
}
