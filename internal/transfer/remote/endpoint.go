package remote

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"ply/internal/errs"
)

// policy is the part of the configuration that can be swapped at run time.
type policy struct {
	mirrors []*endpoint
	hosts   map[string]bool // may be insecure
	nets    []netip.Prefix  // may be insecure
	realms  []string        // token servers that any registry may name
}

// endpoint is one base below which /v2/ is found.
type endpoint struct {
	scheme   string // "" = https or http, to be found out
	host     string // host or host:port
	prefix   string // path before /v2/, without a trailing slash
	mirror   bool
	insecure bool           // certificates are not checked; http is allowed
	nets     []netip.Prefix // insecure because of these: connections go nowhere else
}

func (e *endpoint) key() string { return e.scheme + "://" + e.host + e.prefix }

// origin of a URL: what decides whether credentials may go along.
func origin(u *url.URL) string {
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(host), port)
}

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
	// People paste URLs here; what they mean is clear.
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

// insecure tells whether a host may be spoken to without verification. Loopback always may, by address or as
// localhost; a name that merely resolves to loopback may not, else whoever answers DNS could switch TLS off.
// A name that falls under a CIDR is not known before it is resolved: the networks returned hold its connections to it.
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
