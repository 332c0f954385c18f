package container

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/runspec"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/safepath"
	"ply/internal/volume"
)

// hostFacts asks the machine once: they do not change while we live.
var hostFacts = sync.OnceValues(runspec.ProbeHost)

// buildSpec makes the runtime spec of a prepared container.
func (s *Service) buildSpec(c *ctr, p *prepared) (*specs.Spec, error) {
	if err := s.makeWorkdir(c); err != nil {
		return nil, err
	}
	in, err := s.specInput(c, p)
	if err != nil {
		return nil, err
	}
	spec, warnings, err := runspec.Build(in)
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		s.log.Warn("container starts with less than was asked for", "container", c.id, "warning", w)
	}
	return spec, nil
}

// makeWorkdir makes a working directory that the image lacks, resolved inside the root.
func (s *Service) makeWorkdir(c *ctr) error {
	c.mu.Lock()
	dir := c.rec.Spec.WorkingDir
	c.mu.Unlock()
	if dir == "" || dir == "/" {
		return nil
	}
	root, err := c.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := safepath.MkdirAll(root, dir, 0o755)
	switch {
	case err == nil:
		return d.Close()
	case errors.Is(err, unix.ENOTDIR):
		return invalid("Cannot mkdir: %s is not a directory", dir)
	case errors.Is(err, unix.EROFS):
		return nil
	}
	return errs.New(errs.Internal, "working directory %s: %w", dir, err)
}

// specInput translates a container for runspec.
func (s *Service) specInput(c *ctr, p *prepared) (runspec.Input, error) {
	host, err := hostFacts()
	if err != nil {
		return runspec.Input{}, err
	}
	hostname, domainname := p.files.hostname() // of the container whose network it joins, or its own
	c.mu.Lock()
	defer c.mu.Unlock()
	sp := &c.rec.Spec
	in := runspec.Input{
		ID: string(c.id), Rootfs: c.rootfsDir(), Host: &host,
		Args: append([]string{c.rec.Path}, c.rec.Args...), Env: sp.Env, Cwd: sp.WorkingDir, User: sp.User, GroupAdd: sp.GroupAdd,
		Hostname: hostname, Domainname: domainname, Tty: sp.Tty, Height: sp.ConsoleSize[0], Width: sp.ConsoleSize[1],
		Net:      runspec.Namespace{Host: sp.NetworkMode == "host", Path: p.netns},
		PID:      runspec.Namespace{Host: sp.PidMode == "host", Path: p.pidns},
		IPC:      runspec.Namespace{Host: sp.IpcMode == "host", Path: p.ipcns},
		UTS:      runspec.Namespace{Host: sp.UTSMode == "host" || sp.UTSMode == "" && sp.NetworkMode == "host" && sp.Hostname == ""},
		Cgroupns: sp.CgroupnsMode, Userns: sp.UsernsMode,
		HostsPath: p.files.hostsPath(), HostnamePath: p.files.hostPath(), ResolvConfPath: p.files.resolvPath(),
		ShmSize: sp.ShmSize, ShmPath: p.shm, NoShm: sp.IpcMode == "none", ReadonlyRootfs: sp.ReadonlyRootfs,
		Privileged: sp.Privileged, CapAdd: sp.CapAdd, CapDrop: sp.CapDrop, SecurityOpt: slices.Clone(sp.SecurityOpt),
		MaskedPaths: sp.MaskedPaths, ReadonlyPaths: sp.ReadonlyPaths, DeviceRules: sp.DeviceRules, Sysctls: sp.Sysctls,
		Resources: runspec.Resources(sp.Resources), OomScoreAdj: sp.OomScoreAdj, OomKillDisable: sp.OomKillDisable,
		CgroupParent: sp.CgroupParent, Annotations: sp.Annotations,
	}
	if in.CgroupParent == "" {
		in.CgroupParent = s.opts.CgroupParent
	}
	if in.ShmSize == 0 {
		in.ShmSize = s.opts.ShmSize
	}
	for _, d := range sp.Devices {
		in.Devices = append(in.Devices, runspec.Device(d))
	}
	for _, u := range s.ulimits(sp) {
		in.Ulimits = append(in.Ulimits, runspec.Ulimit(u))
	}
	if wantInit := s.opts.Init; sp.Init != nil && *sp.Init || sp.Init == nil && wantInit {
		in.InitBinary = s.opts.InitPath
	}
	if s.opts.NoNewPrivs && !slices.ContainsFunc(in.SecurityOpt, isNoNewPrivs) {
		in.SecurityOpt = append(in.SecurityOpt, "no-new-privileges")
	}
	if s.seccomp != "" && !sp.Privileged && !slices.ContainsFunc(in.SecurityOpt, isSeccomp) {
		in.SecurityOpt = append(in.SecurityOpt, s.seccomp)
	}
	in.Mounts = userMounts(p.mounts)
	return in, nil
}

func isNoNewPrivs(o string) bool { return strings.HasPrefix(o, "no-new-privileges") }

func isSeccomp(o string) bool {
	return strings.HasPrefix(o, "seccomp=") || strings.HasPrefix(o, "seccomp:")
}

// ulimits gives the container's limits over the daemon's defaults.
func (s *Service) ulimits(sp *spec.Spec) []spec.Ulimit {
	out := slices.Clone(sp.Ulimits)
	for _, d := range s.opts.Ulimits {
		if !slices.ContainsFunc(sp.Ulimits, func(u spec.Ulimit) bool { return u.Name == d.Name }) {
			out = append(out, d)
		}
	}
	return out
}

func userMounts(ms []volume.Mount) []runspec.Mount {
	var out []runspec.Mount
	for _, m := range ms {
		out = append(out, runspec.Mount{
			Type: m.Type, Source: m.Source, Target: m.Target, ReadOnly: !m.RW,
			NonRecursive: m.NonRecursive, Propagation: m.Propagation, Options: m.Options,
		})
	}
	return out
}

// mountShm makes the /dev/shm that other containers may join; undone by unmountShm.
func (s *Service) mountShm(c *ctr, p *prepared) (made bool, err error) {
	c.mu.Lock()
	mode, size := c.rec.Spec.IpcMode, c.rec.Spec.ShmSize
	c.mu.Unlock()
	if mode != "shareable" {
		return false, nil
	}
	if size == 0 {
		size = s.opts.ShmSize
	}
	if err := os.MkdirAll(c.shmPath(), 0o700); err != nil {
		return false, err
	}
	data := "mode=1777,size=" + strconv.FormatInt(size, 10)
	if err := unix.Mount("shm", c.shmPath(), "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, data); err != nil {
		return false, errs.New(errs.Internal, "container %s: /dev/shm: %w", c.id.Short(), err)
	}
	p.shm = c.shmPath()
	return true, nil
}

func (c *ctr) unmountShm() error {
	err := unix.Unmount(c.shmPath(), unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // not mounted
	}
	if err != nil {
		return &os.PathError{Op: "unmount", Path: filepath.Base(c.shmPath()), Err: err}
	}
	return nil
}
