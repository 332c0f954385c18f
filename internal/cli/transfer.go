package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ply/internal/cli/client"
	"ply/internal/cli/config"
	"ply/internal/cli/progress"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/wire"
)

// splitName gives the familiar repository and the tag (latest when there is none) of a name for a new tag; a digest is
// refused.
func splitName(s string) (repo, tag string, err error) {
	ref, err := parseName(s)
	if err != nil {
		return "", "", err
	}
	if ref.Digest() != "" {
		return "", "", errs.New(errs.Invalid, "refusing to create a tag with a digest reference")
	}
	ref = ref.WithDefaultTag()
	return ref.FamiliarName(), ref.Tag(), nil
}

// parseName parses a reference; the error is docker's, which says what is wrong without repeating the name.
func parseName(s string) (oci.Reference, error) {
	ref, err := oci.ParseReference(s)
	if cause := errors.Unwrap(err); cause != nil {
		err = errs.New(errs.Invalid, "%w", cause)
	}
	return ref, err
}

// withTag shows a name as docker does in "Unable to find image".
func withTag(s string) string {
	ref, err := oci.ParseReference(s)
	if err != nil {
		return s
	}
	return ref.WithDefaultTag().Familiar()
}

// missingImage tells an absent image from an absent network, volume or container.
func missingImage(err error) bool {
	s := strings.ToLower(err.Error())
	return strings.Contains(s, "no such image") || strings.Contains(s, "image") && (strings.Contains(s, "not found") || strings.Contains(s, "the specified platform"))
}

// platformQuery makes the JSON form of a platform that newer endpoints take.
func platformQuery(s string) (url.Values, error) {
	if s == "" {
		return nil, nil
	}
	p, err := oci.ParsePlatform(s)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(map[string]string{"os": p.OS, "architecture": p.Architecture, "variant": p.Variant})
	if err != nil {
		return nil, err
	}
	return url.Values{"platform": {string(b)}}, nil
}

// authHeader is X-Registry-Auth for a registry.
func (a *App) authHeader(ctx context.Context, domain string) http.Header {
	c, err := a.config().Get(ctx, config.Key(domain))
	if err != nil {
		fmt.Fprintf(a.Err, "WARNING: %v\n", err)
	}
	auth := wire.Auth{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken, ServerAddress: c.Server}
	b, err := json.Marshal(auth)
	if err != nil {
		return nil
	}
	return http.Header{"X-Registry-Auth": {base64.URLEncoding.EncodeToString(b)}}
}

// progressFlag adds --progress.
func progressFlag(fs *pflag.FlagSet, to *string) {
	fs.StringVar(to, "progress", "auto", "Set type of progress output (\"auto\", \"tty\", \"plain\", \"json\")")
}

// kept is said when a transfer of layers is cancelled.
const kept = "ply: cancelled. Finished layers are kept: the next try goes on from there."

// transferFlags are those of pull and push.
type transferFlags struct {
	all, quiet, noVerify bool
	platform, progress   string
}

func (f *transferFlags) add(fs *pflag.FlagSet, all, verify, platform string) {
	fs.BoolVarP(&f.all, "all-tags", "a", false, all)
	fs.BoolVar(&f.noVerify, "disable-content-trust", true, verify)
	fs.StringVar(&f.platform, "platform", "", platform)
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Suppress verbose output")
	progressFlag(fs, &f.progress)
}

func (f *transferFlags) check() error {
	if !f.noVerify {
		return errs.New(errs.Unimplemented, "--disable-content-trust=false: image verification with Notary is not supported")
	}
	return nil
}

func (a *App) cmdPull() *cobra.Command {
	f := &transferFlags{}
	c := &cobra.Command{
		Use: "pull [OPTIONS] NAME[:TAG|@DIGEST]", Short: "Download an image from a registry", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pull(cmd.Context(), f, args[0])
		},
	}
	f.add(c.Flags(), "Download all tagged images in the repository", "Skip image verification", "Set platform if server is multi-platform capable")
	f.platform = os.Getenv("DOCKER_DEFAULT_PLATFORM")
	return c
}

