package remote

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"

	"ply/internal/errs"
)

// policy is the part of the configuration that Reload replaces.
type policy struct {
	mirrors []*endpoint
	hosts   map[string]bool // registries that may be insecure, in lower case
	nets    []netip.Prefix  // networks whose registries may be insecure
	realms  []string        // token servers that any registry may name
}

// endpoint is one base URL that serves /v2/.
type endpoint struct {
	scheme   string // "" = unknown: https or http
	host     string // host or host:port
	prefix   string // path before /v2/, without a slash at its end
	mirror   bool
	insecure bool           // certificates are not checked, and http is allowed
	nets     []netip.Prefix // the endpoint is insecure because it is in these networks; connections to other addresses fail
}

func (e *endpoint) key() string { return e.scheme + "://" + e.host + e.prefix }

func parsePolicy(mirrors, insecure []string) (*policy, error) {
	p := &policy{hosts: map[string]bool{}}
	var all error
	for _, s := range insecure {
		all = errors.Join(all, p.addInsecure(s))
	}
	for _, s := range mirrors {
		e, err := p.parseMirror(s)
		if err != nil {
			all = errors.Join(all, err)
			continue
		}
		p.mirrors = append(p.mirrors, e)
	}
	return p, all
}

func (p *policy) addInsecure(s string) error {
	s = strings.TrimSpace(s)
	if n, err := netip.ParsePrefix(s); err == nil {
		p.nets = append(p.nets, n.Masked())
		return nil
	}
	// Users paste URLs here.
	s = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://"), "/")
	if !validHost(s) {
		return errs.New(errs.Invalid, "insecure-registries: %q is not a host, host:port or CIDR", clip(s))
	}
	p.hosts[strings.ToLower(s)] = true
	return nil
}

func validHost(s string) bool {
	u, err := url.Parse("https://" + s)
	return err == nil && s != "" && u.Host == s && u.Hostname() != ""
}

func (p *policy) parseMirror(s string) (*endpoint, error) {
	u, err := url.Parse(strings.TrimSpace(s))
	switch {
	case err != nil:
		return nil, errs.New(errs.Invalid, "registry-mirrors: %q is not a URL", clip(s))
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errs.New(errs.Invalid, "registry-mirrors: %q: want http:// or https://", clip(u.Redacted()))
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errs.New(errs.Invalid, "registry-mirrors: %q: want scheme, host and perhaps a path, nothing else", clip(u.Redacted()))
	}
	e := &endpoint{scheme: u.Scheme, host: u.Host, prefix: strings.TrimSuffix(u.EscapedPath(), "/"), mirror: true}
	e.insecure, e.nets = p.insecure(u.Host)
	return e, nil
}

func (p *policy) endpoint(domain string) *endpoint {
	e := &endpoint{scheme: "https", host: domain}
	if domain == hubDomain {
		e.host = hubRegistry
	}
	if e.insecure, e.nets = p.insecure(domain); e.insecure {
		e.scheme = ""
	}
	return e
}

// insecure reports whether a host may have an invalid certificate or none. Loopback may, as an address or as localhost. Another
// name that resolves to loopback may not: whoever answers DNS could otherwise disable TLS.
//
// Whether a name is in an insecure network is known only when it is resolved. For a name, insecure therefore returns the
// networks, and the endpoint connects to no address outside them.
func (p *policy) insecure(host string) (bool, []netip.Prefix) {
	if p.hosts[strings.ToLower(host)] {
		return true, nil
	}
	name := (&url.URL{Host: host}).Hostname()
	if ip, err := netip.ParseAddr(name); err == nil {
		ip = ip.Unmap()
		for _, n := range p.nets {
			if n.Contains(ip) {
				return true, nil
			}
		}
		return ip.IsLoopback(), nil
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true, loopback
	}
	return false, p.nets
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
