package command

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"ply/internal/errs"
)

// CopyOut copies a stream to w. When ctx ends, its cause is the error.
func CopyOut(ctx context.Context, w io.Writer, r io.Reader) error {
	_, err := io.Copy(w, r)
	return EndOf(ctx, err)
}

// Deliver writes the answer that open fetches to the file at path, or to the output when path is empty. what says what is
// being done, such as "save image". A terminal and a path whose directory is missing are refused before open is called.
func (inv *Invocation) Deliver(ctx context.Context, what, path string, open func() (*http.Response, error)) error {
	if path == "" && inv.OutTerm != nil {
		return errs.New(errs.Invalid, "cowardly refusing to %s to a terminal. Use the -o flag or redirect", strings.Fields(what)[0])
	}
	if path != "" {
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return errs.New(errs.Invalid, "failed to %s: invalid output path: %w", what, err)
		}
	}
	resp, err := open()
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if path == "" {
		return CopyOut(ctx, inv.Out, resp.Body)
	}
	return EndOf(ctx, writeFile(path, resp.Body))
}

// writeFile streams r into a file that appears under its name only when it is complete. A device or a pipe is written to
// directly.
func writeFile(path string, r io.Reader) (err error) {
	if st, serr := os.Stat(path); serr == nil && !st.Mode().IsRegular() {
		if st.IsDir() {
			return errs.New(errs.Invalid, "invalid output path: %q is a directory", path)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer errs.Close(&err, f)
		_, err = io.Copy(f, r)
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".ply-tmp-")
	if err != nil {
		return errs.New(errs.Invalid, "invalid output path: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, r)
	if err = errors.Join(err, tmp.Chmod(0o600), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
