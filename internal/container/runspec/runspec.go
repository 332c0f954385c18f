// Package runspec turns a resolved description of a container into the OCI runtime spec that a shim runs:
// docker's defaults for mounts, devices, capabilities, seccomp, masked paths, namespaces and cgroups.
//
// Invariants: an image has no effect on the host. Users are looked up below the image's root, with bounded reads of regular files;
// labels and annotations of images are not used. A limit that this process may not raise is lowered and reported as a warning, not as
// an error. The capabilities of a container are a subset of those of this process.
package runspec

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/container/rootfs"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/volume"
)

// DefaultPath is the PATH of a process whose image sets none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// InitTarget is the path in the container at which Input.InitBinary is mounted.
const InitTarget = "/sbin/docker-init"

// DefaultCgroupParent is the parent cgroup of containers whose options name none.
const DefaultCgroupParent = "/ply"

// Input is everything a runtime spec is made of: the options, and what the service resolved of them.
type Input struct {
	ID     string
	Rootfs string    // absolute host path of the mounted root; users are looked up in it
	Host   *Host     // facts of this machine; nil = ProbeHost
	Spec   spec.Spec // with the defaults of the image and of the daemon merged in

	InitBinary string // host path of an init program to run the command under; "" = none

	// Namespaces; the zero value is a new private one.
	Net Namespace
	PID Namespace
	IPC Namespace
	UTS Namespace

	// Limited says that the writable layer has a limit, which belongs to the project of its files: the container may not change projects.
	Limited bool

	CDIDirs []string // with descriptions of CDI devices; none = there are no such devices

	Mounts         []volume.Mount // of users; sources are host paths
	HostsPath      string         // host files mounted at /etc/hosts …; "" = none
	HostnamePath   string
	ResolvConfPath string
	ShmPath        string // host directory to use as /dev/shm: IPC shareable or of another container
}

// Namespace says which namespace to use. The zero value makes a new one.
type Namespace struct {
	Host bool
	Path string // of an existing one, such as /proc/PID/ns/net
	// Joined says that Path is another container's namespace, not one that was made for this container: the default sysctls are
	// not written into it.
	Joined bool
}

func (n Namespace) private() bool { return !n.Host && n.Path == "" }

// Build returns the runtime spec. The warnings are for the user and say what was lowered or left out on this host. The class of an error
// is errs.Invalid for a bad input, errs.NotFound for a device that does not exist, errs.Unimplemented for an option that ply does not
// have; each error names the option.
func Build(in Input) (*specs.Spec, []string, error) {
	host := in.Host
	if host == nil {
		h, err := ProbeHost()
		if err != nil {
			return nil, nil, err
		}
		host = &h
	}
	b := &builder{in: in, host: host}
	if err := b.build(); err != nil {
		return nil, nil, err
	}
	return b.spec, b.warnings, nil
}

type builder struct {
	in       Input
	host     *Host
	sec      security
	spec     *specs.Spec
	warnings []string
}

func (b *builder) warn(format string, args ...any) {
	b.warnings = append(b.warnings, fmt.Sprintf(format, args...))
}

func (b *builder) build() error {
	in := &b.in
	if !path.IsAbs(in.Rootfs) {
		return errs.New(errs.Invalid, "root file system %q: not an absolute path", in.Rootfs)
	}
	var err error
	if b.sec, err = parseSecurity(in.Spec.SecurityOpt, b.host); err != nil {
		return err
	}
	b.spec = &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: in.Rootfs, Readonly: in.Spec.ReadonlyRootfs},
		Annotations: in.Spec.Annotations,
		Linux:       &specs.Linux{CgroupsPath: CgroupPath(in.Spec.CgroupParent, in.ID)},
	}
	if !in.UTS.Host && in.UTS.Path == "" {
		b.spec.Hostname, b.spec.Domainname = in.Spec.Hostname, in.Spec.Domainname
	}
	for _, step := range []func() error{
		b.namespaces, b.process, b.devices, b.mounts, b.deviceRequests, b.resources, b.sysctls, b.seccomp,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	b.paths()
	return nil
}

