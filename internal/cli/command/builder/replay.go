package builder

import (
	"bytes"
	"io"
)

// replay is a stream whose beginning can be read again: by the classic builder, when the engine turns out to have no other.
type replay struct {
	from io.Reader
	read bytes.Buffer
	over bool // more was read than is kept
}

// maxReplay is how much can be read again, in bytes: a Dockerfile, or the beginning of a tar stream.
const maxReplay = maxDockerfile + 4096

func newReplay(r io.Reader) *replay { return &replay{from: r} }

func (r *replay) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if r.over = r.over || r.read.Len()+n > maxReplay; !r.over {
		r.read.Write(p[:n])
	}
	return n, err
}

// again returns the stream from its beginning.
func (r *replay) again() io.Reader { return io.MultiReader(&r.read, r.from) }
