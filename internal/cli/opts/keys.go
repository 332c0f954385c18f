package opts

import (
	"strings"

	"ply/internal/errs"
)

// DetachKeys returns the bytes that a terminal sends for a value of --detach-keys, such as "ctrl-p,ctrl-q", which is the default for "".
func DetachKeys(s string) ([]byte, error) {
	if s == "" {
		return []byte{16, 17}, nil
	}
	var out []byte
	for _, k := range strings.Split(s, ",") {
		if len(k) == 1 {
			out = append(out, k[0])
			continue
		}
		c, ok := strings.CutPrefix(k, "ctrl-")
		if !ok || len(c) != 1 {
			return nil, errs.New(errs.Invalid, "invalid detach keys (%s) provided", s)
		}
		b := c[0]
		switch {
		case b >= 'a' && b <= 'z':
			out = append(out, b-'a'+1)
		case b == '@' || b >= '[' && b <= '_':
			out = append(out, b-'@')
		default:
			return nil, errs.New(errs.Invalid, "invalid detach keys (%s) provided", s)
		}
	}
	return out, nil
}
