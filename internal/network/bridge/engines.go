package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"ply/internal/network"
	"ply/internal/network/namespace"
	"ply/internal/procid"
)

// hostWait is how long lockHost waits for other engines, which hold the lock for moments.
const hostWait = 10 * time.Second

// lockHost keeps the engines of a host, which is a network namespace, from choosing names and addresses at the same time. What it locks is the
// namespace itself, so that engines agree on it whatever directories they see. Every user can take this lock: after hostWait the caller goes
// on without it.
func lockHost(_ context.Context, log *slog.Logger) (unlock func()) {
	f, err := os.Open("/proc/self/ns/net")
	if err == nil {
		if err = procid.LockFile(f, hostWait); err == nil {
			return func() { _ = f.Close() } // closing releases the lock
		}
		_ = f.Close() // nothing was written
	}
	log.Warn("other engines of this host may choose an address at the same time", "err", err)
	return func() {}
}

// refuseTaken refuses a subnet that overlaps that of a bridge of another engine.
func refuseTaken(want netip.Prefix, owner string) error {
	all, err := namespace.Whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("network: interfaces: %w", err)
	}
	for _, link := range all {
		alias := link.Attrs().Alias
		if !strings.HasPrefix(alias, mark) || alias == mark+owner {
			continue
		}
		have, err := addresses(link)
		if err != nil {
			return err
		}
		for _, p := range have {
			if p.Overlaps(want.Masked()) && !p.Addr().IsLinkLocalUnicast() {
				return &network.TakenError{Subnet: want.Masked(), Other: p.Masked(), Interface: link.Attrs().Name, Owner: strings.TrimPrefix(alias, mark)}
			}
		}
	}
	return nil
}
