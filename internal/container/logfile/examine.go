package logfile

import (
	"context"

	"ply/internal/container/shim"
)

// Examine reads a whole log and returns how many of its records are damaged. The last record may be incomplete: it is being
// written, or a crash has cut it off. For the driver none Examine returns errs.Unimplemented.
func Examine(ctx context.Context, opts shim.Log) (damaged int, err error) {
	err = readWith(ctx, opts, ReadOptions{Tail: -1}, counting{formatOf(opts.Driver, nil), &damaged}, func([]Message) error { return nil })
	return damaged, err
}

// counting counts the damaged records of a format.
type counting struct {
	format
	damaged *int
}

func (c counting) next(buf []byte) (m Message, n int, ok bool) {
	m, n, ok = c.format.next(buf)
	if n > 0 && !ok {
		*c.damaged++
	}
	return m, n, ok
}
