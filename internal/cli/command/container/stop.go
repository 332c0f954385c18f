package container

import (
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/errs"
)

// Stop returns the command stop.
func Stop(inv *command.Invocation) *cobra.Command {
	return newStop(inv, "stop", "Stop one or more running containers")
}

// newStop returns the command stop or restart: both stop a container, with the same flags.
func newStop(inv *command.Invocation, verb, short string) *cobra.Command {
	var signal string
	var timeout int
	c := &cobra.Command{
		Use: verb + " [OPTIONS] CONTAINER [CONTAINER...]", Short: short, Args: command.MinArgs(1),
		RunE: postEach(inv, verb, func(cmd *cobra.Command) (url.Values, error) {
			q := url.Values{}
			if signal != "" {
				q.Set("signal", signal)
			}
			fs := cmd.Flags()
			if fs.Changed("timeout") && fs.Changed("time") {
				return nil, errs.New(errs.Invalid, "conflicting options: cannot specify both --timeout and --time")
			}
			if fs.Changed("timeout") || fs.Changed("time") {
				q.Set("t", strconv.Itoa(timeout))
			}
			return q, nil
		}),
	}
	fs := c.Flags()
	fs.StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	fs.IntVarP(&timeout, "timeout", "t", 0, "Seconds to wait before killing the container")
	fs.IntVar(&timeout, "time", 0, "Seconds to wait before killing the container")
	fs.Lookup("time").Hidden = true
	return c
}
