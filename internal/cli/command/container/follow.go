package container

import (
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

// print prints records until the stream says that it has ended. A record is printed when its position has arrived, so that it is printed once.
func (f *follower) print(body io.Reader) error {
	frames := client.NewFrames(body)
	var text []byte
	w := f.inv.Out
	for {
		stream, data, err := frames.Next()
		if err != nil {
			return err
		}
		switch stream {
		case 1, 2:
			text, w = append(text[:0], data...), f.inv.Out
			if stream == 2 {
				w = f.inv.Err
			}
		case wire.FrameRecord:
			if _, err := w.Write(text); err != nil {
				return &command.ExitError{Code: 1, Text: err.Error()}
			}
			text = text[:0]
			f.query.Set("position", string(data))
			f.query.Del("tail")
		case wire.FrameEnded:
			return nil
		default:
			return errs.New(errs.Invalid, "log: unrecognized frame %d: %.200q", stream, data)
		}
	}
}
