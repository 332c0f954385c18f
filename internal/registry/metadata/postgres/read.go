package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

const manifestVersion = 1

// manifestRecord is what nothing is searched by. It is not in columns of text because JSON has texts that PostgreSQL does not take.
type manifestRecord struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

func unknownRepository(repo content.Repository) error {
	return errs.New(errs.NotFound, "repository %s does not exist", repo)
}

func unknownManifest(repo content.Repository, d content.Digest) error {
	return errs.New(errs.NotFound, "manifest %s is not in repository %s", d, repo)
}

func unknownTag(repo content.Repository, tag content.Tag) error {
	return errs.New(errs.NotFound, "tag %s is not in repository %s", tag, repo)
}

func unknownBlob(repo content.Repository, d content.Digest) error {
	return errs.New(errs.NotFound, "blob %s is not in repository %s", d, repo)
}

// or replaces the error for a row that does not exist.
func or(err, missing error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return missing
	}
	return err
}

const manifestColumns = "digest, subject, pushed, size, record"

// scanManifest reads the columns of a manifest, and further ones into more.
func scanManifest(row pgx.Row, repo content.Repository, more ...any) (m metadata.Manifest, err error) {
	var b []byte
	if err := row.Scan(append([]any{&m.Digest, &m.Subject, &m.Pushed, &m.Size, &b}, more...)...); err != nil {
		return m, or(err, unknownManifest(repo, m.Digest))
	}
	var r manifestRecord
	err = record.Unmarshal("manifest "+string(repo)+"@"+string(m.Digest), b, manifestVersion, &r)
	m.MediaType, m.ArtifactType, m.Annotations = r.MediaType, r.ArtifactType, r.Annotations
	return m, err
}

// Manifest returns what is known about a manifest.
func (s *Store) Manifest(ctx context.Context, repo content.Repository, d content.Digest) (m metadata.Manifest, err error) {
	return m, s.read(ctx, func(ctx context.Context, q querier) (err error) {
		m, err = scanManifest(q.QueryRow(ctx, "select "+manifestColumns+" from manifests where repository = $1 and digest = $2", repo, d), repo)
		return named(err, repo, d)
	})
}

// named says which manifest does not exist.
func named(err error, repo content.Repository, d content.Digest) error {
	if errors.Is(err, errs.NotFound) {
		return unknownManifest(repo, d)
	}
	return err
}

// Payload returns a manifest with its bytes.
func (s *Store) Payload(ctx context.Context, repo content.Repository, d content.Digest) (m metadata.Manifest, payload []byte, err error) {
	return m, payload, s.read(ctx, func(ctx context.Context, q querier) (err error) {
		m, err = scanManifest(q.QueryRow(ctx, "select "+manifestColumns+", payload from manifests where repository = $1 and digest = $2", repo, d), repo, &payload)
		if err == nil && int64(len(payload)) != m.Size {
			err = errs.New(errs.DataLoss, "manifest %s of repository %s: its bytes are lost", d, repo).WithHint("Push it again.")
		}
		return named(err, repo, d)
	})
}

// Tag returns a tag.
func (s *Store) Tag(ctx context.Context, repo content.Repository, tag content.Tag) (out metadata.Tag, err error) {
	out.Name = tag
	return out, s.read(ctx, func(ctx context.Context, q querier) error {
		err := q.QueryRow(ctx, "select digest, updated from tags where repository = $1 and name = $2", repo, tag).Scan(&out.Digest, &out.Updated)
		return or(err, unknownTag(repo, tag))
	})
}

// column runs a query that returns one column of texts.
func column[T ~string](ctx context.Context, q querier, sql string, args ...any) ([]T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}

// Tags lists tags of a repository that exists.
func (s *Store) Tags(ctx context.Context, repo content.Repository, after content.Tag, limit int) (tags []content.Tag, err error) {
	return tags, s.read(ctx, func(ctx context.Context, q querier) (err error) {
		if err := q.QueryRow(ctx, "select from repositories where name = $1", repo).Scan(); err != nil {
			return or(err, unknownRepository(repo))
		}
		tags, err = column[content.Tag](ctx, q, "select name from tags where repository = $1 and name > $2 order by name limit $3", repo, after, max(limit, 0))
		return err
	})
}

// Repositories lists the repositories that have a manifest.
func (s *Store) Repositories(ctx context.Context, after content.Repository, limit int) (repos []content.Repository, err error) {
	return repos, s.read(ctx, func(ctx context.Context, q querier) (err error) {
		repos, err = column[content.Repository](ctx, q, "select name from repositories where name > $1 order by name limit $2", after, max(limit, 0))
		return err
	})
}

