package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Options of Open.
type Options struct {
	Meta      *meta.DB
	StateDir  string // what is true until the next boot: one file an endpoint
	Bridge    string // "" = ply0; "none" = no default bridge
	Address   netip.Prefix
	Pools     []netip.Prefix // nil = DefaultPools
	Fixed     netip.Prefix   // addresses for containers come from here; invalid = the whole subnet
	MTU       int            // 0 = 1500
	HostIP    netip.Addr     // where ports are published by default; invalid = everywhere
	NoICC     bool           // containers may not speak with each other
	NoMasq    bool
	NoRules   bool // do not touch nftables ("iptables": false)
	NoForward bool // do not switch IP forwarding on
	NoProxy   bool // hold published ports, but carry nothing in user space
	Events    *events.Bus
	Log       *slog.Logger
}

// record is what a network keeps in the database.
type record struct {
	ID      string    `json:"id"`
	Driver  string    `json:"driver"`
	Created time.Time `json:"created"`
}

// endpointFile is one attached container, on disk under StateDir.
type endpointFile struct {
	Container oci.ContainerID `json:"container"`
	Netns     string          `json:"netns"`
	Endpoint  Endpoint        `json:"endpoint"`
	Ports     []PortBinding   `json:"ports,omitempty"`
	Published bool            `json:"published,omitempty"` // the ports are in the rules
}

// Service is the networks of one engine. Safe for concurrent use; Attach and Detach of one container are
// serialised by the caller.
type Service struct {
	opts    Options
	log     *slog.Logger
	records map[string]record // by name
	rules   rules

	start sync.Mutex // held while the bridge is made
	gw    netip.Prefix
	ipam  *ipam

	background sync.WaitGroup // interfaces being deleted

	mu        sync.Mutex // never held over I/O
	endpoints map[oci.ContainerID]endpointFile
	ports     map[oci.ContainerID][]reservation
}

var defaultNetworks = []struct{ name, driver string }{{"bridge", "bridge"}, {"host", "host"}, {"none", "null"}}

