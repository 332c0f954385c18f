package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/network/namespace"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/store/meta"
	"ply/internal/store/meta/metatest"
)

var (
	oldConnection = Connection{
		Container: "c", Netns: "/n",
		Endpoint: Endpoint{
			Network: "bridge", NetworkID: "11", ID: "22", IPv4: netip.MustParsePrefix("172.17.0.2/16"), IPv6: netip.MustParsePrefix("fd00::2/64"),
			Gateway: netip.MustParseAddr("172.17.0.1"), Gateway6: netip.MustParseAddr("fd00::1"), MAC: "02:42:ac:11:00:02", Aliases: []string{"web", "db"},
			Interface: "eth0", HostIf: "veth0123456",
		},
		Ports: []PortBinding{
			{Proto: "tcp", ContainerPort: 80, HostIP: netip.IPv4Unspecified(), HostPort: 8080},
			{Proto: "udp", ContainerPort: 53, HostIP: netip.IPv6Unspecified(), HostPort: 7000, HostPortEnd: 7005},
			{Proto: "tcp", ContainerPort: 81},
		},
		Published: true,
	}
	goldenNetwork = networkRecord{ID: "1", Driver: "bridge", Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}
	userNetwork   = networkRecord{
		ID: "2", Driver: "macvlan", Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), User: true, NoIPv4: true, IPv6: true,
		Pools: []Pool{{
			Subnet: netip.MustParsePrefix("172.18.0.0/16"), Range: netip.MustParsePrefix("172.18.1.0/24"), Gateway: netip.MustParseAddr("172.18.0.1"),
			Aux: map[string]netip.Addr{"router": netip.MustParseAddr("172.18.0.9")},
		}},
		IPAM: map[string]string{"a": "b"}, Internal: true, Attachable: true, Labels: map[string]string{"l": "m"}, Options: map[string]string{"parent": "eth0"},
	}
	// goldenSpec stands for the part of a container's record that this package declares.
	goldenSpec = specs{Endpoints: map[string]EndpointSpec{"mine": {
		Aliases: []string{"a"}, IPv4: netip.MustParseAddr("172.17.0.9"), IPv6: netip.MustParseAddr("fd00::9"), MAC: "02:42:ac:11:00:09", Links: []string{"p:q"},
		Priority: 3, LinkLocal: []netip.Addr{netip.MustParseAddr("fe80::9")}, DriverOpts: map[string]string{"k": "v"},
	}}}
	oldSpec = specs{Endpoints: map[string]EndpointSpec{"mine": {
		Aliases: []string{"a"}, IPv4: netip.MustParseAddr("172.17.0.9"), IPv6: netip.MustParseAddr("fd00::9"), MAC: "02:42:ac:11:00:09", Links: []string{"p:q"},
	}}}
)

type specs struct {
	Endpoints map[string]EndpointSpec `json:"endpoints"`
}

// The form in which a connection, a network and the endpoints of a container are stored.
func TestGoldenRecords(t *testing.T) {
	// Addresses encode themselves, as text.
	connection := oldConnection
	connection.Ports = append(slices.Clone(oldConnection.Ports), PortBinding{Proto: "tcp", ContainerPort: 82, HostIP: netip.IPv6Unspecified(), HostPort: 8082, Routed: true})
	connection.Endpoint.LinkLocal = []netip.Addr{netip.MustParseAddr("169.254.1.1")}
	connection.Sysctls, connection.Handed, connection.Default, connection.Making, connection.Moving, connection.Priority, connection.Names, connection.Links = map[string]string{"ipv4/conf/IFNAME/forwarding": "1"}, true, true, true, true, -1, []string{"web"}, map[string]string{"db": "postgres"}
	connection.Linked, connection.Exposed = []oci.ContainerID{"d"}, []PortRange{{Proto: "tcp", First: 80, Last: 81}}
	golden(t, "connection", connectionVersion, connection, "Endpoint.IPv4", "Endpoint.IPv6", "Endpoint.Gateway", "Endpoint.Gateway6",
		"Ports.HostIP", "Ports.HostPortEnd", "Ports.Routed", "Endpoint.LinkLocal")
	golden(t, "network", 1, userNetwork, "Pools.Subnet", "Pools.Range", "Pools.Gateway", "Pools.Aux")
	golden(t, "endpoints", 1, goldenSpec, "Endpoints.IPv4", "Endpoints.IPv6", "Endpoints.LinkLocal")
	for _, old := range []string{"v1", "unversioned"} { // as earlier builds wrote them; the last is before the first release
		recordtest.Decodes(t, "connection."+old+".json", connectionVersion, oldConnection)
		recordtest.Decodes(t, "network."+old+".json", 1, goldenNetwork)
		recordtest.Decodes(t, "endpoints."+old+".json", 1, oldSpec)
	}
}

func golden[T any](t *testing.T, name string, version int, v T, except ...string) {
	t.Helper()
	recordtest.Filled(t, v, except...)
	data, err := record.Marshal(version, v)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, name+".json", data)
	recordtest.Decodes(t, name+".json", version, v)
}

