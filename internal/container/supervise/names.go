package supervise

import (
	"context"
	"sync"

	"ply/internal/network/resolver"
)

// resolving answers the DNS queries of the container.
type resolving struct {
	mu     sync.Mutex // held while a server starts, because two cannot have the container's port
	server *resolver.Server
}

// serve starts a server, and ends the one before it.
func (r *resolving) serve(cfg resolver.Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	next, err := resolver.Start(context.Background(), cfg)
	if err != nil {
		return err
	}
	before := r.server
	r.server = next
	if before != nil {
		err = before.Close()
	}
	return err
}
