package image

import (
	"context"
	"time"

	"ply/internal/oci"
)

// History gives the steps of an image's making, newest first. The newest has the image's ID; older ones have the
// ID of the local image that ended with them, or none. Steps without a layer have size 0. An image that records
// no steps gets one for each layer.
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

// nameSteps puts IDs and tags on the steps (oldest first) with which the image and its local ancestors end.
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
			return // gone or damaged: its steps stay without an ID
		}
		n := len(cfg.History)
		if n == 0 || n > at {
			return
		}
		at = n - 1
	}
}

// Since is how long ago an entry was made; zero when it does not say.
func (e HistoryEntry) Since(now time.Time) time.Duration {
	if e.Created.IsZero() {
		return 0
	}
	return now.Sub(e.Created)
}
