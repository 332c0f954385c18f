package docker

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/network"
)

// createRequest is the body of POST /containers/create.
type createRequest struct {
	containerConfig
	HostConfig       *hostConfig
	NetworkingConfig *struct {
		EndpointsConfig map[string]*endpointSettings
	}
}

// endpointSettings is docker's place of a container in a network, as it is asked for and as inspect shows it.
type endpointSettings struct {
	IPAMConfig          *endpointIPAM
	Links               []string
	Aliases             []string
	MacAddress          string
	DriverOpts          map[string]string
	GwPriority          *int `json:",omitempty"` // since 1.48
	NetworkID           string
	EndpointID          string
	Gateway             string
	IPAddress           string
	IPPrefixLen         int
	IPv6Gateway         string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	DNSNames            []string `json:",omitempty"` // since 1.44
}

type endpointIPAM struct {
	IPv4Address  string   `json:",omitempty"`
	IPv6Address  string   `json:",omitempty"`
	LinkLocalIPs []string `json:",omitempty"`
}

func (s *server) containerCreate(c *call) error {
	var body createRequest
	if err := c.body(&body, false); err != nil {
		return err
	}
	sp, err := body.spec()
	if err != nil {
		return err
	}
	sp.Name = strings.TrimPrefix(c.get("name"), "/")
	if sp.Platform, err = platformParam(c.get("platform")); err != nil {
		return err
	}
	id, warnings, err := s.Containers.Create(c.ctx(), sp)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, struct {
		ID       string `json:"Id"`
		Warnings []string
	}{string(id), notNil(warnings)})
}

// spec maps the whole request; what the engine cannot do is an error that names the option.
func (b *createRequest) spec() (spec.Spec, error) {
	var sp spec.Spec
	if err := b.containerConfig.apply(&sp); err != nil {
		return sp, err
	}
	if b.HostConfig != nil {
		if err := b.HostConfig.apply(&sp); err != nil {
			return sp, err
		}
	}
	if b.NetworkingConfig != nil {
		for name, e := range b.NetworkingConfig.EndpointsConfig {
			if e == nil {
				e = &endpointSettings{}
			}
			ep, err := e.spec(name)
			if err != nil {
				return sp, err
			}
			if e.isDefault() && (name == "default" || name == sp.NetworkMode && isBuiltIn(name)) {
				continue // clients name the network also when they want nothing of it
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
	return sp, checkMAC(&sp)
}

func isBuiltIn(network string) bool {
	return network == "bridge" || network == "host" || network == "none" || network == "default"
}

// isDefault: nothing was asked for.
func (e *endpointSettings) isDefault() bool {
	return e.IPAMConfig == nil && len(e.Links) == 0 && len(e.Aliases) == 0 && e.MacAddress == ""
}

func (e *endpointSettings) spec(name string) (network.EndpointSpec, error) {
	bad := func(what, value string) (network.EndpointSpec, error) {
		return network.EndpointSpec{}, errs.New(errs.Invalid, "network %s: invalid %s %q", clip(name), what, clip(value))
	}
	switch {
	case len(e.DriverOpts) > 0:
		return network.EndpointSpec{}, unsupported("EndpointsConfig.DriverOpts of network "+clip(name), "endpoints take no driver options")
	case e.GwPriority != nil && *e.GwPriority != 0:
		return network.EndpointSpec{}, unsupported("EndpointsConfig.GwPriority of network "+clip(name), "the first network gives the gateway")
	}
	ep := network.EndpointSpec{Aliases: e.Aliases, MAC: e.MacAddress, Links: e.Links}
	if e.MacAddress != "" {
		if _, err := net.ParseMAC(e.MacAddress); err != nil {
			return bad("MAC address", e.MacAddress)
		}
	}
	if ipam := e.IPAMConfig; ipam != nil {
		if len(ipam.LinkLocalIPs) > 0 {
			return network.EndpointSpec{}, unsupported("IPAMConfig.LinkLocalIPs of network "+clip(name), "link-local addresses cannot be chosen")
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

// checkMAC: the old place of the MAC address and the new one must not disagree.
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
