package s3

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"github.com/minio/minio-go/v7"

	"ply/internal/errs"
)

// object reads an object. When its connection breaks or stalls, it goes on with another one, of the same bytes.
type object struct {
	ctx    context.Context
	s      *Store
	key    string
	size   int64 // -1 before it is opened
	etag   string
	offset int64 // of the next byte for the reader

	body   io.ReadCloser // nil = none
	at     int64         // offset of the next byte of body
	cancel context.CancelFunc
}

// open begins to read at the offset.
func (o *object) open() error {
	opts := minio.GetObjectOptions{}
	if o.size >= 0 {
		if err := errors.Join(opts.SetRange(o.offset, 0), opts.SetMatchETag(o.etag)); err != nil {
			return err
		}
		if o.offset == 0 {
			opts = minio.GetObjectOptions{}
			if err := opts.SetMatchETag(o.etag); err != nil {
				return err
			}
		}
	}
	ctx, cancel := context.WithCancel(o.ctx)
	timer := time.AfterFunc(requestTimeout, cancel) // for the headers
	body, info, _, err := o.s.client.GetObject(ctx, o.s.o.Bucket, o.key, opts)
	timer.Stop()
	if err != nil {
		cancel()
		return fail(o.ctx, "object "+o.key, err)
	}
	if o.size < 0 {
		o.size, o.etag = info.Size, info.ETag
	}
	o.body, o.at, o.cancel = body, o.offset, cancel
	return nil
}

func (o *object) drop() {
	if o.body != nil {
		o.cancel()
		_ = o.body.Close() // what was read was checked by its length
		o.body = nil
	}
}

// Read reads, and tries again after errors of the connection.
func (o *object) Read(p []byte) (int, error) {
	if o.offset >= o.size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	pause := 50 * time.Millisecond
	for try := 1; ; try++ {
		n, err := o.read(p)
		if n > 0 {
			return n, nil
		}
		if o.ctx.Err() != nil {
			return 0, context.Cause(o.ctx)
		}
		if try == tries || errors.Is(err, errs.NotFound) || errors.Is(err, errs.Internal) {
			return 0, classify("object "+o.key, err)
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-o.ctx.Done():
		}
		pause = min(2*pause, time.Second)
	}
}

func (o *object) read(p []byte) (int, error) {
	if o.body != nil && o.at != o.offset {
		o.drop()
	}
	if o.body == nil {
		if err := o.open(); err != nil {
			return 0, err
		}
	}
	timer := time.AfterFunc(stall, o.cancel)
	n, err := o.body.Read(p[:min(int64(len(p)), o.size-o.offset)])
	timer.Stop()
	o.offset += int64(n)
	o.at += int64(n)
	if err != nil && o.offset < o.size {
		o.drop()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// Seek sets where the next Read begins. It sends nothing.
func (o *object) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += o.offset
	case io.SeekEnd:
		offset += o.size
	}
	if offset < 0 {
		return 0, errs.New(errs.Invalid, "object %s: seek to %d", o.key, offset)
	}
	o.offset = offset
	return offset, nil
}

// Close ends reading.
func (o *object) Close() error {
	o.drop()
	return nil
}
