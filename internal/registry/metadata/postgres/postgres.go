// Package postgres keeps the registry's metadata in a PostgreSQL database that any number of replicas share.
//
// Invariants: transactions run at READ COMMITTED. A change of the manifests or tags of a repository holds the advisory lock of the
// repository until its transaction ends, so each of its statements sees everything before it. Links are changed without that lock;
// who needs one to stay locks its row. Locks of digests, of the collection and of uploads are leases: rows with a token and a time at
// which they expire. They outlive connections and end when their process does not renew them. A link is stored only while its
// process has the lease of the digest. All times are of the database's clock.
//
// A change that failed before its commit is tried again until the patience of the store ends, as is one whose second run does no
// harm; so clients do not notice a restart of the database that is short. What is stored is in migrations.go.
package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"ply/internal/errs"
	"ply/internal/registry/metadata"
)

// Options configure a Store.
type Options struct {
	URL string // postgres://USER:PASSWORD@HOST/DATABASE, or keywords and values, as libpq takes them
	// Patience is how long an operation is tried again while the database does not answer; 0 = 15 seconds.
	Patience time.Duration
	Spans    Spans // nil = none
}

// Store is a database. Safe for concurrent use.
type Store struct {
	pool     *pgxpool.Pool
	patience time.Duration
	touched  touches
	locks    localLocks
	leases   sync.WaitGroup // goroutines that renew leases

	stop   context.Context // done when the store is closed
	cancel context.CancelFunc
}

var _ metadata.Store = (*Store)(nil)

const (
	minConnections = 16
	attemptTimeout = 20 * time.Second // of one transaction
	connectTimeout = 5 * time.Second
	firstPause     = 5 * time.Millisecond
	longestPause   = time.Second
)

// beginWrite begins a transaction that the server ends when its process stops in the middle, so that locks are not held for ever.
const beginWrite = "begin; set local idle_in_transaction_session_timeout = '30s'; set local lock_timeout = '15s'"

// Open connects to a database and brings its tables up to date. Several replicas may do so at once. The error's class is
// errs.Unavailable when it does not answer, and errs.Precondition when a newer release has changed it.
func Open(ctx context.Context, o Options) (*Store, error) {
	config, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		return nil, errs.New(errs.Invalid, "database: the address is not valid").WithHint("It must be like postgres://USER:PASSWORD@HOST/DATABASE.") // err may have the password
	}
	config.MaxConns = max(config.MaxConns, minConnections)
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = connectTimeout
	}
	if _, ok := config.ConnConfig.RuntimeParams["application_name"]; !ok {
		config.ConnConfig.RuntimeParams["application_name"] = "ply-registry"
	}
	if o.Spans != nil {
		config.ConnConfig.Tracer = statements{o.Spans}
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, classify(err)
	}
	s := &Store{pool: pool, patience: o.Patience}
	if s.patience == 0 {
		s.patience = 15 * time.Second
	}
	s.stop, s.cancel = context.WithCancel(context.Background())
	if err := migrate(ctx, s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close waits for the work that was begun and closes the connections.
func (s *Store) Close() error {
	s.cancel()
	s.leases.Wait()
	s.pool.Close()
	return nil
}

// Ping reports whether the database answers now.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	_, err := s.pool.Exec(ctx, "select 1")
	return classify(err)
}

// Now returns the time of the database.
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	return now, s.read(ctx, func(ctx context.Context, q querier) error {
		return q.QueryRow(ctx, "select clock_timestamp()").Scan(&now)
	})
}

// querier is a connection or a transaction.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// repeat says what to do when it is not known whether a change was made.
type repeat int

const (
	never    repeat = iota // report it
	harmless               // make it again
	removal                // make it again; that there is nothing left to remove means success
)

// read runs queries, again while the database does not answer.
func (s *Store) read(ctx context.Context, fn func(context.Context, querier) error) error {
	return s.persist(ctx, harmless, func(ctx context.Context) (bool, error) { return false, fn(ctx, s.pool) })
}

// write runs a transaction, again while it fails for reasons that pass.
func (s *Store) write(ctx context.Context, again repeat, fn func(context.Context, pgx.Tx) error) error {
	return s.persist(ctx, again, func(ctx context.Context) (bool, error) {
		tx, err := s.pool.BeginTx(ctx, pgx.TxOptions{BeginQuery: beginWrite})
		if err != nil {
			return false, err
		}
		if err := fn(ctx, tx); err != nil {
			// The connection is closed when this fails, and that ends the transaction as well.
			_ = tx.Rollback(context.WithoutCancel(ctx))
			return false, err
		}
		return true, tx.Commit(ctx)
	})
}

// persist runs attempt until it succeeds, is refused, or patience ends. Attempt reports whether it may have made its change although
// it failed.
func (s *Store) persist(ctx context.Context, again repeat, attempt func(context.Context) (bool, error)) error {
	deadline := time.Now().Add(s.patience)
	unknown := false
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		try, cancel := context.WithTimeout(ctx, attemptTimeout)
		done, err := attempt(try)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case isRefusal(err):
			if unknown && again == removal && errors.Is(err, errs.NotFound) {
				return nil
			}
			return err
		}
		unknown = unknown || done && !isRolledBack(err)
		if !passes(err) || unknown && again == never || time.Now().Add(pause).After(deadline) {
			return classify(err)
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// isRefusal reports whether an error is an answer of this package, and not one of the database.
func isRefusal(err error) bool {
	var missing *metadata.MissingError
	var classified *errs.Error
	return errors.As(err, &missing) || errors.As(err, &classified)
}

// isRolledBack reports whether a transaction that failed has surely changed nothing.
func isRolledBack(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code[:2] == "40" && e.Code != "40003" || e.Code[:2] == "23") || errors.Is(err, pgx.ErrTxCommitRollback) || pgconn.SafeToRetry(err)
}

// passes reports whether an error may be gone when the same is tried again.
func passes(err error) bool {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return !errors.Is(err, pgx.ErrNoRows) // the connection broke, or cannot be made
	}
	switch e.Code {
	case "57P01", "57P02", "57P03", // it shuts down, crashed or starts
		"53300", "53400", // too many connections
		"55P03",          // waited too long for a lock
		"25006", "25P03", // a standby; a transaction that was idle for too long
		"23505": // another transaction has inserted the same row
		return true
	}
	return e.Code[:2] == "40" || e.Code[:2] == "08"
}

// classify returns the error for the callers of the store.
func classify(err error) error {
	var e *pgconn.PgError
	switch {
	case err == nil || isRefusal(err):
		return err
	case errors.As(err, &e) && (e.Code == "53100" || e.Code == "53200"):
		return errs.New(errs.Exhausted, "database: no room: %w", err)
	case errors.As(err, &e) && (e.Code[:2] == "28" || e.Code == "3D000" || e.Code == "42501"):
		return errs.New(errs.Precondition, "database: access denied: %w", err)
	case errors.As(err, &e) && !passes(err):
		return errs.New(errs.Internal, "database: %w", err)
	}
	return errs.New(errs.Unavailable, "the database does not answer: %w", err)
}
