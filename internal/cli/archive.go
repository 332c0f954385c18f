package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/opts"
	"ply/internal/cli/progress"
	"ply/internal/errs"
	"ply/internal/wire"
)

// copyOut copies a stream to our output; an end by signal is its cause.
func copyOut(ctx context.Context, w io.Writer, r io.Reader) error {
	_, err := io.Copy(w, r)
	return endOf(ctx, err)
}

// openFile opens an archive; a directory is refused by name, before anything is sent.
func openFile(path string) (*os.File, error) {
	st, err := os.Stat(path)
	if err == nil && st.IsDir() {
		return nil, errs.New(errs.Invalid, "invalid input path: %q is a directory, not an archive", path)
	}
	return os.Open(path)
}

// stdin reads our standard input, from the first Read on, until ctx ends: a pipe into which nobody writes does not hold up a
// signal.
func (a *App) stdin(ctx context.Context) io.ReadCloser { return &input{ctx: ctx, from: a.In} }

type input struct {
	ctx  context.Context //nolint:containedctx // lives for one command
	from io.Reader
	once sync.Once
	pipe *io.PipeReader
}

func (i *input) Read(p []byte) (int, error) {
	i.once.Do(i.start)
	return i.pipe.Read(p)
}

func (i *input) start() {
	r, w := io.Pipe()
	i.pipe = r
	go func() {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{i.from}, make([]byte, 1<<20))
		w.CloseWithError(err)
	}()
	context.AfterFunc(i.ctx, func() { w.CloseWithError(context.Cause(i.ctx)) })
}

// Close leaves the standard input open.
func (i *input) Close() error {
	i.once.Do(func() { i.pipe, _ = io.Pipe() })
	return i.pipe.Close()
}

