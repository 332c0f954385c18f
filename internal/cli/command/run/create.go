package run

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/wire"
)

// Create returns the command create.
func Create(inv *command.Invocation) *cobra.Command {
	r := newRunFlags()
	c := &cobra.Command{
		Use:   "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Create a new container",
		Args:  command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := r.build(args[0], args[1:], inv.Proxies())
			if err != nil {
				return usageOf(cmd.CommandPath(), err)
			}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			id, err := createContainer(cmd.Context(), inv, api, r, body)
			if err != nil {
				return err
			}
			fmt.Fprintln(inv.Out, id)
			return nil
		},
	}
	r.add(c.Flags(), false)
	command.NoInterspersed(c)
	return c
}

// createContainer creates a container and returns its ID. It pulls the image as --pull says, writes the file of --cidfile and prints
// the warnings of the engine.
func createContainer(ctx context.Context, inv *command.Invocation, api *client.Client, r *runFlags, body *wire.CreateBody) (string, error) {
	if _, err := opts.Reference(body.Image); err != nil && !isID(body.Image) {
		return "", err
	}
	cid, err := openCIDFile(r.cidfile)
	if err != nil {
		return "", err
	}
	defer cid.close()
	switch r.pull {
	case "always", "missing", "never", "":
	default:
		return "", errs.New(errs.Invalid, "invalid pull option: '%s': must be one of \"always\", \"missing\" or \"never\"", r.pull)
	}
	if r.pull == "always" {
		if err := pullImage(ctx, inv, api, r, body.Image); err != nil {
			return "", err
		}
	}
	if r.mac != "" && !api.AtLeast(ctx, "1.44") {
		body.MacAddress = r.mac // older engines read it here
	}
	q := url.Values{}
	if r.name != "" {
		q.Set("name", r.name)
	}
	if r.platform != "" {
		q.Set("platform", r.platform)
	}
	req := client.Request{Method: "POST", Path: "/containers/create", Query: q, Body: body}
	var out wire.Created
	err = api.Do(ctx, req, &out)
	if client.IsNotFound(err) && r.pull != "never" && r.pull != "always" {
		missing, merr := missingImage(ctx, api, body.Image, r.platform)
		if merr != nil {
			return "", merr
		}
		if missing {
			if !r.quiet {
				fmt.Fprintf(inv.Err, "Unable to find image '%s' locally\n", opts.WithTag(body.Image))
			}
			if err := pullImage(ctx, inv, api, r, body.Image); err != nil {
				return "", err
			}
			err = api.Do(ctx, req, &out)
		}
	}
	if err != nil {
		return "", err
	}
	for _, w := range out.Warnings {
		fmt.Fprintf(inv.Err, "WARNING: %s\n", w)
	}
	return out.ID, cid.write(out.ID)
}

// isID reports whether s is a full image ID, which is not a valid name.
func isID(s string) bool {
	s = strings.TrimPrefix(s, "sha256:")
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// missingImage reports whether the engine has no image of that name, or has it for another platform. A create fails with the same status
// when a network, a volume or a container is missing, and a pull would not help then.
func missingImage(ctx context.Context, api *client.Client, image, platform string) (bool, error) {
	var d wire.ImageDetail
	q, err := opts.PlatformQuery(platform)
	if err != nil {
		return false, err
	}
	err = api.Do(ctx, client.Request{Path: "/images/" + image + "/json", Query: q}, &d)
	if client.IsNotFound(err) {
		return true, nil
	}
	if err != nil || platform == "" {
		return false, err
	}
	want, err := oci.ParsePlatform(platform)
	if err != nil {
		return false, err
	}
	return !want.Matches(oci.Platform{OS: d.Os, Architecture: d.Architecture, Variant: d.Variant}), nil // an engine of before 1.49 knows no platforms here
}

// pullImage pulls the image of a new container. Progress goes to stderr, because stdout belongs to the container.
func pullImage(ctx context.Context, inv *command.Invocation, api *client.Client, r *runFlags, image string) error {
	ref, err := opts.Reference(image)
	if err != nil {
		return err
	}
	mode := "auto"
	if r.quiet {
		mode = "quiet"
	}
	return inv.Pull(ctx, api, command.PullOptions{Image: ref.WithDefaultTag(), Platform: r.platform, Mode: mode, Out: inv.Err, Size: inv.ErrSize()})
}
