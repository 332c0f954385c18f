package docker

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"ply/internal/errs"
)

// overTCP reports whether a request came over TCP, where a web page in a browser can send requests too.
func overTCP(r *http.Request) bool {
	addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && strings.HasPrefix(addr.Network(), "tcp")
}

// guard refuses requests over TCP that a browser sends for a web page: requests with an Origin, with a cross-site mark, or with
// a Host that is not a name of this engine, because any DNS name can point to its address.
func (s *server) guard(r *http.Request) error {
	if !overTCP(r) {
		return nil
	}
	if r.Header.Get("Origin") != "" {
		return errs.New(errs.Forbidden, "requests with an Origin header are refused: this API is not for web pages")
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "none" {
		return errs.New(errs.Forbidden, "requests of web pages are refused (Sec-Fetch-Site: %s)", clip(site))
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if _, err := netip.ParseAddr(host); err == nil || host == "localhost" || slices.Contains(s.hosts, strings.ToLower(host)) {
		return nil
	}
	return errs.New(errs.Forbidden, "host %q is not a name of this engine: call it by its address or by a name in its certificate", clip(r.Host))
}
