package container

import (
	"context"
	"errors"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/session"
	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/procid"
)

// life is one run of a container's first process.
type life struct {
	*session.Run
	c     *ctr
	began time.Time
	ctx   context.Context // ends with the run
	end   context.CancelFunc

	recorded context.CancelFunc // the end of the run was recorded

	manual bool // stop, kill or restart was asked for; c.mu guards it
	killed bool // SIGKILL was sent, so nothing freezes the processes any more; c.mu guards it
	keep   bool // a restart was asked for: the end of the run does not remove a --rm container; c.mu guards it
}

// newLife returns a run of the container under the shim that client reaches.
func (c *ctr) newLife(client *shim.Client, began time.Time) *life {
	l := &life{c: c, began: began}
	l.ctx, l.end = context.WithCancel(c.env.run)
	recorded, done := context.WithCancel(c.env.run)
	l.recorded = done
	l.Run = &session.Run{Client: client, Ended: l.ctx.Done(), Recorded: recorded.Done()}
	return l
}

// freeze stops the processes; no exec starts meanwhile. The caller holds c.op. errs.Precondition when the process is being killed:
// a frozen process would not end.
func (l *life) freeze(ctx context.Context) error {
	return l.c.sessions.WithoutStarts(func() error {
		if err := l.Client.Pause(ctx); err != nil {
			return err
		}
		l.c.mu.Lock()
		killed := l.killed
		if !killed {
			l.c.rec.State.Status = StatusPaused
		}
		l.c.mu.Unlock()
		if !killed {
			return nil
		}
		if err := l.Client.Resume(ctx); err != nil && !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.Precondition) && !errors.Is(err, errs.Unavailable) {
			return err
		}
		return errs.New(errs.Precondition, "container %s is being killed", l.c.id)
	})
}

// thaw lets the processes run on.
func (l *life) thaw(ctx context.Context) error {
	return l.c.sessions.WithoutStarts(func() error {
		// A conflict says that the processes are not frozen: a kill has thawed them.
		if err := l.Client.Resume(ctx); err != nil && !errors.Is(err, errs.Conflict) {
			return err
		}
		l.c.mu.Lock()
		if l.c.life == l && l.c.rec.State.Status == StatusPaused {
			l.c.rec.State.Status = StatusRunning
		}
		l.c.mu.Unlock()
		return nil
	})
}

// signal sends a signal to the first process. A frozen process is thawed so that it can act on the signal.
// errs.Precondition when the process has ended.
func (l *life) signal(ctx context.Context, sig unix.Signal) error {
	if sig == unix.SIGKILL { // before it is sent: either a freeze that is under way sees it, or it is seen as paused below
		l.c.mu.Lock()
		l.killed = true
		l.c.mu.Unlock()
	}
	err := l.Client.Kill(ctx, "", shim.KillArgs{Signal: int(sig)})
	if errors.Is(err, errs.Unavailable) || errors.Is(err, errs.Conflict) {
		// The process has just ended, or the shim is gone; the supervisor records the end.
		return errs.New(errs.Precondition, "container %s: %w", l.c.id, err)
	}
	if err != nil {
		return err
	}
	l.c.publish("kill", "signal", strconv.Itoa(int(sig)))
	if l.c.status() == StatusPaused {
		// A kill may have thawed it already, or ended it.
		err := l.thaw(ctx)
		if err != nil && !errors.Is(err, errs.Precondition) && !errors.Is(err, errs.Unavailable) {
			return err
		}
	}
	return nil
}

const (
	endWait  = 2 * time.Second  // how long the end of a process may take to be recorded after it has begun
	killWait = 10 * time.Second // how long a killed process may take to end before the caller gets an error
)

// signalEnd sends a signal that is meant to end the process; w waits for that end. A runtime may refuse the signal because
// the process is just ending, so a refusal is an error only if the process does not end within endWait. ended reports
// that the waiter was answered.
func (l *life) signalEnd(ctx context.Context, sig unix.Signal, w *waiter) (ended bool, err error) {
	err = l.signal(ctx, sig)
	if err == nil || errors.Is(err, errs.Precondition) {
		return false, nil
	}
	if ctx.Err() == nil && w.await(ctx, endWait) {
		return true, nil
	}
	return false, err
}

// kill kills the process and waits, with w, for its end.
func (l *life) kill(ctx context.Context, w *waiter) error {
	ended, err := l.signalEnd(ctx, unix.SIGKILL, w)
	if err != nil || ended {
		return err
	}
	if w.await(ctx, killWait) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// The process cannot end under its shim: one that a runtime lost track of is not reaped. Without the shim the kernel
	// hands it to a process that reaps it, and the supervisor records the end of the run.
	who := procid.ID(l.Client.Identity())
	l.c.env.log.Error("container does not end when killed; its shim is ended", "container", l.c.id, "pid", who.PID)
	if err := procid.Kill(who, unix.SIGKILL); err != nil && !errors.Is(err, procid.ErrGone) {
		return errs.New(errs.Internal, "container %s: end its shim: %w", l.c.id, err)
	}
	if w.await(ctx, killWait) {
		return nil
	}
	return errs.New(errs.Unavailable, "container %s: tried to kill container, but did not receive an exit event", l.c.id)
}
