// Package firewalld keeps the bridges of an engine in a zone of firewalld. firewalld rejects what is forwarded from interfaces that are in no
// zone of their own, so containers would reach neither each other nor other networks.
//
// The zone accepts everything: what passes between containers, the host and other networks is decided by the engine's own rules, which
// no zone opens. The zone and a policy are in firewalld's permanent configuration, because it has no others. The interfaces are in its runtime
// configuration only, so that no removed bridge remains in files. Engines of one host share the zone, and each changes only its own bridges.
//
// One goroutine (Run) talks to firewalld; callers wait for it for a bounded time. An engine on a host without a message bus has a goroutine that looks
// for the bus's socket twice a minute. Nothing happens when firewalld runs in another network namespace.
package firewalld

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// ZoneName is the name of the zone, and policyName that of the policy by which other zones reach it.
const (
	ZoneName   = "ply"
	policyName = "ply-forwarding"
)

const (
	awaitLimit  = 3 * time.Second  // of a caller
	callLimit   = 20 * time.Second // of a call; one that arrives during a reload is answered after it
	reloadLimit = 2 * time.Minute  // of a reload, which takes half a minute on a slow machine
	firstRetry  = 500 * time.Millisecond
	lastRetry   = time.Minute
	lookAgain   = 30 * time.Second // for a bus where there is none
)

// Options of New. The zero value is ready for use.
type Options struct {
	Address string // of the message bus, as in DBUS_SYSTEM_BUS_ADDRESS, which is the default
	Log     *slog.Logger
}

// phase says what is known of firewalld.
type phase int

const (
	unknown phase = iota // Run has not asked yet
	absent               // it does not run in this network namespace
	present
	silent // it did not answer, or not as expected
)

// member is a bridge that the zone should have, or not have any more.
type member struct {
	wanted  bool
	settled bool // firewalld knows
}

// Zone is the zone with the bridges of one engine. Safe for concurrent use.
type Zone struct {
	opts Options
	kick chan struct{} // something is to be done

	mu      sync.Mutex // not held during I/O
	phase   phase
	members map[string]member
	changed chan struct{} // closed when phase or members changed
	problem string        // that was logged last
}

// New returns the zone without bridges. Run makes it.
func New(o Options) *Zone {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Zone{opts: o, kick: make(chan struct{}, 1), members: map[string]member{}, changed: make(chan struct{})}
}

// Add puts a bridge into the zone, now or when firewalld starts. It does not wait.
func (z *Zone) Add(bridge string) { z.set(bridge, true) }

// Remove takes a bridge out of the zone. It does not wait.
func (z *Zone) Remove(bridge string) { z.set(bridge, false) }

func (z *Zone) set(bridge string, wanted bool) {
	z.mu.Lock()
	m, known := z.members[bridge]
	if known && m.wanted == wanted || !known && !wanted {
		z.mu.Unlock()
		return
	}
	z.members[bridge] = member{wanted: wanted}
	z.mu.Unlock()
	z.wake()
}

func (z *Zone) wake() {
	select {
	case z.kick <- struct{}{}:
	default:
	}
}

// Await returns when firewalld knows of all bridges that were added and removed, when it does not run, or when it takes too long. After that, nobody
// waits until it answers again.
func (z *Zone) Await(ctx context.Context) {
	limit := time.NewTimer(awaitLimit)
	defer limit.Stop()
	for {
		z.mu.Lock()
		changed := z.changed
		done := z.phase == absent || z.phase == silent || !z.pendingLocked()
		z.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		case <-limit.C:
			z.complain(errors.New("firewalld takes too long to answer"))
			z.enter(silent)
			return
		}
	}
}

func (z *Zone) pendingLocked() bool {
	for _, m := range z.members {
		if !m.settled {
			return true
		}
	}
	return false
}

// pending returns the bridges that firewalld does not know about yet.
func (z *Zone) pending() map[string]bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	out := map[string]bool{}
	for name, m := range z.members {
		if !m.settled {
			out[name] = m.wanted
		}
	}
	return out
}

// settle notes that firewalld knows about a bridge, unless something else is wanted meanwhile.
func (z *Zone) settle(bridge string, wanted bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if m, known := z.members[bridge]; !known || m.wanted != wanted {
		return
	}
	if wanted {
		z.members[bridge] = member{wanted: true, settled: true}
	} else {
		delete(z.members, bridge)
	}
	z.announceLocked()
}

