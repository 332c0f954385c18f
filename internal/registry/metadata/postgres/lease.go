package postgres

import (
	"context"
	"crypto/rand"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"ply/internal/errs"
	"ply/internal/registry/content"
)

// Times of leases. A holder that cannot renew its lease gives up safety before the lease expires, so that what it sent to a blob store
// has come to its end when someone else gets the lease.
const (
	leaseTime  = 15 * time.Second
	renewEvery = 3 * time.Second
	safety     = 8 * time.Second
	pollEvery  = 30 * time.Millisecond // for a lease that another process has
)

var errLost = errs.New(errs.Unavailable, "the lock was lost, because the database did not answer")

// lease is a row that this process owns until it expires.
type lease struct {
	s     *Store
	table string // of the row: leases or uploads
	key   string // its column
	name  string
	token string

	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it is not renewed any more
}

const interval = leaseTime / time.Microsecond // in what SQL multiplies

// keep renews a lease that was obtained at some time after began, and returns a context that ends with it.
func (l *lease) keep(ctx context.Context, began time.Time) context.Context {
	held, cancel := context.WithCancelCause(ctx)
	l.cancel, l.done = cancel, make(chan struct{})
	l.s.leases.Go(func() {
		defer close(l.done)
		tick := time.NewTicker(renewEvery)
		defer tick.Stop()
		until := began.Add(leaseTime - safety)
		for {
			select {
			case <-held.Done():
				return
			case <-l.s.stop.Done():
				cancel(errLost)
				return
			case <-tick.C:
			}
			try, stop := context.WithDeadline(held, until)
			began := time.Now()
			t, err := l.s.pool.Exec(try, "update "+l.table+" set expires = clock_timestamp() + $3 * interval '1 microsecond' where "+l.key+" = $1 and token = $2 and expires > clock_timestamp()",
				l.name, l.token, int64(interval))
			stop()
			switch {
			case err == nil && t.RowsAffected() == 1:
				until = began.Add(leaseTime - safety)
			case err == nil, time.Now().After(until):
				cancel(errLost)
				return
			}
		}
	})
	return held
}

// end stops the renewal.
func (l *lease) end() {
	l.cancel(context.Canceled)
	<-l.done
}

// check fails unless the lease is held, and keeps it for the transaction.
func (l *lease) check(ctx context.Context, tx pgx.Tx) error {
	err := tx.QueryRow(ctx, "select from "+l.table+" where "+l.key+" = $1 and token = $2 and expires > clock_timestamp() for update", l.name, l.token).Scan()
	return or(err, errLost)
}

// release lets others have the lease. When the database does not answer, they wait until it expires.
func (l *lease) release() {
	l.end()
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	_ = pgx.BeginTxFunc(ctx, l.s.pool, pgx.TxOptions{BeginQuery: "begin; set local synchronous_commit = off"}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "delete from leases where name = $1 and token = $2", l.name, l.token)
		return err
	})
}

// obtain makes this process the owner of a row in the table of leases; nil means that another one has it.
func (s *Store) obtain(ctx context.Context, name string) (l *lease, began time.Time, err error) {
	token, got := rand.Text(), false
	err = s.persist(ctx, harmless, func(ctx context.Context) (bool, error) {
		began = time.Now()
		// The token is compared because the attempt before may have obtained it.
		t, err := s.pool.Exec(ctx, `
insert into leases values ($1, $2, clock_timestamp() + $3 * interval '1 microsecond')
on conflict (name) do update set token = excluded.token, expires = excluded.expires where leases.expires <= clock_timestamp() or leases.token = excluded.token`,
			name, token, int64(interval))
		got = err == nil && t.RowsAffected() == 1
		return true, err
	})
	if err != nil || !got {
		return nil, began, err
	}
	return &lease{s: s, table: "leases", key: "name", name: name, token: token}, began, nil
}

// Lock locks a digest against all replicas.
func (s *Store) Lock(ctx context.Context, d content.Digest) (context.Context, func(), error) {
	slot, err := s.locks.lock(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	for {
		l, began, err := s.obtain(ctx, "blob/"+string(d))
		if err != nil {
			s.locks.unlock(d, slot)
			return nil, nil, err
		}
		if l != nil {
			held := l.keep(ctx, began)
			s.locks.set(slot, l)
			return held, func() {
				l.release()
				s.locks.unlock(d, slot)
			}, nil
		}
		select {
		case <-time.After(pollEvery/2 + mathrand.N(pollEvery)):
		case <-ctx.Done():
			s.locks.unlock(d, slot)
			return nil, nil, context.Cause(ctx)
		}
	}
}

// Sweep lets one collection run at a time, in one replica.
func (s *Store) Sweep(ctx context.Context) (context.Context, func(), error) {
	l, began, err := s.obtain(ctx, "collection")
	if err != nil {
		return nil, nil, err
	}
	if l == nil {
		return nil, nil, errs.New(errs.Conflict, "another collection is running")
	}
	// Rows of replicas that died.
	if _, err := s.pool.Exec(ctx, "delete from leases where expires < clock_timestamp() - interval '1 hour'"); err != nil {
		l.cancel, l.done = func(error) {}, make(chan struct{})
		close(l.done)
		l.release()
		return nil, nil, classify(err)
	}
	return l.keep(ctx, began), l.release, nil
}

// localLocks has the digests that this process locks, so that only one of its requests waits for a lease.
type localLocks struct {
	mu   sync.Mutex
	held map[content.Digest]*localLock
}

type localLock struct {
	free  chan struct{} // closed when it is released
	lease *lease        // nil until it is obtained
}

func (k *localLocks) lock(ctx context.Context, d content.Digest) (*localLock, error) {
	for {
		k.mu.Lock()
		other := k.held[d]
		if other == nil {
			if k.held == nil {
				k.held = map[content.Digest]*localLock{}
			}
			mine := &localLock{free: make(chan struct{})}
			k.held[d] = mine
			k.mu.Unlock()
			return mine, nil
		}
		k.mu.Unlock()
		select {
		case <-other.free:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (k *localLocks) set(l *localLock, lease *lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l.lease = lease
}

func (k *localLocks) unlock(d content.Digest, l *localLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.held, d)
	close(l.free)
}

// of returns the lease of a digest that this process has locked; nil when it has not.
func (k *localLocks) of(d content.Digest) *lease {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l := k.held[d]; l != nil {
		return l.lease
	}
	return nil
}
