//go:build !isal || !cgo

package compress

import (
	"io"

	"github.com/klauspost/compress/gzip"
)

// GzipEngine names what decompresses gzip in this build.
const GzipEngine = "klauspost"

// newGunzip reads all members of a gzip stream.
func newGunzip(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }
