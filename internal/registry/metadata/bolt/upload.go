package bolt

import (
	"context"
	"time"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/metadata"
)

type uploadRecord struct {
	State []byte    `json:"state"`
	Used  time.Time `json:"used"`
}

// hold is an upload that this process holds. What another process held before it died is free.
type hold struct {
	s  *Store
	id string
}

func unknownUpload(id string) error { return errs.New(errs.NotFound, "upload %q does not exist", id) }

func (t *tx) upload(id string) (r uploadRecord, ok bool, err error) {
	v := t.get(bucketUploads, []byte(id))
	if v == nil {
		return r, false, nil
	}
	return r, true, record.Unmarshal("upload "+id, v, uploadVersion, &r)
}

// take makes an upload held, or returns an error while it is.
func (s *Store) take(id string) (*hold, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[id] != nil {
		return nil, errs.New(errs.Conflict, "upload %s: another request writes to it", id)
	}
	h := &hold{s, id}
	s.held[id] = h
	return h, nil
}

func (h *hold) drop() {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.s.held[h.id] == h {
		delete(h.s.held, h.id)
	}
}

// CreateUpload keeps the state of a new upload.
func (s *Store) CreateUpload(ctx context.Context, id string, state []byte) (metadata.Hold, error) {
	h, err := s.take(id)
	if err != nil {
		return nil, err
	}
	err = s.update(ctx, func(t *tx) error {
		if t.has(bucketUploads, []byte(id)) {
			return errs.New(errs.Exists, "upload %s exists", id)
		}
		if n := s.uploads.Load(); n >= metadata.MaxUploads {
			return errs.New(errs.Exhausted, "%d uploads are open", n).WithHint("Try again later.")
		}
		return t.putRecord(bucketUploads, []byte(id), uploadVersion, uploadRecord{State: state, Used: s.now().UTC()})
	})
	if err != nil {
		h.drop()
		return nil, err
	}
	s.uploads.Add(1)
	return h, nil
}

// HoldUpload returns the state of an upload.
func (s *Store) HoldUpload(_ context.Context, id string) ([]byte, metadata.Hold, error) {
	h, err := s.take(id)
	if err != nil {
		return nil, nil, err
	}
	var r uploadRecord
	err = s.view(func(t *tx) (err error) {
		var ok bool
		if r, ok, err = t.upload(id); err == nil && !ok {
			err = unknownUpload(id)
		}
		return err
	})
	if err != nil {
		h.drop()
		return nil, nil, err
	}
	return r.State, h, nil
}

// UploadExists reports whether there is an upload.
func (s *Store) UploadExists(_ context.Context, id string) (ok bool, err error) {
	return ok, s.view(func(t *tx) error {
		ok = t.has(bucketUploads, []byte(id))
		return nil
	})
}

// OldUploads lists the uploads that no one has held since before.
func (s *Store) OldUploads(_ context.Context, before time.Time, limit int) (ids []string, err error) {
	if limit <= 0 {
		return nil, nil
	}
	return ids, s.view(func(t *tx) error {
		return t.scan(bucketUploads, nil, nil, func(k, v []byte) (bool, error) {
			var r uploadRecord
			if err := record.Unmarshal("upload "+string(k), v, uploadVersion, &r); err != nil {
				return false, err
			}
			s.mu.Lock()
			held := s.held[string(k)] != nil
			s.mu.Unlock()
			if !held && r.Used.Before(before) {
				ids = append(ids, string(k))
			}
			return len(ids) < limit, nil
		})
	})
}

// Save keeps a new state.
func (h *hold) Save(ctx context.Context, state []byte) error {
	return h.s.update(ctx, func(t *tx) error {
		if !t.has(bucketUploads, []byte(h.id)) {
			return unknownUpload(h.id)
		}
		return t.putRecord(bucketUploads, []byte(h.id), uploadVersion, uploadRecord{State: state, Used: h.s.now().UTC()})
	})
}

// Release keeps the last state.
func (h *hold) Release(ctx context.Context, state []byte) error {
	defer h.drop()
	return h.Save(ctx, state)
}

// Delete removes the upload.
func (h *hold) Delete(ctx context.Context) error {
	there := false
	err := h.s.update(ctx, func(t *tx) error {
		there = t.has(bucketUploads, []byte(h.id))
		return t.delete(bucketUploads, []byte(h.id))
	})
	if err == nil {
		h.drop()
		if there {
			h.s.uploads.Add(-1)
		}
	}
	return err
}
