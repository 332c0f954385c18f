package archive

import (
	"context"
	"errors"

	"ply/internal/errs"
	"ply/internal/oci"
)

// maxPlans bounds how often the documents that were read so far are parsed, to find out which layers will come.
const maxPlans = 16

// early commits layers while the archive is still read. That is possible when the documents come before the layers, as in
// archives of Save, and the layers below are there. If the load fails, its layers are removed again.
type early struct {
	in       *intake
	c        *commit
	platform oci.Platform
	only     bool // no other platform

	tries int
	plan  map[string]position // by path in the archive; nil = not known yet
}

// position is a layer of an image: the n-th, counted from 0 at the bottom.
type position struct {
	w *wanted
	n int
}

// find returns which layer the file called name is. It returns false when the documents that were read so far do not say.
func (e *early) find(name string) (position, bool) {
	if e.plan == nil && e.tries < maxPlans && (e.in.files[fileIndex] != nil || e.in.files[fileManifest] != nil) {
		e.tries++
		if r, err := e.in.parse(e.platform, e.only, true); err == nil {
			e.plan = map[string]position{}
			for _, w := range r.list {
				for n, paths := range w.paths {
					for _, p := range paths {
						if _, ok := e.plan[p]; !ok {
							e.plan[p] = position{w, n}
						}
					}
				}
			}
		}
	}
	p, ok := e.plan[name]
	return p, ok
}

// ready reports whether all layers below the file called name have been read.
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

// file returns the n-th layer of an image if it has been read, else nil.
func (e *early) file(w *wanted, n int) *file {
	for _, p := range w.paths[n] {
		if f, err := e.in.find(p); err == nil && f != nil {
			return f
		}
	}
	return nil
}

// commit commits a layer that was just read, and those below it, if all of them are there. It marks a layer that is bad. It returns
// an error only when the load cannot go on.
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
			return nil // the parse of the complete archive returns the error
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