// unsettle notes that firewalld may have forgotten all bridges.
func (z *Zone) unsettle() {
	z.mu.Lock()
	defer z.mu.Unlock()
	for name, m := range z.members {
		z.members[name] = member{wanted: m.wanted}
	}
}

// enter changes the phase and returns the one before. Without firewalld there is nothing from which a bridge could be taken out.
func (z *Zone) enter(p phase) (before phase) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if p == absent {
		maps.DeleteFunc(z.members, func(_ string, m member) bool { return !m.wanted })
	}
	if before = z.phase; before != p {
		z.phase = p
		z.announceLocked()
	}
	return before
}

func (z *Zone) announceLocked() {
	close(z.changed)
	z.changed = make(chan struct{})
}

// complain logs a problem once, until there is another one or none.
func (z *Zone) complain(err error) {
	problem := ""
	if err != nil {
		problem = fmt.Sprint(err)
	}
	z.mu.Lock()
	before := z.problem
	z.problem = problem
	z.mu.Unlock()
	switch {
	case problem == before:
	case err != nil:
		z.opts.Log.Warn("bridges cannot be announced to firewalld, which may reject what containers send", "err", err)
	default:
		z.opts.Log.Info("firewalld knows the bridges of this engine again")
	}
}

// Run keeps the bridges in the zone until ctx ends: when firewalld or the message bus starts later, when it starts again and when it reloads.
func (z *Zone) Run(ctx context.Context) {
	defer z.enter(absent)
	retry := firstRetry
	for ctx.Err() == nil {
		began := time.Now()
		err := z.session(ctx)
		if ctx.Err() != nil {
			return
		}
		before := z.enter(absent)
		if time.Since(began) > lastRetry {
			retry = firstRetry
		}
		if errors.Is(err, errNoBus) {
			z.sleep(ctx, lookAgain, z.kick)
			retry = firstRetry
			continue
		}
		if before != absent {
			z.complain(err)
		}
		z.sleep(ctx, retry, nil)
		retry = min(2*retry, lastRetry)
	}
}

// sleep waits for the time, or for kick.
func (z *Zone) sleep(ctx context.Context, d time.Duration, kick <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-kick:
	}
}

// session serves one connection to the bus, and returns why it ended.
func (z *Zone) session(ctx context.Context) error {
	b, err := connect(ctx, z.opts.Address)
	if err != nil {
		return err
	}
	defer b.close()
	f := &daemon{bus: b, log: z.opts.Log}
	retry := firstRetry
	for {
		err := z.round(ctx, f)
		var again <-chan time.Time
		switch {
		case b.ended():
			return errors.Join(errEnded, err)
		case err != nil:
			z.complain(err)
			z.enter(silent)
			again = time.After(retry)
			retry = min(2*retry, lastRetry)
		default:
			retry = firstRetry
		}
		// After an error only the time counts, and what firewalld itself announces.
		kick := z.kick
		if err != nil {
			kick = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.done():
			return errEnded
		case <-kick:
		case <-b.announced:
		case <-again:
		}
	}
}

// round brings firewalld to what is wanted.
func (z *Zone) round(ctx context.Context, f *daemon) error {
	if f.bus.ownerChanged() || f.owner == "" {
		if err := f.find(ctx); err != nil {
			return err
		}
		z.unsettle()
		f.synced = false
	}
	if f.owner == "" || f.foreign {
		z.mu.Lock()
		z.problem = ""
		z.mu.Unlock()
		z.enter(absent)
		return nil
	}
	if f.bus.wasReloaded() {
		z.unsettle()
		f.synced = false
	}
	var has []string
	if !f.synced { // the zone is made before there is a bridge, because firewalld reloads for it
		var err error
		if has, err = f.prepare(ctx); err != nil {
			return err
		}
		f.synced = true
	}
	pending := z.pending()
	var failed error
	for _, name := range slices.Sorted(maps.Keys(pending)) {
		wanted := pending[name]
		var err error
		switch {
		case wanted && slices.Contains(has, name):
		case wanted:
			err = f.add(ctx, name)
		default:
			err = f.remove(ctx, name)
		}
		if err != nil {
			failed = errors.Join(failed, err)
			f.synced = false
			if errors.Is(err, context.DeadlineExceeded) || f.bus.ended() {
				break
			}
			continue
		}
		z.settle(name, wanted)
	}
	if failed == nil {
		z.complain(nil)
		z.enter(present)
	}
	return failed
}
