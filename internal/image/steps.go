package image

import (
	"context"
	"time"

	"ply/internal/oci"
)

// RemoveSteps removes the images of build steps that gone reports as removed: it gets the Step of each, and when it was used last. Images that have a name or that a container
// uses stay. The second result is the freed space in bytes.
func (s *Service) RemoveSteps(ctx context.Context, gone func(step string, used time.Time) bool) ([]Removed, int64, error) {
	c, err := s.read()
	if err != nil {
		return nil, 0, err
	}
	var candidates []oci.ImageID
	for id, rec := range c.images {
		if rec.Step != "" && c.names[id].count() == 0 && gone(rec.Step, rec.LastUsed) {
			candidates = append(candidates, id)
		}
	}
	if len(candidates) == 0 {
		return nil, 0, nil
	}
	return s.removeEach(ctx, candidates, func(r *remover, id oci.ImageID) error {
		if rec, ok := r.c.images[id]; !ok || rec.Step == "" || r.used(id).by != "" || r.c.names[id].count() > 0 {
			return nil // named, or used by a container, since it was chosen
		}
		return r.delete(id, false, false, true)
	})
}
