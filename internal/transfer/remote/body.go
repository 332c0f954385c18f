package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"ply/internal/errs"
)

func bytesBody(b []byte) func() io.Reader {
	return func() io.Reader { return bytes.NewReader(b) }
}

// decodeAnswer decodes a JSON answer of at most limit bytes and closes it.
func decodeAnswer(resp *http.Response, limit int64, v any) error {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(idleReader(resp.Body, func() { resp.Body.Close() }), limit+1))
	if err != nil {
		return errs.New(errs.Unavailable, "answer: %w", err)
	}
	if int64(len(body)) > limit {
		return errs.New(errs.Invalid, "answer is longer than %d bytes", limit)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return errs.New(errs.Invalid, "answer is not the JSON that was asked for")
	}
	return nil
}

type idle struct {
	r    io.Reader
	stop func()
}

// idleReader calls stop when one Read gets nothing for idleTimeout. The time between two Reads does not count.
func idleReader(r io.Reader, stop func()) io.Reader { return &idle{r, stop} }

func (i *idle) Read(p []byte) (int, error) {
	t := time.AfterFunc(idleTimeout, i.stop)
	defer t.Stop()
	return i.r.Read(p)
}

// cancelBody cancels the request when it is closed. After the request was cancelled, Read returns the cause.
type cancelBody struct {
	io.ReadCloser
	r      io.Reader
	ctx    context.Context //nolint:containedctx // the context of the request
	cancel context.CancelCauseFunc
}

func (b *cancelBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	return n, err
}

func (b *cancelBody) Close() error {
	b.cancel(nil)
	return b.ReadCloser.Close()
}

// watched cancels an upload when the transport does not read from it for headerTimeout: the registry has stopped reading.
type watched struct {
	r     io.Reader
	timer *time.Timer
}

func newWatched(r io.Reader, stop func()) *watched {
	return &watched{r, time.AfterFunc(headerTimeout, stop)}
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Stop()
	n, err := w.r.Read(p)
	if err == nil {
		w.timer.Reset(headerTimeout)
	}
	return n, err
}
