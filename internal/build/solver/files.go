package solver

import (
	"context"
	"io"
	"sync"
	"time"

	"ply/internal/build/fileop"
	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/oci"
)

// sharedView is a mounted chain, which all steps of a job use.
type sharedView struct {
	once sync.Once
	view View
	err  error
}

// Tree opens a result for reading; nil for an empty one. The tree is valid until the job's Close.
func (j *Job) Tree(ctx context.Context, r *Result) (*tree.Tree, error) {
	switch {
	case r == nil:
		return nil, nil
	case r.Dir != nil:
		return r.Dir, nil
	case len(r.Chain) == 0:
		return nil, nil
	}
	j.mu.Lock()
	v := j.views[r.Chain.ID()]
	if v == nil {
		v = &sharedView{}
		j.views[r.Chain.ID()] = v
	}
	j.mu.Unlock()
	v.once.Do(func() { v.view, v.err = j.s.worker.Mount(context.WithoutCancel(ctx), r.Chain) })
	if v.err != nil {
		return nil, v.err
	}
	return v.view.Tree(), nil
}

func (j *Job) fileOptions() fileop.Options {
	latest := j.latest()
	now := latest
	if now.IsZero() {
		now = time.Now().UTC().Truncate(time.Second)
	}
	return fileop.Options{Now: now, Latest: latest, Users: j.s.worker.LookupUser, Scratch: j.s.worker.Scratch}
}

// files executes file operations. Every output is one layer on the input that its actions start from.
func (j *Job) files(ctx context.Context, op *ops.Files, ins []*Result, log func(stderr bool, data []byte)) (map[int]oci.Chain, error) {
	f := filesRun{j: j, ctx: ctx, op: op, ins: ins, o: j.fileOptions(), made: map[int]*Result{}}
	f.o.Warn = func(text string) { log(true, []byte("WARNING: "+text+"\n")) }
	out := map[int]oci.Chain{}
	for i, a := range op.Actions {
		if a.Output < 0 {
			continue
		}
		r, err := f.result(i)
		if err != nil {
			return nil, err
		}
		out[a.Output] = r.Chain
	}
	return out, nil
}

// filesRun is the execution of one Files.
type filesRun struct {
	j    *Job
	ctx  context.Context
	op   *ops.Files
	ins  []*Result
	o    fileop.Options
	made map[int]*Result // results of actions that were needed as such
}

// result returns what an action and those before it in its chain make.
func (f *filesRun) result(action int) (*Result, error) {
	if r := f.made[action]; r != nil {
		return r, nil
	}
	var steps []fileop.Step
	at := action
	for {
		s, err := f.step(&f.op.Actions[at])
		if err != nil {
			return nil, err
		}
		steps = append([]fileop.Step{s}, steps...)
		if f.op.Actions[at].Base < len(f.ins) {
			break
		}
		at = f.op.Actions[at].Base - len(f.ins)
	}
	var base *Result
	if b := f.op.Actions[at].Base; b >= 0 {
		base = f.ins[b]
	}
	below, err := f.j.Tree(f.ctx, base)
	if err != nil {
		return nil, err
	}
	var chain oci.Chain
	if base != nil {
		chain = base.Chain
	}
	chain, err = f.j.s.worker.Layer(f.ctx, f.j.o.Lease, chain, func(w io.Writer) error { return fileop.Write(f.ctx, w, below, steps, f.o) })
	if err != nil {
		return nil, err
	}
	r := &Result{Chain: chain}
	f.made[action] = r
	return r, nil
}

// input returns the tree with the number that actions use: an input of the vertex, or the result of an action.
func (f *filesRun) input(n int) (*tree.Tree, error) {
	switch {
	case n < 0:
		return nil, nil
	case n < len(f.ins):
		return f.j.Tree(f.ctx, f.ins[n])
	}
	r, err := f.result(n - len(f.ins))
	if err != nil {
		return nil, err
	}
	return f.j.Tree(f.ctx, r)
}

func (f *filesRun) step(a *ops.Action) (s fileop.Step, err error) {
	s.Do = a.Do
	if _, ok := a.Do.(*ops.Copy); ok {
		if s.From, err = f.input(a.From); err != nil {
			return s, err
		}
		if a.From >= 0 && a.From < len(f.ins) && f.ins[a.From] != nil && f.ins[a.From].Dir != nil && !f.o.Latest.IsZero() {
			s.Time = &f.o.Latest // the times of a client's files are in no key, so they must not make a difference
		}
	}
	named := owners(a.Do)
	trees := map[int]*tree.Tree{}
	for _, i := range named {
		if i.Input < 0 {
			return s, errs.New(errs.Invalid, "the owner %q needs a file system with /etc/passwd", i.Name)
		}
		if trees[i.Input], err = f.input(i.Input); err != nil {
			return s, err
		}
	}
	s.Owner = func(i ops.Identity) *tree.Tree { return trees[i.Input] }
	return s, nil
}
