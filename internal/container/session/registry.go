package session

import (
	"context"
	"sync"
	"time"

	"ply/internal/errs"
)

// execMemory is how long an exec can be inspected after its end.
const execMemory = 5 * time.Minute

// Registry finds the execs of all containers by their IDs. Safe for concurrent use.
type Registry struct {
	ctx  context.Context // the life of background work
	work *sync.WaitGroup

	mu    sync.RWMutex
	execs map[string]*Exec
}

// NewRegistry returns an empty registry. Execs are watched in goroutines that are counted in work and end with ctx.
func NewRegistry(ctx context.Context, work *sync.WaitGroup) *Registry {
	return &Registry{ctx: ctx, work: work, execs: map[string]*Exec{}}
}

// Find returns the exec of that ID, also for some minutes after its end. Errors: errs.NotFound.
func (r *Registry) Find(id string) (*Exec, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e := r.execs[id]; e != nil {
		return e, nil
	}
	return nil, errs.New(errs.NotFound, "No such exec instance: %s", clip(id))
}

func (r *Registry) add(e *Exec) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.execs[e.id] = e
}

// forgetContainer removes the execs of a container that is removed.
func (r *Registry) forgetContainer(s *Set) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, e := range r.execs {
		if e.set == s {
			delete(r.execs, id)
		}
	}
}

// forget removes an exec.
func (r *Registry) forget(e *Exec) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.execs, e.id)
}

// forgetLater removes an exec that has ended after execMemory.
func (r *Registry) forgetLater(e *Exec) {
	time.AfterFunc(execMemory, func() { r.forget(e) })
}
