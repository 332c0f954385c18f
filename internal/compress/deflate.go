//go:build !isal || !cgo

package compress

import (
	"io"

	"ply/internal/errs"
)

func isalVersion() string { return noISAL }

func newISAL(_ io.Writer, p Params) (io.WriteCloser, error) {
	return nil, errs.New(errs.Invalid, "compression %s: this build has no ISA-L", p)
}
