package archive

import (
	"context"
	"errors"

	"ply/internal/errs"
	"ply/internal/oci"
)

// maxPlans bounds how often an archive's documents are read again in the hope of more.
const maxPlans = 16

// early commits layers while the archive is still coming in, when its documents came first (our own do) and the
// layers below are there. What was committed is taken back if the load fails.
type early struct {
	in       *intake
	c        *commit
	platform oci.Platform

	tries int
	plan  map[string]place // path in the archive → what it is to become
}

// place is a layer of an image.
type place struct {
	w *wanted
	n int
}

// find makes a plan of the documents that are there; it gives false when they do not tell what name is.
func (e *early) find(name string) (place, bool) {
	if e.plan == nil && e.tries < maxPlans && (e.in.files[fileIndex] != nil || e.in.files[fileManifest] != nil) {
		e.tries++
		if r, err := e.in.understand(e.platform, true); err == nil {
			e.plan = map[string]place{}
			for _, w := range r.list {
				for n, paths := range w.paths {
					for _, p := range paths {
						if _, ok := e.plan[p]; !ok {
							e.plan[p] = place{w, n}
						}
					}
				}
			}
		}
	}
	p, ok := e.plan[name]
	return p, ok
}

// ready reports whether everything below a layer is committed, in the store, or read already.
func (e *early) ready(name string) bool {
	p, ok := e.find(name)
	if !ok {
		return false
	}
	for i := range p.n {
		if f := e.file(p.w, i); f == nil || f.bad != nil {
			return false
		}
	}
	return true
}

// file looks for the n-th layer of an image among what has been read.
func (e *early) file(w *wanted, n int) *file {
	for _, p := range w.paths[n] {
		if f, err := e.in.find(p); err == nil && f != nil {
			return f
		}
	}
	return nil
}

// commit makes a layer that was just read durable, and those below it, if it is their turn. A layer that turns out bad
// is remembered as such; an error is what ends the load.
func (e *early) commit(ctx context.Context, f *file) error {
	p, ok := e.find(f.name)
	if !ok || f.bad != nil || !e.ready(f.name) {
		return nil
	}
	e.c.lease.Layer(p.w.chain[:p.n+1])
	for i, id := range p.w.chain[:p.n+1].IDs() {
		at := e.file(p.w, i)
		if e.c.done[id] {
			continue
		}
		if at.diffID != "" && at.diffID != p.w.chain[i] {
			return nil // the final reading says what is wrong
		}
		err := e.c.layer(ctx, at, p.w.chain[:i+1])
		if errors.Is(err, errs.Invalid) {
			at.bad = err
			return nil
		}
		if err != nil {
			return err
		}
		e.c.done[id] = true
	}
	return nil
}
