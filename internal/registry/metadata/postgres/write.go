package postgres

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// change runs a transaction that changes manifests or tags of a repository, alone.
func (s *Store) change(ctx context.Context, repo content.Repository, again repeat, fn func(context.Context, pgx.Tx) error) error {
	return s.write(ctx, again, func(ctx context.Context, tx pgx.Tx) error {
		// Repositories whose hashes are equal only wait for each other.
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtextextended($1, 0))", repo); err != nil {
			return err
		}
		return fn(ctx, tx)
	})
}

func texts[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = string(v)
	}
	return out
}

// PutManifest stores a manifest and its tags.
func (s *Store) PutManifest(ctx context.Context, w metadata.Write) error {
	again := harmless
	if w.Condition.Absent || w.Condition.Any || w.Condition.OneOf != nil {
		again = never // the second run would see what the first one did
	}
	return s.change(ctx, w.Repository, again, func(ctx context.Context, tx pgx.Tx) error {
		for _, tag := range w.Tags {
			if err := holds(ctx, tx, w.Repository, tag, w.Condition); err != nil {
				return err
			}
		}
		for _, tag := range w.Fixed {
			if err := fixed(ctx, tx, w.Repository, tag, w.Digest); err != nil {
				return err
			}
		}
		if !w.Missing {
			missing, err := missing(ctx, tx, w.Repository, w.Parsed)
			if err != nil {
				return err
			}
			if !missing.Empty() {
				return missing
			}
		}
		return putManifest(ctx, tx, w)
	})
}

// holds checks a condition on a tag.
func holds(ctx context.Context, tx pgx.Tx, repo content.Repository, tag content.Tag, c metadata.Condition) error {
	if !c.Absent && !c.Any && c.OneOf == nil {
		return nil
	}
	var d content.Digest
	err := tx.QueryRow(ctx, "select digest from tags where repository = $1 and name = $2", repo, tag).Scan(&d)
	if err = or(err, unknownTag(repo, tag)); err != nil && !isRefusal(err) {
		return err
	}
	switch ok := err == nil; {
	case c.Absent && ok:
		return errs.New(errs.Precondition, "tag %s of repository %s exists", tag, repo)
	case c.Any && !ok, c.OneOf != nil && !(ok && slices.Contains(c.OneOf, d)):
		return errs.New(errs.Precondition, "tag %s of repository %s is not what the request expects", tag, repo)
	}
	return nil
}

// fixed refuses to move a tag.
func fixed(ctx context.Context, tx pgx.Tx, repo content.Repository, tag content.Tag, d content.Digest) error {
	var old content.Digest
	err := tx.QueryRow(ctx, "select digest from tags where repository = $1 and name = $2", repo, tag).Scan(&old)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil && old != d {
		err = errs.New(errs.Conflict, "tag %s of repository %s is immutable and points at %s", tag, repo, old)
	}
	return err
}

// missing returns what a manifest refers to and the repository does not have. A subject may be missing. The links that it finds stay
// until the transaction ends; manifests stay because of the lock of the repository.
func missing(ctx context.Context, tx pgx.Tx, repo content.Repository, m *content.Manifest) (*metadata.MissingError, error) {
	e := &metadata.MissingError{}
	all := texts(targets(m))
	if len(all) == 0 {
		return e, nil
	}
	slices.Sort(all) // so that transactions lock rows in one order
	linked, err := column[content.Digest](ctx, tx, "select digest from links where repository = $1 and digest = any($2) order by digest for key share", repo, all)
	if err != nil {
		return nil, err
	}
	has := map[content.Digest]bool{}
	for _, d := range linked {
		has[d] = true
	}
	for _, b := range m.Blobs {
		if !b.Foreign() && !has[b.Digest] {
			e.Blobs = append(e.Blobs, b.Digest)
		}
	}
	if len(m.Manifests) == 0 {
		return e, nil
	}
	children, err := column[content.Digest](ctx, tx, "select digest from manifests where repository = $1 and digest = any($2)", repo, all)
	if err != nil {
		return nil, err
	}
	for _, d := range children {
		has[d] = true
	}
	for _, c := range m.Manifests {
		if !has[c.Digest] {
			e.Manifests = append(e.Manifests, c.Digest)
		}
	}
	return e, nil
}

