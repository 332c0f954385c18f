package durable

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// sparsePart is how many bytes CopySparse copies between two looks at its context.
const sparsePart = 64 << 20

// CopySparse copies the first size bytes of from to the same place in to, which is empty and takes the size. The holes of from are holes of to: they take no space
// and no time, however large they are. A file that is cut off meanwhile ends in a hole. It syncs nothing.
func CopySparse(ctx context.Context, to, from *os.File, size int64) error {
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole is behind it
			break
		}
		if err != nil { // not every file system knows its holes
			data = at
		}
		if data >= size {
			break
		}
		end, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			end = size
		}
		end = min(end, size, data+sparsePart)
		if _, err := from.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := to.Seek(data, io.SeekStart); err != nil {
			return err
		}
		n, err := io.CopyN(to, from, end-data) // with copy_file_range where the kernel supports it
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			break
		}
		at = data + n
	}
	return to.Truncate(size)
}
