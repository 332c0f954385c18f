package context

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/contexts"
	"ply/internal/cli/format"
)

// detail is what inspect prints of a context.
type detail struct {
	Name        string
	Metadata    map[string]string
	Endpoints   map[string]contexts.Endpoint
	TLSMaterial map[string][]string
	Storage     struct{ MetadataPath, TLSPath string }
}

// Inspect returns the command context inspect.
func Inspect(inv *command.Invocation) *cobra.Command {
	var tmpl string
	c := &cobra.Command{
		Use: "inspect [OPTIONS] [CONTEXT] [CONTEXT...]", Short: "Display detailed information on one or more contexts", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				name, err := inv.ContextName()
				if err != nil {
					return err
				}
				args = []string{name}
			}
			var docs []json.RawMessage
			failed := command.Each(cmd.Context(), args, func(name string) error {
				c, err := get(inv, name)
				if err != nil {
					return err
				}
				d := detail{Name: c.Name, Metadata: map[string]string{}, Endpoints: map[string]contexts.Endpoint{"docker": c.Endpoint}, TLSMaterial: map[string][]string{}}
				if c.Description != "" {
					d.Metadata["Description"] = c.Description
				}
				if len(c.TLS) > 0 {
					d.TLSMaterial["docker"] = slices.Sorted(maps.Keys(c.TLS))
				}
				d.Storage.MetadataPath, d.Storage.TLSPath = "<IN MEMORY>", "<IN MEMORY>"
				if name != contexts.Default {
					d.Storage.MetadataPath, d.Storage.TLSPath = inv.Contexts().MetadataPath(name), inv.Contexts().TLSPath(name)
				}
				raw, err := json.Marshal(d)
				docs = append(docs, raw)
				return err
			})
			if tmpl == "json" {
				tmpl = "{{json .}}"
			}
			if len(docs) > 0 || tmpl == "" {
				if err := format.Inspect(inv.Out, tmpl, docs); err != nil {
					return err
				}
			}
			return failed
		},
	}
	c.Flags().StringVarP(&tmpl, "format", "f", "", format.DocumentHelp)
	return c
}