// CgroupPath returns the name of the cgroup of the container with an ID; parent "" is DefaultCgroupParent.
func CgroupPath(parent, id string) string {
	if parent == "" {
		parent = DefaultCgroupParent
	}
	return path.Join("/", path.Clean("/"+parent), id)
}

// CgroupnsMode returns the mode of a container, "private" or "host" where its options leave it open.
func CgroupnsMode(sp *spec.Spec, host *Host) string {
	switch {
	case sp.CgroupnsMode != "":
		return sp.CgroupnsMode
	case host.CgroupV2 && !sp.Privileged:
		return "private"
	}
	return "host"
}

func (b *builder) namespaces() error {
	in := &b.in
	if in.Spec.UsernsMode != "" && in.Spec.UsernsMode != "host" {
		return errs.New(errs.Unimplemented, "userns mode %q: only \"host\" is supported", in.Spec.UsernsMode)
	}
	add := func(t specs.LinuxNamespaceType, n Namespace) {
		if !n.Host {
			b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: n.Path})
		}
	}
	add(specs.MountNamespace, Namespace{})
	add(specs.NetworkNamespace, in.Net)
	add(specs.UTSNamespace, in.UTS)
	add(specs.PIDNamespace, in.PID)
	add(specs.IPCNamespace, in.IPC)
	switch CgroupnsMode(&in.Spec, b.host) {
	case "private":
		add(specs.CgroupNamespace, Namespace{})
	case "host":
	default:
		return errs.New(errs.Invalid, "invalid cgroup namespace mode: %s", in.Spec.CgroupnsMode)
	}
	return nil
}

func (b *builder) process() error {
	in := &b.in
	name, args := in.Spec.Command()
	if name == "" && len(in.Spec.Entrypoint)+len(in.Spec.Cmd) == 0 {
		return errs.New(errs.Invalid, "no command specified")
	}
	args = append([]string{name}, args...)
	if in.InitBinary != "" && in.PID.private() {
		args = append([]string{InitTarget, "--"}, args...)
	}
	p, err := b.newProcess(processInput{
		args: args, cwd: in.Spec.WorkingDir, user: in.Spec.User, groups: in.Spec.GroupAdd, tty: in.Spec.Tty,
		height: in.Spec.ConsoleSize[0], width: in.Spec.ConsoleSize[1],
	})
	if err != nil {
		return err
	}
	caps, err := capabilities(in.Spec.Privileged, in.Spec.CapAdd, in.Spec.CapDrop, b.host)
	if err != nil {
		return err
	}
	setCapabilities(p, caps)
	p.NoNewPrivileges = b.sec.noNewPrivileges
	p.ApparmorProfile = b.sec.profile(b.in.Spec.Privileged, b.host)
	if p.Rlimits, err = b.rlimits(); err != nil {
		return err
	}
	adj := in.Spec.OomScoreAdj
	if err := spec.CheckOomScoreAdj(adj); err != nil {
		return err
	}
	if adj < b.host.OOMScoreAdj && !b.host.SysResource {
		b.warn("oom score adjustment %d: this host does not allow less than %d, which is used", adj, b.host.OOMScoreAdj)
		adj = b.host.OOMScoreAdj
	}
	p.OOMScoreAdj = &adj
	b.spec.Process = p
	return nil
}

type processInput struct {
	args          []string
	env           []string // added to the container's
	cwd, user     string
	groups        []string
	tty           bool
	height, width uint
}

func (b *builder) newProcess(in processInput) (*specs.Process, error) {
	for _, a := range in.args {
		if strings.IndexByte(a, 0) >= 0 {
			return nil, errs.New(errs.Invalid, "argument %q: holds a NUL", a)
		}
	}
	cwd, err := cleanCwd(in.cwd)
	if err != nil {
		return nil, err
	}
	root, err := os.Open(b.in.Rootfs)
	if err != nil {
		return nil, fmt.Errorf("root file system: %w", err)
	}
	defer root.Close() // only read from
	who, err := rootfs.LookupUser(root, in.user, in.groups)
	if err != nil {
		return nil, err
	}
	base := []string{"PATH=" + DefaultPath, "HOSTNAME=" + b.in.Spec.Hostname}
	if in.tty {
		base = append(base, "TERM=xterm")
	}
	merged, err := mergeEnv(slices.Concat(base, b.in.Spec.Env, in.env))
	if err != nil {
		return nil, err
	}
	// Without HOME the runtime would read all of the container's /etc/passwd. LookupUser has read it with bounds.
	if !slices.ContainsFunc(merged, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		merged = append(merged, "HOME="+who.Home)
	}
	p := &specs.Process{
		Terminal: in.tty, Args: in.args, Env: merged, Cwd: cwd,
		User: specs.User{UID: who.UID, GID: who.GID, AdditionalGids: who.Groups, Umask: b.in.Spec.Umask},
	}
	if in.tty && in.height > 0 && in.width > 0 {
		p.ConsoleSize = &specs.Box{Height: in.height, Width: in.width}
	}
	return p, nil
}

