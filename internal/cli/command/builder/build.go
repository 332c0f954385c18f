package builder

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
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/buildview"
	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/direct"
	"ply/internal/cli/progress"
	"ply/internal/errs"
	"ply/internal/wire"
)

// Build returns the command build.
func Build(inv *command.Invocation) *cobra.Command {
	f := newBuildFlags()
	c := &cobra.Command{
		Use: "build [OPTIONS] PATH | URL | -", Short: "Build an image from a Dockerfile", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			failed, err := build(cmd.Context(), inv, f, args[0])
			if failed != "" && f.shellOnError {
				return errors.Join(enter(cmd, inv, failed), err)
			}
			return err
		},
	}
	f.add(c.Flags())
	return c
}

// enter opens a shell in an image.
func enter(cmd *cobra.Command, inv *command.Invocation, image string) error {
	fmt.Fprintf(inv.Err, "A shell in the file system as the failed step left it; leave it with exit.\n")
	root := cmd.Root()
	flags := "-i"
	if inv.InTerm != nil {
		flags = "-it"
	}
	root.SetArgs([]string{"run", flags, "--rm", image, "sh"})
	err := root.ExecuteContext(cmd.Context())
	if ee := (*command.ExitError)(nil); errors.As(err, &ee) && ee.Text == "" {
		return nil // the code of the last command in the shell
	}
	return err
}

// build runs a build. failed is the image of the file system that a failed step left.
func build(ctx context.Context, inv *command.Invocation, f *buildFlags, source string) (failed string, err error) {
	if f.quiet && f.progress != "auto" && f.progress != "quiet" && f.progress != "" {
		return "", errs.New(errs.Invalid, "progress=%s and quiet cannot be used together", f.progress)
	}
	stdin := newReplay(inv.Input(ctx))
	p, err := f.plan(ctx, inv, source, stdin)
	if err != nil {
		return "", command.EndOf(ctx, err)
	}
	defer p.close()
	api, err := inv.Engine(ctx)
	if err != nil {
		return "", err
	}
	done, err := run(ctx, inv, api, f, p)
	if client.IsNotFound(err) {
		if flags := f.needs(); len(flags) > 0 {
			return "", errs.New(errs.Unimplemented, "%s: the engine at %s has no builds of this kind; it is not ply's, or older", strings.Join(flags, ", "), api.Host())
		}
		return "", classic(ctx, inv, f, source, stdin.again())
	}
	if err != nil {
		return "", command.EndOf(ctx, err)
	}
	if done.Error != nil {
		return done.Error.Image, failure(inv, done.Error)
	}
	return "", f.finish(inv, p, done)
}

// run sends a build and shows its progress.
func run(ctx context.Context, inv *command.Invocation, api *client.Client, f *buildFlags, p *plan) (*wire.BuildDone, error) {
	o := buildview.Options{Mode: f.progress, Out: inv.Out, Size: inv.OutSize(), Explain: f.explain, Log: inv.Err}
	if p.toStdout() || f.asks() {
		o.Out, o.Size = inv.Err, inv.ErrSize()
	}
	if f.quiet {
		o.Mode = "quiet"
	}
	view, err := buildview.New(o)
	if err != nil {
		return nil, err
	}
	done, err := direct.Build(ctx, api, p.request, p.resources, view.Show)
	return done, errors.Join(err, view.Close(done))
}

// failure prints how to enter the step that failed, and returns the error.
func failure(inv *command.Invocation, e *wire.BuildError) error {
	text := e.Message
	if e.Hint != "" && !strings.Contains(text, e.Hint) {
		text += "\n" + e.Hint
	}
	if e.Image != "" {
		id := strings.TrimPrefix(e.Image, "sha256:")
		id = id[:min(12, len(id))]
		fmt.Fprintf(inv.Out, "The file system as the failed step left it: %s\nLook at it with: ply run -it --rm %s sh\n", id, id)
	}
	return &command.ExitError{Code: max(e.Code, 1), Text: text}
}

// finish writes the files and answers of a build that succeeded.
func (b *buildFlags) finish(inv *command.Invocation, p *plan, done *wire.BuildDone) error {
	if b.asks() {
		return b.printAnswer(inv, done.Metadata)
	}
	id := done.Answers["containerimage.config.digest"]
	if len(done.Images) > 0 {
		id = done.Images[len(done.Images)-1]
	}
	if id == "" {
		id = done.Answers["containerimage.digest"]
	}
	if b.quiet && id != "" && !p.toStdout() {
		fmt.Fprintln(inv.Out, id)
	}
	if err := errors.Join(p.writeCacheIndexes(done.Answers), b.writeMetadata(p, done)); err != nil {
		return err
	}
	return b.writeID(id)
}