func (a *App) pull(ctx context.Context, f *transferFlags, name string) error {
	ref, err := parseName(name)
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
			fmt.Fprintf(a.Out, "Using default tag: %s\n", ref.Tag())
		}
	}
	api, err := a.engine(ctx)
	if err != nil {
		return err
	}
	mode := f.progress
	if f.quiet {
		mode = "quiet"
	}
	if err := a.pullImage(ctx, api, ref, f.all, f.platform, mode, a.Out, a.size()); err != nil {
		return err
	}
	if f.progress != "json" {
		full := ref.String()
		if f.all {
			full = ref.Name()
		}
		fmt.Fprintln(a.Out, full)
	}
	return nil
}

func (a *App) pullImage(ctx context.Context, api *client.Client, ref oci.Reference, all bool, platform, mode string, w io.Writer, size progress.Size) error {
	p, err := progress.New(mode, w, size)
	if err != nil {
		return err
	}
	q := url.Values{"fromImage": {ref.FamiliarName()}}
	if !all {
		q.Set("tag", ref.TagIn())
	}
	if platform != "" {
		q.Set("platform", strings.ToLower(platform))
	}
	resp, err := api.Open(ctx, client.Request{Method: "POST", Path: "/images/create", Query: q, Header: a.authHeader(ctx, ref.Domain())})
	if err != nil {
		return a.cancelled(ctx, err)
	}
	defer resp.Body.Close()
	err = progress.Show(resp.Body, p, nil)
	return a.cancelled(ctx, streamed(err))
}

// streamed gives an error that came inside a stream the form of any other answer of the engine.
func streamed(err error) error {
	var se *progress.StreamError
	if errors.As(err, &se) {
		return errors.New(se.Message)
	}
	return err
}

// cancelled says what a signal leaves behind.
func (a *App) cancelled(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	fmt.Fprintln(a.Err, kept)
	return context.Cause(ctx)
}

// pullForRun is the pull that run and create do: progress goes to stderr, stdout stays the container's.
func (a *App) pullForRun(ctx context.Context, api *client.Client, r *runFlags, image string) error {
	ref, err := parseName(image)
	if err != nil {
		return err
	}
	mode := "auto"
	if r.quiet {
		mode = "quiet"
	}
	var size progress.Size
	if a.ErrTerm != nil {
		size = a.ErrTerm.Size
	}
	return a.pullImage(ctx, api, ref.WithDefaultTag(), false, r.platform, mode, a.Err, size)
}

func (a *App) cmdPush() *cobra.Command {
	f := &transferFlags{}
	c := &cobra.Command{
		Use: "push [OPTIONS] NAME[:TAG]", Short: "Upload an image to a registry", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.push(cmd.Context(), f, args[0])
		},
	}
	f.add(c.Flags(), "Push all tags of an image to the repository", "Skip image signing",
		`Push a platform-specific manifest as a single-platform image to the registry. 'os[/arch[/variant]]': Explicit platform (eg. linux/amd64)`)
	return c
}

func (a *App) push(ctx context.Context, f *transferFlags, name string) error {
	ref, err := parseName(name)
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
			fmt.Fprintf(a.Out, "Using default tag: %s\n", ref.Tag())
		}
	}
	q, err := platformQuery(f.platform)
	if err != nil {
		return err
	}
	if q == nil {
		q = url.Values{}
	}
	if !f.all {
		q.Set("tag", ref.Tag())
	}
	mode := f.progress
	if f.quiet {
		mode = "quiet"
	}
	p, err := progress.New(mode, a.Out, a.size())
	if err != nil {
		return err
	}
	api, err := a.engine(ctx)
	if err != nil {
		return err
	}
	resp, err := api.Open(ctx, client.Request{Method: "POST", Path: "/images/" + ref.FamiliarName() + "/push", Query: q, Header: a.authHeader(ctx, ref.Domain())})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := progress.Show(resp.Body, p, nil); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return streamed(err)
	}
	if f.quiet {
		fmt.Fprintln(a.Out, ref.String())
	}
	return nil
}
