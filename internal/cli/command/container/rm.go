package container

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/errs"
)

// Rm returns the command rm, which is `container remove` as well.
func Rm(inv *command.Invocation) *cobra.Command {
	var force, link, volumes bool
	c := &cobra.Command{
		Use:     "rm [OPTIONS] CONTAINER [CONTAINER...]",
		Aliases: []string{"remove"},
		Short:   "Remove one or more containers",
		Long: "Remove one or more containers\n\nBind-mounted host directories and named volumes always stay. Anonymous volumes go\n" +
			"only with `rm -v`, `run --rm` and `volume prune`.",
		Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			q := url.Values{}
			for name, on := range map[string]bool{"force": force, "link": link, "v": volumes} {
				if on {
					q.Set(name, "1")
				}
			}
			return concurrently(inv, args, func(id string) error {
				id = strings.Trim(id, "/")
				if id == "" {
					return errs.New(errs.Invalid, "container name cannot be empty")
				}
				err := api.Do(ctx, client.Request{Method: "DELETE", Path: "/containers/" + id, Query: q}, nil)
				if force && client.IsNotFound(err) {
					fmt.Fprintln(inv.Err, err)
					return errQuiet
				}
				return err
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the removal of a running container (uses SIGKILL)")
	c.Flags().BoolVarP(&link, "link", "l", false, "Remove the specified link")
	c.Flags().BoolVarP(&volumes, "volumes", "v", false, "Remove anonymous volumes associated with the container")
	return c
}
