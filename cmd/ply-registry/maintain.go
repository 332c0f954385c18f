package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/auth"
	"ply/internal/registry/check"
	"ply/internal/registry/config"
	"ply/internal/registry/migrate"
	"ply/internal/registry/server"
)

// settings reads the settings of the registry that a command is about, by the flags of the registry and those of fs.
func settings(fs *pflag.FlagSet, usage string, args []string, stderr io.Writer) (server.Options, error) {
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprintf(stderr, "%s\n%s", usage, fs.FlagUsages()) }
	c, warnings, err := config.Load(fs, args, os.Environ())
	if err != nil {
		return server.Options{}, err
	}
	for _, w := range warnings {
		fmt.Fprintln(stderr, "warning:", w)
	}
	return c.Server(nil), nil
}

// interrupted returns a context that ends with the first SIGINT or SIGTERM.
func interrupted() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
}

const migrateUsage = `Usage:
  ply-registry migrate --from ROOT [FLAG]...
  ply-registry migrate --from-docker-registry ROOT [FLAG]...

Copies a registry into the one that the flags name. The source may serve meanwhile; a second run copies what came since, and one that was
interrupted goes on.
`

// migrateRegistry copies a registry into the one of the settings.
func migrateRegistry(args []string, stdout, stderr io.Writer) (err error) {
	fs := pflag.NewFlagSet("ply-registry migrate", pflag.ContinueOnError)
	from := fs.String("from", "", "root of a ply-registry to copy")
	foreign := fs.String("from-docker-registry", "", "root directory of a docker-registry to copy")
	remove := fs.Bool("delete", false, "remove what the source does not have")
	o, err := settings(fs, migrateUsage, args, stderr)
	if err != nil {
		return err
	}
	if (*from == "") == (*foreign == "") {
		return errs.New(errs.Invalid, "migrate: want --from or --from-docker-registry")
	}
	ctx, stop := interrupted()
	defer stop()
	c := &migrate.Copier{Delete: *remove, Problem: func(err error) { fmt.Fprintln(stderr, "not copied:", err) }}
	if *foreign != "" {
		d, err := migrate.OpenDistribution(*foreign)
		if err != nil {
			return err
		}
		defer d.Close()
		c.From = d
	} else {
		s, err := server.OpenForReading(ctx, server.Options{Root: *from})
		if err != nil {
			return err
		}
		defer errs.Close(&err, s)
		c.From, c.Served = migrate.Stores{Metadata: s.Metadata, Bytes: s.Blobs}, s.Served
	}
	if err := durable.MkdirPrivate(durable.OS, o.Root); err != nil {
		return err
	}
	if c.Metadata, c.Blobs, err = server.OpenStores(ctx, o); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Blobs.Close(), c.Metadata.Close()) }()
	if *from != "" {
		if err := migrateUsers(ctx, *from, o, stdout); err != nil {
			return err
		}
	}
	r, err := c.Run(ctx)
	fmt.Fprintf(stdout, "%d repositories: copied %d blobs with %d bytes, %d links, %d manifests, %d tags, %d other records; deleted %d\n",
		r.Repositories, r.Blobs, r.Bytes, r.Links, r.Manifests, r.Tags, r.Documents, r.Deleted)
	if err == nil && r.Problems > 0 {
		err = errs.New(errs.DataLoss, "%d objects of the source could not be copied", r.Problems)
	}
	return err
}

// migrateUsers copies the users of a root to a registry without users, so that it is not open for a moment.
func migrateUsers(ctx context.Context, from string, o server.Options, stdout io.Writer) (err error) {
	users, err := auth.OpenUsers(from)
	if err != nil {
		return err
	}
	other, end, err := server.OpenUsers(ctx, o)
	if err != nil {
		return err
	}
	defer errs.Close(&err, end)
	n, err := users.CopyTo(other)
	if n > 0 {
		fmt.Fprintf(stdout, "%d users copied\n", n)
	}
	return err
}

const checkUsage = `Usage:
  ply-registry check [--repair] [--quick] [FLAG]...

Compares every blob, manifest, tag and link of a registry with what it names. A registry in its root that is being served is examined by a
copy of its metadata, and is not repaired.
`

// checkRegistry examines the registry of the settings.
func checkRegistry(args []string, stdout, stderr io.Writer) (err error) {
	fs := pflag.NewFlagSet("ply-registry check", pflag.ContinueOnError)
	repair := fs.Bool("repair", false, "remove what cannot be served, so that clients push it again")
	quick := fs.Bool("quick", false, "do not read blobs")
	o, err := settings(fs, checkUsage, args, stderr)
	if err != nil {
		return err
	}
	ctx, stop := interrupted()
	defer stop()
	s, err := server.OpenForReading(ctx, o)
	if err != nil {
		return err
	}
	defer errs.Close(&err, s)
	if s.Served && *repair {
		return errs.New(errs.Precondition, "%s is being served", o.Root).WithHint("Stop the registry, then repair it.")
	}
	c := &check.Checker{Metadata: server.Noted(s.Metadata, o, "@"+systemUser()), Blobs: s.Blobs, Quick: *quick, Repair: *repair, Missing: o.Missing, Found: func(f check.Finding) { fmt.Fprintln(stdout, f) }}
	r, err := c.Run(ctx)
	fmt.Fprintf(stdout, "%d repositories, %d manifests, %d tags, %d links, %d blobs with %d bytes read, %d of them in no repository: %d findings, %d removed\n",
		r.Repositories, r.Manifests, r.Tags, r.Links, r.Blobs, r.Bytes, r.Unlinked, r.Findings, r.Repaired)
	if err == nil && r.Findings > r.Repaired {
		err = errs.New(errs.DataLoss, "%d findings", r.Findings-r.Repaired)
	}
	return err
}

const backupUsage = `Usage:
  ply-registry backup DIRECTORY [FLAG]...

Copies the registry of a root into a directory, which can be served as a root. The registry may be served meanwhile. A second backup into the
same directory copies what is new.
`

// backupRegistry copies the registry of the settings into a directory.
func backupRegistry(args []string, stdout, stderr io.Writer) error {
	fs := pflag.NewFlagSet("ply-registry backup", pflag.ContinueOnError)
	to := ""
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		to, args = args[0], args[1:]
	}
	o, err := settings(fs, backupUsage, args, stderr)
	if err != nil {
		return err
	}
	if to == "" {
		return errs.New(errs.Invalid, "backup: want a directory first")
	}
	ctx, stop := interrupted()
	defer stop()
	r, err := server.Backup(ctx, o, to)
	if err == nil {
		fmt.Fprintf(stdout, "%d blobs with %d bytes copied to %s\n", r.Blobs, r.Bytes, to)
	}
	return err
}
