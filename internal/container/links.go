package container

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"ply/internal/container/etc"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/oci"
)

// On the default bridge containers have no names. A link (--link) gives a container a name of its own for another one: an entry in its hosts file,
// and variables that say where the other one's exposed ports are. Where the network keeps its containers apart, it opens these ports. The record names the other container by its ID, so that a link outlives a new name.

// link is one link of a container.
type link struct {
	target oci.ContainerID
	alias  string
}

// defaultNetwork is the network that has links.
const defaultNetwork = "bridge"

func parseLink(text string) (l link, ok bool) {
	target, alias, ok := strings.Cut(text, ":")
	return link{oci.ContainerID(target), alias}, ok && oci.IsHex64(target)
}

// linksOf returns the links of a container on the default bridge.
func linksOf(sp *spec.Spec) (all []link) {
	if spec.IsUserDefined(sp.NetworkMode) { // there, names are those of the network
		return nil
	}
	for _, text := range sp.Links {
		if l, ok := parseLink(text); ok {
			all = append(all, l)
		}
	}
	return all
}

// targetsOf returns the containers to which a container is linked.
func targetsOf(sp *spec.Spec) (ids []oci.ContainerID) {
	for _, l := range linksOf(sp) {
		if !slices.Contains(ids, l.target) {
			ids = append(ids, l.target)
		}
	}
	return ids
}

