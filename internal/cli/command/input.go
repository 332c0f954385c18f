package command

import (
	"context"
	"io"
	"sync"
)

// Input returns the standard input as a reader that fails when ctx ends. Without it, a pipe into which no one writes would
// delay the reaction to a signal. Reading starts with the first Read. Close leaves the standard input open.
func (inv *Invocation) Input(ctx context.Context) io.ReadCloser {
	return &input{ctx: ctx, from: inv.In}
}

type input struct {
	ctx  context.Context //nolint:containedctx // lives for one command
	from io.Reader
	once sync.Once
	pipe *io.PipeReader
}

func (i *input) Read(p []byte) (int, error) {
	i.once.Do(i.start)
	return i.pipe.Read(p)
}

func (i *input) start() {
	r, w := io.Pipe()
	i.pipe = r
	go func() {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{i.from}, make([]byte, 1<<20))
		w.CloseWithError(err)
	}()
	context.AfterFunc(i.ctx, func() { w.CloseWithError(context.Cause(i.ctx)) })
}

func (i *input) Close() error {
	i.once.Do(func() { i.pipe, _ = io.Pipe() })
	return i.pipe.Close()
}
