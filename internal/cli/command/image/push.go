package image

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/cli/progress"
	"ply/internal/errs"
)

// Push returns the command push.
func Push(inv *command.Invocation) *cobra.Command {
	f := &transferFlags{}
	c := &cobra.Command{
		Use: "push [OPTIONS] NAME[:TAG]", Short: "Upload an image to a registry", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return push(cmd.Context(), inv, f, args[0])
		},
	}
	f.add(c.Flags(), "Push all tags of an image to the repository", "Skip image signing",
		`Push a platform-specific manifest as a single-platform image to the registry. 'os[/arch[/variant]]': Explicit platform (eg. linux/amd64)`)
	return c
}

// push pushes an image.
func push(ctx context.Context, inv *command.Invocation, f *transferFlags, name string) error {
	ref, err := opts.Reference(name)
	if err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	switch {
	case f.all && ref.Tag() != "":
		return errs.New(errs.Invalid, "tag can't be used with --all-tags/-a")
	case ref.Digest() != "":
		return errs.New(errs.Invalid, "cannot push a digest reference")
	case !f.all && ref.Tag() == "":
		ref = ref.WithDefaultTag()
		if !f.quiet && f.progress != "json" {
			fmt.Fprintf(inv.Out, "Using default tag: %s\n", ref.Tag())
		}
	}
	q, err := opts.PlatformQuery(f.platform)
	if err != nil {
		return err
	}
	if !f.all {
		q.Set("tag", ref.Tag())
	}
	mode := f.progress
	if f.quiet {
		mode = "quiet"
	}
	p, err := progress.New(mode, inv.Out, inv.OutSize())
	if err != nil {
		return err
	}
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	resp, err := api.Open(ctx, client.Request{Method: "POST", Path: "/images/" + ref.FamiliarName() + "/push", Query: q, Header: inv.AuthHeader(ctx, ref.Domain())})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := progress.Show(resp.Body, p, nil); err != nil {
		return command.EndOf(ctx, err)
	}
	if f.quiet {
		fmt.Fprintln(inv.Out, ref.String())
	}
	return nil
}
