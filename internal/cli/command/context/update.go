package context

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Update returns the command context update.
func Update(inv *command.Invocation) *cobra.Command {
	var description string
	var docker map[string]string
	c := &cobra.Command{
		Use: "update [OPTIONS] CONTEXT", Short: "Update a context", Args: command.ExactArgs(1),
		Long: "Update a context\n\nKeys of --docker:\n\n" + endpointHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			store := inv.Contexts()
			c, err := store.Get(args[0])
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("description") {
				c.Description = description
			}
			if len(docker) > 0 {
				if err := setEndpoint(inv, c, docker); err != nil {
					return err
				}
			}
			if err := store.Put(c); err != nil {
				return err
			}
			return done(inv, c.Name, "Successfully updated context %q")
		},
	}
	c.Flags().StringVar(&description, "description", "", "Description of the context")
	c.Flags().StringToStringVar(&docker, "docker", nil, "Set the docker endpoint")
	return c
}
