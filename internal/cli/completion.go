package cli

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/wire"
)

// newCompletion returns the command completion.
func newCompletion(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "Generate the completion script for a shell", Args: command.ExactArgs(1),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(inv.Out, true)
			case "zsh":
				return root.GenZshCompletion(inv.Out)
			case "fish":
				return root.GenFishCompletion(inv.Out, true)
			}
			return &command.ExitError{Code: 1, Text: fmt.Sprintf("ply: completion: %q is not one of bash, zsh, fish", args[0])}
		},
	}
}

// completeArgs lets shells complete the names of containers, images, volumes and networks, for the commands whose usage asks for one.
func completeArgs(c *cobra.Command, inv *command.Invocation) {
	for _, sub := range c.Commands() {
		completeArgs(sub, inv)
	}
	if c.ValidArgs != nil || c.HasSubCommands() {
		return
	}
	_, use, _ := strings.Cut(c.Use, " ")
	for _, kind := range []string{"CONTAINER", "IMAGE", "VOLUME", "NETWORK"} {
		if strings.Contains(use, kind) {
			c.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
				if len(args) > 0 && !strings.Contains(use, "["+kind+"...]") {
					return nil, cobra.ShellCompDirectiveDefault
				}
				return objects(cmd.Context(), inv, kind), cobra.ShellCompDirectiveNoFileComp
			}
			return
		}
	}
}

// objects returns the names of all objects of a kind. It does not start an engine that does not run.
func objects(ctx context.Context, inv *command.Invocation, kind string) (names []string) {
	api, err := inv.Client()
	if err != nil {
		return nil
	}
	get := func(path string, q url.Values, out any) {
		_ = api.Do(ctx, client.Request{Path: path, Query: q}, out) // completion cannot show errors
	}
	switch kind {
	case "CONTAINER":
		var list []wire.Container
		get("/containers/json", url.Values{"all": {"1"}}, &list)
		for _, c := range list {
			for _, n := range c.Names {
				if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") { // leave out names that links give
					names = append(names, n)
				}
			}
		}
	case "IMAGE":
		var list []wire.Image
		get("/images/json", nil, &list)
		for _, im := range list {
			names = append(names, im.RepoTags...)
		}
	case "VOLUME":
		var out wire.Volumes
		get("/volumes", nil, &out)
		for _, v := range out.Volumes {
			names = append(names, v.Name)
		}
	case "NETWORK":
		var list []wire.Network
		get("/networks", nil, &list)
		for _, n := range list {
			names = append(names, n.Name)
		}
	}
	return names
}
