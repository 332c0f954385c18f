package transfer

import "strings"

// WithoutSecrets returns the address of an import without user name, password, query and fragment, for everything that is stored
// or shown. A token is often given as the user name, and the query of a presigned address is as good as a password. The address
// need not be valid, and the scheme may be missing.
func WithoutSecrets(address string) string {
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
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i]
	}
	return scheme + rest
}
