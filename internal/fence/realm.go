package fence

import (
	"net"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"

	"ply/internal/errs"
)

// Realms says which token servers of other domains get credentials.
type Realms struct {
	Trusted func(*url.URL) bool // nil = none
	Hint    string              // of the error about another one; %q is its host. "" = none
}

// Check decides whether the credentials for a registry may be sent to the token server that the registry names. Its own host and
// port are allowed. Another host must belong to the same registrable domain or be trusted, and it must use https unless the registry
// itself uses http. same is true when the token server is at the registry's own origin.
func (r Realms) Check(registry *url.URL, realm string) (u *url.URL, same bool, err error) {
	u, err = url.Parse(realm)
	refuse := func(why string) *errs.Error {
		if len(realm) > 200 {
			realm = realm[:200] + "…"
		}
		return errs.New(errs.Forbidden, "registry %s: token server %q: %s", registry.Host, realm, why)
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
	if Origin(u) == Origin(registry) {
		return u, true, nil
	}
	if u.Scheme == "http" && registry.Scheme != "http" {
		return nil, false, refuse("is http while the registry is https, so credentials would be sent unencrypted")
	}
	if r.Trusted != nil && r.Trusted(u) || sameSite(registry.Hostname(), u.Hostname()) {
		return u, false, nil
	}
	e := refuse("belongs to another domain, so no credentials are sent there")
	if r.Hint != "" {
		e = e.WithHint(r.Hint, u.Host)
	}
	return nil, false, e
}

// Origin returns the scheme, host and port of a URL, in one spelling.
func Origin(u *url.URL) string {
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(host), port)
}

// NoMetadata is a Dialer's check for a host that a registry names: it refuses the addresses of Refused.
func NoMetadata(host string, ip netip.Addr) error {
	if Refused(ip) {
		return errs.New(errs.Forbidden, "%s is at %s, an address that no registry may lead to", host, ip)
	}
	return nil
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

// RealmCheck returns the dialer's check for a token server. It refuses link-local and metadata addresses. It allows private and
// loopback addresses only if the registry has such an address itself: a public registry must not make its client
// send requests to servers in the internal network.
func RealmCheck(registryAddr netip.Addr) func(string, netip.Addr) error {
	private := registryAddr.IsValid() && (registryAddr.IsPrivate() || registryAddr.IsLoopback())
	return func(host string, ip netip.Addr) error {
		if err := NoMetadata(host, ip); err != nil {
			return err
		}
		if !private && (ip.IsPrivate() || ip.IsLoopback()) {
			return errs.New(errs.Forbidden, "token server %s is at the private address %s, the registry is not", host, ip)
		}
		return nil
	}
}

// AddrOf returns the address of the other end of a connection.
func AddrOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
