package attach

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"ply/internal/cli/client"
	"ply/internal/wire"
)

// Ending is the end of a container. Err says why it is not known.
type Ending struct {
	wire.WaitResult
	Err error
}

// Wait waits for a container. condition is one of the API's: "not-running", "next-exit" or "removed"; empty is the first. When
// Wait returns, the engine has registered the wait, so that an end after that cannot be missed.
func Wait(ctx context.Context, api *client.Client, id, condition string) (<-chan Ending, error) {
	q := url.Values{}
	if condition != "" {
		q.Set("condition", condition)
	}
	resp, err := api.Open(ctx, client.Request{Method: http.MethodPost, Path: "/containers/" + id + "/wait", Query: q})
	if err != nil {
		return nil, err
	}
	out := make(chan Ending, 1)
	go func() {
		defer resp.Body.Close()
		var e Ending
		e.Err = json.NewDecoder(resp.Body).Decode(&e.WaitResult)
		out <- e
	}()
	return out, nil
}
