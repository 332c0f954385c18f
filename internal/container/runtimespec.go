package container

import (
	"cmp"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/apparmor"
	"ply/internal/container/runspec"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/safepath"
)

// hostFacts asks the kernel once: the answers do not change while the engine runs.
var hostFacts = sync.OnceValues(runspec.ProbeHost)

// loadProfile loads the AppArmor profile of containers, where the host has AppArmor. A failure keeps only those containers from
// starting that are to be confined by it.
func loadProfile(log *slog.Logger) {
	host, err := hostFacts()
	if err != nil || !host.AppArmor {
		return
	}
	if err := apparmor.Ensure(); err != nil {
		log.Error("containers will not start", "err", err)
	}
}

// appArmorProfile returns the profile of a container with these options; "" on a host without AppArmor.
func appArmorProfile(sp *spec.Spec) string {
	host, err := hostFacts()
	if err != nil {
		return ""
	}
	return runspec.AppArmorProfile(sp, &host)
}

// inForce returns the options of a container with the engine's in place of those that it leaves open.
func (e *env) inForce(sp *spec.Spec) InForce {
	live := e.live.Load()
	f := InForce{Runtime: cmp.Or(sp.Runtime, live.Runtime, "runc"), ShmSize: cmp.Or(sp.ShmSize, live.ShmSize), CgroupnsMode: sp.CgroupnsMode}
	host, err := hostFacts()
	if err != nil {
		return f
	}
	if f.CgroupnsMode == "" {
		f.CgroupnsMode = runspec.CgroupnsMode(sp, &host)
	}
	f.MaskedPaths, f.ReadonlyPaths = runspec.Paths(sp, &host)
	return f
}

// buildSpec makes the runtime spec of a prepared container.
func buildSpec(c *ctr, p *prepared) (*specs.Spec, error) {
	if err := makeWorkdir(c); err != nil {
		return nil, err
	}
	in, err := specInput(c, p)
	if err != nil {
		return nil, err
	}
	spec, warnings, err := runspec.Build(in)
	if err != nil {
		return nil, err
	}
	if spec.Process.ApparmorProfile == apparmor.Default {
		if err := apparmor.Ensure(); err != nil {
			return nil, err
		}
	}
	for _, w := range warnings {
		c.env.log.Warn("container starts with less than was asked for", "container", c.id, "warning", w)
	}
	return spec, nil
}

// makeWorkdir makes the working directory if the image lacks it, with the root mounted.
func makeWorkdir(c *ctr) error {
	c.mu.Lock()
	dir := c.rec.Spec.WorkingDir
	c.mu.Unlock()
	if dir == "" || dir == "/" {
		return nil
	}
	root, err := c.root.Open()
	if err != nil {
		return err
	}
	defer root.Close()
	_, err = makeDir(root, dir)
	return err
}

// makeDir makes the working directory dir below root. It reports whether dir was there.
func makeDir(root *os.File, dir string) (found bool, err error) {
	d, err := safepath.Open(root, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		return true, d.Close()
	}
	d, err = safepath.MkdirAll(root, dir, 0o755)
	switch {
	case err == nil:
		return false, d.Close()
	case errors.Is(err, unix.ENOTDIR):
		return false, invalid("Cannot mkdir: %s is not a directory", dir)
	case errors.Is(err, unix.EROFS):
		return false, nil
	}
	return false, errs.New(errs.Internal, "working directory %s: %w", dir, err)
}

