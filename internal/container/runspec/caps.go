package runspec

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/errs"
)

// DefaultCaps are the capabilities that docker gives a container unless it is told otherwise.
var DefaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// capabilities returns the capabilities of a container, which are never more than those of this process. A capability that the user
// adds by name and this process lacks is an error. A default one, or one of ALL, is left out.
func capabilities(privileged bool, add, drop []string, host *Host) ([]string, error) {
	add, err := normalizeCaps(add)
	if err != nil {
		return nil, err
	}
	drop, err = normalizeCaps(drop)
	if err != nil {
		return nil, err
	}
	if privileged {
		return slices.Clone(host.Caps), nil
	}
	base := DefaultCaps
	switch {
	case slices.Contains(add, "ALL"):
		base = host.Caps
	case slices.Contains(drop, "ALL"):
		base = nil
	}
	var out []string
	for _, c := range base {
		if slices.Contains(host.Caps, c) && !slices.Contains(drop, c) {
			out = append(out, c)
		}
	}
	for _, c := range add {
		if c == "ALL" || slices.Contains(out, c) {
			continue
		}
		if !slices.Contains(host.Caps, c) {
			return nil, errs.New(errs.Invalid, "invalid CapAdd: capability not supported by your kernel or not available in the current environment: %q", c)
		}
		out = append(out, c)
	}
	return out, nil
}

// checkCaps refuses names that are no capabilities of this kernel's releases.
func checkCaps(field string, names []string) error {
	if _, err := normalizeCaps(names); err != nil {
		return errs.New(errs.Invalid, "invalid %s: %w", field, err)
	}
	return nil
}

func normalizeCaps(names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		c := strings.ToUpper(n)
		if c == "ALL" || c == "CAP_ALL" {
			out = append(out, "ALL")
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !slices.ContainsFunc(capability.ListKnown(), func(k capability.Cap) bool {
			return "CAP_"+strings.ToUpper(k.String()) == c
		}) {
			return nil, errs.New(errs.Invalid, "unknown capability: %q", c)
		}
		out = append(out, c)
	}
	return out, nil
}

// setCapabilities sets all capability sets for root, and only the bounding set for other users, as execve does. The inheritable set
// stays empty (CVE-2022-24769).
func setCapabilities(p *specs.Process, caps []string) {
	p.Capabilities = &specs.LinuxCapabilities{Bounding: caps}
	if p.User.UID == 0 {
		p.Capabilities.Effective, p.Capabilities.Permitted = caps, caps
	}
}
