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

// Rename returns the command rename.
func Rename(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NEW_NAME", Short: "Rename a container", Args: command.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			oldName, newName := strings.TrimSpace(args[0]), strings.TrimSpace(args[1])
			if oldName == "" || newName == "" {
				return errs.New(errs.Invalid, "Error: Neither old nor new names may be empty")
			}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			r := client.Request{Method: "POST", Path: "/containers/" + oldName + "/rename", Query: url.Values{"name": {newName}}}
			if err := api.Do(cmd.Context(), r, nil); err != nil {
				return fmt.Errorf("%w\nError: failed to rename container named %s", err, oldName)
			}
			return nil
		},
	}
}
