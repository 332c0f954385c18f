package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/progress"
	"ply/internal/errs"
	"ply/internal/wire"
)

// checkOptions are the flags of check.
type checkOptions struct {
	full, repair, json bool
	mode               string
}

// Check returns the command system check.
func Check(inv *command.Invocation) *cobra.Command {
	var o checkOptions
	c := &cobra.Command{
		Use: "check [OPTIONS]", Short: "Examine and repair what ply stores", Args: command.NoArgs,
		Long: `Examine everything that ply stores: the database, images, layers, blobs, containers, volumes, networks and mounts.

Every finding names an object, what is wrong with it, and the command that heals it. The exit code is 0 when everything
agrees or was repaired, and 1 when a problem remains. Without --full, existence, sizes and structure are compared; with
it, every byte is read. A repair removes nothing that is unknown or could still be used. The engine keeps working
meanwhile. When it does not run, plyd examines the data root without being started.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			mode := o.mode
			if mode == "auto" && (o.json || inv.ErrTerm == nil) {
				mode = "quiet"
			}
			p, err := progress.New(mode, inv.Err, inv.ErrSize())
			if err != nil {
				return err
			}
			messages, err := openCheck(ctx, inv, &o)
			if err != nil {
				return command.EndOf(ctx, err)
			}
			report := &checkReport{out: inv.Out, asJSON: o.json, Findings: []wire.CheckFinding{}}
			err = progress.Show(messages, p, report.add)
			if cerr := messages.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				return command.EndOf(ctx, err)
			}
			return report.end()
		},
	}
	fs := c.Flags()
	fs.BoolVar(&o.full, "full", false, "Read every byte and compare its digest")
	fs.BoolVar(&o.repair, "repair", false, "Heal what can be healed without a loss")
	fs.BoolVar(&o.json, "json", false, "Print the result as JSON")
	progress.Flag(fs, &o.mode)
	return c
}

// openCheck begins an examination and returns its messages: those of the engine or, when no engine is named and none runs, those
// of a plyd that only examines. It never starts an engine.
func openCheck(ctx context.Context, inv *command.Invocation, o *checkOptions) (io.ReadCloser, error) {
	api, err := inv.Client()
	if err != nil {
		return nil, err
	}
	q := url.Values{}
	modes := []string{"json"}
	for name, on := range map[string]bool{"full": o.full, "repair": o.repair} {
		if on {
			q.Set(name, "1")
			modes = append(modes, name)
		}
	}
	resp, err := api.Open(ctx, client.Request{Method: "POST", Path: "/system/check", Query: q})
	if err == nil {
		return resp.Body, nil
	}
	var ce *client.ConnectError
	if !errors.As(err, &ce) || !ce.Absent() {
		return nil, err
	}
	if _, named, herr := inv.Host(); herr != nil || named {
		return nil, errs.New(errs.Unavailable, "%w", err).WithHint("When its plyd does not run, check its data root with: plyd --check --data-root DIR --exec-root DIR")
	}
	slices.Sort(modes)
	return inv.Daemon.Check(ctx, strings.Join(modes, ","), inv.Err)
}

// checkReport prints the findings.
type checkReport struct {
	out    io.Writer
	asJSON bool
	ended  bool

	wire.CheckSummary
	Findings []wire.CheckFinding `json:"findings"`
}

func (r *checkReport) add(raw json.RawMessage) {
	var m wire.Check
	if json.Unmarshal(raw, &m) != nil {
		return
	}
	switch {
	case m.Summary != nil:
		r.CheckSummary, r.ended = *m.Summary, true
	case m.Finding != nil:
		r.Findings = append(r.Findings, *m.Finding)
		if !r.asJSON {
			r.print(m.Finding)
		}
	}
}

func (r *checkReport) print(f *wire.CheckFinding) {
	fmt.Fprintf(r.out, "%s %s: %s\n", f.Kind, f.Object, f.Problem)
	if f.Repaired != "" {
		fmt.Fprintf(r.out, "    repaired: %s\n", f.Repaired)
	} else {
		fmt.Fprintf(r.out, "    to heal it: %s\n", f.Heal)
	}
}

// end prints the result and returns an error with exit code 1 when a problem remains.
func (r *checkReport) end() error {
	if !r.ended {
		return errs.New(errs.Unavailable, "the check was cut off before its end").WithHint("See the log of plyd.")
	}
	left := len(r.Findings) - r.Repaired
	if r.asJSON {
		b, err := json.MarshalIndent(r, "", "    ")
		if err != nil {
			return err
		}
		fmt.Fprintf(r.out, "%s\n", b)
	} else {
		var counts []string
		for _, kind := range slices.Sorted(maps.Keys(r.Checked)) {
			counts = append(counts, fmt.Sprintf("%s %d", kind, r.Checked[kind]))
		}
		fmt.Fprintf(r.out, "Checked: %s\n", strings.Join(counts, ", "))
		switch {
		case len(r.Findings) == 0:
			fmt.Fprintln(r.out, "Everything agrees.")
		case left == 0:
			fmt.Fprintf(r.out, "Findings: %d, all repaired.\n", len(r.Findings))
		default:
			fmt.Fprintf(r.out, "Findings: %d, repaired: %d.\n", len(r.Findings), r.Repaired)
		}
	}
	if left > 0 {
		return &command.ExitError{Code: 1}
	}
	return nil
}