// exposedRanges returns the exposed ports in order, in as few ranges as there can be.
func exposedRanges(exposed []string) (all []network.PortRange) {
	for _, text := range exposed {
		if first, last, proto, err := spec.ParsePort(text); err == nil {
			all = append(all, network.PortRange{Proto: proto, First: first, Last: last})
		}
	}
	slices.SortFunc(all, func(a, b network.PortRange) int {
		return cmp.Or(strings.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First))
	})
	merged := all[:0]
	for _, r := range all {
		if n := len(merged) - 1; n >= 0 && merged[n].Proto == r.Proto && int(r.First) <= int(merged[n].Last)+1 {
			merged[n].Last = max(merged[n].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// validAlias is the form of a name that a container has for another one. It goes into the hosts file.
var validAlias = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// resolveLinks replaces the names of linked containers by their IDs.
func (e *env) resolveLinks(sp *spec.Spec) error {
	if len(sp.Links) == 0 || spec.IsUserDefined(sp.NetworkMode) {
		return nil
	}
	var all []string
	seen := map[string]bool{}
	for _, text := range sp.Links {
		ref, alias, ok := strings.Cut(text, ":")
		if ref = strings.TrimPrefix(ref, "/"); !ok {
			alias = ref
		}
		if i := strings.LastIndex(alias, "/"); i >= 0 { // as inspect shows it: /name:/self/alias
			alias = alias[i+1:]
		}
		if ref == "" || !validAlias.MatchString(alias) {
			return invalid("bad format for links: %s", clip(text))
		}
		c, err := e.index.find(ref)
		if err != nil {
			return errs.New(errs.Invalid, "could not get container for %s: %v", clip(ref), err)
		}
		c.mu.Lock()
		mode := c.rec.Spec.NetworkMode
		c.mu.Unlock()
		if mode == "host" {
			return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
		}
		if _, on := joinedBy(c)[defaultNetwork]; !on {
			return errs.New(errs.Invalid, "cannot link to %s: it is not on the default bridge", clip(ref)).WithHint("Put both containers on a network of your own, on which they find each other by name.")
		}
		if !seen[alias] {
			all = append(all, string(c.id)+":"+alias)
		}
		seen[alias] = true
	}
	sp.Links = all
	return nil
}

// linked is a link whose target runs.
type linked struct {
	link
	name    string // of the target
	addr    netip.Addr
	exposed []string
	env     []string
}

// host returns the entry of a hosts file.
func (l *linked) host() etc.Link {
	names := []string{l.alias, l.target.Short()}
	if l.name != l.alias {
		names = append(names, l.name)
	}
	return etc.Link{Addr: l.addr, Names: strings.Join(names, " ")}
}

// resolvedLinks returns the links of a container that starts. All targets must run.
func resolvedLinks(c *ctr) (all []linked, err error) {
	c.mu.Lock()
	links, own := linksOf(&c.rec.Spec), c.rec.Name
	c.mu.Unlock()
	for _, l := range links {
		target := c.env.index.get(l.target)
		if target == nil {
			return nil, errs.New(errs.Conflict, "cannot link to container %s AS /%s/%s: it is gone", l.target.Short(), own, l.alias).WithHint("Remove the link with rm --link %s/%s.", own, l.alias)
		}
		r, ok := asTarget(target, l)
		if !ok {
			return nil, errs.New(errs.Conflict, "Cannot link to a non running container: /%s AS /%s/%s", target.name(), own, l.alias)
		}
		all = append(all, r)
	}
	return all, nil
}

// asTarget returns the container as the target of a link; false when it does not run on the default bridge.
func asTarget(c *ctr, l link) (linked, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ep := c.rec.Networks[defaultNetwork]
	if c.life == nil || !ep.IPv4.IsValid() && !ep.IPv6.IsValid() {
		return linked{}, false
	}
	r := linked{link: l, name: c.rec.Name, exposed: slices.Clone(c.rec.Spec.ExposedPorts), env: slices.Clone(c.rec.Spec.Env)}
	if r.addr = ep.IPv4.Addr(); !ep.IPv4.IsValid() {
		r.addr = ep.IPv6.Addr()
	}
	return r, true
}

// linkEnv returns the variables of links, in docker's form.
func linkEnv(own string, links []linked) (env []string) {
	for _, l := range links {
		alias := strings.ReplaceAll(strings.ToUpper(l.alias), "-", "_")
		set := func(name, format string, args ...any) {
			env = append(env, alias+"_"+name+"="+fmt.Sprintf(format, args...))
		}
		type port struct {
			number uint16
			proto  string
		}
		var ports []port
		for _, text := range l.exposed {
			first, last, proto, err := spec.ParsePort(text)
			for n := int(first); err == nil && n <= int(last); n++ {
				ports = append(ports, port{uint16(n), proto})
			}
		}
		slices.SortFunc(ports, func(a, b port) int {
			return cmp.Or(cmp.Compare(a.number, b.number), strings.Compare(a.proto, b.proto))
		})
		ports = slices.Compact(ports)
		url := func(p port) string { return fmt.Sprintf("%s://%s", p.proto, netip.AddrPortFrom(l.addr, p.number)) }
		for i, p := range ports {
			if i == 0 {
				set("PORT", "%s", url(p))
			}
			at := fmt.Sprintf("PORT_%d_%s", p.number, strings.ToUpper(p.proto))
			set(at, "%s", url(p))
			set(at+"_ADDR", "%s", l.addr)
			set(at+"_PORT", "%d", p.number)
			set(at+"_PROTO", "%s", p.proto)
		}
		set("NAME", "/%s/%s", own, l.alias)
		for _, v := range l.env {
			name, value, ok := strings.Cut(v, "=")
			if ok && name != "HOME" && name != "PATH" {
				set("ENV_"+name, "%s", value)
			}
		}
	}
	return env
}

// followTarget brings the hosts files of running containers in line that are linked to one that has started, perhaps with another address.
func followTarget(target *ctr) {
	for _, c := range target.env.index.all() {
		c.mu.Lock()
		links, runs := linksOf(&c.rec.Spec), c.life != nil
		c.mu.Unlock()
		for _, l := range links {
			if l.target != target.id || !runs {
				continue
			}
			r, ok := asTarget(target, l)
			if !ok {
				continue
			}
			if err := etc.SetLink(c.paths.hosts, l.alias+" "+l.target.Short(), r.host()); err != nil {
				c.env.log.Warn("the hosts file has an old address of a linked container", "container", c.id, "linked", target.id, "err", err)
			}
		}
	}
}

// joinedBy returns the networks of the container by name.
func joinedBy(c *ctr) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]bool{}
	for name := range maps.Keys(c.rec.Networks) {
		out[name] = true
	}
	return out
}

// shownLinks replaces the links of a snapshot by what inspect shows of them: /name:/self/alias.
func (e *env) shownLinks(v *Container) {
	var shown []string
	for _, l := range linksOf(&v.Spec) {
		if c := e.index.get(l.target); c != nil {
			shown = append(shown, fmt.Sprintf("/%s:/%s/%s", c.name(), v.Name, l.alias))
		}
	}
	if !spec.IsUserDefined(v.Spec.NetworkMode) {
		v.Spec.Links = shown
	}
}

// linkNames returns the names that containers have for others by their links, by the ID of the other one.
func (e *env) linkNames() map[oci.ContainerID][]string {
	out := map[oci.ContainerID][]string{}
	for _, c := range e.index.all() {
		c.mu.Lock()
		links, name := linksOf(&c.rec.Spec), c.rec.Name
		c.mu.Unlock()
		for _, l := range links {
			out[l.target] = append(out[l.target], name+"/"+l.alias)
		}
	}
	for _, names := range out {
		slices.Sort(names)
	}
	return out
}

// removeLink removes a link, which is given as CONTAINER/ALIAS. It closes the ports that the link opened. The container keeps the name and the variables that it got
// when it started.
func removeLink(ctx context.Context, s *Service, ref string) error {
	name, alias, ok := strings.Cut(strings.TrimPrefix(ref, "/"), "/")
	if !ok {
		return errs.New(errs.Conflict, "Conflict, cannot remove the default link name of the container")
	}
	c, err := s.find(name)
	if err != nil {
		return errs.New(errs.NotFound, "Cannot get parent /%s for link /%s/%s: %w", clip(name), clip(name), clip(alias), err)
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.release()
	c.mu.Lock()
	before := c.rec.Spec.Links
	left := slices.DeleteFunc(slices.Clone(before), func(text string) bool {
		l, ok := parseLink(text)
		return ok && l.alias == alias
	})
	if spec.IsUserDefined(c.rec.Spec.NetworkMode) || len(left) == len(before) {
		c.mu.Unlock()
		return errs.New(errs.NotFound, "container %s has no link %s", clip(name), clip(alias))
	}
	c.rec.Spec.Links = left
	targets, running := targetsOf(&c.rec.Spec), c.rec.Netns != ""
	c.mu.Unlock()
	if err := c.save(); err != nil || !running {
		return err
	}
	return c.env.opts.Network.Relink(context.WithoutCancel(ctx), c.id, defaultNetwork, targets)
}
