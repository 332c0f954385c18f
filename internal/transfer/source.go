package transfer

import "strings"

// WithoutUser returns the address of an import without user name and password, for everything that is stored or shown. A token
// is often given as the user name, so that is removed too. The address need not be valid, and the scheme may be missing.
func WithoutUser(address string) string {
	scheme, rest, ok := strings.Cut(address, "://")
	if ok {
		scheme += "://"
	} else {
		scheme, rest = "", address
	}
	end := strings.IndexAny(rest, `/?#\`)
	if end < 0 {
		end = len(rest)
	}
	if i := strings.LastIndexByte(rest[:end], '@'); i >= 0 {
		rest = rest[i+1:]
	}
	return scheme + rest
}
