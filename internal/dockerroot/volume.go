package dockerroot

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Volume is a volume of the driver local.
type Volume struct {
	Name      string
	Labels    map[string]string
	Options   map[string]string
	Created   time.Time
	Anonymous bool
}

// volumeRecord is a volume in metadata.db, volumeOptions its file opts.json.
type volumeRecord struct {
	Driver  string
	Labels  map[string]string
	Options map[string]string
}

type volumeOptions struct {
	MountType   string
	MountOpts   string
	MountDevice string
	Quota       struct{ Size uint64 }
}

// labelAnonymous is the label of volumes without a name, since 23.
const labelAnonymous = "com.docker.volume.anonymous"

const maxVolumeRecord = 1 << 20

// Volumes returns the volumes of the driver local, sorted by name; only some of them when ctx ends.
func (r *Root) Volumes(ctx context.Context) (all []Volume, problems []Problem) {
	recs, bad := map[string]volumeRecord{}, map[string]bool{}
	if r.volumes != nil {
		err := r.volumes.view(func(tx *bbolt.Tx) error {
			b := bucket(tx, "volumes")
			if b == nil {
				return nil
			}
			n, left := 0, newBudget()
			return b.ForEach(func(k, v []byte) error {
				if n++; n > maxEntries {
					return errs.New(errs.DataLoss, "there are more than %d volumes", maxEntries)
				}
				var rec volumeRecord
				err := error(errs.New(errs.DataLoss, "its record has %d bytes", len(v)))
				if len(v) <= maxVolumeRecord {
					if err = left.take(v); err == nil {
						err = json.Unmarshal(v, &rec)
					}
					if err == nil && rec.Driver != "" && rec.Driver != "local" {
						err = errs.New(errs.Unimplemented, "its data is with the volume driver %s", clip(rec.Driver))
					}
				}
				name := string(k)
				if err != nil {
					problems = append(problems, Problem{KindVolume, clip(name), err})
					bad[name] = true
				}
				recs[name] = rec
				return nil
			})
		})
		if err != nil {
			problems = append(problems, Problem{KindVolume, "the labels of all volumes", err})
		}
	}
	names, err := list(r.dir, "volumes")
	if err != nil {
		problems = append(problems, Problem{KindVolume, "all volumes", err})
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return all, problems
		}
		if name == "metadata.db" || name == "backingFsBlockDev" || bad[name] {
			continue
		}
		v := Volume{Name: name, Labels: recs[name].Labels, Options: recs[name].Options}
		if err := r.volume(&v); err != nil {
			problems = append(problems, Problem{KindVolume, clip(name), err})
			continue
		}
		all = append(all, v)
	}
	for name := range recs {
		if _, there := slices.BinarySearch(names, name); !there && !bad[name] {
			problems = append(problems, Problem{KindVolume, clip(name), errs.New(errs.DataLoss, "its directory is not there")})
		}
	}
	sortProblems(problems)
	return all, problems
}

// volume reads what the directory of a volume says.
func (r *Root) volume(v *Volume) error {
	dir, err := openDir(r.dir, path.Join("volumes", v.Name))
	if err != nil {
		return err
	}
	defer dir.Close()
	fi, err := dir.Stat()
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok { // as docker shows it
		v.Created = time.Unix(st.Ctim.Sec, st.Ctim.Nsec).UTC()
	}
	_, labelled := v.Labels[labelAnonymous]
	v.Anonymous = labelled || oci.IsHex64(v.Name) && len(v.Labels) == 0
	var o volumeOptions
	err = readJSON(dir, "opts.json", &o)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.Quota.Size > 0 {
		return errs.New(errs.Unimplemented, "it has a quota of %d bytes", o.Quota.Size).
			WithHint("A tar of its _data can be taken over with ply volume import.")
	}
	if o.MountDevice != "" || o.MountType != "" || o.MountOpts != "" { // older releases have the options here only
		options := map[string]string{}
		for k, text := range map[string]string{"type": o.MountType, "o": o.MountOpts, "device": o.MountDevice} {
			if text != "" {
				options[k] = text
			}
		}
		if len(v.Options) == 0 {
			v.Options = options
		}
	}
	return nil
}

// VolumeData opens the directory with the content of a volume.
func (r *Root) VolumeData(name string) (*os.File, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return nil, errs.New(errs.Invalid, "volume %.100q: not a name", name)
	}
	return openDir(r.dir, path.Join("volumes", name, "_data"))
}
