package system

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/errs"
)

// inspectKinds are tried in this order.
var inspectKinds = []string{"container", "image", "network", "volume"}

// Inspect returns the command inspect, which takes objects of any kind.
func Inspect(inv *command.Invocation) *cobra.Command {
	var tmpl, kind string
	var size bool
	c := &cobra.Command{
		Use: "inspect [OPTIONS] NAME|ID [NAME|ID...]", Short: "Return low-level information on Docker objects", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kinds := inspectKinds
			if cmd.Flags().Changed("type") {
				if kind == "" {
					return errs.New(errs.Invalid, "type is empty: must be one of container, image, network, volume")
				}
				if !slices.Contains(inspectKinds, kind) {
					return errs.New(errs.Invalid, `unknown type: "%s": must be one of "container", "image", "network", "volume"`, kind)
				}
				kinds = []string{kind}
			}
			return inv.Inspect(cmd.Context(), tmpl, args, func(ctx context.Context, api *client.Client, ref string) (json.RawMessage, error) {
				for _, k := range kinds {
					raw, err := api.Raw(ctx, inspectRequest(k, ref, size))
					if len(kinds) > 1 && client.IsNotFound(err) {
						continue
					}
					return raw, err
				}
				return nil, errors.New("Error: No such object: " + ref)
			})
		},
	}
	c.Flags().StringVarP(&tmpl, "format", "f", "", format.DocumentHelp)
	c.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes if the type is container")
	c.Flags().StringVar(&kind, "type", "", "Only inspect objects of the given type")
	return c
}

// inspectRequest returns the request for one object. size asks for the sizes of a container.
func inspectRequest(kind, ref string, size bool) client.Request {
	switch kind {
	case "image":
		return client.Request{Path: "/images/" + ref + "/json"}
	case "network":
		return client.Request{Path: "/networks/" + ref}
	case "volume":
		return client.Request{Path: "/volumes/" + ref}
	}
	r := client.Request{Path: "/containers/" + ref + "/json", Query: url.Values{}}
	if size {
		r.Query.Set("size", "1")
	}
	return r
}
