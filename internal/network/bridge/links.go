package bridge

import (
	"context"
	"slices"

	"ply/internal/network"
	"ply/internal/network/rules"
)

// A bridge with NoICC keeps its containers apart. A link opens the ports that one of them exposes to another one. Both say so when they are connected, in
// either order, and the pairs follow from that: they end with the first of the two.

var _ network.Linker = (*segment)(nil)

// Relink implements network.Linker.
func (s *segment) Relink(ctx context.Context, c network.Connection) error {
	s.changing.RLock()
	defer s.changing.RUnlock()
	s.mu.Lock()
	before, is := s.connected[c.Container]
	if is {
		s.connected[c.Container] = c
	}
	s.mu.Unlock()
	if !is || slices.Equal(before.Linked, c.Linked) {
		return nil
	}
	return s.setLinks(ctx, false)
}

// link brings the links of the bridge in line after c was connected or disconnected. With adopt the rules stay as they are until Restored.
func (s *segment) link(ctx context.Context, c network.Connection, adopt bool) error {
	if !s.cfg.NoICC || s.opts.NoRules || len(c.Linked) == 0 && !s.isTarget(c) {
		return nil
	}
	return s.setLinks(ctx, adopt)
}

// isTarget reports whether a container is linked to c.
func (s *segment) isTarget(c network.Connection) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.connected {
		if slices.Contains(o.Linked, c.Container) {
			return true
		}
	}
	return false
}

func (s *segment) setLinks(ctx context.Context, adopt bool) error {
	if s.opts.NoRules {
		return nil
	}
	if len(s.links()) > 0 && !adopt {
		if err := s.answerForNeighbours(); err != nil {
			return err
		}
	}
	return s.table.SetLinks(ctx, s.cfg.Bridge, s.links, adopt)
}

// links returns the links between the containers that are connected.
func (s *segment) links() (all []rules.Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, from := range s.connected {
		for _, id := range from.Linked {
			to, is := s.connected[id]
			if is && len(to.Exposed) > 0 && from.Endpoint.IPv4.IsValid() && to.Endpoint.IPv4.IsValid() {
				all = append(all, rules.Link{From: from.Endpoint.IPv4.Addr(), To: to.Endpoint.IPv4.Addr(), Ports: to.Exposed})
			}
		}
	}
	return all
}

// answerForNeighbours lets the host answer the questions of containers for the MAC addresses of each other, so that they send to the host what the bridge does
// not pass from one to the other. The rules decide about it.
func (s *segment) answerForNeighbours() error {
	if err := sysctl("ipv4/neigh/"+s.cfg.Bridge+"/proxy_delay", "0"); err != nil {
		return err
	}
	return sysctl("ipv4/conf/"+s.cfg.Bridge+"/proxy_arp_pvlan", "1")
}
