package docker

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/wire"
)

func (h containerHandlers) create(c *call) error {
	var body wire.CreateBody
	if err := c.body(&body, false); err != nil {
		return err
	}
	if err := asSince(c.v, &body); err != nil {
		return err
	}
	sp, err := createSpec(&body)
	if err != nil {
		return err
	}
	sp.ReadOnlyNonRecursive = c.v < 44
	sp.Name = strings.TrimPrefix(c.get("name"), "/")
	if sp.Platform, err = platformParam(c.get("platform")); err != nil {
		return err
	}
	id, warnings, err := h.containers.Create(c.ctx(), sp)
	if err != nil {
		return err
	}
	warnings = append(warnings, withoutEffect(&body, &sp)...)
	return c.json(http.StatusCreated, wire.Created{ID: string(id), Warnings: notNil(warnings)})
}

// asSince gives a body the meaning that it has in a version of the API: newer fields have no effect, and older defaults apply.
func asSince(version int, body *wire.CreateBody) error {
	if body.HostConfig == nil {
		body.HostConfig = &wire.HostConfig{}
	}
	h := body.HostConfig
	if version < 25 {
		h.AutoRemove = false // these clients remove the container themselves
	}
	if version < 40 && h.IpcMode == "" {
		h.IpcMode = "shareable" // what these clients rely on
	}
	if version < 42 {
		h.ConsoleSize = [2]uint{}
	}
	if version < 43 {
		h.Annotations = nil
	}
	if version < 44 && body.Config != nil && body.Healthcheck != nil {
		body.Healthcheck.StartInterval = 0
	}
	if err := mountsSince(version, h.Mounts); err != nil {
		return err
	}
	for i := range h.Mounts {
		if m := &h.Mounts[i]; version < 44 && m.Type == "bind" && m.ReadOnly { // what these clients rely on
			if m.BindOptions == nil {
				m.BindOptions = &wire.BindOptions{}
			}
			m.BindOptions.ReadOnlyNonRecursive = true
		}
	}
	return nil
}

// withoutEffect names the options of a request that docker takes although they do nothing in it.
func withoutEffect(b *wire.CreateBody, sp *spec.Spec) (warnings []string) {
	if d := b.HostConfig.VolumeDriver; d != "" && d != localDriver {
		warnings = append(warnings, fmt.Sprintf("The volume driver %s is not used: no volume of the request takes it.", clip(d)))
	}
	for _, name := range slices.Sorted(maps.Keys(sp.Endpoints)) {
		ep := sp.Endpoints[name]
		for _, o := range ep.Ignored() {
			warnings = append(warnings, fmt.Sprintf("The endpoint option %q has no effect in network %s.", clip(o), clip(name)))
		}
	}
	return warnings
}

// createSpec returns the spec of a request. An option that the engine does not have is an error that names it.
func createSpec(b *wire.CreateBody) (spec.Spec, error) {
	var sp spec.Spec
	cfg := b.Config
	if cfg == nil {
		cfg = &wire.Config{}
	}
	if err := applyConfig(cfg, &sp); err != nil {
		return sp, err
	}
	if b.HostConfig != nil {
		if err := applyHost(b.HostConfig, &sp); err != nil {
			return sp, err
		}
	}
	if b.NetworkingConfig != nil {
		for name, e := range b.NetworkingConfig.EndpointsConfig {
			if e == nil {
				e = &wire.EndpointSettings{}
			}
			ep, err := endpointSpec(e, name)
			if err != nil {
				return sp, err
			}
			if wantsNothing(e) && (name == "default" || name == sp.NetworkMode && (isBuiltIn(name) || strings.HasPrefix(name, "container:"))) {
				continue // clients name the network even when they set nothing for it
			}
			if name == "default" {
				name = "bridge"
			}
			if sp.Endpoints == nil {
				sp.Endpoints = map[string]network.EndpointSpec{}
			}
			sp.Endpoints[name] = ep
		}
	}
	if err := checkMAC(&sp); err != nil {
		return sp, err
	}
	return sp, sp.CheckValues()
}

func isBuiltIn(network string) bool {
	return network == "bridge" || network == "host" || network == "none" || network == "default"
}

// wantsNothing reports whether a client named a network without setting anything for it.
func wantsNothing(e *wire.EndpointSettings) bool {
	return e.IPAMConfig == nil && len(e.Links) == 0 && len(e.Aliases) == 0 && e.MacAddress == "" && len(e.DriverOpts) == 0 &&
		(e.GwPriority == nil || *e.GwPriority == 0)
}

func endpointSpec(e *wire.EndpointSettings, name string) (network.EndpointSpec, error) {
	bad := func(what, value string) (network.EndpointSpec, error) {
		return network.EndpointSpec{}, errs.New(errs.Invalid, "network %s: invalid %s %q", clip(name), what, clip(value))
	}
	if len(e.Aliases) > 0 && isBuiltIn(name) {
		return network.EndpointSpec{}, errs.New(errs.Invalid, "network-scoped alias is supported only for containers in user defined networks")
	}
	ep := network.EndpointSpec{Aliases: e.Aliases, MAC: e.MacAddress, Links: e.Links, DriverOpts: e.DriverOpts}
	if e.GwPriority != nil {
		ep.Priority = *e.GwPriority
	}
	if e.MacAddress != "" {
		if _, err := net.ParseMAC(e.MacAddress); err != nil {
			return bad("MAC address", e.MacAddress)
		}
	}
	if ipam := e.IPAMConfig; ipam != nil {
		for _, text := range ipam.LinkLocalIPs {
			a, err := netip.ParseAddr(text)
			if err != nil || !a.IsLinkLocalUnicast() {
				return bad("link-local address", text)
			}
			ep.LinkLocal = append(ep.LinkLocal, a)
		}
		var err error
		if ipam.IPv4Address != "" {
			if ep.IPv4, err = netip.ParseAddr(ipam.IPv4Address); err != nil || !ep.IPv4.Is4() {
				return bad("IPv4 address", ipam.IPv4Address)
			}
		}
		if ipam.IPv6Address != "" {
			if ep.IPv6, err = netip.ParseAddr(ipam.IPv6Address); err != nil || !ep.IPv6.Is6() {
				return bad("IPv6 address", ipam.IPv6Address)
			}
		}
	}
	return ep, nil
}

// checkMAC refuses two different MAC addresses in the old field and in the new one.
func checkMAC(sp *spec.Spec) error {
	if sp.MacAddress == "" {
		return nil
	}
	if _, err := net.ParseMAC(sp.MacAddress); err != nil {
		return errs.New(errs.Invalid, "MacAddress: %q is not a MAC address", clip(sp.MacAddress))
	}
	ep, ok := sp.Endpoints[sp.NetworkMode]
	if !ok {
		ep, ok = sp.Endpoints["bridge"]
	}
	if ok && ep.MAC != "" && !strings.EqualFold(ep.MAC, sp.MacAddress) {
		return errs.New(errs.Invalid, "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left out")
	}
	return nil
}
