package image

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/cli/progress"
	"ply/internal/errs"
)

// Load returns the command load.
func Load(inv *command.Invocation) *cobra.Command {
	var in, platform, mode string
	var quiet bool
	c := &cobra.Command{
		Use: "load [OPTIONS]", Short: "Load an image from a tar archive or STDIN", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			q, err := opts.PlatformQuery(platform)
			if err != nil {
				return err
			}
			var body io.Reader
			switch {
			case in != "":
				f, err := openFile(in)
				if err != nil {
					return err
				}
				defer f.Close()
				body = io.NopCloser(f)
			case inv.InTerm != nil:
				return errs.New(errs.Invalid, "requested load from stdin, but stdin is empty")
			default:
				body = inv.Input(ctx)
			}
			if inv.OutTerm == nil {
				quiet = true
			}
			if quiet {
				q.Set("quiet", "1")
			} else {
				q.Set("quiet", "0")
			}
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			resp, err := api.Open(ctx, client.Request{Method: "POST", Path: "/images/load", Query: q, Body: body})
			if err != nil {
				return command.EndOf(ctx, err)
			}
			defer resp.Body.Close()
			return showAnswer(ctx, inv, resp, mode)
		},
	}
	fs := c.Flags()
	fs.StringVarP(&in, "input", "i", "", "Read from tar archive file, instead of STDIN")
	fs.BoolVarP(&quiet, "quiet", "q", false, "Suppress the load output")
	fs.StringVar(&platform, "platform", "", `Load only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")`)
	progress.Flag(fs, &mode)
	return c
}

// showAnswer shows the progress stream of an answer. An answer of another type is copied to the output.
func showAnswer(ctx context.Context, inv *command.Invocation, resp *http.Response, mode string) error {
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return command.CopyOut(ctx, inv.Out, resp.Body)
	}
	p, err := progress.New(mode, inv.Out, inv.OutSize())
	if err != nil {
		return err
	}
	return command.EndOf(ctx, progress.Show(resp.Body, p, nil))
}

// openFile opens an archive. A directory is refused here, before anything is sent to the engine.
func openFile(path string) (*os.File, error) {
	st, err := os.Stat(path)
	if err == nil && st.IsDir() {
		return nil, errs.New(errs.Invalid, "invalid input path: %q is a directory, not an archive", path)
	}
	return os.Open(path)
}