// specInput returns what the runtime spec of a prepared container is made from: the container's options with the defaults
// of the daemon in place of those that are not set, and what was resolved for this run.
func specInput(c *ctr, p *prepared) (runspec.Input, error) {
	host, err := hostFacts()
	if err != nil {
		return runspec.Input{}, err
	}
	hostname, domainname := p.files.hostname() // of the container whose network it joins, or its own
	c.mu.Lock()
	sp, opts := c.rec.Spec, &c.env.opts
	sp.Env = slices.Concat(linkEnv(c.rec.Name, p.links), sp.Env, c.private)
	c.mu.Unlock()
	in := runspec.Input{
		ID: string(c.id), Rootfs: c.paths.rootfs, Host: &host,
		Net:       namespace(sp.NetworkMode, p.netns),
		PID:       namespace(sp.PidMode, p.pidns),
		IPC:       namespace(sp.IpcMode, p.ipcns),
		UTS:       runspec.Namespace{Host: sp.UTSMode == "host" || sp.UTSMode == "" && sp.NetworkMode == "host" && sp.Hostname == ""},
		HostsPath: p.files.paths.hosts, HostnamePath: p.files.paths.hostname, ResolvConfPath: p.files.paths.resolv,
		ShmPath: p.shm, Mounts: p.mounts, CDIDirs: c.env.live.Load().CDIDirs,
	}
	sp.Hostname, sp.Domainname = hostname, domainname
	if sp.CgroupParent == "" {
		sp.CgroupParent = opts.CgroupParent
	}
	if sp.ShmSize == 0 {
		sp.ShmSize = c.env.live.Load().ShmSize
	}
	sp.Ulimits = ulimits(&sp, opts.Ulimits)
	if sp.Init != nil && *sp.Init || sp.Init == nil && opts.Init {
		in.InitBinary = opts.InitPath
	}
	sp.SecurityOpt = slices.Clone(sp.SecurityOpt)
	if opts.NoNewPrivs && !slices.ContainsFunc(sp.SecurityOpt, isNoNewPrivs) {
		sp.SecurityOpt = append(sp.SecurityOpt, "no-new-privileges")
	}
	if c.env.seccomp != "" && !sp.Privileged && !slices.ContainsFunc(sp.SecurityOpt, isSeccomp) {
		sp.SecurityOpt = append(sp.SecurityOpt, c.env.seccomp)
	}
	size, err := c.env.writableSize(&sp)
	if err != nil {
		return runspec.Input{}, err
	}
	in.Spec, in.Limited = sp, size > 0
	return in, nil
}

// namespace returns the namespace of a mode; path is where one that exists already is found, "" for a new one.
func namespace(mode, path string) runspec.Namespace {
	return runspec.Namespace{Host: mode == "host", Path: path, Joined: isContainerMode(mode)}
}

func isNoNewPrivs(o string) bool { return strings.HasPrefix(o, "no-new-privileges") }

func isSeccomp(o string) bool {
	return strings.HasPrefix(o, "seccomp=") || strings.HasPrefix(o, "seccomp:")
}

// ulimits returns the container's limits, and the defaults for those that it does not set.
func ulimits(sp *spec.Spec, defaults []spec.Ulimit) []spec.Ulimit {
	out := slices.Clone(sp.Ulimits)
	for _, d := range defaults {
		if !slices.ContainsFunc(sp.Ulimits, func(u spec.Ulimit) bool { return u.Name == d.Name }) {
			out = append(out, d)
		}
	}
	return out
}

// mountShm makes the /dev/shm that other containers may join; unmountShm undoes it.
func mountShm(c *ctr, p *prepared) (mounted bool, err error) {
	c.mu.Lock()
	mode, size := c.rec.Spec.IpcMode, c.rec.Spec.ShmSize
	c.mu.Unlock()
	if mode != "shareable" {
		return false, nil
	}
	if size == 0 {
		size = c.env.live.Load().ShmSize
	}
	if err := os.MkdirAll(c.paths.shm, 0o700); err != nil {
		return false, err
	}
	data := "mode=1777,size=" + strconv.FormatInt(size, 10)
	if err := unix.Mount("shm", c.paths.shm, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, data); err != nil {
		return false, errs.New(errs.Internal, "container %s: /dev/shm: %w", c.id.Short(), err)
	}
	p.shm = c.paths.shm
	return true, nil
}

// unmountShm unmounts the directory, if it is mounted.
func unmountShm(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // not mounted
	}
	if err != nil {
		return &os.PathError{Op: "unmount", Path: filepath.Base(dir), Err: err}
	}
	return nil
}
