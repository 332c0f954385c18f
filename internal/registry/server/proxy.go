package server

import (
	"context"
	"crypto/x509"
	"path/filepath"
	"strings"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/proxy"
	"ply/internal/registry/remote"
)

// Proxy says which repositories are copies of those of other registries.
type Proxy struct {
	Upstreams   []string // each PREFIX=URL, or a host that is both
	Mirror      string   // a prefix of Upstreams, or a URL; "" = none
	Credentials string   // file; "" = none
	CA          string   // file; "" = none
	Size        int64    // bytes to keep; 0 = no bound
	Fresh       time.Duration
}

const hubURL = "https://registry-1.docker.io"

// upstream is one of them, read.
type upstream struct {
	prefix content.Repository
	url    string
}

// parse returns the upstreams and the prefix of the mirror.
func (p *Proxy) parse() (list []upstream, mirror content.Repository, err error) {
	seen := map[content.Repository]bool{}
	for _, s := range p.Upstreams {
		prefix, address, ok := strings.Cut(s, "=")
		if !ok {
			prefix, address = s, "https://"+s
			if remote.IsHub(s) {
				prefix, address = "docker.io", hubURL
			}
		}
		u, err := newUpstream(prefix, address)
		if err != nil {
			return nil, "", errs.New(errs.Invalid, "proxy: %w", err)
		}
		if seen[u.prefix] {
			return nil, "", errs.New(errs.Invalid, "proxy: prefix %s is there twice", u.prefix)
		}
		seen[u.prefix] = true
		list = append(list, u)
	}
	switch m := p.Mirror; {
	case m == "":
	case strings.Contains(m, "://"):
		for _, u := range list {
			if u.url == strings.TrimRight(m, "/") {
				return list, u.prefix, nil
			}
		}
		prefix := "docker.io"
		if !remote.IsHub(m) {
			_, host, _ := strings.Cut(m, "://")
			host, _, _ = strings.Cut(host, "/")
			prefix = strings.ReplaceAll(strings.ToLower(host), ":", "-")
		}
		u, err := newUpstream(prefix, m)
		if err != nil || seen[u.prefix] {
			return nil, "", errs.New(errs.Invalid, "mirror: %q: name it by its prefix in proxy", m)
		}
		return append(list, u), u.prefix, nil
	case seen[content.Repository(m)]:
		mirror = content.Repository(m)
	case m == "docker.io":
		return append(list, upstream{"docker.io", hubURL}), "docker.io", nil
	default:
		return nil, "", errs.New(errs.Invalid, "mirror: %q is neither a prefix of proxy nor a URL", m)
	}
	return list, mirror, nil
}

func newUpstream(prefix, address string) (upstream, error) {
	repo, err := content.ParseRepository(prefix)
	if err != nil {
		return upstream{}, err
	}
	u, err := remote.ParseURL(address)
	if err != nil {
		return upstream{}, err
	}
	return upstream{repo, u.String()}, nil
}

// Validate reports what is wrong, without reading files.
func (p *Proxy) Validate() error {
	list, _, err := p.parse()
	if err == nil && p.Size > 0 && p.Size < 1<<20 && len(list) > 0 {
		err = errs.New(errs.Invalid, "proxy-size: %d bytes are too few for any image", p.Size)
	}
	return err
}

// openProxy returns nil when no repository is a copy.
func (s *Server) openProxy(o *Options) (*proxy.Proxy, error) {
	list, mirror, err := o.Proxy.parse()
	if err != nil || len(list) == 0 {
		return nil, err
	}
	dial, err := newDialing(&o.Proxy)
	if err != nil {
		return nil, err
	}
	spool := filepath.Join(o.Root, "spool")
	if err := durable.MkdirPrivate(durable.OS, spool); err != nil {
		return nil, err
	}
	po := proxy.Options{
		Mirror: mirror, Repositories: s.repositories, Size: o.Proxy.Size, Fresh: o.Proxy.Fresh, Spool: spool,
		Events: proxy.Events{
			Served: s.metrics.Proxied, Fetched: s.metrics.ProxyFetched, Evicted: s.metrics.ProxyEvicted,
			Failed: func(what string, err error) { o.Log.Warn("proxy: "+what, "err", err) },
		},
	}
	for _, u := range list {
		r, err := dial.registry(u.url)
		if err != nil {
			return nil, err
		}
		po.Upstreams = append(po.Upstreams, proxy.Upstream{Prefix: u.prefix, Registry: r, Hub: u.prefix == "docker.io" || remote.IsHub(u.url)})
	}
	return proxy.Open(context.Background(), po)
}

// dialing has what clients of other registries need.
type dialing struct {
	accounts remote.Accounts
	roots    *x509.CertPool
}

func newDialing(p *Proxy) (d dialing, err error) {
	if p.Credentials != "" {
		if d.accounts, err = remote.ReadAccounts(p.Credentials); err != nil {
			return d, err
		}
	}
	if p.CA != "" {
		pem, err := durable.ReadFile(durable.OS, p.CA, 1<<20)
		if err != nil {
			return d, err
		}
		if d.roots, err = x509.SystemCertPool(); err != nil {
			d.roots = x509.NewCertPool()
		}
		if !d.roots.AppendCertsFromPEM(pem) {
			return d, errs.New(errs.Invalid, "%s: holds no certificate", p.CA)
		}
	}
	return d, nil
}

func (d dialing) registry(address string) (*remote.Registry, error) {
	return remote.New(remote.Options{URL: address, Credentials: d.accounts.For(address), Roots: d.roots})
}
