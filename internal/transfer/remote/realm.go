package remote

import (
	"net"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"

	"ply/internal/errs"
)

// checkRealm decides whether the credentials for a registry may be sent to the token server that the registry names. Its own host
// and port are allowed. Another host must belong to the same registrable domain or be in Options.AuthRealms, and it must use
// https unless the registry itself uses http. same is true when the token server is at the registry's own origin.
func (c *Client) checkRealm(registry *url.URL, realm string) (u *url.URL, same bool, err error) {
	u, err = url.Parse(realm)
	refuse := func(why string) error {
		return errs.New(errs.Forbidden, "registry %s: token server %q: %s", registry.Host, clip(clean(realm)), why)
	}
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return nil, false, refuse("is not a URL")
	case u.User != nil:
		return nil, false, refuse("carries credentials of its own")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, false, refuse("is neither https nor http")
	}
	u.Fragment = ""
	if origin(u) == origin(registry) {
		return u, true, nil
	}
	if u.Scheme == "http" && registry.Scheme != "http" {
		return nil, false, refuse("is http while the registry is https, so credentials would be sent unencrypted")
	}
	if c.allowedRealm(u) || sameSite(registry.Hostname(), u.Hostname()) {
		return u, false, nil
	}
	return nil, false, errs.New(errs.Forbidden, "registry %s: token server %q: belongs to another domain, so no credentials are sent there",
		registry.Host, clip(clean(realm))).
		WithHint("If you trust it, add %q to \"auth-realms\" in %s.", u.Host, c.opts.ConfigFile)
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

// sameSite reports whether two hosts belong to the same registrable domain, such as example.org.
func sameSite(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if a == b {
		return true
	}
	if isIP(a) || isIP(b) {
		return false
	}
	da, err := publicsuffix.EffectiveTLDPlusOne(a)
	if err != nil {
		return false
	}
	db, err := publicsuffix.EffectiveTLDPlusOne(b)
	return err == nil && da == db
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// realmCheck returns the dialer's check for a token server. It refuses link-local and metadata addresses. It allows private and
// loopback addresses only if the registry has such an address itself: a public registry must not make the engine send requests
// to servers in the internal network.
func realmCheck(registryAddr netip.Addr) func(string, netip.Addr) error {
	private := registryAddr.IsValid() && (registryAddr.IsPrivate() || registryAddr.IsLoopback())
	base := refuseMetadata("")
	return func(host string, ip netip.Addr) error {
		if err := base(host, ip); err != nil {
			return err
		}
		if !private && (ip.IsPrivate() || ip.IsLoopback()) {
			return errs.New(errs.Forbidden, "token server %s is at the private address %s, the registry is not", host, ip)
		}
		return nil
	}
}

// addrOf returns the address of the other end of a connection.
func addrOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