// cleanCwd cleans a working directory. It refuses one that leads through the file descriptors of a process, because a leaked descriptor
// would lead to the host.
func cleanCwd(cwd string) (string, error) {
	if strings.IndexByte(cwd, 0) >= 0 {
		return "", errs.New(errs.Invalid, "working directory %q: holds a NUL", cwd)
	}
	clean := path.Clean("/" + cwd)
	parts := strings.Split(clean, "/")
	if len(parts) > 3 && parts[1] == "proc" && parts[2] != "sys" && slices.ContainsFunc(parts[3:], func(s string) bool {
		return s == "fd" || s == "cwd" || s == "root" || s == "map_files" || s == "exe"
	}) {
		return "", errs.New(errs.Invalid, "working directory %q: leads through a process' descriptors", cwd)
	}
	return clean, nil
}

// mergeEnv returns each variable once, at the position of its first entry and with the value of its last. An entry without "=" removes
// the variable.
func mergeEnv(env []string) ([]string, error) {
	var out []string
	at := map[string]int{}
	for _, e := range env {
		if strings.IndexByte(e, 0) >= 0 {
			return nil, errs.New(errs.Invalid, "environment variable %q: holds a NUL", e)
		}
		name, _, set := strings.Cut(e, "=")
		if name == "" {
			return nil, errs.New(errs.Invalid, "invalid environment variable: %s", e)
		}
		i, seen := at[name]
		switch {
		case set && seen:
			out[i] = e
		case set:
			at[name] = len(out)
			out = append(out, e)
		case seen:
			out[i] = ""
			delete(at, name)
		}
	}
	return slices.DeleteFunc(out, func(e string) bool { return e == "" }), nil
}

// ExecInput describes an exec: a process that is started in a running container.
type ExecInput struct {
	Args          []string
	Env           []string // of the exec only; the container's comes first
	Cwd           string   // "" = the container's
	User          string   // "" = the container's
	Tty           bool
	Height, Width uint
	Privileged    bool
}

// Exec returns the process of an exec in a container that runs spec. in is the Input that spec was built from; the exec takes the user,
// groups and rights from it.
func Exec(in Input, spec *specs.Spec, e ExecInput) (*specs.Process, []string, error) {
	host := in.Host
	if host == nil {
		h, err := ProbeHost()
		if err != nil {
			return nil, nil, err
		}
		host = &h
	}
	if len(e.Args) == 0 {
		return nil, nil, errs.New(errs.Invalid, "no exec command specified")
	}
	b := &builder{in: in, host: host}
	user, cwd := e.User, e.Cwd
	if user == "" {
		user = in.Spec.User
	}
	if cwd == "" {
		cwd = spec.Process.Cwd
	}
	p, err := b.newProcess(processInput{args: e.Args, env: e.Env, cwd: cwd, user: user,
		groups: in.Spec.GroupAdd, tty: e.Tty, height: e.Height, width: e.Width})
	if err != nil {
		return nil, nil, err
	}
	caps, err := capabilities(in.Spec.Privileged || e.Privileged, in.Spec.CapAdd, in.Spec.CapDrop, host)
	if err != nil {
		return nil, nil, err
	}
	setCapabilities(p, caps)
	p.NoNewPrivileges = spec.Process.NoNewPrivileges
	p.ApparmorProfile = spec.Process.ApparmorProfile
	p.Rlimits = spec.Process.Rlimits
	p.OOMScoreAdj = spec.Process.OOMScoreAdj
	return p, b.warnings, nil
}
