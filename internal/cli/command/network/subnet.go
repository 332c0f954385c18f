package network

import (
	"net/netip"

	"ply/internal/errs"
)

// contains reports whether a subnet contains an address.
func contains(subnet netip.Prefix, ip string) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && subnet.Contains(a)
}

// parseSubnets parses the values of --subnet. Subnets that overlap are refused.
func parseSubnets(list []string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, errs.New(errs.Invalid, "invalid subnet %s: want ADDRESS/BITS", s)
		}
		for _, o := range out[:i] {
			if o.Overlaps(p.Masked()) {
				return nil, errs.New(errs.Invalid, "multiple overlapping subnet configuration is not supported")
			}
		}
		out[i] = p.Masked()
	}
	return out, nil
}