// printAnswer prints the answer to --call.
func (b *buildFlags) printAnswer(inv *command.Invocation, answer map[string][]byte) error {
	name := "result.txt"
	if b.format == "json" {
		name = "result.json"
	}
	text, ok := answer[name]
	if !ok {
		return errs.New(errs.Unimplemented, "--call %s: the engine has no answer in this format", b.call)
	}
	out := strings.TrimRight(string(text), "\n")
	if out == "" && b.format != "json" && strings.HasPrefix(b.call, "check") {
		out = "Check complete, no warnings found."
	}
	fmt.Fprintln(inv.Out, out)
	if code, err := strconv.Atoi(string(answer["result.statuscode"])); err == nil && code != 0 && !b.ignoreStatus {
		return &command.ExitError{Code: code}
	}
	return nil
}

// writeMetadata writes the file of --metadata-file.
func (b *buildFlags) writeMetadata(p *plan, done *wire.BuildDone) error {
	if b.metadataFile == "" {
		return nil
	}
	data, err := json.MarshalIndent(metadata(p, done), "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(b.metadataFile, data)
}

// metadata is what is known of the result: strings, and JSON where an answer has some.
func metadata(p *plan, done *wire.BuildDone) map[string]any {
	out := map[string]any{}
	if len(done.Images) > 0 {
		out["containerimage.config.digest"] = done.Images[len(done.Images)-1]
		if len(p.request.Tags) > 0 {
			out["image.name"] = strings.Join(p.request.Tags, ",")
		}
	}
	for k, v := range done.Answers {
		out[k] = v
		if raw, err := decodeAnswer(v); err == nil {
			out[k] = json.RawMessage(raw)
		}
	}
	return out
}

// replaceFile writes a file that others see complete.
func replaceFile(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// classic builds with the classic API of an engine that is not ply's: it uploads the context.
func classic(ctx context.Context, inv *command.Invocation, f *buildFlags, source string, stdin io.Reader) error {
	q, err := f.query(inv.Proxies())
	if err != nil {
		return err
	}
	bc, err := openContext(source, f.file, stdin)
	if err != nil {
		return command.EndOf(ctx, err)
	}
	defer bc.close()
	if bc.remote != "" {
		q.Set("remote", bc.remote)
	}
	if bc.dockerfile != "" {
		q.Set("dockerfile", bc.dockerfile)
	}
	id, err := send(ctx, inv, f, q, bc)
	if err != nil {
		return command.EndOf(ctx, err)
	}
	if f.quiet {
		fmt.Fprintln(inv.Out, id)
	}
	return f.writeID(id)
}

// send streams the context, shows the answer, and returns the ID of the image.
func send(ctx context.Context, inv *command.Invocation, b *buildFlags, q url.Values, bc *buildContext) (string, error) {
	api, err := inv.Engine(ctx)
	if err != nil {
		return "", err
	}
	mode := b.progress
	if b.quiet {
		mode = "quiet"
	}
	p, err := progress.New(mode, inv.Out, inv.OutSize())
	if err != nil {
		return "", err
	}
	header := http.Header{"Content-Type": {"application/x-tar"}, "X-Registry-Config": {inv.AuthConfig(ctx)}}
	req := client.Request{Method: "POST", Path: "/build", Query: q, Header: header}
	if bc.tar != nil {
		req.Body = bc.tar
	}
	resp, err := api.Open(ctx, req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	id := ""
	var text strings.Builder
	err = progress.Show(resp.Body, &buildPrinter{Printer: p, text: &text, keep: b.quiet}, func(raw json.RawMessage) {
		var aux struct{ ID string }
		if json.Unmarshal(raw, &aux) == nil && aux.ID != "" {
			id = aux.ID
		}
	})
	if err != nil {
		if b.quiet {
			inv.Err.Write([]byte(text.String()))
		}
		var se *progress.StreamError
		if errors.As(err, &se) && se.Code > 0 {
			return "", &command.ExitError{Code: se.Code, Text: se.Message}
		}
		return "", err
	}
	if id == "" && b.quiet {
		id = strings.TrimSpace(text.String())
	}
	return id, nil
}

// buildPrinter collects the text of a quiet build in text, because it is printed when the build fails.
type buildPrinter struct {
	progress.Printer
	text *strings.Builder
	keep bool
}

func (p *buildPrinter) Print(m *wire.Message) error {
	if p.keep {
		p.text.WriteString(m.Stream)
	}
	return p.Printer.Print(m)
}
