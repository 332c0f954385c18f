package store

import (
	"errors"
	"slices"
	"sync"

	"ply/internal/errs"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
)

// recorder writes the records of layers. While one transaction waits for the disk, others that want to write a record queue up, and
// the next transaction writes all of them: an image of forty small layers takes a few transactions, not forty.
type recorder struct {
	db *meta.DB

	mu    sync.Mutex
	queue []*layerWrite
	busy  bool // one of the callers writes, or is about to
}

// layerWrite is one call of RecordLayer.
type layerWrite struct {
	info layer.Info
	form *meta.LayerBlob
	lead chan struct{} // has an element when this caller is to write the queue
	done chan error
}

// write returns when the record is durable.
func (r *recorder) write(info layer.Info, form *meta.LayerBlob) error {
	w := &layerWrite{info, form, make(chan struct{}, 1), make(chan error, 1)}
	r.mu.Lock()
	r.queue = append(r.queue, w)
	if !r.busy {
		r.busy = true
		w.lead <- struct{}{}
	}
	r.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	case <-w.lead:
		r.writeQueue() // w is in it
		return <-w.done
	}
}

// writeQueue writes what is queued, in one transaction. Then the first caller that has queued meanwhile goes on.
func (r *recorder) writeQueue() {
	r.mu.Lock()
	batch := r.queue
	r.queue = nil
	r.mu.Unlock()
	written := 0
	defer func() {
		for _, w := range batch[written:] { // only after a panic
			w.done <- errs.New(errs.Internal, "layer %s: not recorded", w.info.DiffID)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.busy = len(r.queue) > 0; r.busy {
			r.queue[0].lead <- struct{}{}
		}
	}()
	err := r.update(batch)
	for _, w := range batch {
		one := err
		if err != nil && len(batch) > 1 {
			one = r.update([]*layerWrite{w}) // one that cannot be written must not stop the others
		}
		written++
		w.done <- one
	}
}

func (r *recorder) update(batch []*layerWrite) error {
	return r.db.Update(func(tx *meta.Tx) error {
		for _, w := range batch {
			l, err := tx.Layers.Get(w.info.DiffID)
			if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.DataLoss) {
				return err
			}
			l.Size, l.TarSize = w.info.Size, w.info.TarSize
			if w.form != nil {
				l.Blobs = mergeForm(l.Blobs, *w.form)
			}
			if err := tx.Layers.Put(w.info.DiffID, l); err != nil {
				return err
			}
		}
		return nil
	})
}

func mergeForm(forms []meta.LayerBlob, f meta.LayerBlob) []meta.LayerBlob {
	i := slices.IndexFunc(forms, func(known meta.LayerBlob) bool { return known.Digest == f.Digest })
	if i < 0 {
		return append(forms, f)
	}
	for _, repository := range f.Repositories {
		if !slices.Contains(forms[i].Repositories, repository) {
			forms[i].Repositories = append(forms[i].Repositories, repository)
		}
	}
	if f.Codec != "" {
		forms[i].Codec = f.Codec
	}
	return forms
}
