package image

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
)

// Tag returns the command tag.
func Tag(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", Short: "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE", Args: command.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, tag, err := opts.NewTag(args[1])
			if err != nil {
				return fmt.Errorf("Error parsing reference: %q is not a valid repository/tag: %w", args[1], err)
			}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			q := url.Values{"repo": {repo}, "tag": {tag}}
			return api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/images/" + args[0] + "/tag", Query: q}, nil)
		},
	}
}
