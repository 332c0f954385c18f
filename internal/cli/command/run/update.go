package run

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// Update returns the command update.
func Update(inv *command.Invocation) *cobra.Command {
	var body wire.UpdateBody
	var restart string
	var publish opts.List
	c := &cobra.Command{
		Use: "update [OPTIONS] CONTAINER [CONTAINER...]", Short: "Update configuration of one or more containers", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if cmd.Flags().NFlag() == 0 {
				return errs.New(errs.Invalid, "you must provide one or more flags when using this command")
			}
			if body.RestartPolicy, err = opts.Restart(restart); err != nil {
				return err
			}
			if body.PortBindings, err = publishedAnew(publish.Values); err != nil {
				return err
			}
			return update(cmd.Context(), inv, args, &body)
		},
	}
	f := c.Flags()
	changeableLimits(f, &body.Resources)
	f.Lookup("cpu-rt-period").Usage = "Limit the CPU real-time period in microseconds"
	f.Lookup("cpu-rt-runtime").Usage = "Limit the CPU real-time runtime in microseconds"
	f.Lookup("memory-swap").Usage = "Swap limit equal to memory plus swap: -1 to enable unlimited swap"
	f.StringVar(&restart, "restart", "", "Restart policy to apply when a container exits")
	f.VarP(&publish, "publish", "p", "Publish these port(s) of a stopped container in place of its own; none publishes no port")
	return c
}

// publishedAnew returns the ports of --publish; nil leaves those of the container.
func publishedAnew(publish []string) (map[string][]wire.PortBinding, error) {
	switch {
	case len(publish) == 0:
		return nil, nil
	case slices.Equal(publish, []string{"none"}):
		return map[string][]wire.PortBinding{}, nil
	}
	_, bound, err := opts.Ports(publish, nil)
	return bound, err
}

// update posts body to every container, and prints the warnings after all names.
func update(ctx context.Context, inv *command.Invocation, args []string, body *wire.UpdateBody) error {
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	var warnings []string
	err = command.Each(ctx, args, func(id string) error {
		var out wire.Created
		if err := api.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + id + "/update", Body: body}, &out); err != nil {
			return err
		}
		fmt.Fprintln(inv.Out, id)
		warnings = append(warnings, out.Warnings...)
		return nil
	})
	if len(warnings) > 0 {
		fmt.Fprintln(inv.Out, strings.Join(warnings, "\n"))
	}
	return err
}