func endOf(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// writeFile streams r into a file that appears under its name only when it is whole. Devices and pipes are written to directly.
func writeFile(path string, r io.Reader) (err error) {
	if st, serr := os.Stat(path); serr == nil && !st.Mode().IsRegular() {
		if st.IsDir() {
			return errs.New(errs.Invalid, "invalid output path: %q is a directory", path)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer errs.Close(&err, f)
		_, err = io.Copy(f, r)
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".ply-tmp-")
	if err != nil {
		return errs.New(errs.Invalid, "invalid output path: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, r)
	if err = errors.Join(err, tmp.Chmod(0o600), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func (a *App) output(ctx context.Context, what, path string, open func() (*http.Response, error)) error {
	if path == "" && a.OutTerm != nil {
		return errs.New(errs.Invalid, "cowardly refusing to %s to a terminal. Use the -o flag or redirect", strings.Fields(what)[0])
	}
	if path != "" {
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return errs.New(errs.Invalid, "failed to %s: invalid output path: %w", what, err)
		}
	}
	resp, err := open()
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if path == "" {
		return copyOut(ctx, a.Out, resp.Body)
	}
	return endOf(ctx, writeFile(path, resp.Body))
}

func (a *App) cmdSave() *cobra.Command {
	var out, platform, layout string
	c := &cobra.Command{
		Use: "save [OPTIONS] IMAGE [IMAGE...]", Short: "Save one or more images to a tar archive (streamed to STDOUT by default)", Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			q, err := platformQuery(platform)
			if err != nil {
				return err
			}
			if q == nil {
				q = url.Values{}
			}
			q["names"] = args
			if cmd.Flags().Changed("format") {
				q.Set("format", layout)
			}
			return a.output(ctx, "save image", out, func() (*http.Response, error) {
				api, err := a.engine(ctx)
				if err != nil {
					return nil, err
				}
				return api.Open(ctx, client.Request{Path: "/images/get", Query: q})
			})
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "Write to a file, instead of STDOUT")
	c.Flags().StringVar(&layout, "format", "hybrid", `Layout of the archive: "hybrid" (all at once), "oci", "docker", or "legacy" (only what the oldest clients read)`)
	c.Flags().StringVar(&platform, "platform", "", `Save only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")`)
	return c
}

func (a *App) cmdExport() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "export [OPTIONS] CONTAINER", Short: "Export a container's filesystem as a tar archive", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.output(ctx, "export container", out, func() (*http.Response, error) {
				api, err := a.engine(ctx)
				if err != nil {
					return nil, err
				}
				return api.Open(ctx, client.Request{Path: "/containers/" + args[0] + "/export"})
			})
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "Write to a file, instead of STDOUT")
	return c
}

func (a *App) cmdLoad() *cobra.Command {
	var in, platform, progress string
	var quiet bool
	c := &cobra.Command{
		Use: "load [OPTIONS]", Short: "Load an image from a tar archive or STDIN", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			q, err := platformQuery(platform)
			if err != nil {
				return err
			}
			if q == nil {
				q = url.Values{}
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
			case a.InTerm != nil:
				return errs.New(errs.Invalid, "requested load from stdin, but stdin is empty")
			default:
				body = a.stdin(ctx)
			}
			if a.OutTerm == nil {
				quiet = true
			}
			if quiet {
				q.Set("quiet", "1")
			} else {
				q.Set("quiet", "0")
			}
			api, err := a.engine(ctx)
			if err != nil {
				return err
			}
			resp, err := api.Open(ctx, client.Request{Method: "POST", Path: "/images/load", Query: q, Body: body})
			if err != nil {
				return endOf(ctx, err)
			}
			defer resp.Body.Close()
			return a.showAnswer(ctx, resp, progress)
		},
	}
	fs := c.Flags()
	fs.StringVarP(&in, "input", "i", "", "Read from tar archive file, instead of STDIN")
	fs.BoolVarP(&quiet, "quiet", "q", false, "Suppress the load output")
	fs.StringVar(&platform, "platform", "", `Load only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")`)
	progressFlag(fs, &progress)
	return c
}

// showAnswer shows a progress stream, or copies an answer that is none.
func (a *App) showAnswer(ctx context.Context, resp *http.Response, mode string) error {
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return copyOut(ctx, a.Out, resp.Body)
	}
	p, err := progress.New(mode, a.Out, a.size())
	if err != nil {
		return err
	}
	if err := progress.Show(resp.Body, p, nil); err != nil {
		return endOf(ctx, streamed(err))
	}
	return nil
}

func (a *App) cmdImport() *cobra.Command {
	var changes opts.List
	var message, platform, progress string
	c := &cobra.Command{
		Use: "import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]", Short: "Import the contents from a tarball to create a filesystem image", Args: rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			src := args[0]
			q := url.Values{"fromSrc": {"-"}}
			if len(args) > 1 {
				repo, tag, err := splitName(args[1])
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
				body = a.stdin(ctx)
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
			api, err := a.engine(ctx)
			if err != nil {
				return err
			}
			resp, err := api.Open(ctx, client.Request{Method: "POST", Path: "/images/create", Query: q, Body: body})
			if err != nil {
				return endOf(ctx, err)
			}
			defer resp.Body.Close()
			return a.showAnswer(ctx, resp, progress)
		},
	}
	fs := c.Flags()
	fs.VarP(&changes, "change", "c", "Apply Dockerfile instruction to the created image")
	fs.StringVarP(&message, "message", "m", "", "Set commit message for imported image")
	fs.StringVar(&platform, "platform", "", "Set platform if server is multi-platform capable")
	progressFlag(fs, &progress)
	return c
}

func (a *App) cmdCommit() *cobra.Command {
	var author, message string
	var pause bool
	var changes opts.List
	c := &cobra.Command{
		Use: "commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]", Short: "Create a new image from a container's changes", Args: rangeArgs(1, 2),
		Long: "Create a new image from a container's changes\n\nWhat lies in volumes and bind mounts is not part of the image.",
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"container": {args[0]}, "comment": {message}, "author": {author}}
			if len(args) > 1 {
				repo, tag, err := splitName(args[1])
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
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			var out wire.Created
			if err := api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/commit", Query: q, Body: json.RawMessage("{}")}, &out); err != nil {
				return err
			}
			for _, w := range out.Warnings {
				fmt.Fprintf(a.Err, "WARNING: %s\n", w)
			}
			fmt.Fprintln(a.Out, out.ID)
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
