package image

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/errs"
)

// Pull returns the command pull.
func Pull(inv *command.Invocation) *cobra.Command {
	f := &transferFlags{}
	c := &cobra.Command{
		Use: "pull [OPTIONS] NAME[:TAG|@DIGEST]", Short: "Download an image from a registry", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return pull(cmd.Context(), inv, f, args[0])
		},
	}
	f.add(c.Flags(), "Download all tagged images in the repository", "Skip image verification", "Set platform if server is multi-platform capable")
	f.platform = os.Getenv("DOCKER_DEFAULT_PLATFORM")
	return c
}

// pull pulls an image and prints its full name.
func pull(ctx context.Context, inv *command.Invocation, f *transferFlags, name string) error {
	ref, err := opts.Reference(name)
	if err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	switch {
	case f.all && (ref.Tag() != "" || ref.Digest() != ""):
		return errs.New(errs.Invalid, "tag can't be used with --all-tags/-a")
	case !f.all && ref.Tag() == "" && ref.Digest() == "":
		ref = ref.WithDefaultTag()
		if !f.quiet && f.progress != "json" {
			fmt.Fprintf(inv.Out, "Using default tag: %s\n", ref.Tag())
		}
	}
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	mode := f.progress
	if f.quiet {
		mode = "quiet"
	}
	if err := inv.Pull(ctx, api, command.PullOptions{Image: ref, AllTags: f.all, Platform: f.platform, Mode: mode, Out: inv.Out, Size: inv.OutSize()}); err != nil {
		return err
	}
	if f.progress != "json" {
		full := ref.String()
		if f.all {
			full = ref.Name()
		}
		fmt.Fprintln(inv.Out, full)
	}
	return nil
}
