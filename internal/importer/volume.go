package importer

import (
	"context"
	"errors"
	"maps"

	"ply/internal/dockerroot"
	"ply/internal/errs"
	"ply/internal/volume"
)

// importVolumes imports the volumes with their content.
func (r *run) importVolumes(ctx context.Context) error {
	all, problems := r.root.Volumes(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, p := range problems {
		r.problem(p)
	}
	for i := range all {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := r.importVolume(ctx, &all[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) importVolume(ctx context.Context, v *dockerroot.Volume) error {
	o := Object{Kind: dockerroot.KindVolume, Name: v.Name}
	as, present, err := r.place(o.Kind, v.Name, func(name string) (placed, error) {
		have, err := r.to.Volumes.Get(ctx, name)
		switch {
		case errors.Is(err, errs.NotFound):
			return absent, nil
		case err != nil:
			return other, err
		case have.Created.Equal(v.Created) && maps.Equal(have.Labels, v.Labels) && maps.Equal(have.Options, v.Options):
			return same, nil
		}
		return other, nil
	})
	if err == nil && !present && !r.o.DryRun {
		r.progress(o.Kind, o.Name, 0, 0)
		err = r.adoptVolume(ctx, v, as)
	}
	if err != nil {
		return r.done(ctx, o, err)
	}
	o.As = as
	r.volumes[v.Name], r.volumeNames[v.Name] = *v, as
	if present {
		o.State = Present
		r.report(o)
		return nil
	}
	return r.done(ctx, o, nil)
}

func (r *run) adoptVolume(ctx context.Context, v *dockerroot.Volume, as string) error {
	adopt := volume.AdoptOptions{Name: as, Labels: v.Labels, Options: v.Options, Created: v.Created, Anonymous: v.Anonymous}
	if len(v.Options) == 0 { // else the data is on a device
		data, err := r.root.VolumeData(v.Name)
		if err != nil {
			return errs.New(errs.DataLoss, "its content: %w", err)
		}
		defer data.Close()
		adopt.Data = data
	}
	_, err := r.to.Volumes.Adopt(ctx, adopt)
	return err
}
