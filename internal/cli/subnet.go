package cli

import (
	"net/netip"

	"ply/internal/errs"
)

// subnet is a parsed --subnet.
type subnet struct{ p netip.Prefix }

func (s subnet) contains(ip string) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && s.p.Contains(a)
}

func parseSubnets(list []string) ([]subnet, error) {
	out := make([]subnet, len(list))
	for i, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, errs.New(errs.Invalid, "invalid subnet %s: want ADDRESS/BITS", s)
		}
		for _, o := range out[:i] {
			if o.p.Overlaps(p.Masked()) {
				return nil, errs.New(errs.Invalid, "multiple overlapping subnet configuration is not supported")
			}
		}
		out[i] = subnet{p.Masked()}
	}
	return out, nil
}
