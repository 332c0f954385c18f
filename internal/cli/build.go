package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

// cmdBuild sends a context to /build.
func (a *App) cmdBuild() *cobra.Command {
	f := newBuildFlags()
	c := &cobra.Command{
		Use: "build [OPTIONS] PATH | URL | -", Short: "Build an image from a Dockerfile", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.build(cmd.Context(), f, args[0]) },
	}
	f.add(c.Flags())
	return c
}

func (a *App) build(ctx context.Context, f *buildFlags, source string) error {
	q, err := f.query(a.proxies())
	if err != nil {
		return err
	}
	bc, err := openContext(source, f.file, a.stdin(ctx))
	if err != nil {
		return endOf(ctx, err)
	}
	defer bc.close()
	if bc.remote != "" {
		q.Set("remote", bc.remote)
	}
	if bc.dockerfile != "" {
		q.Set("dockerfile", bc.dockerfile)
	}
	id, err := a.sendBuild(ctx, f, q, bc)
	if err != nil {
		return endOf(ctx, err)
	}
	if f.quiet {
		fmt.Fprintln(a.Out, id)
	}
	return f.writeID(id)
}
