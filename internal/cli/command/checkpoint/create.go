package checkpoint

import (
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/wire"
)

// Create returns the command checkpoint create.
func Create(inv *command.Invocation) *cobra.Command {
	var dir string
	var leave bool
	c := &cobra.Command{
		Use: "create [OPTIONS] CONTAINER CHECKPOINT", Short: "Create a checkpoint from a running container", Args: command.ExactArgs(2),
		Long: "Save the processes of a running container with CRIU, which must be installed on the engine's host, and end them. " +
			"ply start --checkpoint lets them go on. The files of the container are not part of a checkpoint.",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			r := client.Request{Method: "POST", Path: "/containers/" + args[0] + "/checkpoints",
				Body: wire.CheckpointOptions{CheckpointID: args[1], CheckpointDir: dir, Exit: !leave}}
			if err := api.Do(cmd.Context(), r, nil); err != nil {
				return err
			}
			fmt.Fprintln(inv.Out, args[1])
			return nil
		},
	}
	c.Flags().BoolVar(&leave, "leave-running", false, "Leave the container running after checkpoint")
	addDir(c, &dir)
	return c
}

// addDir adds the flag --checkpoint-dir.
func addDir(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "checkpoint-dir", "", "Use a custom checkpoint storage directory (absolute path on the engine's host)")
}
