package volume

import (
	"context"
	"maps"
	"os"
	"time"

	"ply/internal/store/meta"
)

// AdoptOptions are the options of Contents.Adopt.
type AdoptOptions struct {
	Name      string
	Labels    map[string]string
	Options   map[string]string // of the driver local
	Created   time.Time
	Anonymous bool
	Data      *os.File // the directory whose content and attributes are copied; nil = the volume is empty, or its data is on a device
}

// Adopt makes a volume that another engine had, with the time of its creation. The volume appears with the whole content or, after an error or a
// crash, not at all. The error's class is errs.Conflict when the name is taken, and errs.Invalid for a name or an option.
func (s Contents) Adopt(ctx context.Context, o AdoptOptions) (*Volume, error) {
	if err := checkName(o.Name); err != nil {
		return nil, err
	}
	if err := checkDriverOptions(o.Name, o.Options); err != nil {
		return nil, err
	}
	if err := s.free("create", o.Name); err != nil {
		return nil, err
	}
	rec := meta.Volume{Driver: "local", Labels: maps.Clone(o.Labels), Options: maps.Clone(o.Options), Created: o.Created.UTC(), Anonymous: o.Anonymous}
	return s.createFilled(ctx, o.Name, rec, func(dir *os.File) error {
		if o.Data == nil {
			return nil
		}
		return copyTree(ctx, dir, o.Data)
	})
}
