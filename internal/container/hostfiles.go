package container

import (
	"os"
	"path/filepath"

	"ply/internal/container/etc"
	"ply/internal/errs"
)

// hostname returns the container's names, or the host's where it shares the host's UTS namespace.
func (c *ctr) hostname() (name, domain string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name = c.rec.Spec.Hostname; name == "" {
		name, _ = os.Hostname()
	}
	return name, c.rec.Spec.Domainname
}

// writeHostFiles writes hosts, hostname and resolv.conf.
func writeHostFiles(c *ctr, p *prepared) error {
	if p.files != c {
		return nil // another container's files are used
	}
	c.mu.Lock()
	sp, opts := c.rec.Spec, &c.env.opts
	c.mu.Unlock()
	hostname, domain := c.hostname()
	if domain != "" {
		hostname += "." + domain
	}
	onHost := sp.NetworkMode == "host"
	var links []etc.Link
	for i := range p.links {
		links = append(links, p.links[i].host())
	}
	hosts, err := etc.Hosts(etc.HostsOptions{
		Links:       links,
		HostNetwork: onHost, Extra: sp.ExtraHosts, Gateways: opts.HostGateway,
		Hostname: sp.Hostname, Domainname: sp.Domainname, Endpoints: p.att.Endpoints,
	})
	if err != nil {
		return err
	}
	var resolv []byte
	if own, engine := resolversOf(c, sp); p.att.Resolver {
		resolv, _, _ = etc.ResolvByShim(own, engine, opts.ResolvConf)
	} else {
		resolv = etc.Resolv(own, engine, opts.ResolvConf, onHost)
	}
	for path, data := range map[string][]byte{
		c.paths.hostname: []byte(hostname + "\n"), c.paths.resolv: resolv, c.paths.hosts: hosts,
	} {
		if err := etc.Write(path, data); err != nil {
			return errs.New(errs.Internal, "container %s: %s: %w", c.id.Short(), filepath.Base(path), err)
		}
	}
	return nil
}
