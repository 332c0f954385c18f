// Package spec declares the run options of a container: their type, how they are merged with an image's defaults, and the checks that
// refuse invalid ones. It has data and pure functions only: it reads no file, starts no process and needs no service. The JSON names of
// its types are part of the container's record, so they do not change.
package spec

import (
	"path"
	"regexp"
	"strings"

	"github.com/docker/go-units"

	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/volume"
)

// Spec holds all options of a new container. api/docker translates Docker's Config, HostConfig and NetworkingConfig into it and back. An
// option of Docker that has no field here is refused by name.
type Spec struct {
	Name     string `json:"Name"`  // "" = the service generates one: adjective_surname
	Image    string `json:"Image"` // as the user wrote it
	Platform string `json:"Platform"`

	// What to run; nil or "" takes the image's.
	Hostname     string            `json:"Hostname"`
	Domainname   string            `json:"Domainname"`
	User         string            `json:"User"`
	Env          []string          `json:"Env"`
	Entrypoint   []string          `json:"Entrypoint"` // nil = image's; an empty non-nil slice resets it
	Cmd          []string          `json:"Cmd"`
	WorkingDir   string            `json:"WorkingDir"`
	Labels       map[string]string `json:"Labels"`
	ExposedPorts []string          `json:"ExposedPorts"` // "5000/tcp"
	Volumes      []string          `json:"Volumes"`      // anonymous volumes: container paths
	StopSignal   string            `json:"StopSignal"`
	StopTimeout  *int              `json:"StopTimeout"` // seconds
	Shell        []string          `json:"Shell"`
	Healthcheck  *oci.Healthcheck  `json:"Healthcheck"`
	MacAddress   string            `json:"MacAddress"`

	// Streams.
	Tty          bool    `json:"Tty"`
	OpenStdin    bool    `json:"OpenStdin"`
	StdinOnce    bool    `json:"StdinOnce"`
	AttachStdin  bool    `json:"AttachStdin"`
	AttachStdout bool    `json:"AttachStdout"`
	AttachStderr bool    `json:"AttachStderr"`
	ConsoleSize  [2]uint `json:"ConsoleSize"` // height, width

	// Mounts.
	Binds       []string           `json:"Binds"` // -v as written: src:dst[:mode], or a volume's name
	Mounts      []volume.MountSpec `json:"Mounts"`
	VolumesFrom []string           `json:"VolumesFrom"` // name[:ro|rw]
	Tmpfs       map[string]string  `json:"Tmpfs"`
	StorageOpt  map[string]string  `json:"StorageOpt,omitempty"` // of the writable layer: size

	ReadOnlyNonRecursive bool `json:"ReadOnlyNonRecursive,omitempty"` // of Binds that are read-only: the mounts below the source stay writable

	// Network.
	NetworkMode     string                          `json:"NetworkMode"` // "", "default", "bridge", "host", "none", "container:<id>" or a network's name
	Ports           []network.PortBinding           `json:"Ports"`
	PublishAll      bool                            `json:"PublishAll"`
	DNS             []string                        `json:"DNS"`
	DNSOptions      []string                        `json:"DNSOptions"`
	DNSSearch       []string                        `json:"DNSSearch"`
	ExtraHosts      []string                        `json:"ExtraHosts"`
	Links           []string                        `json:"Links"`
	NetworkDisabled bool                            `json:"NetworkDisabled"`
	Endpoints       map[string]network.EndpointSpec `json:"Endpoints"`

	// Rights and isolation.
	Privileged     bool              `json:"Privileged"`
	CapAdd         []string          `json:"CapAdd"`
	CapDrop        []string          `json:"CapDrop"`
	SecurityOpt    []string          `json:"SecurityOpt"` // seccomp=…, no-new-privileges, apparmor=…, label=…, systempaths=unconfined
	ReadonlyRootfs bool              `json:"ReadonlyRootfs"`
	MaskedPaths    []string          `json:"MaskedPaths"`   // nil = default
	ReadonlyPaths  []string          `json:"ReadonlyPaths"` // nil = default
	PidMode        string            `json:"PidMode"`
	IpcMode        string            `json:"IpcMode"`
	UTSMode        string            `json:"UTSMode"`
	UsernsMode     string            `json:"UsernsMode"`
	CgroupnsMode   string            `json:"CgroupnsMode"`
	CgroupParent   string            `json:"CgroupParent"`
	GroupAdd       []string          `json:"GroupAdd"`
	Devices        []Device          `json:"Devices"`
	DeviceRequests []DeviceRequest   `json:"DeviceRequests,omitempty"`
	DeviceRules    []string          `json:"DeviceRules"` // device cgroup rules
	Sysctls        map[string]string `json:"Sysctls"`
	Ulimits        []Ulimit          `json:"Ulimits"`
	ShmSize        int64             `json:"ShmSize"`
	OomScoreAdj    int               `json:"OomScoreAdj"`
	OomKillDisable bool              `json:"OomKillDisable"`
	Init           *bool             `json:"Init"`
	Runtime        string            `json:"Runtime"`
	Umask          *uint32           `json:"Umask,omitempty"` // of the first process and of execs; nil = the runtime's, 022

	Resources       Resources         `json:"Resources"`
	RestartPolicy   RestartPolicy     `json:"RestartPolicy"`
	AutoRemove      bool              `json:"AutoRemove"`
	LogDriver       string            `json:"LogDriver"` // "" = daemon's default; json-file, local, none
	LogOpts         map[string]string `json:"LogOpts"`
	ContainerIDFile string            `json:"ContainerIDFile"`
	Annotations     map[string]string `json:"Annotations"`
}

