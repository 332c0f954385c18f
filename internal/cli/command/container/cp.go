package container

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/progress"
	"ply/internal/cli/tarstream"
	"ply/internal/errs"
	"ply/internal/wire"
)

// cpFlags are the flags of cp.
type cpFlags struct{ archive, follow, quiet bool }

// Cp returns the command cp.
func Cp(inv *command.Invocation) *cobra.Command {
	f := &cpFlags{}
	c := &cobra.Command{
		Use:   "cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\ncp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
		Short: "Copy files/folders between a container and the local filesystem",
		Long: "Copy files/folders between a container and the local filesystem\n\n" +
			"Use '-' as the source to read a tar archive from stdin\nand extract it to a directory destination in a container.\n" +
			"Use '-' as the destination to stream a tar archive of a\ncontainer source to stdout.",
		Args: command.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return errs.New(errs.Invalid, "source can not be empty")
			}
			if args[1] == "" {
				return errs.New(errs.Invalid, "destination can not be empty")
			}
			return cp(cmd.Context(), inv, f, args[0], args[1])
		},
	}
	c.Flags().BoolVarP(&f.archive, "archive", "a", false, "Archive mode (copy all uid/gid information)")
	c.Flags().BoolVarP(&f.follow, "follow-link", "L", false, "Always follow symbol link in SRC_PATH")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached")
	return c
}

// splitCp splits CONTAINER:PATH. container is empty for a local path: one without a colon, or one that begins with "." or "/".
func splitCp(arg string) (container, p string) {
	if filepath.IsAbs(arg) {
		return "", arg
	}
	container, p, ok := strings.Cut(arg, ":")
	if !ok || strings.HasPrefix(container, ".") {
		return "", arg
	}
	return container, p
}

// cp copies in the direction that src and dst say.
func cp(ctx context.Context, inv *command.Invocation, f *cpFlags, src, dst string) error {
	srcC, srcP := splitCp(src)
	dstC, dstP := splitCp(dst)
	switch {
	case srcC != "" && dstC != "":
		return errs.New(errs.Unimplemented, "copying between containers is not supported")
	case srcC == "" && dstC == "":
		return errs.New(errs.Invalid, "must specify at least one container source")
	}
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	if srcC != "" {
		return command.EndOf(ctx, copyFrom(ctx, inv, api, f, srcC, srcP, dstP))
	}
	return command.EndOf(ctx, copyTo(ctx, inv, api, f, srcP, dstC, dstP))
}

// statHeader reads wire.PathStat from an answer.
func statHeader(resp *http.Response) (wire.PathStat, error) {
	var st wire.PathStat
	b, err := base64.StdEncoding.DecodeString(resp.Header.Get(wire.PathStatHeader))
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil {
		return st, errs.New(errs.Invalid, "unable to decode container path stat header: %w", err)
	}
	return st, nil
}

// statContainer returns the wire.PathStat of a path in a container.
func statContainer(ctx context.Context, api *client.Client, id, p string) (wire.PathStat, error) {
	resp, err := api.Open(ctx, client.Request{Method: http.MethodHead, Path: "/containers/" + id + "/archive", Query: url.Values{"path": {p}}})
	if err != nil {
		return wire.PathStat{}, err
	}
	resp.Body.Close()
	return statHeader(resp)
}

// linkTarget returns the path in a container that the link at p leads to.
func linkTarget(p string, st *wire.PathStat) string {
	if path.IsAbs(st.LinkTarget) {
		return st.LinkTarget
	}
	dir, _ := tarstream.Split(p)
	return path.Join(dir, st.LinkTarget)
}

