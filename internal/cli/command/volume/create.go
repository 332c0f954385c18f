package volume

import (
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// Create returns the command volume create.
func Create(inv *command.Invocation) *cobra.Command {
	var driver, name string
	var labels opts.List
	labels.Check = opts.Label
	var options opts.Map
	c := &cobra.Command{
		Use: "create [OPTIONS] [VOLUME]", Short: "Create a volume", Args: command.MaxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if name != "" {
					return errs.New(errs.Invalid, "conflicting options: cannot specify a volume-name through both --name and as a positional arg")
				}
				name = args[0]
			}
			body := map[string]any{"Name": name, "Driver": driver, "DriverOpts": options.Values, "Labels": opts.KeyValues(labels.Values)}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var v wire.Volume
			if err := api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/volumes/create", Body: body}, &v); err != nil {
				return err
			}
			fmt.Fprintln(inv.Out, v.Name)
			return nil
		},
	}
	fs := c.Flags()
	fs.StringVarP(&driver, "driver", "d", "local", "Specify volume driver name")
	fs.StringVar(&name, "name", "", "Specify volume name")
	fs.Lookup("name").Hidden = true
	fs.Var(&labels, "label", "Set metadata for a volume")
	fs.VarP(&options, "opt", "o", "Set driver specific options")
	return c
}