// Device adds a device of the host to a container.
type Device struct {
	HostPath      string `json:"HostPath"`
	ContainerPath string `json:"ContainerPath"`
	Permissions   string `json:"Permissions"`
}

// DeviceRequest asks a device driver for devices. It is answered at each start of the container.
type DeviceRequest struct {
	Driver       string            `json:"Driver"` // "cdi", or that of a vendor; "" = one with the capabilities
	Count        int               `json:"Count"`  // -1 = all
	IDs          []string          `json:"IDs"`
	Capabilities [][]string        `json:"Capabilities"` // alternatives, each a list of which the driver has all
	Options      map[string]string `json:"Options"`
}

// maxDevices is the largest number of devices in a request.
const maxDevices = 1000

func checkRequests(s *Spec) error {
	for _, r := range s.DeviceRequests {
		if r.Count > maxDevices || len(r.IDs) > maxDevices {
			return invalid("DeviceRequests: more than %d devices", maxDevices)
		}
	}
	return nil
}

func checkStorage(s *Spec) error {
	_, err := s.WritableSize()
	return err
}

// WritableSize returns the largest number of bytes that the writable layer may take; 0 = as the engine is set up.
func (s *Spec) WritableSize() (size int64, err error) {
	for name, value := range s.StorageOpt {
		if strings.ToLower(name) != "size" {
			return 0, invalid("StorageOpt: unknown option %s: there is only size", clip(name))
		}
		if size, err = units.RAMInBytes(value); err != nil || size < 0 {
			return 0, invalid("StorageOpt: invalid size: %q", clip(value))
		}
	}
	return size, nil
}

// CheckValues refuses values that are invalid with any image and in any network, in docker's words.
func (s *Spec) CheckValues() error {
	for _, f := range []func(*Spec) error{checkProcess, checkPolicy, checkUlimits, checkRequests, checkStorage} {
		if err := f(s); err != nil {
			return err
		}
	}
	if err := CheckHealth(s.Healthcheck); err != nil {
		return err
	}
	if err := s.Resources.Check(); err != nil {
		return err
	}
	if err := CheckOomScoreAdj(s.OomScoreAdj); err != nil {
		return err
	}
	if s.ShmSize < 0 {
		return invalid("SHM size can not be less than 0")
	}
	if strings.HasPrefix(s.NetworkMode, "container:") && len(s.ExposedPorts) > 0 { // those of the image do not count
		if len(s.Ports) > 0 || s.PublishAll {
			return errPublished
		}
		return invalid("conflicting options: port exposing and the container type network mode")
	}
	if _, ok := s.Annotations[""]; ok {
		return invalid("invalid Annotations: the empty string is not permitted as an annotation key")
	}
	if s.Umask != nil && *s.Umask > 0o777 {
		return invalid("invalid Umask %#o: must be from 0 to 0777", *s.Umask)
	}
	return nil
}