// copyFrom copies src in the container id to the local path dst, or to the output when dst is "-".
func copyFrom(ctx context.Context, inv *command.Invocation, api *client.Client, f *cpFlags, id, src, dst string) error {
	if dst != "-" {
		if err := tarstream.CheckOutput(dst); err != nil {
			return err
		}
	}
	own := ""
	if f.follow {
		if st, err := statContainer(ctx, api, id, src); err == nil && st.Mode&fs.ModeSymlink != 0 {
			target := tarstream.Keep(linkTarget(src, &st), src)
			if path.Base(target) != path.Base(src) {
				own = path.Base(src)
			}
			src = target
		}
	}
	resp, err := api.Open(ctx, client.Request{Path: "/containers/" + id + "/archive", Query: url.Values{"path": {src}}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if dst == "-" {
		if inv.OutTerm != nil {
			return errs.New(errs.Invalid, "cowardly refusing to write a tar archive to a terminal: redirect the output")
		}
		return command.CopyOut(ctx, inv.Out, resp.Body)
	}
	st, err := statHeader(resp)
	if err != nil {
		return err
	}
	target, err := tarstream.ExtractTo(own, st.Mode.IsDir(), dst)
	if err != nil {
		return err
	}
	n := &progress.Counter{}
	done := f.show(inv, "Copying from container - ", n)
	err = target.Extract(io.TeeReader(resp.Body, n), f.archive)
	done()
	if err == nil && f.shows(inv) {
		fmt.Fprintf(inv.Err, "Successfully copied %s to %s\n", format.Size4(n.Total()), target.Shown)
	}
	return err
}

// destinationIn returns what is at a path in a container. A link at the end is followed. Where the engine answers with an error, the
// path counts as one without a file, as with docker: the engine then refuses the copy and says why.
func destinationIn(ctx context.Context, api *client.Client, id, p string) (tarstream.End, error) {
	st, err := statContainer(ctx, api, id, p)
	end := tarstream.End{Path: p}
	if err == nil && st.Mode&fs.ModeSymlink != 0 {
		end.Path = linkTarget(p, &st)
		st, err = statContainer(ctx, api, id, end.Path)
	}
	if _, answered := errors.AsType[*client.Error](err); answered {
		return end, nil
	}
	if err != nil {
		return end, err
	}
	if err := tarstream.CheckKind(st.Mode); err != nil {
		return end, errs.New(errs.Invalid, "destination \"%s:%s\" must be a directory or a regular file: %w", id, p, err)
	}
	end.Exists, end.Dir = true, st.Mode.IsDir()
	return end, nil
}

// copyTo copies the local path src, or the input when src is "-", to dst in the container id.
func copyTo(ctx context.Context, inv *command.Invocation, api *client.Client, f *cpFlags, src, id, dst string) error {
	to, err := destinationIn(ctx, api, id, dst)
	if err != nil {
		return err
	}
	q := url.Values{"noOverwriteDirNonDir": {"true"}}
	if f.archive {
		q.Set("copyUIDGID", "true")
	}
	if src == "-" {
		if !to.Dir {
			return errs.New(errs.Invalid, "destination \"%s:%s\" must be a directory", id, dst)
		}
		q.Set("path", to.Path)
		return command.EndOf(ctx, api.Do(ctx, client.Request{Method: "PUT", Path: "/containers/" + id + "/archive", Query: q, Body: inv.Input(ctx)}, nil))
	}
	plan, err := tarstream.PackFrom(src, f.follow, to)
	if err != nil {
		return err
	}
	q.Set("path", plan.Into)
	pr, pw := io.Pipe()
	n := &progress.Counter{}
	go func() { pw.CloseWithError(plan.Write(io.MultiWriter(pw, n))) }()
	done := f.show(inv, "Copying to container - ", n)
	err = api.Do(ctx, client.Request{Method: "PUT", Path: "/containers/" + id + "/archive", Query: q, Body: pr}, nil)
	pr.Close()
	done()
	if err == nil && f.shows(inv) {
		fmt.Fprintf(inv.Err, "Successfully copied %s to %s:%s\n", format.Size4(n.Total()), id, dst)
	}
	return err
}

// shows reports whether the user sees how much is copied.
func (f *cpFlags) shows(inv *command.Invocation) bool { return !f.quiet && inv.ErrTerm != nil }

// show shows the value of n, when the user wants to see it, until done is called.
func (f *cpFlags) show(inv *command.Invocation, what string, n *progress.Counter) (done func()) {
	if !f.shows(inv) {
		return func() {}
	}
	return n.Show(inv.Err, what)
}
