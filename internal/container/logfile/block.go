package logfile

import (
	"errors"
	"io"
	"os"
	"slices"
)

// blockSize is how much of a file is read and decoded together, in bytes. A record that is longer is read alone.
const blockSize = 256 << 10

// block has the records of a part of a log file. Their lines are in its buffer.
type block struct {
	from, to int64 // offsets in the file; to is that of the first byte that belongs to no whole record
	seen     int64 // how far the file was read
	list     []Message
	buf      []byte
}

// readBlock reads the records of a file that follow an offset and are whole before end. It uses the memory of old, which may be nil.
func readBlock(old *block, f *os.File, format format, from, end int64) (*block, error) {
	b := old
	if b == nil {
		b = &block{}
	}
	*b = block{from: from, to: from, seen: from, list: b.list[:0], buf: b.buf}
	for size := min(end-from, blockSize); size > 0; size = min(end-from, 2*size) {
		if int64(cap(b.buf)) < size {
			b.buf = make([]byte, size)
		}
		n, err := f.ReadAt(b.buf[:size], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return b, err
		}
		b.seen = from + int64(n)
		var rest []byte
		b.list, rest = decode(b.list, b.buf[:n], format)
		b.to = b.seen - int64(len(rest))
		if b.to > from || int64(n) < size || b.seen == end {
			break
		}
	}
	return b, nil
}

// decode appends the whole records of buf to list, and returns the rest of buf. The records keep parts of buf, which decode changes.
func decode(list []Message, buf []byte, format format) (_ []Message, rest []byte) {
	for {
		m, n, ok := format.next(buf)
		if n == 0 {
			return list, buf
		}
		if ok {
			if len(list) == cap(list) {
				list = slices.Grow(list, len(buf)/n) // as many as there are if they are alike
			}
			list = append(list, m)
		}
		buf = buf[n:]
	}
}
