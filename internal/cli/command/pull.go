package command

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"

	"ply/internal/cli/client"
	"ply/internal/cli/progress"
	"ply/internal/oci"
)

// kept is printed when the user cancels a pull.
const kept = "ply: cancelled. Finished layers are kept: the next try goes on from there."

// PullOptions say what is pulled and where progress is shown.
type PullOptions struct {
	Image    oci.Reference
	AllTags  bool
	Platform string // empty means the engine's
	Mode     string // of package progress
	Out      io.Writer
	Size     progress.Size // of Out; nil when it is not a terminal
}

// Pull pulls an image and shows progress.
func (inv *Invocation) Pull(ctx context.Context, api *client.Client, o PullOptions) error {
	p, err := progress.New(o.Mode, o.Out, o.Size)
	if err != nil {
		return err
	}
	q := url.Values{"fromImage": {o.Image.FamiliarName()}}
	if !o.AllTags {
		q.Set("tag", o.Image.TagIn())
	}
	if o.Platform != "" {
		q.Set("platform", strings.ToLower(o.Platform))
	}
	resp, err := api.Open(ctx, client.Request{Method: "POST", Path: "/images/create", Query: q, Header: inv.AuthHeader(ctx, o.Image.Domain())})
	if err == nil {
		defer resp.Body.Close()
		err = progress.Show(resp.Body, p, nil)
	}
	if err != nil && ctx.Err() != nil {
		fmt.Fprintln(inv.Err, kept)
		return context.Cause(ctx)
	}
	return err
}
