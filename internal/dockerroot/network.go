package dockerroot

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Network is a network that a user made.
type Network struct {
	ID         string
	Name       string
	Driver     string
	Created    time.Time
	NoIPv4     bool
	IPv6       bool
	Pools      []Pool
	Internal   bool
	Attachable bool
	Labels     map[string]string
	Options    map[string]string
}

// Pool is a subnet of a network.
type Pool struct {
	Subnet, Range netip.Prefix // an invalid range is the whole subnet
	Gateway       netip.Addr
	Aux           map[string]netip.Addr
}

// networkRecord is a network in the database of libnetwork.
type networkRecord struct {
	ID           string            `json:"id"`
	Name         string            `json:"name"`
	Type         string            `json:"networkType"`
	Created      time.Time         `json:"created"`
	Scope        string            `json:"scope"`
	Labels       map[string]string `json:"labels"`
	EnableIPv4   *bool             `json:"enableIPv4"` // since 28; nil = true
	EnableIPv6   bool              `json:"enableIPv6"`
	IPAMType     string            `json:"ipamType"`
	IPAMOptions  map[string]string `json:"ipamOptions"`
	IPAMv4Config string            `json:"ipamV4Config"` // JSON in a string, as the next three
	IPAMv4Info   string            `json:"ipamV4Info"`
	IPAMv6Config string            `json:"ipamV6Config"`
	IPAMv6Info   string            `json:"ipamV6Info"`
	Generic      map[string]any    `json:"generic"`
	Internal     bool              `json:"internal"`
	Attachable   bool              `json:"attachable"`
	InDelete     bool              `json:"inDelete"`
	Ingress      bool              `json:"ingress"`
	ConfigOnly   bool              `json:"configOnly"`
	ConfigFrom   string            `json:"configFrom"`
}

// ipamConfig is what a user asked for, ipamInfo what the network got.
type ipamConfig struct {
	PreferredPool string
	SubPool       string
	Gateway       string
	AuxAddresses  map[string]string
}

type ipamInfo struct {
	IPAMData string // JSON in a string
	PoolID   string
}

type ipamData struct {
	AddressSpace string
	Gateway      string
	Pool         string
}

const (
	networkBucket  = "libnetwork"
	networkPrefix  = "docker/network/v1.0/network/"
	indexBytes     = 8 // that stand before each value
	maxNetworks    = 10_000
	maxNetworkJSON = 1 << 20
	genericOptions = "com.docker.network.generic"
)

// builtIn are the networks that every docker has.
var builtIn = []string{"bridge", "host", "none"}

// Networks returns the networks that users made, sorted by name.
func (r *Root) Networks() (all []Network, problems []Problem) {
	if r.networks == nil {
		return nil, nil
	}
	err := r.networks.view(func(tx *bbolt.Tx) error {
		b := bucket(tx, networkBucket)
		if b == nil {
			return nil
		}
		prefix := []byte(networkPrefix)
		n, left := 0, newBudget()
		for k, v := range seek(b, prefix) {
			id := strings.Trim(string(bytes.TrimPrefix(k, prefix)), "/")
			if id == "" || len(v) <= indexBytes {
				continue // a directory
			}
			if n++; n > maxNetworks {
				return errs.New(errs.DataLoss, "there are more than %d networks", maxNetworks)
			}
			name, net, err := readNetwork(id, v[indexBytes:])
			if err == nil && net != nil {
				err = left.take(v)
			}
			if err != nil {
				problems = append(problems, Problem{KindNetwork, name, err})
			} else if net != nil {
				all = append(all, *net)
			}
		}
		return nil
	})
	if err != nil {
		problems = append(problems, Problem{KindNetwork, "all networks", err})
	}
	slices.SortFunc(all, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })
	sortProblems(problems)
	return all, problems
}

// seek iterates over the keys with a prefix.
func seek(b *bbolt.Bucket, prefix []byte) func(yield func(k, v []byte) bool) {
	return func(yield func(k, v []byte) bool) {
		c := b.Cursor()
		for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if !yield(k, v) {
				return
			}
		}
	}
}

