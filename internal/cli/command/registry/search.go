package registry

import (
	"encoding/json"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// searchRow is a row of search. The exported fields are the names that templates of --format use.
type searchRow struct {
	format.RowMark
	Description, IsAutomated, IsOfficial, Name, StarCount string
}

var searchTitles = format.Titles{"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL", "IsAutomated": "AUTOMATED"}

// Search returns the command search.
func Search(inv *command.Invocation) *cobra.Command {
	var tmpl string
	var limit int
	var noTrunc bool
	var filters opts.Filters
	c := &cobra.Command{
		Use: "search [OPTIONS] TERM", Short: "Search Docker Hub for images", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"term": {args[0]}}
			if limit > 0 {
				q.Set("limit", strconv.Itoa(limit))
			}
			if err := filters.Query(q); err != nil {
				return err
			}
			domain := ""
			if host, _, ok := strings.Cut(args[0], "/"); ok && strings.ContainsAny(host, ".:") || host == "localhost" {
				domain = host
			}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if err := api.Do(cmd.Context(), client.Request{Path: "/images/search", Query: q, Header: inv.AuthHeader(cmd.Context(), domain)}, &raw); err != nil {
				return err
			}
			var list []wire.SearchResult
			if err := json.Unmarshal(raw, &list); err != nil {
				return err
			}
			rows := make([]searchRow, len(list))
			for i, r := range list {
				rows[i] = searchRow{Name: r.Name, Description: strings.Join(strings.Fields(r.Description), " "), StarCount: strconv.Itoa(r.Stars)}
				if !noTrunc {
					rows[i].Description = format.Ellipsis(rows[i].Description, 45)
				}
				if r.Official {
					rows[i].IsOfficial = "[OK]"
				}
				if r.Automated {
					rows[i].IsAutomated = "[OK]"
				}
			}
			return format.Table(inv.Out, tmpl, "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}", searchTitles, rows)
		},
	}
	c.Flags().VarP(&filters, "filter", "f", "Filter output based on conditions provided")
	c.Flags().StringVar(&tmpl, "format", "", "Pretty-print search using a Go template")
	c.Flags().IntVar(&limit, "limit", 0, "Max number of search results")
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	return c
}
