package image

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// historyRow is a row of history.
type historyRow struct {
	format.RowMark
	Comment, CreatedAt, CreatedBy, CreatedSince, ID, Size string
}

var historyTitles = format.Titles{"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT"}

// History returns the command history.
func History(inv *command.Invocation) *cobra.Command {
	var human, noTrunc, quiet bool
	var tmpl, platform string
	c := &cobra.Command{
		Use: "history [OPTIONS] IMAGE", Short: "Show the history of an image", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			q, err := opts.PlatformQuery(platform)
			if err != nil {
				return err
			}
			var list []wire.HistoryItem
			if err := api.Do(cmd.Context(), client.Request{Path: "/images/" + args[0] + "/history", Query: q}, &list); err != nil {
				return err
			}
			rows := make([]historyRow, len(list))
			for i := range list {
				rows[i] = historyRowOf(&list[i], inv.Now(), human, !noTrunc)
			}
			def := "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
			if quiet && (tmpl == "" || tmpl == "table") {
				tmpl = "{{.ID}}"
			}
			if !human {
				def = strings.Replace(def, "{{.CreatedSince}}", "{{.CreatedAt}}", 1)
			}
			return format.Table(inv.Out, tmpl, def, historyTitles, rows)
		},
	}
	fs := c.Flags()
	fs.StringVar(&tmpl, "format", "", format.TableHelp)
	fs.BoolVarP(&human, "human", "H", true, "Print sizes and dates in human readable format")
	fs.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&quiet, "quiet", "q", false, "Only show image IDs")
	fs.StringVar(&platform, "platform", "", `Show history for the given platform. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")`)
	return c
}

// historyRowOf returns the row of an entry. Ages are relative to now; human selects ages and rounded sizes, trunc shortens.
func historyRowOf(h *wire.HistoryItem, now time.Time, human, trunc bool) historyRow {
	r := historyRow{ID: h.ID, Comment: h.Comment, CreatedBy: strings.ReplaceAll(h.CreatedBy, "\t", " ")}
	created := time.Unix(h.Created, 0)
	r.CreatedAt = created.Format(time.RFC3339)
	if h.Created <= time.Time.Unix(time.Time{}) {
		r.CreatedAt, r.CreatedSince = "", "N/A"
	} else if human {
		r.CreatedSince = format.Ago(now, created)
	} else {
		r.CreatedSince = r.CreatedAt
	}
	if trunc {
		r.ID = format.ShortID(h.ID)
		r.CreatedBy = format.Ellipsis(r.CreatedBy, 45)
	}
	if human {
		r.Size = format.Size(h.Size)
	} else {
		r.Size = strconv.FormatInt(h.Size, 10)
	}
	return r
}
