package container

import (
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Kill returns the command kill.
func Kill(inv *command.Invocation) *cobra.Command {
	var signal string
	c := &cobra.Command{
		Use: "kill [OPTIONS] CONTAINER [CONTAINER...]", Short: "Kill one or more running containers", Args: command.MinArgs(1),
		RunE: postEach(inv, "kill", func(*cobra.Command) (url.Values, error) {
			s := signal
			if s == "" {
				s = "KILL"
			}
			return url.Values{"signal": {s}}, nil
		}),
	}
	c.Flags().StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	return c
}
