// Package export brings the result of a build to where its client wants it: into the image store, to a registry, into a directory of the
// client, or into a tar.
//
// Outputs and their attributes have BuildKit's names. Invariants: an attribute that is not known is an error that names it; nothing of an
// output is visible before all of it is there, as far as the receiver allows it.
package export

import (
	"context"
	"io"

	"ply/internal/build/tree"
)

// Files is a directory that a client receives.
type Files interface {
	// Walk calls visit for everything in the directory: a directory before its content, names in order. Info has the target of a symbolic
	// link. Names are relative, clean and slash-separated; none leads out of the directory.
	Walk(ctx context.Context, visit func(name string, info tree.Info) error) error
	// Open opens a regular file.
	Open(name string) (io.ReadCloser, error)
}
