package postgres

import (
	"context"
	"crypto/rand"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/metadata"
)

// hold is an upload that this process holds: a lease on its row.
type hold struct{ *lease }

func unknownUpload(id string) error { return errs.New(errs.NotFound, "upload %q does not exist", id) }

func (s *Store) newHold(id string) hold {
	return hold{&lease{s: s, table: "uploads", key: "id", name: id, token: rand.Text()}}
}

// CreateUpload keeps the state of a new upload.
func (s *Store) CreateUpload(ctx context.Context, id string, state []byte) (metadata.Hold, error) {
	h := s.newHold(id)
	var began time.Time
	err := s.read(ctx, func(ctx context.Context, q querier) error {
		began = time.Now()
		var n int
		// The statistics of the table are near enough, and cost nothing.
		if err := q.QueryRow(ctx, "select coalesce((select n_live_tup from pg_stat_user_tables where relid = 'uploads'::regclass), 0)").Scan(&n); err != nil {
			return err
		}
		if n >= metadata.MaxUploads {
			return errs.New(errs.Exhausted, "%d uploads are open", n).WithHint("Try again later.")
		}
		t, err := q.Exec(ctx, `
insert into uploads (id, state, used, token, expires) values ($1, $2, clock_timestamp(), $3, clock_timestamp() + $4 * interval '1 microsecond')
on conflict (id) do update set state = excluded.state where uploads.token = excluded.token`, id, present(state), h.token, int64(interval))
		if err == nil && t.RowsAffected() == 0 {
			return errs.New(errs.Exists, "upload %s exists", id)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	h.keep(context.WithoutCancel(ctx), began)
	return h, nil
}

// present returns a value that is not null in a database.
func present(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// HoldUpload returns the state of an upload.
func (s *Store) HoldUpload(ctx context.Context, id string) (state []byte, _ metadata.Hold, err error) {
	if len(id) > 100 || !isText(id) {
		return nil, nil, unknownUpload(id)
	}
	h := s.newHold(id)
	var began time.Time
	err = s.read(ctx, func(ctx context.Context, q querier) error {
		began = time.Now()
		err := q.QueryRow(ctx, `
update uploads set token = $2, expires = clock_timestamp() + $3 * interval '1 microsecond'
where id = $1 and (expires <= clock_timestamp() or token = $2) returning state`, id, h.token, int64(interval)).Scan(&state)
		if err = or(err, unknownUpload(id)); !isRefusal(err) {
			return err
		}
		if q.QueryRow(ctx, "select from uploads where id = $1", id).Scan() == nil {
			return errs.New(errs.Conflict, "upload %s: another request writes to it", id)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	h.keep(context.WithoutCancel(ctx), began)
	return state, h, nil
}

// isText reports whether PostgreSQL takes s as a text.
func isText(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// UploadExists reports whether there is an upload.
func (s *Store) UploadExists(ctx context.Context, id string) (ok bool, err error) {
	if !isText(id) {
		return false, nil
	}
	return ok, s.read(ctx, func(ctx context.Context, q querier) error {
		return q.QueryRow(ctx, "select exists (select from uploads where id = $1)", id).Scan(&ok)
	})
}

// OldUploads lists the uploads that no one has held since before.
func (s *Store) OldUploads(ctx context.Context, before time.Time, limit int) (ids []string, err error) {
	return ids, s.read(ctx, func(ctx context.Context, q querier) (err error) {
		ids, err = column[string](ctx, q, "select id from uploads where used < $1 and expires <= clock_timestamp() order by used limit $2", before, max(limit, 0))
		return err
	})
}

// update changes the row of an upload that is held.
func (h hold) update(ctx context.Context, sql string, args ...any) error {
	return h.s.read(ctx, func(ctx context.Context, q querier) error {
		t, err := q.Exec(ctx, sql+" where id = $1 and token = $2", append([]any{h.name, h.token}, args...)...)
		if err == nil && t.RowsAffected() == 0 {
			return errs.New(errs.Conflict, "upload %s: another request writes to it", h.name)
		}
		return err
	})
}

// Save keeps a new state.
func (h hold) Save(ctx context.Context, state []byte) error {
	return h.update(ctx, "update uploads set state = $3, used = clock_timestamp()", present(state))
}

// Release keeps the last state.
func (h hold) Release(ctx context.Context, state []byte) error {
	h.end()
	// The token stays, so that the second of two attempts finds the row.
	return h.update(ctx, "update uploads set state = $3, used = clock_timestamp(), expires = clock_timestamp()", present(state))
}

// Delete removes the upload.
func (h hold) Delete(ctx context.Context) error {
	h.end()
	err := h.s.persist(ctx, removal, func(ctx context.Context) (bool, error) {
		_, err := h.s.pool.Exec(ctx, "delete from uploads where id = $1 and token = $2", h.name, h.token)
		return true, err
	})
	return err
}
