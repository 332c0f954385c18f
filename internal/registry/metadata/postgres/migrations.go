package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"ply/internal/errs"
)

// migrations bring the tables from one version to the next. A release only appends to them. Names are compared by their bytes.
var migrations = []string{
	// repositories are those with a manifest. A record has what nothing is searched by. A lease is held until it expires; its token
	// says by whom.
	`
create table repositories (
	name text collate "C" primary key,
	created timestamptz not null
);
create table manifests (
	repository text collate "C" not null,
	digest text collate "C" not null,
	subject text collate "C" not null,
	pushed timestamptz not null,
	touched timestamptz,
	size bigint not null,
	record bytea not null,
	payload bytea not null,
	primary key (repository, digest)
);
create index manifests_subject on manifests (repository, subject, digest) where subject <> '';
create table manifest_references (
	repository text collate "C" not null,
	target text collate "C" not null,
	manifest text collate "C" not null,
	primary key (repository, target, manifest)
);
create index manifest_references_manifest on manifest_references (repository, manifest);
create table tags (
	repository text collate "C" not null,
	name text collate "C" not null,
	digest text collate "C" not null,
	updated timestamptz not null,
	primary key (repository, name)
);
create index tags_digest on tags (repository, digest);
create table links (
	repository text collate "C" not null,
	digest text collate "C" not null,
	size bigint not null,
	linked timestamptz not null,
	touched timestamptz,
	primary key (repository, digest)
);
create index links_digest on links (digest, repository);
create table leases (
	name text collate "C" primary key,
	token text not null,
	expires timestamptz not null
);
create table uploads (
	id text collate "C" primary key,
	state bytea not null,
	used timestamptz not null,
	token text not null,
	expires timestamptz not null
);
create index uploads_used on uploads (used);
create table documents (
	kind text collate "C" not null,
	key bytea not null,
	value bytea not null,
	primary key (kind, key)
);
`,
}

// migrationLock is the advisory lock of replicas that change the tables.
const migrationLock = 0x706c79

// migrate brings the tables up to date. Replicas that start at once wait for the first of them.
func migrate(ctx context.Context, s *Store) error {
	return s.write(ctx, harmless, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock($1)", migrationLock); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "create table if not exists schema_version (version int not null)"); err != nil {
			return err
		}
		var version int
		if err := tx.QueryRow(ctx, "select coalesce(max(version), 0) from schema_version").Scan(&version); err != nil {
			return err
		}
		if version > len(migrations) {
			return errs.New(errs.Precondition, "the database has version %d, this release knows %d", version, len(migrations)).WithHint("Use the release that wrote it, or a newer one.")
		}
		for ; version < len(migrations); version++ {
			if _, err := tx.Exec(ctx, migrations[version]); err != nil {
				return errs.New(errs.Internal, "database: change to version %d: %w", version+1, err)
			}
			if _, err := tx.Exec(ctx, "insert into schema_version values ($1)", version+1); err != nil {
				return err
			}
		}
		return nil
	})
}
