package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"ply/internal/errs"
	"ply/internal/registry/metadata"
)

// Document returns the value of a document.
func (s *Store) Document(ctx context.Context, kind, key string) (value []byte, err error) {
	return value, s.read(ctx, func(ctx context.Context, q querier) error {
		err := q.QueryRow(ctx, "select value from documents where kind = $1 and key = $2", kind, []byte(key)).Scan(&value)
		return or(err, errs.New(errs.NotFound, "document %s %s does not exist", kind, key))
	})
}

// Documents lists documents of a kind, or the kinds.
func (s *Store) Documents(ctx context.Context, kind, after string, limit int) (docs []metadata.Document, err error) {
	return docs, s.read(ctx, func(ctx context.Context, q querier) error {
		sql, args := "select key, value from documents where kind = $1 and key > $2 order by key limit $3", []any{kind, []byte(after), max(limit, 0)}
		if kind == "" {
			sql, args = "select distinct convert_to(kind, 'UTF8') as key, null::bytea from documents where kind > $1 order by key limit $2", []any{after, max(limit, 0)}
		}
		rows, err := q.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		docs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (d metadata.Document, err error) {
			var key []byte
			err = row.Scan(&key, &d.Value)
			d.Key = string(key)
			return d, err
		})
		return err
	})
}

const putDocument = "insert into documents values ($1, $2, $3) on conflict (kind, key) do update set value = excluded.value"

// PutDocuments stores and removes documents.
func (s *Store) PutDocuments(ctx context.Context, kind string, docs ...metadata.Document) error {
	return s.write(ctx, harmless, func(ctx context.Context, tx pgx.Tx) error {
		batch := &pgx.Batch{}
		for _, d := range docs {
			if d.Value == nil {
				batch.Queue("delete from documents where kind = $1 and key = $2", kind, []byte(d.Key))
			} else {
				batch.Queue(putDocument, kind, []byte(d.Key), d.Value)
			}
		}
		return tx.SendBatch(ctx, batch).Close()
	})
}

// SwapDocument stores or removes a document that has a known value.
func (s *Store) SwapDocument(ctx context.Context, kind, key string, old, value []byte) error {
	return s.write(ctx, never, func(ctx context.Context, tx pgx.Tx) error {
		sql, args := "", []any{kind, []byte(key)}
		switch {
		case old == nil && value == nil:
			sql = "select where not exists (select from documents where kind = $1 and key = $2)"
		case old == nil:
			sql, args = "insert into documents values ($1, $2, $3) on conflict do nothing", append(args, value)
		case value == nil:
			sql, args = "delete from documents where kind = $1 and key = $2 and value = $3", append(args, old)
		default:
			sql, args = "update documents set value = $4 where kind = $1 and key = $2 and value = $3", append(args, old, value)
		}
		t, err := tx.Exec(ctx, sql, args...)
		if err == nil && t.RowsAffected() == 0 {
			err = errs.New(errs.Precondition, "document %s %s has changed", kind, key)
		}
		return err
	})
}
