package rootfs

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// countingDriver counts mounts; only Mount, Unmount and Usage are called.
type countingDriver struct {
	layer.Driver
	mounts, unmounts int
	fail             error
	unmounting       func() // called by Unmount, if set
	usage            int64
	measured         int
	during           func() // called by Usage, if set
}

func (d *countingDriver) Usage(context.Context, string, oci.Chain) (int64, error) {
	d.measured++
	if d.during != nil {
		d.during()
	}
	return d.usage, nil
}

func (d *countingDriver) Mount(context.Context, string, oci.Chain, string, layer.MountOptions) error {
	if d.fail != nil {
		return d.fail
	}
	d.mounts++
	return nil
}

func (d *countingDriver) Unmount(context.Context, string) error {
	if d.unmounting != nil {
		d.unmounting()
	}
	d.unmounts++
	return nil
}

func newRoot(t *testing.T) (*Root, *countingDriver) {
	d := &countingDriver{}
	return New(Options{Driver: d, Container: oci.ContainerID(strings.Repeat("ab", 32)), Dir: t.TempDir()}), d
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// The first user mounts the root and the last one unmounts it; a reservation alone does not mount it.
func TestRootIsMountedWhileUsed(t *testing.T) {
	r, d := newRoot(t)
	ctx := t.Context()
	check(t, r.Reserve())
	if d.mounts != 0 {
		t.Error("a reservation mounted the root")
	}
	check(t, r.Acquire(ctx), r.Acquire(ctx), r.Release(), r.Release())
	if d.mounts != 1 || d.unmounts != 0 {
		t.Errorf("%d mounts, %d unmounts while a reservation is left, want 1 and 0", d.mounts, d.unmounts)
	}
	check(t, r.Release())
	if d.unmounts != 1 {
		t.Error("the root stays mounted without users")
	}
	d.fail = errs.New(errs.Internal, "no mount")
	if err := r.Acquire(ctx); err == nil {
		t.Error("a failed mount was reported as a success")
	}
	d.fail = nil
	r.Adopt()
	check(t, r.Acquire(ctx), r.Release(), r.Release())
	if d.mounts != 1 || d.unmounts != 2 {
		t.Errorf("%d mounts, %d unmounts of an adopted root, want 1 and 2", d.mounts, d.unmounts)
	}
}

// Close waits for the users and refuses new ones; Reopen admits them again.
func TestRootClose(t *testing.T) {
	r, _ := newRoot(t)
	ctx := t.Context()
	check(t, r.Acquire(ctx))
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := r.Close(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close with a user = %v, want the end of its context", err)
	}
	if err := r.Acquire(ctx); !errors.Is(err, errs.NotFound) {
		t.Errorf("Acquire after Close = %v, want NotFound", err)
	}
	if err := r.Reserve(); !errors.Is(err, errs.NotFound) {
		t.Errorf("Reserve after Close = %v, want NotFound", err)
	}
	r.Reopen()
	check(t, r.Acquire(ctx), r.Release())
	done := make(chan error)
	go func() { done <- r.Close(ctx) }()
	time.Sleep(10 * time.Millisecond) // let Close wait; the test holds either way
	check(t, r.Release(), <-done)
}

// Close returns when the root is unmounted, because the caller then removes the directory.
func TestCloseFollowsTheUnmount(t *testing.T) {
	r, d := newRoot(t)
	check(t, r.Acquire(t.Context()))
	begun, end, closed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	d.unmounting = func() { close(begun); <-end }
	go func() { closed <- r.Close(context.Background()) }()
	for waiting := false; !waiting; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		waiting = r.drained != nil
		r.mu.Unlock()
	}
	released := make(chan error, 1)
	go func() { released <- r.Release() }()
	<-begun
	select {
	case <-closed:
		t.Error("Close returned while the root was being unmounted")
	case <-time.After(50 * time.Millisecond):
		defer func() { check(t, <-closed) }()
	}
	close(end)
	check(t, <-released)
}

// The size of a writable layer is measured again when it may have changed, and only then.
func TestRootUsage(t *testing.T) {
	r, d := newRoot(t)
	ctx := t.Context()
	check := func(what string, want int64, again bool) {
		t.Helper()
		d.usage, d.measured = want, 0
		got, err := r.Usage(ctx)
		if err != nil || got != want || (d.measured > 0) != again {
			t.Errorf("%s: %d, measured %d times, %v; want %d", what, got, d.measured, err, want)
		}
	}
	check("new", 1, true)
	check("not mounted since", 1, false)
	if err := r.Acquire(ctx); err != nil {
		t.Fatal(err)
	}
	check("mounted", 2, true)
	check("still mounted", 3, true)
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	check("not mounted any more", 4, true)
	check("not mounted since", 4, false)
	r.Changed()
	check("changed without the root", 5, true)
	d.during = func() { // a process begins while the size is measured
		if err := r.Acquire(ctx); err != nil {
			t.Error(err)
		}
	}
	r.Changed()
	check("measured while it was mounted", 6, true)
	d.during = nil
	if err := r.Release(); err != nil {
		t.Fatal(err)
	}
	check("not mounted any more", 7, true)
	check("not mounted since", 7, false)
	if d.mounts != d.unmounts {
		t.Errorf("%d mounts, %d unmounts", d.mounts, d.unmounts)
	}
	r.Adopt()
	check("adopted", 8, true)
	check("still mounted", 9, true)
}
