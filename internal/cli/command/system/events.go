package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// event is one line of /events.
type event wire.Event

// line returns the line that is printed without --format.
func (e *event) line() string {
	t := time.Unix(e.Time, 0)
	if e.TimeNano != 0 {
		t = time.Unix(0, e.TimeNano)
	}
	s := fmt.Sprintf("%s %s %s %s", t.Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.Actor.ID)
	if len(e.Actor.Attributes) > 0 {
		attrs := opts.Pairs(e.Actor.Attributes)
		slices.Sort(attrs)
		s += " (" + strings.Join(attrs, ", ") + ")"
	}
	return s
}

// noEOF returns nil for the end of the stream, and other errors as they are.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// reopen asks for the events that follow the last one, when the engine went away.
func reopen(ctx context.Context, inv *command.Invocation, api *client.Client, q url.Values, last int64, err error) (*http.Response, error) {
	if last != 0 {
		q.Set("since", fmt.Sprintf("%d.%09d", (last+1)/1e9, (last+1)%1e9))
	}
	for client.Cut(err) && ctx.Err() == nil {
		if err := api.AwaitReturn(ctx, inv.Err); err != nil {
			return nil, err
		}
		var resp *http.Response
		if resp, err = api.Open(ctx, client.Request{Path: "/events", Query: q}); err == nil {
			return resp, nil
		}
	}
	return nil, err
}

// Events returns the command events.
func Events(inv *command.Invocation) *cobra.Command {
	var tmpl, since, until string
	var filters opts.Filters
	c := &cobra.Command{
		Use: "events [OPTIONS]", Short: "Get real time events from the server", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			q := url.Values{}
			for name, v := range map[string]string{"since": since, "until": until} {
				if v == "" {
					continue
				}
				ts, err := opts.Timestamp(v, inv.Now())
				if err != nil {
					return err
				}
				q.Set(name, ts)
			}
			if err := filters.Query(q); err != nil {
				return err
			}
			if tmpl == "json" {
				tmpl = "{{json .}}"
			}
			parsed, err := format.Parse(tmpl)
			if err != nil {
				return &command.ExitError{Code: 64, Text: err.Error()}
			}
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			resp, err := api.Open(ctx, client.Request{Path: "/events", Query: q})
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			dec := json.NewDecoder(resp.Body)
			var last int64 // time of the last event; 0 = as since says
			if since == "" {
				last = inv.Now().UnixNano()
			}
			for {
				var raw json.RawMessage
				if err := dec.Decode(&raw); err != nil {
					if errors.Is(err, io.EOF) || ctx.Err() != nil || !client.Cut(err) {
						return command.EndOf(ctx, noEOF(err))
					}
					if resp, err = reopen(ctx, inv, api, q, last, err); err != nil {
						return command.EndOf(ctx, err)
					}
					dec = json.NewDecoder(resp.Body)
					continue
				}
				var at struct{ TimeNano int64 }
				if json.Unmarshal(raw, &at) == nil {
					last = max(last, at.TimeNano)
				}
				if tmpl != "" {
					if err := format.Execute(inv.Out, parsed, raw); err != nil {
						return err
					}
					continue
				}
				var e event
				if err := json.Unmarshal(raw, &e); err != nil {
					return err
				}
				if _, err := fmt.Fprintln(inv.Out, e.line()); err != nil {
					return err
				}
			}
		},
	}
	c.Flags().VarP(&filters, "filter", "f", "Filter output based on conditions provided")
	c.Flags().StringVar(&tmpl, "format", "", format.DocumentHelp)
	c.Flags().StringVar(&since, "since", "", "Show all events created since timestamp")
	c.Flags().StringVar(&until, "until", "", "Stream events until this timestamp")
	return c
}