// readNetwork decodes a record. It returns nil for a network that every docker has.
func readNetwork(id string, data []byte) (name string, _ *Network, err error) {
	var rec networkRecord
	name = short(clip(id))
	if len(data) > maxNetworkJSON {
		return name, nil, errs.New(errs.DataLoss, "its record has %d bytes", len(data))
	}
	if err := oci.DecodeJSON(data, &rec); err != nil {
		return name, nil, errs.New(errs.DataLoss, "its record: %w", err)
	}
	if rec.Name != "" {
		name = clip(rec.Name)
	}
	refuse := func(why string) (string, *Network, error) {
		return name, nil, errs.New(errs.Unimplemented, "%s", why)
	}
	switch {
	case rec.ID != id || !oci.IsHex64(rec.ID) || rec.Name == "":
		return name, nil, errs.New(errs.DataLoss, "its record is of network %.64q with the name %.64q", rec.ID, rec.Name)
	case rec.InDelete:
		return refuse("docker was removing it")
	case slices.Contains(builtIn, rec.Name):
		return name, nil, nil
	case rec.Ingress, rec.Scope != "" && rec.Scope != "local":
		return refuse("it belongs to a swarm")
	case rec.ConfigOnly || rec.ConfigFrom != "":
		return refuse("it has its configuration from another network, or is one for others")
	case rec.IPAMType != "" && rec.IPAMType != "default":
		return refuse("its addresses come from the IPAM driver " + clip(rec.IPAMType))
	case len(rec.IPAMOptions) > 0:
		return refuse("it has options of the IPAM driver")
	}
	n := &Network{
		ID: rec.ID, Name: rec.Name, Driver: rec.Type, Created: rec.Created, NoIPv4: rec.EnableIPv4 != nil && !*rec.EnableIPv4, IPv6: rec.EnableIPv6,
		Internal: rec.Internal, Attachable: rec.Attachable, Labels: rec.Labels,
	}
	for _, f := range []struct{ config, info string }{{rec.IPAMv4Config, rec.IPAMv4Info}, {rec.IPAMv6Config, rec.IPAMv6Info}} {
		pools, err := readPools(f.config, f.info)
		if err != nil {
			return name, nil, err
		}
		n.Pools = append(n.Pools, pools...)
	}
	if n.Options, err = driverOptions(rec.Generic[genericOptions]); err != nil {
		return name, nil, err
	}
	return name, n, nil
}

// readPools reads the subnets of one family. Those that docker chose count as those that a user asked for.
func readPools(config, info string) (pools []Pool, err error) {
	var asked []ipamConfig
	var got []ipamInfo
	for _, f := range []struct {
		text string
		into any
	}{{config, &asked}, {info, &got}} {
		if f.text == "" {
			continue
		}
		if err := oci.DecodeJSON([]byte(f.text), f.into); err != nil {
			return nil, errs.New(errs.DataLoss, "its addresses: %w", err)
		}
	}
	for i, g := range got {
		var data ipamData
		if err := oci.DecodeJSON([]byte(g.IPAMData), &data); err != nil {
			return nil, errs.New(errs.DataLoss, "its addresses: %w", err)
		}
		var p Pool
		if p.Subnet, err = netip.ParsePrefix(data.Pool); err != nil {
			return nil, errs.New(errs.DataLoss, "its subnet: %w", err)
		}
		p.Subnet = p.Subnet.Masked()
		if data.Gateway != "" {
			gateway, err := netip.ParsePrefix(data.Gateway)
			if err != nil {
				return nil, errs.New(errs.DataLoss, "its gateway: %w", err)
			}
			p.Gateway = gateway.Addr()
		}
		if i < len(asked) {
			if err := asked[i].add(&p); err != nil {
				return nil, err
			}
		}
		pools = append(pools, p)
	}
	return pools, nil
}

// add adds what only the request has.
func (c *ipamConfig) add(p *Pool) (err error) {
	if c.SubPool != "" {
		if p.Range, err = netip.ParsePrefix(c.SubPool); err != nil {
			return errs.New(errs.DataLoss, "its range of addresses: %w", err)
		}
	}
	for name, text := range c.AuxAddresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return errs.New(errs.DataLoss, "its auxiliary address %.40q: %w", name, err)
		}
		if p.Aux == nil {
			p.Aux = map[string]netip.Addr{}
		}
		p.Aux[name] = a
	}
	return nil
}

// driverOptions reads the options of a network's driver.
func driverOptions(generic any) (map[string]string, error) {
	raw, err := json.Marshal(generic)
	if err != nil {
		return nil, err
	}
	var options map[string]string
	if err := json.Unmarshal(raw, &options); err != nil {
		return nil, errs.New(errs.DataLoss, "its options: %w", err)
	}
	return options, nil
}
