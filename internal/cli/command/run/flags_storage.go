package run

import (
	"strings"

	"github.com/spf13/pflag"

	"ply/internal/cli/opts"
	"ply/internal/errs"
)

// addStorage defines the flags of volumes, mounts and the root file system.
func (r *runFlags) addStorage(f *pflag.FlagSet) {
	h := &r.host
	f.BoolVar(&h.ReadonlyRootfs, "read-only", false, "Mount the container's root filesystem as read only")
	f.StringVar(&h.VolumeDriver, "volume-driver", "", "Optional volume driver for the container")
	listVar(f, &h.VolumesFrom, "volumes-from", "Mount volumes from the specified container(s)", nil)
	f.Var(sizeVar(&h.ShmSize), "shm-size", "Size of /dev/shm")

	var volumes, tmpfs, storage opts.List
	var mounts opts.Mounts
	f.VarP(&volumes, "volume", "v", "Bind mount a volume")
	f.Var(&mounts, "mount", "Attach a filesystem mount to the container")
	f.Var(&tmpfs, "tmpfs", "Mount a tmpfs directory")
	f.Var(&storage, "storage-opt", "Storage driver options for the container")
	r.then(func() (err error) {
		if h.Binds, r.cfg.Volumes, err = opts.Volumes(volumes.Values); err != nil {
			return err
		}
		h.Mounts = mounts.List
		if len(tmpfs.Values) > 0 {
			h.Tmpfs = opts.Tmpfs(tmpfs.Values)
		}
		h.StorageOpt = opts.KeyValues(storage.Values)
		return needPairs("storage", storage.Values)
	})
}

func needPairs(what string, list []string) error {
	for _, s := range list {
		if !strings.Contains(s, "=") {
			return errs.New(errs.Invalid, "invalid %s option: %s", what, s)
		}
	}
	return nil
}
