package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/errs"
)

// inspectKinds are tried in this order.
var inspectKinds = []string{"container", "image", "network", "volume"}

func (a *App) cmdInspect() *cobra.Command {
	var ft, kind string
	var size bool
	c := &cobra.Command{
		Use: "inspect [OPTIONS] NAME|ID [NAME|ID...]", Short: "Return low-level information on Docker objects", Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kinds := inspectKinds
			if cmd.Flags().Changed("type") {
				if kind == "" {
					return errs.New(errs.Invalid, "type is empty: must be one of container, image, network, volume")
				}
				if !slices.Contains(inspectKinds, kind) {
					return errs.New(errs.Invalid, `unknown type: "%s": must be one of "container", "image", "network", "volume"`, kind)
				}
				kinds = []string{kind}
			}
			return a.inspect(cmd.Context(), ft, args, func(ctx context.Context, api *client.Client, ref string) (json.RawMessage, error) {
				for _, k := range kinds {
					raw, err := inspectOne(ctx, api, k, ref, size)
					if len(kinds) > 1 && client.IsNotFound(err) {
						continue
					}
					return raw, err
				}
				return nil, errors.New("Error: No such object: " + ref)
			})
		},
	}
	c.Flags().StringVarP(&ft, "format", "f", "", inspectFormatHelp)
	c.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes if the type is container")
	c.Flags().StringVar(&kind, "type", "", "Only inspect objects of the given type")
	return c
}

func inspectOne(ctx context.Context, api *client.Client, kind, ref string, size bool) (json.RawMessage, error) {
	q := url.Values{}
	path := "/containers/" + ref + "/json"
	switch kind {
	case "container":
		if size {
			q.Set("size", "1")
		}
	case "image":
		path = "/images/" + ref + "/json"
	case "network":
		path = "/networks/" + ref
	case "volume":
		path = "/volumes/" + ref
	}
	return api.Raw(ctx, client.Request{Path: path, Query: q})
}

// inspect gets every object, prints those that were found and then the errors.
func (a *App) inspect(ctx context.Context, ft string, refs []string, get func(context.Context, *client.Client, string) (json.RawMessage, error)) error {
	if ft != "" && ft != "json" {
		if _, err := format.Parse(ft); err != nil {
			return &exitError{64, err.Error()}
		}
	}
	api, err := a.engine(ctx)
	if err != nil {
		return err
	}
	var docs []json.RawMessage
	failed := each(ctx, refs, func(ref string) error {
		if strings.TrimSpace(ref) == "" {
			return errs.New(errs.Invalid, "invalid name: %q", ref)
		}
		raw, err := get(ctx, api, ref)
		if err != nil {
			return err
		}
		docs = append(docs, raw)
		return nil
	})
	if len(docs) > 0 || ft == "" {
		if err := format.Inspect(a.Out, ft, docs); err != nil {
			return err
		}
	}
	return failed
}

func (a *App) inspector(use, short, kind string, withSize bool) *cobra.Command {
	var ft, platform string
	var size, verbose bool
	c := &cobra.Command{
		Use: use, Short: short, Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.inspect(cmd.Context(), ft, args, func(ctx context.Context, api *client.Client, ref string) (json.RawMessage, error) {
				if kind == "image" && platform != "" {
					q, err := platformQuery(platform)
					if err != nil {
						return nil, err
					}
					return api.Raw(ctx, client.Request{Path: "/images/" + ref + "/json", Query: q})
				}
				if verbose {
					return api.Raw(ctx, client.Request{Path: "/networks/" + ref, Query: url.Values{"verbose": {"1"}}})
				}
				return inspectOne(ctx, api, kind, ref, size)
			})
		},
	}
	if kind == "network" {
		c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Verbose output for diagnostics")
	}
	c.Flags().StringVarP(&ft, "format", "f", "", inspectFormatHelp)
	if withSize {
		c.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes")
	}
	if kind == "image" {
		c.Flags().StringVar(&platform, "platform", "", `Inspect a specific platform of the multi-platform image. 'os[/arch[/variant]]': Explicit platform (eg. linux/amd64)`)
	}
	return c
}

func (a *App) cmdContainerInspect() *cobra.Command {
	return a.inspector("inspect [OPTIONS] CONTAINER [CONTAINER...]", "Display detailed information on one or more containers", "container", true)
}

func (a *App) cmdImageInspect() *cobra.Command {
	return a.inspector("inspect [OPTIONS] IMAGE [IMAGE...]", "Display detailed information on one or more images", "image", false)
}

// confirm asks on the terminal; without one the answer is no.
func (a *App) confirm(ctx context.Context, warning string) (bool, error) {
	fmt.Fprintf(a.Out, "%s\nAre you sure you want to continue? [y/N] ", warning)
	type answer struct {
		line string
		err  error
	}
	ch := make(chan answer, 1)
	go func() {
		var l answer
		_, l.err = fmt.Fscanln(a.In, &l.line)
		ch <- l
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.Out)
		return false, context.Cause(ctx)
	case l := <-ch:
		if errors.Is(l.err, io.EOF) {
			fmt.Fprintln(a.Out)
			return false, &exitError{code: 0}
		}
		return strings.EqualFold(l.line, "y"), nil
	}
}
