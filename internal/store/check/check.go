// Package check holds what the examinations of a data root share: the findings that they report, how deeply they look, and
// whether they repair.
//
// Each part of the engine examines its own objects: the store its records, blobs and layers, and the services their containers,
// volumes and networks. All of them report to one Run. A finding names an object, says what is wrong with it, and names the
// command that heals it.
//
// Invariants: an examination changes nothing unless Options.Repair is set; a repair removes nothing that is unknown or that
// could still be used; work that is under way is no finding, so an object is examined while its owner keeps others from
// changing it.
package check

import (
	"context"
	"errors"
	"sync"
)

// Options say how an examination is done.
type Options struct {
	Full   bool // read every byte and compare its digest; without it, existence, sizes and structure are compared
	Repair bool // heal what can be healed without a loss
	// Offline says that no engine serves the data root: nothing is under way, and containers run that no one has taken up.
	Offline bool
}

// Finding is one object with which something is wrong.
type Finding struct {
	Kind    string // of the object: blob, layer, image, container, …
	Object  string // its name, digest or ID
	Problem string
	Heal    string // the command that heals it, or what a user can do
	// Repaired says what a repair did; "" means that the problem remains.
	Repaired string
}

// Progress is how far the examination of one part is.
type Progress struct {
	Part        string // such as "layers"
	Done, Total int64
	Bytes       bool // Done and Total are bytes, and not a number of objects
}

// Listener receives what an examination finds. Its functions are called one at a time.
type Listener struct {
	Found    func(Finding)
	Progress func(Progress)
}

// Summary is the result of an examination.
type Summary struct {
	Options
	Checked  map[string]int // number of objects by kind
	Findings int
	Repaired int // of the findings
}

// Run is one examination. Its methods are safe for concurrent use.
type Run struct {
	Options
	to Listener

	mu  sync.Mutex
	sum Summary
}

// New returns a run that reports to l. Its functions may be nil.
func New(o Options, l Listener) *Run {
	if l.Found == nil {
		l.Found = func(Finding) {}
	}
	if l.Progress == nil {
		l.Progress = func(Progress) {}
	}
	return &Run{Options: o, to: l, sum: Summary{Options: o, Checked: map[string]int{}}}
}

// Summary returns what was found until now.
func (r *Run) Summary() Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.sum
	out.Checked = make(map[string]int, len(r.sum.Checked))
	for k, n := range r.sum.Checked {
		out.Checked[k] = n
	}
	return out
}

// Checked counts objects of a kind that were examined.
func (r *Run) Checked(kind string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sum.Checked[kind] += n
}

// Report reports a finding that no repair can heal.
func (r *Run) Report(f Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sum.Findings++
	if f.Repaired != "" {
		r.sum.Repaired++
	}
	r.to.Found(f)
}

// Repairs is how users call a repair.
const Repairs = "ply system check --repair"

// Mend reports a finding that mend heals. It calls mend when the run repairs; mend returns what it did, in the past tense. When
// f.Heal is "", it becomes the command that repairs.
func (r *Run) Mend(f Finding, mend func() (did string, err error)) {
	if f.Heal == "" {
		f.Heal = Repairs
	}
	if r.Repair {
		did, err := mend()
		switch {
		case err == nil:
			f.Repaired = did
		case f.Heal == Repairs:
			f.Heal = "the repair failed: " + err.Error()
		}
	}
	r.Report(f)
}

// Part is the progress of one part of a run.
type Part struct {
	r *Run
	p Progress
}

// Part begins a part of the examination. Total is the number of its objects, or with bytes their size.
func (r *Run) Part(name string, total int64, bytes bool) *Part {
	p := &Part{r: r, p: Progress{Part: name, Total: total, Bytes: bytes}}
	p.Add(0)
	return p
}

// Add reports that n more objects or bytes are examined.
func (p *Part) Add(n int64) {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	p.p.Done = min(p.p.Done+n, p.p.Total)
	p.r.to.Progress(p.p)
}

// Checker examines the objects of one part of the engine. An error means that the examination could not be completed; what is
// wrong with the objects is a finding and no error.
type Checker interface {
	Check(ctx context.Context, r *Run) error
}

// All runs the checkers in order.
func All(ctx context.Context, r *Run, checkers ...Checker) error {
	var all error
	for _, c := range checkers {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		all = errors.Join(all, c.Check(ctx, r))
	}
	return all
}
