package command

import (
	"context"
	"encoding/json"
	"strings"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/errs"
)

// Inspect fetches every object with get, prints those that were found, and returns the errors of the others. tmpl is the value
// of --format.
func (inv *Invocation) Inspect(ctx context.Context, tmpl string, refs []string, get func(ctx context.Context, api *client.Client, ref string) (json.RawMessage, error)) error {
	if tmpl != "" && tmpl != "json" {
		if _, err := format.Parse(tmpl); err != nil {
			return &ExitError{Code: 64, Text: err.Error()}
		}
	}
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	var docs []json.RawMessage
	failed := Each(ctx, refs, func(ref string) error {
		if strings.TrimSpace(ref) == "" {
			return errs.New(errs.Invalid, "invalid name: %q", ref)
		}
		raw, err := get(ctx, api, ref)
		if err != nil {
			return err
		}
		docs = append(docs, raw)
		return nil
	})
	if len(docs) > 0 || tmpl == "" {
		if err := format.Inspect(inv.Out, tmpl, docs); err != nil {
			return err
		}
	}
	return failed
}
