package context

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/contexts"
	"ply/internal/cli/format"
)

// row is a row of ls.
type row struct {
	format.RowMark
	Name, Description, DockerEndpoint, Error string
	Current                                  bool
}

var titles = format.Titles{"Name": "NAME", "Description": "DESCRIPTION", "Error": "ERROR", "DockerEndpoint": "DOCKER ENDPOINT"}

// Ls returns the command context ls.
func Ls(inv *command.Invocation) *cobra.Command {
	var tmpl string
	var quiet bool
	c := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List contexts", Args: command.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			current, err := inv.ContextName()
			if err != nil {
				return err
			}
			host, err := inv.DefaultHost()
			if err != nil {
				return err
			}
			rows := []row{{Name: contexts.Default, Description: "Current DOCKER_HOST based configuration", DockerEndpoint: host}}
			list, damaged := inv.Contexts().List()
			known := current == contexts.Default
			for _, c := range list {
				rows = append(rows, row{Name: c.Name, Description: trim(c.Description), DockerEndpoint: c.Endpoint.Host})
				known = known || c.Name == current
			}
			if !known {
				rows = append(rows, row{Name: current, Error: "context does not exist"})
			}
			slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.Name, b.Name) })
			for i := range rows {
				rows[i].Current = rows[i].Name == current
			}
			for _, err := range damaged {
				fmt.Fprintf(inv.Err, "WARNING: %v\n", err)
			}
			if quiet && tmpl == "" {
				tmpl = "{{.Name}}"
			}
			if err := format.Table(inv.Out, tmpl, "{{.Name}}{{if .Current}} *{{end}}\t{{.Description}}\t{{.DockerEndpoint}}\t{{.Error}}", titles, rows); err != nil {
				return err
			}
			if variable := command.HostVariable(); variable != "" && !quiet && tmpl == "" {
				fmt.Fprintf(inv.Err, "Warning: %s environment variable overrides the active context. To use a context, either set the global --context flag, or unset %s environment variable.\n", variable, variable)
			}
			return nil
		},
	}
	c.Flags().StringVar(&tmpl, "format", "", format.TableHelp)
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only show context names")
	return c
}
