package image

import (
	"context"
	"time"

	"ply/internal/oci"
)

// History returns the steps that made an image, the last step first. The last step has the ID of the image. The other steps have
// the ID of the local image that ended with them, if there is one. A step without a layer has size 0. For an image whose config
// has no history, History returns one step per layer.
func (s *Service) History(ctx context.Context, ref string) ([]HistoryEntry, error) {
	img, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	c, err := s.read()
	if err != nil {
		return nil, err
	}
	steps := img.Config.History
	entries := make([]HistoryEntry, 0, max(len(steps), 1))
	layers := img.Chain
	for _, h := range steps {
		e := HistoryEntry{CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			e.Created = *h.Created
		}
		if !h.EmptyLayer && len(layers) > 0 {
			e.Size = c.sizes[layers[0]]
			layers = layers[1:]
		}
		entries = append(entries, e)
	}
	for _, d := range layers {
		entries = append(entries, HistoryEntry{Created: img.Created(), Size: c.sizes[d]})
	}
	s.nameSteps(img, c, entries)
	for i, j := 0, len(entries)-1; i < j; i, j = i+1, j-1 {
		entries[i], entries[j] = entries[j], entries[i]
	}
	return entries, ctx.Err()
}

// nameSteps sets the IDs and tags of the steps, first step first, with which the image and its local ancestors end.
func (s *Service) nameSteps(img *Image, c *catalog, entries []HistoryEntry) {
	at := len(entries) - 1
	if at < 0 {
		return
	}
	id, seen := img.ID, map[oci.ImageID]bool{}
	for id != "" && at >= 0 && !seen[id] {
		seen[id] = true
		entries[at].ID = id
		if n := c.names[id]; n != nil {
			entries[at].Tags = n.tags
		}
		rec, ok := c.images[id]
		if !ok || rec.Parent == "" {
			return
		}
		id = rec.Parent
		cfg, _, err := s.config(id)
		if err != nil {
			return // the ancestor was removed or is damaged: the earlier steps get no ID
		}
		n := len(cfg.History)
		if n == 0 || n > at {
			return
		}
		at = n - 1
	}
}

// Since returns how long before now the step was made; 0 when the step has no time.
func (e HistoryEntry) Since(now time.Time) time.Duration {
	if e.Created.IsZero() {
		return 0
	}
	return now.Sub(e.Created)
}
