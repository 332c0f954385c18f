// Package apparmor keeps the AppArmor profile of containers in the kernel.
//
// The profile is Docker's default one under a name of its own. It denies mounts, writes to the parts of /proc and /sys that
// change the host, and signals and traces of processes outside the profile. On a host without AppArmor the package is not used.
//
// Invariant: after Ensure returns nil, the kernel has the profile.
package apparmor

import (
	"sync"

	profiles "github.com/moby/profiles/apparmor"

	"ply/internal/errs"
)

// Names of profiles: that of containers without privileges, and the kernel's name for none.
const (
	Default    = "ply-default"
	Unconfined = "unconfined"
)

// mu keeps two containers from loading the profile at the same time.
var mu sync.Mutex

// Ensure loads the profile Default into the kernel, unless the kernel has it. An administrator may have unloaded it since
// the last container started, so each start calls it.
func Ensure() error {
	mu.Lock()
	defer mu.Unlock()
	loaded, err := profiles.IsLoaded(Default)
	if err == nil && !loaded {
		err = profiles.InstallDefault(Default)
	}
	if err != nil {
		return errs.New(errs.Precondition, "AppArmor enabled on system but the %s profile could not be loaded: %w", Default, err).
			WithHint("Install the package apparmor, which has apparmor_parser, or run the container with --security-opt apparmor=unconfined.")
	}
	return nil
}
