package image

import (
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/cli/progress"
)

// Import returns the command import.
func Import(inv *command.Invocation) *cobra.Command {
	var changes opts.List
	var message, platform, mode string
	c := &cobra.Command{
		Use: "import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]", Short: "Import the contents from a tarball to create a filesystem image", Args: command.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			src := args[0]
			q := url.Values{"fromSrc": {"-"}}
			if len(args) > 1 {
				repo, tag, err := opts.NewTag(args[1])
				if err != nil {
					return err
				}
				q.Set("repo", repo)
				q.Set("tag", tag)
			}
			if message != "" {
				q.Set("message", message)
			}
			if platform != "" {
				q.Set("platform", strings.ToLower(platform))
			}
			for _, ch := range changes.Values {
				q.Add("changes", ch)
			}
			var body any
			switch {
			case src == "-":
				body = inv.Input(ctx)
			case strings.HasPrefix(src, "http://"), strings.HasPrefix(src, "https://"):
				q.Set("fromSrc", src)
			default:
				f, err := openFile(src)
				if err != nil {
					return err
				}
				defer f.Close()
				body = io.NopCloser(f)
			}
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			resp, err := api.Open(ctx, client.Request{Method: "POST", Path: "/images/create", Query: q, Body: body})
			if err != nil {
				return command.EndOf(ctx, err)
			}
			defer resp.Body.Close()
			return showAnswer(ctx, inv, resp, mode)
		},
	}
	fs := c.Flags()
	fs.VarP(&changes, "change", "c", "Apply Dockerfile instruction to the created image")
	fs.StringVarP(&message, "message", "m", "", "Set commit message for imported image")
	fs.StringVar(&platform, "platform", "", "Set platform if server is multi-platform capable")
	progress.Flag(fs, &mode)
	return c
}
