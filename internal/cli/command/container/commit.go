package container

import (
	"encoding/json"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// Commit returns the command commit.
func Commit(inv *command.Invocation) *cobra.Command {
	var author, message string
	var pause bool
	var changes opts.List
	c := &cobra.Command{
		Use: "commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]", Short: "Create a new image from a container's changes", Args: command.RangeArgs(1, 2),
		Long: "Create a new image from a container's changes\n\nWhat lies in volumes and bind mounts is not part of the image.",
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"container": {args[0]}, "comment": {message}, "author": {author}}
			if len(args) > 1 {
				repo, tag, err := opts.NewTag(args[1])
				if err != nil {
					return err
				}
				q.Set("repo", repo)
				q.Set("tag", tag)
			}
			for _, ch := range changes.Values {
				q.Add("changes", ch)
			}
			if !pause {
				q.Set("pause", "0")
			}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var out wire.Created
			if err := api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/commit", Query: q, Body: json.RawMessage("{}")}, &out); err != nil {
				return err
			}
			for _, w := range out.Warnings {
				fmt.Fprintf(inv.Err, "WARNING: %s\n", w)
			}
			fmt.Fprintln(inv.Out, out.ID)
			return nil
		},
	}
	fs := c.Flags()
	fs.StringVarP(&author, "author", "a", "", `Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")`)
	fs.VarP(&changes, "change", "c", "Apply Dockerfile instruction to the created image")
	fs.StringVarP(&message, "message", "m", "", "Commit message")
	fs.BoolVarP(&pause, "pause", "p", true, "Pause container during commit")
	return c
}