// A file that a newer release wrote keeps the networks from opening, and no file is removed.
func TestNewerConnectionIsRefused(t *testing.T) {
	dir := t.TempDir()
	const id = oci.ContainerID("bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
	damaged := filepath.Join(dir, "aaaa.json")
	newer := filepath.Join(dir, string(id)+".json")
	if err := errors.Join(os.WriteFile(damaged, []byte("{"), 0o600),
		os.WriteFile(newer, []byte(`{"version":3,"writer":"9.9.9","container":"`+string(id)+`"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	_, err := readConnections(dir)
	if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "ply 9.9.9") {
		t.Errorf("error = %v, want Precondition that names the writer", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("files left %v, %v, want both", left, err)
	}
	if err := os.Remove(newer); err != nil {
		t.Fatal(err)
	}
	if found, err := readConnections(dir); err != nil || len(found) != 0 {
		t.Errorf("found %v, %v", found, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("files left %v, %v, want the damaged one removed", left, err)
	}
}

// A connection is taken over only when its namespace still exists and the file has the name of its container.
func TestStaleConnectionsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	netns := filepath.Join(t.TempDir(), "netns")
	if err := namespace.Make(netns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespace.Remove(netns); err != nil {
			t.Error(err)
		}
	})
	s := files(dir)
	old := Connection{Container: "old", Netns: netns}
	if err := errors.Join(s.save(Connection{Container: "live", Netns: netns}), s.save(Connection{Container: "ended", Netns: netns + ".gone"}),
		s.save(Connection{Container: "other", Netns: netns}), s.save(old)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(filepath.Join(dir, "other-.json"), filepath.Join(dir, "renamed-.json")),
		os.Rename(filepath.Join(dir, "old-.json"), filepath.Join(dir, oldFileName(old))),
		os.WriteFile(durable.TempName(dir), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	found, err := readConnections(dir)
	if err != nil || len(found) != 2 || found[0].Container != "live" || found[1].Container != "old" {
		t.Errorf("found %+v, %v, want the live ones", found, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 || left[0].Name() != "live-.json" || left[1].Name() != "old.json" {
		t.Errorf("files left %v, %v, want the live ones", left, err)
	}
}

// The records of the default networks are written once and read again; a damaged one is replaced, and one without
// a version is kept.
func TestNetworksKeepTheirIDs(t *testing.T) {
	db, err := meta.Open(filepath.Join(t.TempDir(), "meta.db"), meta.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ids := func() map[string]string {
		t.Helper()
		s, err := Open(t.Context(), Options{Meta: db, StateDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		all, err := s.List(context.Background(), nil)
		if err != nil || len(all) != 3 {
			t.Fatalf("List = %v, %v", all, err)
		}
		out := map[string]string{}
		for _, n := range all {
			out[n.Name] = n.ID
		}
		return out
	}
	first := ids()
	if again := ids(); again["bridge"] != first["bridge"] || again["none"] != first["none"] || !oci.IsHex64(first["bridge"]) {
		t.Errorf("IDs after a restart = %v, want %v", again, first)
	}
	err = db.Update(func(tx *meta.Tx) error {
		return errors.Join(tx.Networks.Put("bridge", []byte(`{"id":"kept","driver":"bridge"}`)), tx.Networks.Put("none", []byte(`{"id":7}`)))
	})
	if err != nil {
		t.Fatal(err)
	}
	if again := ids(); again["bridge"] != "kept" || again["none"] == first["none"] || !oci.IsHex64(again["none"]) {
		t.Errorf("IDs = %v, want the bridge's kept and that of the damaged record new", again)
	}
}

// A damaged record that is of no default network is listed with its name, and can be removed. The default networks are
// not affected, and cannot be removed so.
func TestDamagedNetworkIsListed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "meta.db")
	open := func() (*Service, *meta.DB) {
		t.Helper()
		db, err := meta.Open(path, meta.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), Options{Meta: db, StateDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		return s, db
	}
	_, db := open()
	err := db.Update(func(tx *meta.Tx) error {
		return meta.As[networkRecord](tx.Networks).Put("later", networkRecord{ID: "1", Driver: "bridge"})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	metatest.Falsify(t, path, "networks", "later", `"driver":"bridge"`, `"driver":"bridgf"`)
	s, db := open()
	defer db.Close()
	list, err := s.List(t.Context(), nil)
	if err != nil || len(list) != 4 || list[3].Name != "later" || list[3].Damaged == nil || list[0].Damaged != nil {
		t.Fatalf("List = %v, %v", list, err)
	}
	if err := s.Remove(t.Context(), "bridge"); !errors.Is(err, errs.Forbidden) {
		t.Errorf("Remove of a default network = %v", err)
	}
	if err := s.Remove(t.Context(), list[3].ID[:12]); err != nil {
		t.Error(err)
	}
	if list, err := s.List(t.Context(), nil); err != nil || len(list) != 3 {
		t.Errorf("List after the removal = %v, %v", list, err)
	}
}

// The default bridge shows its settings in the options that docker shows.
func TestDefaultBridgeShowsItsOptions(t *testing.T) {
	for _, tc := range []struct {
		config Config
		want   string
	}{
		{Config{Bridge: "b"}, "true true 0.0.0.0 1500"},
		{Config{Bridge: "b", NoICC: true, MTU: 1400}, "false true 0.0.0.0 1400"},
		{Config{Bridge: "b", NoMasq: true, HostIP: netip.MustParseAddr("127.0.0.1")}, "true false 127.0.0.1 1500"},
	} {
		o := (&managed{name: "bridge", config: tc.config}).describe(nil).Options
		got := strings.Join([]string{o["com.docker.network.bridge.enable_icc"], o["com.docker.network.bridge.enable_ip_masquerade"], o["com.docker.network.bridge.host_binding_ipv4"],
			o["com.docker.network.driver.mtu"]}, " ")
		if got != tc.want || o["com.docker.network.bridge.name"] != "b" {
			t.Errorf("%+v: %v", tc.config, o)
		}
	}
}
