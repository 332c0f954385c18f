package checkpoint

import (
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/wire"
)

// row is a row of checkpoint ls.
type row struct {
	format.RowMark
	Name string
}

// Ls returns the command checkpoint ls.
func Ls(inv *command.Invocation) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "ls [OPTIONS] CONTAINER", Aliases: []string{"list"}, Short: "List checkpoints for a container", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var list []wire.Checkpoint
			if err := api.Do(cmd.Context(), client.Request{Path: "/containers/" + args[0] + "/checkpoints", Query: query(dir)}, &list); err != nil {
				return err
			}
			rows := make([]row, len(list))
			for i := range list {
				rows[i].Name = list[i].Name
			}
			return format.Table(inv.Out, "", "{{.Name}}", format.Titles{"Name": "CHECKPOINT NAME"}, rows)
		},
	}
	addDir(c, &dir)
	return c
}

// query returns the parameter of --checkpoint-dir.
func query(dir string) url.Values {
	if dir == "" {
		return nil
	}
	return url.Values{"dir": {dir}}
}
