package dockerroot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"

	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"ply/internal/errs"
)

// Limits of a recipe, the list of what a tar consists of.
const (
	maxRecipeLine = 8 << 20 // bytes of one entry: docker's have at most 1 MiB of the tar
	tarBuffer     = 256 << 10
)

// recipe reads the entries of a recipe and opens the files that they name.
type recipe struct {
	ctx   context.Context // of the call of Layer
	lines *bufio.Reader
	buf   []byte
	tree  *os.File
	size  int64 // of the file that was named last
}

// Next implements storage.Unpacker.
func (r *recipe) Next() (*storage.Entry, error) {
	line, err := r.line()
	if err != nil {
		return nil, err
	}
	var e storage.Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return nil, errs.New(errs.DataLoss, "tar-split.json.gz: %w", err)
	}
	if e.Type != storage.FileType && e.Type != storage.SegmentType || e.Size < 0 {
		return nil, errs.New(errs.DataLoss, "tar-split.json.gz: entry %d is of an unknown kind", e.Position)
	}
	r.size = e.Size
	return &e, nil
}

// line reads the next line that is not empty.
func (r *recipe) line() ([]byte, error) {
	for {
		if r.ctx.Err() != nil { // empty lines, which may be billions, are no entries
			return nil, context.Cause(r.ctx)
		}
		r.buf = r.buf[:0]
		for {
			part, err := r.lines.ReadSlice('\n')
			r.buf = append(r.buf, part...)
			if len(r.buf) > maxRecipeLine {
				return nil, errs.New(errs.DataLoss, "tar-split.json.gz: an entry has more than %d bytes", maxRecipeLine)
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if errors.Is(err, io.EOF) && len(r.buf) > 0 {
				break
			}
			if errors.Is(err, io.EOF) {
				return nil, io.EOF
			}
			if err != nil {
				return nil, errs.New(errs.DataLoss, "tar-split.json.gz: %w", err)
			}
			break
		}
		if len(r.buf) > 1 {
			return r.buf, nil
		}
	}
}

// Get implements storage.FileGetter. It returns no more bytes than the entry has, so that a file that has grown is found by its checksum.
func (r *recipe) Get(name string) (io.ReadCloser, error) {
	f, err := openRegular(r.tree, name)
	if err != nil {
		return nil, errs.New(errs.DataLoss, "the layer has no file %.200q: %v", name, err)
	}
	return limited{io.LimitReader(f, r.size), f}, nil
}

type limited struct {
	io.Reader
	io.Closer
}

// tarReader is the tar that a recipe and a tree make. Close waits until nothing reads them any more.
type tarReader struct {
	*io.PipeReader
	done chan struct{}
}

// openTar starts to assemble a tar. It closes tree and file.
func openTar(ctx context.Context, zr io.Reader, tree, file *os.File) io.ReadCloser {
	pr, pw := io.Pipe()
	t := &tarReader{pr, make(chan struct{})}
	go func() {
		defer close(t.done)
		defer tree.Close()
		defer file.Close()
		out := bufio.NewWriterSize(pw, tarBuffer)
		r := &recipe{ctx: ctx, lines: bufio.NewReaderSize(zr, 64<<10), tree: tree}
		err := asm.WriteOutputTarStream(r, r, out)
		if err == nil {
			err = out.Flush()
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, errs.DataLoss) {
			err = errs.New(errs.DataLoss, "%w", err) // a checksum
		}
		_ = pw.CloseWithError(err) // never fails
	}()
	return t
}

// Close implements io.Closer.
func (t *tarReader) Close() error {
	err := t.PipeReader.Close()
	<-t.done
	return err
}