// CheckOomScoreAdj refuses an adjustment outside of the kernel's range.
func CheckOomScoreAdj(adj int) error {
	if adj < -1000 || adj > 1000 {
		return invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", adj)
	}
	return nil
}

// Check refuses what CheckValues refuses, and options that contradict each other. It cleans the working directory, discards limits that no
// kernel has any more, and returns warnings for the user. The log driver, the runtime and the security options are checked by the packages
// that know them.
func (s *Spec) Check() (warnings []string, err error) {
	if err := s.CheckValues(); err != nil {
		return nil, err
	}
	for _, f := range []func(*Spec) error{checkNamespaces, checkHosts, checkPorts} {
		if err := f(s); err != nil {
			return nil, err
		}
	}
	if s.WorkingDir != "" {
		s.WorkingDir = path.Clean(s.WorkingDir)
	}
	warnings = s.Resources.Reduce()
	if s.OomKillDisable && s.Resources.Memory == 0 {
		warnings = append(warnings, "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	return warnings, nil
}

// maxEnv is the largest size of all variables together, in bytes.
const maxEnv = 4 << 20

var procSelf = regexp.MustCompile(`^/proc/(self|thread-self|[0-9]+)(/|$)`)

// checkDir refuses working directories that name descriptors of the runtime instead of a directory of the container.
func checkDir(dir string) error {
	switch {
	case dir == "":
		return nil
	case strings.IndexByte(dir, 0) >= 0 || len(dir) > 4096:
		return invalid("the working directory '%q' is invalid", clip(dir))
	case !path.IsAbs(dir):
		return invalid("the working directory '%s' is invalid, it needs to be an absolute path", dir)
	case procSelf.MatchString(path.Clean(dir)):
		return invalid("the working directory '%s' is invalid, it names a process of the runtime", dir)
	}
	return nil
}

func checkEnv(env []string) error {
	total := 0
	for _, e := range env {
		total += len(e)
		if strings.HasPrefix(e, "=") || e == "" {
			return invalid("invalid environment variable: %s", clip(e))
		}
		if strings.IndexByte(e, 0) >= 0 {
			return invalid("invalid environment variable: %q", clip(e))
		}
	}
	if total > maxEnv {
		return invalid("environment of %d bytes is larger than the %d allowed", total, maxEnv)
	}
	return nil
}

func checkProcess(s *Spec) error {
	if err := checkDir(s.WorkingDir); err != nil {
		return err
	}
	if err := checkEnv(s.Env); err != nil {
		return err
	}
	if s.StopSignal != "" {
		if _, err := oci.ParseSignal(s.StopSignal); err != nil {
			return err
		}
	}
	if s.StopTimeout != nil && *s.StopTimeout < -1 {
		return invalid("StopTimeout: %d is neither seconds nor -1, which waits for ever", *s.StopTimeout)
	}
	if len(s.Hostname) > 64 || strings.ContainsAny(s.Hostname, "\x00\n /") {
		return invalid("invalid hostname %q", clip(s.Hostname))
	}
	if strings.ContainsAny(s.Domainname, "\x00\n /") {
		return invalid("invalid domain name %q", clip(s.Domainname))
	}
	for k, v := range s.Labels {
		if strings.IndexByte(k+v, 0) >= 0 {
			return invalid("label %q holds a NUL", clip(k))
		}
	}
	return nil
}

func invalid(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
