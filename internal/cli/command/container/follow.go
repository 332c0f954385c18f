package container

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"net/url"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/errs"
	"ply/internal/wire"
)

// follower prints a log as it grows. When the engine goes away, it goes on with the next one behind the last record that it has printed.
type follower struct {
	inv   *command.Invocation
	api   *client.Client
	id    string
	query url.Values
}

// follow prints what resp has, and what follows it.
func (f *follower) follow(ctx context.Context, resp *http.Response) error {
	for {
		err := f.print(resp.Body)
		_ = resp.Body.Close() // it was read as far as it goes
		if err == nil {
			return nil
		}
		if resp, err = f.reopen(ctx, err); err != nil {
			return err
		}
	}
}

// reopen asks again when the connection broke, which err says.
func (f *follower) reopen(ctx context.Context, err error) (*http.Response, error) {
	for {
		if ctx.Err() != nil || !client.Cut(err) {
			return nil, err
		}
		if err := f.api.AwaitReturn(ctx, f.inv.Err); err != nil {
			return nil, err
		}
		var resp *http.Response
		if resp, err = f.api.Open(ctx, client.Request{Path: "/containers/" + f.id + "/logs", Query: f.query}); err == nil {
			return resp, nil
		}
	}
}

// maxTogether bounds the records that are printed by one write, in bytes.
const maxTogether = 32 << 10

// print prints records until the stream says that it has ended. A record is printed when its position has arrived, so that it is printed once; records that
// have arrived are printed together.
func (f *follower) print(body io.Reader) error {
	frames := client.NewFrames(body)
	var text []byte // of the records that are not printed yet
	whole := 0      // how much of text has its position
	var position string
	last, w := byte(1), f.inv.Out
	flush := func() error {
		if whole == 0 {
			return nil
		}
		if _, err := w.Write(text[:whole]); err != nil {
			return &command.ExitError{Code: 1, Text: err.Error()}
		}
		text = append(text[:0], text[whole:]...)
		whole = 0
		f.query.Set("position", position)
		f.query.Del("tail")
		return nil
	}
	for {
		if whole >= maxTogether || frames.Waiting() {
			if err := flush(); err != nil {
				return err
			}
		}
		stream, all, err := frames.Append(text)
		text = all[:len(text)] // it may have been moved
		data := all[len(text):]
		if err != nil {
			return cmp.Or(flush(), err)
		}
		switch stream {
		case 1, 2:
			to := f.inv.Out
			if stream == 2 {
				to = f.inv.Err
			}
			if stream != last {
				if err := flush(); err != nil {
					return err
				}
			}
			last, w = stream, to
			if text = all; whole < len(all)-len(data) { // a record without its position is replaced
				text = append(all[:whole], data...)
			}
		case wire.FrameRecord:
			whole, position = len(text), string(data)
		case wire.FrameEnded:
			return flush()
		default:
			return errs.New(errs.Invalid, "log: unrecognized frame %d: %.200q", stream, data)
		}
	}
}