// Open reads what is known. The bridge and its rules are made by the first container that needs them, or at once when
// containers of an earlier plyd live on it: an engine that only pulls leaves the host's network alone.
func Open(ctx context.Context, opts Options) (*Service, error) {
	if opts.Bridge == "" {
		opts.Bridge = "ply0"
	}
	if opts.MTU == 0 {
		opts.MTU = 1500
	}
	if opts.Pools == nil {
		opts.Pools = DefaultPools()
	}
	s := &Service{
		opts: opts, log: opts.Log, records: map[string]record{},
		endpoints: map[oci.ContainerID]endpointFile{}, ports: map[oci.ContainerID][]reservation{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.loadRecords(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return nil, err
	}
	return s, s.loadEndpoints(ctx)
}

func (s *Service) loadRecords() error {
	return s.opts.Meta.Update(func(tx *meta.Tx) error {
		for _, n := range defaultNetworks {
			raw, err := tx.Networks.Get(n.name)
			var r record
			if err == nil && json.Unmarshal(raw, &r) == nil && r.ID != "" {
				s.records[n.name] = r
				continue
			}
			r = record{ID: randomID(), Driver: n.driver, Created: time.Now().UTC()}
			if raw, err = json.Marshal(r); err != nil {
				return err
			}
			if err := tx.Networks.Put(n.name, raw); err != nil {
				return err
			}
			s.records[n.name] = r
		}
		return nil
	})
}

// loadEndpoints takes up the containers of an earlier plyd: their addresses are taken, their ports held again.
func (s *Service) loadEndpoints(ctx context.Context) error {
	entries, err := os.ReadDir(s.opts.StateDir)
	if err != nil {
		return err
	}
	var live []endpointFile
	for _, e := range entries {
		path := filepath.Join(s.opts.StateDir, e.Name())
		b, err := os.ReadFile(path)
		var f endpointFile
		if err == nil {
			err = json.Unmarshal(b, &f)
		}
		if err != nil || !isNamespace(f.Netns) {
			_ = os.Remove(path) // of an earlier boot, or damaged: nothing runs there
			continue
		}
		s.endpoints[f.Container] = f
		if f.Endpoint.IPv4.IsValid() {
			live = append(live, f)
		}
	}
	if len(live) == 0 {
		return nil
	}
	if err := s.ensure(ctx, false); err != nil {
		return err
	}
	for _, f := range live {
		if _, err := s.ipam.take(f.Endpoint.IPv4.Addr()); err != nil {
			s.log.Warn("address of a running container is not free", "container", f.Container, "err", err)
		}
		held, err := reserve(f.Ports, s.opts.HostIP, f.Endpoint.IPv4.Addr(), !s.opts.NoProxy)
		if err != nil {
			s.log.Warn("published port cannot be held again; the kernel's rules still serve it", "container", f.Container, "err", err)
		}
		s.ports[f.Container] = held
	}
	return nil
}

// ensure makes the bridge and the rules. With fresh the table is written anew; otherwise one that is there stays, with the
// ports of running containers in it.
func (s *Service) ensure(ctx context.Context, fresh bool) error {
	s.start.Lock()
	defer s.start.Unlock()
	if s.ipam != nil {
		return nil
	}
	if s.opts.Bridge == "none" {
		return errs.New(errs.Precondition, "the default bridge is switched off (\"bridge\": \"none\")").
			WithHint("Use --network host or --network none.")
	}
	gw, err := ensureBridge(s.opts.Bridge, s.opts.Address, s.opts.Pools, s.opts.MTU)
	if err != nil {
		return err
	}
	if !s.opts.NoForward {
		if err := sysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	s.rules = rules{table: "ply-" + s.opts.Bridge, bridge: s.opts.Bridge, subnet: gw, masq: !s.opts.NoMasq, icc: !s.opts.NoICC}
	if !s.opts.NoRules {
		if err := sysctl("ipv4/conf/"+s.opts.Bridge+"/route_localnet", "1"); err != nil {
			return err
		}
		if fresh || nft(ctx, "list table inet "+s.rules.table+"\n") != nil {
			if err := nft(ctx, s.rules.render()); err != nil {
				return err
			}
		}
	}
	pool := s.opts.Fixed
	if !pool.IsValid() {
		pool = gw
	}
	s.gw = gw
	s.ipam = newIPAM(gw, pool, gw.Addr())
	return nil
}

// Close lets go of the reserved ports. Containers keep their network; the rules stay.
func (s *Service) Close() error {
	s.background.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, held := range s.ports {
		release(held)
	}
	s.ports = map[oci.ContainerID][]reservation{}
	return nil
}

// Teardown removes the bridge and the rules when no container is attached any more; for a clean uninstall and for tests.
func (s *Service) Teardown(ctx context.Context) error {
	s.background.Wait()
	s.mu.Lock()
	busy := len(s.endpoints)
	s.mu.Unlock()
	s.start.Lock()
	defer s.start.Unlock()
	if busy > 0 || s.ipam == nil {
		return nil
	}
	s.ipam = nil
	var err error
	if !s.opts.NoRules {
		err = nft(ctx, "delete table inet "+s.rules.table+"\n")
	}
	if link, lerr := netlink.LinkByName(s.opts.Bridge); lerr == nil {
		err = errors.Join(err, netlink.LinkDel(link))
	}
	return err
}

// Get finds a network by name, ID or unambiguous prefix of an ID; errs.NotFound "network X not found".
func (s *Service) Get(ctx context.Context, ref string) (*Network, error) {
	all, err := s.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	var found *Network
	for _, n := range all {
		if n.Name == ref || n.ID == ref {
			return n, nil
		}
		if ref != "" && strings.HasPrefix(n.ID, ref) {
			if found != nil {
				return nil, errs.New(errs.Invalid, "network %s is ambiguous (2 matches found based on ID prefix)", ref)
			}
			found = n
		}
	}
	if found == nil {
		return nil, errs.New(errs.NotFound, "network %s not found", ref)
	}
	return found, nil
}

// List returns the networks that match; ListFilters lists the filters.
func (s *Service) List(_ context.Context, filters filter.Args) ([]*Network, error) {
	match, err := ListFilters.Compile(filters)
	if err != nil {
		return nil, err
	}
	var out []*Network
	for _, n := range defaultNetworks {
		r := s.records[n.name]
		net := &Network{ID: r.ID, Name: n.name, Driver: r.Driver, Created: r.Created, Endpoints: map[string]Endpoint{}}
		if n.name == "bridge" {
			s.start.Lock()
			net.Subnet, net.Gateway = s.gw.Masked(), s.gw.Addr()
			s.start.Unlock()
			net.Options = map[string]string{"com.docker.network.bridge.name": s.opts.Bridge, "com.docker.network.bridge.default_bridge": "true"}
		}
		s.mu.Lock()
		for id, e := range s.endpoints {
			if e.Endpoint.Network == n.name {
				net.Endpoints[string(id)] = e.Endpoint
			}
		}
		s.mu.Unlock()
		if match(net) {
			out = append(out, net)
		}
	}
	return out, nil
}

func (s *Service) saveEndpoint(f endpointFile) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	// Not synced: what it says ends with the boot.
	path := filepath.Join(s.opts.StateDir, string(f.Container)+".json")
	tmp := durable.TempName(s.opts.StateDir)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func randomID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