// Referrers lists the manifests that have a subject.
func (s *Store) Referrers(ctx context.Context, repo content.Repository, subject, after content.Digest, limit int) (list []metadata.Manifest, err error) {
	return list, s.read(ctx, func(ctx context.Context, q querier) error {
		rows, err := q.Query(ctx, "select "+manifestColumns+" from manifests where repository = $1 and subject = $2 and subject <> '' and digest > $3 order by digest limit $4",
			repo, subject, after, max(limit, 0))
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (metadata.Manifest, error) { return scanManifest(row, repo) })
		return err
	})
}

// Link returns the link of a repository to a blob.
func (s *Store) Link(ctx context.Context, repo content.Repository, d content.Digest) (l metadata.Link, err error) {
	l = metadata.Link{Repository: repo, Digest: d}
	return l, s.read(ctx, func(ctx context.Context, q querier) error {
		err := q.QueryRow(ctx, "select size, linked from links where repository = $1 and digest = $2", repo, d).Scan(&l.Size, &l.Linked)
		return or(err, unknownBlob(repo, d))
	})
}

// Holders lists the repositories that a blob is linked to.
func (s *Store) Holders(ctx context.Context, d content.Digest, after content.Repository, limit int) (repos []content.Repository, err error) {
	return repos, s.read(ctx, func(ctx context.Context, q querier) (err error) {
		repos, err = column[content.Repository](ctx, q, "select repository from links where digest = $1 and repository > $2 order by repository limit $3", d, after, max(limit, 0))
		return err
	})
}

// Links lists links of all repositories.
func (s *Store) Links(ctx context.Context, after metadata.Link, limit int) (links []metadata.HeldLink, err error) {
	return links, s.read(ctx, func(ctx context.Context, q querier) error {
		rows, err := q.Query(ctx, `
select repository, digest, size, linked, exists (select from manifest_references r where r.repository = l.repository and r.target = l.digest)
from links l where (repository, digest) > ($1, $2) order by repository, digest limit $3`, after.Repository, after.Digest, max(limit, 0))
		if err != nil {
			return err
		}
		links, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l metadata.HeldLink, err error) {
			return l, row.Scan(&l.Repository, &l.Digest, &l.Size, &l.Linked, &l.Held)
		})
		return err
	})
}

// loosePage is how many manifests Loose returns at once.
const loosePage = 500

// Loose lists manifests that nothing needs.
func (s *Store) Loose(ctx context.Context, repo content.Repository, before time.Time, after content.Digest) (loose []content.Digest, next content.Digest, err error) {
	err = s.read(ctx, func(ctx context.Context, q querier) error {
		loose, next = nil, ""
		rows, err := q.Query(ctx, `
select digest from manifests m where repository = $1 and digest > $2 and pushed < $3
and not exists (select from tags t where t.repository = $1 and t.digest = m.digest)
and not exists (select from manifest_references r where r.repository = $1 and r.target = m.digest)
and not exists (select from manifests s where s.repository = $1 and s.digest = m.subject)
order by digest limit $4`, repo, after, before, loosePage)
		if err != nil {
			return err
		}
		loose, err = pgx.CollectRows(rows, pgx.RowTo[content.Digest])
		if len(loose) == loosePage {
			next = loose[loosePage-1]
		}
		return err
	})
	return loose, next, err
}

// Graph returns the manifests of a repository with what they refer to.
func (s *Store) Graph(ctx context.Context, repo content.Repository) (nodes []metadata.Node, err error) {
	return nodes, s.read(ctx, func(ctx context.Context, _ querier) error {
		nodes = nil
		return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `
select digest, subject, size, pushed, exists (select from tags t where t.repository = m.repository and t.digest = m.digest)
from manifests m where repository = $1 order by digest`, repo)
			if err != nil {
				return err
			}
			at := map[content.Digest]int{}
			var n metadata.Node
			_, err = pgx.ForEachRow(rows, []any{&n.Digest, &n.Subject, &n.Size, &n.Pushed, &n.Tagged}, func() error {
				at[n.Digest] = len(nodes)
				nodes = append(nodes, n)
				return nil
			})
			if err != nil {
				return err
			}
			if rows, err = tx.Query(ctx, "select target, manifest from manifest_references where repository = $1", repo); err != nil {
				return err
			}
			var target, from content.Digest
			_, err = pgx.ForEachRow(rows, []any{&target, &from}, func() error {
				if i, ok := at[from]; ok {
					nodes[i].Children = append(nodes[i].Children, target)
				}
				return nil
			})
			return err
		})
	})
}
