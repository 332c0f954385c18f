//go:build !isal || !cgo

package compress

import (
	"io"

	"github.com/klauspost/compress/gzip"
)

// GzipEngine is the name of the library that decompresses gzip in this build.
const GzipEngine = "klauspost"

// newGunzip decompresses all members of a gzip stream.
func newGunzip(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }
