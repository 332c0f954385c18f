package image

import (
	"context"

	"ply/internal/oci"
	"ply/internal/store/meta"
)

// RemoveSteps removes the images of build steps that gone reports as removed: it gets the Step of each. Images that have a name or that a container
// uses stay. The second result is the freed space in bytes.
func (s *Service) RemoveSteps(ctx context.Context, gone func(step string) bool) ([]Removed, int64, error) {
	c, err := s.read()
	if err != nil {
		return nil, 0, err
	}
	var candidates []oci.ImageID
	for id, rec := range c.images {
		if rec.Step != "" && c.names[id].count() == 0 && gone(rec.Step) {
			candidates = append(candidates, id)
		}
	}
	if len(candidates) == 0 {
		return nil, 0, nil
	}
	r, err := s.removing(ctx, func(*meta.Tx) ([]oci.ImageID, error) {
		return candidates, nil
	}, func(r *remover) error {
		for _, id := range candidates {
			if rec, ok := r.c.images[id]; !ok || rec.Step == "" || r.used(id).by != "" || r.c.names[id].count() > 0 {
				continue // named, or used by a container, since it was chosen
			}
			if err := r.delete(id, false, false, true); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	freed, err := s.finish(ctx, r)
	return r.out, freed, err
}