// targets returns the digests that a manifest refers to, each once.
func targets(m *content.Manifest) (list []content.Digest) {
	seen := map[content.Digest]bool{}
	for _, ds := range [][]content.Descriptor{m.Blobs, m.Manifests} {
		for _, d := range ds {
			if !seen[d.Digest] {
				seen[d.Digest] = true
				list = append(list, d.Digest)
			}
		}
	}
	return list
}

func putManifest(ctx context.Context, tx pgx.Tx, w metadata.Write) error {
	repo, d, m := w.Repository, w.Digest, w.Parsed
	r := manifestRecord{MediaType: m.MediaType, ArtifactType: m.ArtifactType}
	subject := content.Digest("")
	if m.Subject != nil {
		subject, r.Annotations = m.Subject.Digest, m.Annotations
	}
	b, err := record.Marshal(manifestVersion, r)
	if err != nil {
		return err
	}
	payload := w.Payload
	if payload == nil {
		payload = []byte{}
	}
	// One round trip for everything.
	batch := &pgx.Batch{}
	batch.Queue("insert into repositories values ($1, clock_timestamp()) on conflict do nothing", repo)
	batch.Queue(`
insert into manifests (repository, digest, subject, pushed, size, record, payload) values ($1, $2, $3, clock_timestamp(), $4, $5, $6)
on conflict (repository, digest) do update set subject = excluded.subject, pushed = excluded.pushed, size = excluded.size, record = excluded.record, payload = excluded.payload`,
		repo, d, subject, len(w.Payload), b, payload)
	if all := texts(targets(m)); len(all) > 0 {
		batch.Queue("insert into manifest_references select $1, unnest($2::text[]), $3 on conflict do nothing", repo, all, d)
	}
	if len(w.Tags) > 0 {
		batch.Queue(`
insert into tags select $1, name, $3, clock_timestamp() from (select distinct unnest($2::text[]) as name) n
on conflict (repository, name) do update set digest = excluded.digest, updated = excluded.updated`, repo, texts(w.Tags), d)
	}
	return tx.SendBatch(ctx, batch).Close()
}

// DeleteTag removes a tag.
func (s *Store) DeleteTag(ctx context.Context, repo content.Repository, tag content.Tag, c metadata.Condition) error {
	return s.change(ctx, repo, removal, func(ctx context.Context, tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, "select from tags where repository = $1 and name = $2", repo, tag).Scan(); err != nil {
			return or(err, unknownTag(repo, tag))
		}
		if err := holds(ctx, tx, repo, tag, c); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "delete from tags where repository = $1 and name = $2", repo, tag)
		return err
	})
}

// DeleteManifest removes a manifest and its tags.
func (s *Store) DeleteManifest(ctx context.Context, repo content.Repository, d content.Digest) error {
	return s.change(ctx, repo, removal, func(ctx context.Context, tx pgx.Tx) error {
		t, err := tx.Exec(ctx, "delete from manifests where repository = $1 and digest = $2", repo, d)
		if err != nil {
			return err
		}
		if t.RowsAffected() == 0 {
			return unknownManifest(repo, d)
		}
		return forget(ctx, tx, repo, d)
	})
}

// forget removes what belongs to a manifest that was removed, and its repository with the last one.
func forget(ctx context.Context, tx pgx.Tx, repo content.Repository, d content.Digest) error {
	batch := &pgx.Batch{}
	batch.Queue("delete from tags where repository = $1 and digest = $2", repo, d)
	batch.Queue("delete from manifest_references where repository = $1 and manifest = $2", repo, d)
	batch.Queue("delete from repositories where name = $1 and not exists (select from manifests where repository = $1)", repo)
	return tx.SendBatch(ctx, batch).Close()
}

// DeleteRepository removes everything of a repository.
func (s *Store) DeleteRepository(ctx context.Context, repo content.Repository) error {
	return s.change(ctx, repo, removal, func(ctx context.Context, tx pgx.Tx) error {
		n := int64(0)
		for _, sql := range []string{
			"delete from tags where repository = $1", "delete from manifest_references where repository = $1", "delete from manifests where repository = $1",
			"delete from links where repository = $1", "delete from repositories where name = $1",
		} {
			t, err := tx.Exec(ctx, sql, repo)
			if err != nil {
				return err
			}
			n += t.RowsAffected()
		}
		if n == 0 {
			return unknownRepository(repo)
		}
		return nil
	})
}

