package remote

import (
	"net/url"
	"strings"

	"ply/internal/fence"
)

// realms returns which token servers of other domains get credentials: those in Options.AuthRealms.
func (c *Client) realms() fence.Realms {
	return fence.Realms{Trusted: c.allowedRealm, Hint: "If you trust it, add %q to \"auth-realms\" in " + strings.ReplaceAll(c.opts.ConfigFile, "%", "%%") + "."}
}

func (c *Client) allowedRealm(u *url.URL) bool {
	c.mu.Lock()
	realms := c.policy.realms
	c.mu.Unlock()
	for _, a := range realms {
		if strings.EqualFold(a, u.Host) || strings.EqualFold(a, u.Hostname()) {
			return true
		}
	}
	return false
}
