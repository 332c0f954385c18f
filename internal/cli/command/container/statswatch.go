package container

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"sync"

	"ply/internal/cli/client"
	"ply/internal/wire"
)

// statsWatch keeps a stream per container and the newest row of each.
type statsWatch struct {
	ctx    context.Context // ends all streams
	cancel context.CancelFunc
	api    *client.Client
	trunc  bool

	mu     sync.Mutex
	order  []string
	newest map[string]*watched
}

// watched is one container of a statsWatch.
type watched struct {
	row  statsRow
	err  error
	done bool
}

func newStatsWatch(ctx context.Context, api *client.Client, trunc bool) *statsWatch {
	ctx, cancel := context.WithCancel(ctx)
	return &statsWatch{ctx: ctx, cancel: cancel, api: api, trunc: trunc, newest: map[string]*watched{}}
}

func (w *statsWatch) stop() { w.cancel() }

// follow sets the containers to show, and opens a stream for every new one.
func (w *statsWatch) follow(refs []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.order = refs
	for _, ref := range refs {
		if w.newest[ref] == nil {
			x := &watched{row: emptyStats(ref)}
			w.newest[ref] = x
			go w.stream(ref, x)
		}
	}
}

// stream reads the stream of one container to its end.
func (w *statsWatch) stream(ref string, x *watched) {
	end := func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		x.err, x.done = err, true
	}
	resp, err := w.api.Open(w.ctx, client.Request{Path: "/containers/" + ref + "/stats", Query: url.Values{"stream": {"1"}}})
	if err != nil {
		end(err)
		return
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var r wire.Stats
		if err := dec.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			end(err)
			return
		}
		w.mu.Lock()
		x.row = statsRowOf(ref, &r, w.trunc)
		w.mu.Unlock()
	}
}

// rows returns the newest rows. A container that is gone is left out. With strict, one that was never there is an error.
func (w *statsWatch) rows(strict bool) ([]statsRow, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rows := []statsRow{}
	for _, ref := range w.order {
		x := w.newest[ref]
		if x.done {
			if strict && x.err != nil && client.IsNotFound(x.err) && x.row.Name == "--" {
				return nil, x.err
			}
			continue
		}
		rows = append(rows, x.row)
	}
	return rows, nil
}
