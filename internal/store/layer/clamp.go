package layer

import (
	"archive/tar"
	"errors"
	"io"
	"time"
)

// Clamp returns a writer for the tar of a layer that passes it on to w with no file younger than latest. Close ends the tar; it does not close w.
func Clamp(w io.Writer, latest time.Time) io.WriteCloser {
	r, in := io.Pipe()
	c := &clamp{PipeWriter: in, ended: make(chan error, 1)}
	go func() {
		err := clampTar(w, r, latest)
		_ = r.CloseWithError(err) // never fails
		c.ended <- err
	}()
	return c
}

type clamp struct {
	*io.PipeWriter
	ended chan error
}

func (c *clamp) Close() error {
	_ = c.PipeWriter.Close() // never fails
	return <-c.ended
}

func clampTar(w io.Writer, r io.Reader, latest time.Time) error {
	in, out := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if h.ModTime.After(latest) {
			h.ModTime = latest
		}
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r) // what pads the end
	return err
}
