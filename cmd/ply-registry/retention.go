package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"ply/internal/errs"
	"ply/internal/registry/config"
	"ply/internal/registry/server"
)

// retention removes the tags that the rules do not keep, at the registry that serves the root, or in the stores when none does.
func retention(args []string, stdout, stderr io.Writer) error {
	fs := pflag.NewFlagSet("ply-registry retention", pflag.ContinueOnError)
	fs.SetOutput(stderr)
	dryRun := fs.Bool("dry-run", false, "show which tags would be removed, and remove none")
	asJSON := fs.Bool("json", false, "write a line of JSON per tag")
	fs.Usage = func() {
		fmt.Fprintf(stderr, "Usage:\n  ply-registry retention [--dry-run] [--json] [FLAG]... [CONFIG]\n\nThe rules are those of the settings, such as --retention 'team/**:pr-*=10/30d'.\n\n%s", fs.FlagUsages())
	}
	c, warnings, err := config.Load(fs, args, os.Environ())
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintln(stderr, "ply-registry:", w)
	}
	o := c.Server(slog.New(slog.DiscardHandler))
	if len(o.Policy.Retention) == 0 {
		return errs.New(errs.Invalid, "retention: there are no rules").WithHint("Use --retention.")
	}
	lines, err := server.AskRetention(context.Background(), o, "@"+systemUser(), *dryRun)
	if errors.Is(err, errs.Unavailable) {
		r, w := io.Pipe()
		go func() {
			_ = w.CloseWithError(server.Retain(context.Background(), o, "@"+systemUser(), *dryRun, json.NewEncoder(w)))
		}()
		lines, err = r, nil
	}
	if err != nil {
		return err
	}
	defer lines.Close()
	return showRetention(lines, stdout, *dryRun, *asJSON)
}

func showRetention(lines io.Reader, stdout io.Writer, dryRun, asJSON bool) error {
	w := tabwriter.NewWriter(stdout, 0, 8, 3, ' ', 0)
	verb := "removed"
	if dryRun {
		verb = "would be removed"
	}
	for dec := json.NewDecoder(lines); ; {
		var l server.RetentionLine
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			return w.Flush()
		} else if err != nil {
			return errors.Join(err, w.Flush())
		}
		if l.Error != "" {
			return errors.Join(errs.New(errs.Internal, "%s", l.Error), w.Flush())
		}
		switch {
		case asJSON:
			if err := json.NewEncoder(stdout).Encode(l); err != nil {
				return err
			}
		case l.Removal != nil:
			fmt.Fprintf(w, "%s:%s\t%s\t%s\n", l.Repository, l.Tag, l.Updated.Format("2006-01-02 15:04"), verb)
		case l.Outcome != nil:
			fmt.Fprintf(w, "%d tags %s\n", l.Outcome.Tags, verb)
		}
	}
}
