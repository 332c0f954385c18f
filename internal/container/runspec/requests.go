package runspec

import (
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/container/cdi"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/volume"
)

// gpuDrivers are the device drivers that a request by capabilities can mean, in the order of preference.
var gpuDrivers = []struct {
	name         string
	kind         string // of the CDI devices that it stands for
	capabilities []string
}{
	{"nvidia", "nvidia.com/gpu", []string{"gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"}},
	{"amd", "amd.com/gpu", []string{"gpu", "amd"}},
}

// nvidiaHook is the program of NVIDIA that adds GPUs to a container where no CDI device stands for them.
const nvidiaHook = "nvidia-container-runtime-hook"

// deviceRequests adds what device drivers provide. It comes after the mounts: those of the user are kept.
func (b *builder) deviceRequests() error {
	var known *cdi.Devices
	for i := range b.in.Spec.DeviceRequests {
		if known == nil {
			known = cdi.Read(b.in.CDIDirs)
		}
		if err := b.deviceRequest(&b.in.Spec.DeviceRequests[i], known); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) deviceRequest(r *spec.DeviceRequest, known *cdi.Devices) error {
	none := errs.New(errs.Invalid, "could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities)
	if r.Driver == "cdi" {
		switch {
		case len(b.in.CDIDirs) == 0:
			return none
		case r.Count != 0:
			return errs.New(errs.Invalid, "unexpected count in CDI device request")
		case len(r.Options) > 0:
			return errs.New(errs.Invalid, "unexpected options in CDI device request")
		}
		return b.inject(known, r.IDs)
	}
	for _, d := range gpuDrivers {
		if r.Driver != d.name && (r.Driver != "" || !slices.ContainsFunc(r.Capabilities, func(all []string) bool { return subset(all, d.capabilities) })) {
			continue
		}
		hook := ""
		if !known.Has(d.kind) {
			if d.name == "nvidia" {
				hook, _ = exec.LookPath(nvidiaHook) // "" when it is not installed
			}
			if hook == "" {
				continue
			}
		}
		ids, err := requested(r)
		if err != nil {
			return err
		}
		if hook != "" {
			b.nvidia(hook, ids, r.Capabilities, d.capabilities)
			return nil
		}
		for i, id := range ids {
			if !strings.Contains(id, "=") {
				ids[i] = d.kind + "=" + id
			}
		}
		return b.inject(known, ids)
	}
	return none
}

func subset(some, all []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

// requested returns the IDs of the devices of a request: of those that it names, of the first ones, or "all".
func requested(r *spec.DeviceRequest) (ids []string, err error) {
	switch {
	case r.Count != 0 && len(r.IDs) > 0:
		return nil, errs.New(errs.Invalid, "cannot set both Count and DeviceIDs on device request")
	case r.Count < 0:
		return []string{"all"}, nil
	}
	for i := range r.Count {
		ids = append(ids, strconv.Itoa(i))
	}
	return append(ids, r.IDs...), nil
}

// inject adds CDI devices, without mounts at paths at which the user mounts something.
func (b *builder) inject(known *cdi.Devices, names []string) error {
	return known.Inject(b.spec, names, func(target string) bool {
		return slices.ContainsFunc(b.in.Mounts, func(m volume.Mount) bool { return path.Clean(m.Target) == target })
	})
}

// nvidia lets the hook of NVIDIA, the program at path, add GPUs. It learns from the variables of the container which ones and what they are for.
func (b *builder) nvidia(hook string, ids []string, asked [][]string, own []string) {
	visible := strings.Join(ids, ",")
	if visible == "" {
		visible = "void"
	}
	p := b.spec.Process
	p.Env = append(p.Env, "NVIDIA_VISIBLE_DEVICES="+visible)
	var use []string
	for _, all := range asked {
		if subset(all, own) {
			use = slices.DeleteFunc(slices.Clone(all), func(c string) bool { return c == "gpu" || c == "nvidia" })
			break
		}
	}
	if len(use) > 0 {
		p.Env = append(p.Env, "NVIDIA_DRIVER_CAPABILITIES="+strings.Join(use, ","))
	}
	if b.spec.Hooks == nil {
		b.spec.Hooks = &specs.Hooks{}
	}
	//nolint:staticcheck // prestart is the only one that this program implements
	b.spec.Hooks.Prestart = append(b.spec.Hooks.Prestart, specs.Hook{Path: hook, Args: []string{nvidiaHook, "prestart"}, Env: []string{"PATH=" + DefaultPath}})
}
