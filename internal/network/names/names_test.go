package names

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func add(t *testing.T, tables Tables, network string, e Entry) {
	t.Helper()
	if err := tables.Add(network, e); err != nil {
		t.Fatal(err)
	}
}

func TestLookup(t *testing.T) {
	tables := New(t.TempDir())
	web := Entry{Names: []string{"web", "aaaa", "www"}, Addrs: addrs("10.0.0.2", "fd00::2")}
	other := Entry{Names: []string{"api", "WWW"}, Addrs: addrs("10.0.0.3")}
	add(t, tables, "net1", web)
	add(t, tables, "net1", other)
	add(t, tables, "net2", Entry{Names: []string{"web"}, Addrs: addrs("10.2.0.2")})
	if err := tables.SetMemberships("c", []Membership{{Network: "back", ID: "net1", Links: map[string]string{"db": "api"}}, {Network: "front", ID: "net2"}}); err != nil {
		t.Fatal(err)
	}
	v := tables.View("c")
	for name, want := range map[string][]netip.Addr{
		"web": web.Addrs, "WEB.": web.Addrs, "aaaa": web.Addrs, "www": addrs("10.0.0.2", "10.0.0.3", "fd00::2"),
		"web.back": web.Addrs, "web.front": addrs("10.2.0.2"), "db": addrs("10.0.0.3"),
		"nosuch": nil, "web.other": nil, "": nil, ".": nil, "..": nil, "../names/web": nil, "a/b": nil, strings.Repeat("x", 300): nil,
	} {
		got, known := v.Lookup(name)
		if !reflect.DeepEqual(got, want) || known != (want != nil) {
			t.Errorf("Lookup(%.20q) = %v, %v, want %v", name, got, known, want)
		}
	}
	if got := v.Reverse(addrs("10.2.0.2")[0]); got != "web.front" {
		t.Errorf("Reverse = %q", got)
	}
	if got, known := tables.View("stranger").Lookup("web"); known {
		t.Errorf("a container of no network finds %v", got)
	}
	// One of two containers with a name goes, and the other still has it.
	if err := tables.Remove("net1", web); err != nil {
		t.Fatal(err)
	}
	if got, _ := v.Lookup("www"); !reflect.DeepEqual(got, other.Addrs) {
		t.Errorf("www after a removal = %v", got)
	}
	if got, _ := v.Lookup("web"); !reflect.DeepEqual(got, addrs("10.2.0.2")) {
		t.Errorf("web after a removal = %v, want that of the other network", got)
	}
	if err := tables.SetMemberships("c", nil); err != nil {
		t.Fatal(err)
	}
	if _, known := v.Lookup("web"); known {
		t.Error("a container that left its networks finds names")
	}
	if err := tables.Prune(func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if err := tables.Drop("net1"); err != nil {
		t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	for name, ok := range map[string]bool{
		"web": true, "a.b": true, "_x-1": true, "": false, ".": false, "..": false, "a/b": false, "a b": false, "a\nb": false, "a\x00b": false, strings.Repeat("x", 254): false,
	} {
		if err := Check(name); (err == nil) != ok {
			t.Errorf("Check(%.20q) = %v", name, err)
		}
	}
}
