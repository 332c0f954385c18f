package container_test

import (
	"context"
	"testing"

	"ply/internal/container"
	"ply/internal/errs"
)

// A container is taken out of a network that is gone, by its name, whether it runs or not.
func TestDisconnectFromANetworkThatIsGone(t *testing.T) {
	w := newWorld(t)
	connector := container.NewConnector(w.s)
	s := sh("sleep 600")
	s.NetworkMode = "missing" // as w.net says of it
	running := w.create(s)
	w.start(running)
	created := w.create(s)
	for _, id := range []string{running, created} {
		if err := connector.Disconnect(context.Background(), id, "missing", false); err != nil {
			t.Error(err)
		}
		if nets := w.get(id).Networks; len(nets) != 0 {
			t.Errorf("networks %v", nets)
		}
		wantErr(t, connector.Disconnect(context.Background(), id, "missing", false), errs.NotFound, "network missing not found")
		if err := connector.Disconnect(context.Background(), id, "missing", true); err != nil {
			t.Errorf("with force: %v", err)
		}
	}
	wantErr(t, connector.Disconnect(context.Background(), "nobody", "missing", false), errs.NotFound, "network missing not found")
}