const putLink = `
insert into links (repository, digest, size, linked) values ($1, $2, $3, clock_timestamp())
on conflict (repository, digest) do update set size = excluded.size, linked = excluded.linked`

// PutLink links a blob to a repository. When this process has locked the digest, the link is stored only while it has the lease.
func (s *Store) PutLink(ctx context.Context, l metadata.Link) error {
	return s.write(ctx, harmless, func(ctx context.Context, tx pgx.Tx) error {
		if held := s.locks.of(l.Digest); held != nil {
			if err := held.check(ctx, tx); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, putLink, l.Repository, l.Digest, l.Size)
		return err
	})
}

// Mount links a blob of another repository, whose link stays until the transaction ends; so the bytes stay.
func (s *Store) Mount(ctx context.Context, from, to content.Repository, d content.Digest) error {
	return s.write(ctx, harmless, func(ctx context.Context, tx pgx.Tx) error {
		var size int64
		err := tx.QueryRow(ctx, "select size from links where repository = $1 and digest = $2 for key share", from, d).Scan(&size)
		if err != nil {
			return or(err, unknownBlob(from, d))
		}
		_, err = tx.Exec(ctx, putLink, to, d, size)
		return err
	})
}

// DeleteLink removes a link.
func (s *Store) DeleteLink(ctx context.Context, repo content.Repository, d content.Digest) error {
	return s.write(ctx, removal, func(ctx context.Context, tx pgx.Tx) error {
		t, err := tx.Exec(ctx, "delete from links where repository = $1 and digest = $2", repo, d)
		if err == nil && t.RowsAffected() == 0 {
			err = unknownBlob(repo, d)
		}
		return err
	})
}

// touchEvery is how rarely a process writes that an object was touched. A collection takes an object for touched that much later.
const touchEvery = 30 * time.Second

// CollectLink removes a link that nothing needs. A row that a transaction has locked is judged again when that transaction ends.
func (s *Store) CollectLink(ctx context.Context, repo content.Repository, d content.Digest, before time.Time) (done bool, err error) {
	err = s.change(ctx, repo, harmless, func(ctx context.Context, tx pgx.Tx) error {
		t, err := tx.Exec(ctx, `
delete from links where repository = $1 and digest = $2 and linked < $3 and coalesce(touched < $4, true)
and not exists (select from manifest_references where repository = $1 and target = $2)`, repo, d, before, before.Add(-touchEvery))
		done = t.RowsAffected() > 0
		return err
	})
	return done && err == nil, err
}

// CollectManifest removes a manifest that nothing needs.
func (s *Store) CollectManifest(ctx context.Context, repo content.Repository, d content.Digest, before time.Time) (done bool, err error) {
	err = s.change(ctx, repo, harmless, func(ctx context.Context, tx pgx.Tx) error {
		t, err := tx.Exec(ctx, `
delete from manifests m where repository = $1 and digest = $2 and pushed < $3 and coalesce(touched < $4, true)
and not exists (select from tags where repository = $1 and digest = $2)
and not exists (select from manifest_references where repository = $1 and target = $2)
and not exists (select from manifests s where s.repository = $1 and s.digest = m.subject)`, repo, d, before, before.Add(-touchEvery))
		if done = t.RowsAffected() > 0; err != nil || !done {
			return err
		}
		return forget(ctx, tx, repo, d)
	})
	return done && err == nil, err
}

// Touch protects an object from collections for the grace time.
func (s *Store) Touch(ctx context.Context, repo content.Repository, d content.Digest) error {
	if s.touched.recent(repo, d) {
		return nil
	}
	n := int64(0)
	err := s.read(ctx, func(ctx context.Context, q querier) error {
		n = 0
		for _, sql := range []string{
			"update links set touched = clock_timestamp() where repository = $1 and digest = $2",
			"update manifests set touched = clock_timestamp() where repository = $1 and digest = $2",
		} {
			t, err := q.Exec(ctx, sql, repo, d)
			if err != nil {
				return err
			}
			n += t.RowsAffected()
		}
		return nil
	})
	if err == nil && n > 0 {
		s.touched.add(repo, d)
	}
	return err
}
