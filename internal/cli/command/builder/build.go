package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/progress"
	"ply/internal/wire"
)

// Build returns the command build.
func Build(inv *command.Invocation) *cobra.Command {
	f := newBuildFlags()
	c := &cobra.Command{
		Use: "build [OPTIONS] PATH | URL | -", Short: "Build an image from a Dockerfile", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return build(cmd.Context(), inv, f, args[0]) },
	}
	f.add(c.Flags())
	return c
}

// build sends the context at source to the engine and shows the progress of the build.
func build(ctx context.Context, inv *command.Invocation, f *buildFlags, source string) error {
	q, err := f.query(inv.Proxies())
	if err != nil {
		return err
	}
	bc, err := openContext(source, f.file, inv.Input(ctx))
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
