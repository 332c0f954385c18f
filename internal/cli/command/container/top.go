package container

import (
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/wire"
)

// Top returns the command top.
func Top(inv *command.Invocation) *cobra.Command {
	c := &cobra.Command{
		Use: "top CONTAINER [ps OPTIONS]", Short: "Display the running processes of a container", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			q := url.Values{}
			if len(args) > 1 {
				q.Set("ps_args", strings.Join(args[1:], " "))
			}
			var out wire.Processes
			if err := api.Do(cmd.Context(), client.Request{Path: "/containers/" + args[0] + "/top", Query: q}, &out); err != nil {
				return err
			}
			return format.Columns(inv.Out, 20, append([][]string{out.Titles}, out.Processes...))
		},
	}
	command.NoInterspersed(c)
	return c
}
