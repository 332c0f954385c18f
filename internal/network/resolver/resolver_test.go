package resolver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"ply/internal/network/names"
	"ply/internal/network/namespace"
	"ply/test/private"
)

// The tests own namespaces and rules, so they run in a network and mount namespace of their own.
func TestMain(m *testing.M) { private.Main(m, nil) }

// upstream is a server outside: it answers A queries with 192.0.2.7, those for a name that starts with "long" with many records, and refuses the rest.
func upstream(t *testing.T) string {
	t.Helper()
	const addr = "127.0.0.53"
	answer := func(msg []byte) []byte {
		q, err := parse(msg)
		if err != nil {
			return nil
		}
		n := 1
		if q.q.Name.String()[:4] == "long" {
			n = 100
		}
		out, err := q.reply(dnsmessage.RCodeSuccess, false, func(b *dnsmessage.Builder) error {
			for range n {
				if err := b.AResource(dnsmessage.ResourceHeader{Name: q.q.Name, Class: dnsmessage.ClassINET}, dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil
		}
		return out
	}
	u, err := net.ListenPacket("udp4", addr+":53")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", addr+":53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close(); l.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			a := answer(buf[:n])
			lie := slices.Clone(a)
			lie[0] ^= 0xff // an answer to another query comes first
			_, _ = u.WriteTo(lie, from)
			_, _ = u.WriteTo(a, from)
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if msg, err := readMessage(c); err == nil {
				_ = writeMessage(c, answer(msg))
			}
			c.Close()
		}
	}()
	return addr
}

type world struct {
	t      *testing.T
	netns  string
	tables names.Tables
}

func start(t *testing.T, servers ...string) *world {
	t.Helper()
	w := &world{t: t, netns: filepath.Join(t.TempDir(), "netns"), tables: names.New(t.TempDir())}
	if err := namespace.Make(w.netns); err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), Config{Netns: w.netns, Tables: w.tables.Dir(), Container: "c", Servers: servers})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := namespace.Remove(w.netns); err != nil {
			t.Error(err)
		}
	})
	return w
}

// resolver returns a resolver of a program in the container.
func (w *world) resolver(network string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		err = namespace.Do(w.netns, func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, network, "127.0.0.11:53")
			return err
		})
		return c, err
	}}
}

func (w *world) lookup(network, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	got, err := w.resolver(network).LookupNetIP(ctx, "ip4", name)
	for i := range got {
		got[i] = got[i].Unmap()
	}
	slices.SortFunc(got, netip.Addr.Compare)
	return got, err
}

func TestNames(t *testing.T) {
	w := start(t, upstream(t))
	var all []netip.Addr
	for i := range 60 {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 2)})
		all = append(all, a)
		if err := w.tables.Add("id", names.Entry{Names: []string{fmt.Sprintf("c%d", i), "service"}, Addrs: []netip.Addr{a}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.tables.SetMemberships("c", []names.Membership{{Network: "back", ID: "id"}}); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		if got, err := w.lookup(network, "c7.back."); err != nil || !slices.Equal(got, all[7:8]) {
			t.Errorf("%s: c7.back = %v, %v", network, got, err)
		}
		// Too much for a datagram: the client asks again by TCP.
		if got, err := w.lookup(network, "service."); err != nil || network == "tcp" && !slices.Equal(got, all) {
			t.Errorf("%s: service = %v, %v", network, got, err)
		}
		if got, err := w.lookup(network, "outside.example."); err != nil || len(got) != 1 || got[0].String() != "192.0.2.7" {
			t.Errorf("%s: outside.example = %v, %v", network, got, err)
		}
	}
	host, err := w.resolver("udp").LookupAddr(t.Context(), "10.0.0.9")
	if err != nil || !slices.Equal(host, []string{"c7.back."}) {
		t.Errorf("reverse = %v, %v", host, err)
	}
}

// A network that reaches no other one answers its own names and fails others at once. A server that is gone is passed over.
func TestServersThatFail(t *testing.T) {
	if _, err := start(t).lookup("udp", "outside.example."); err == nil {
		t.Error("a name outside was resolved without a server")
	}
	good := upstream(t)
	if got, err := start(t, "127.0.0.99", good).lookup("udp", "outside.example."); err != nil || len(got) != 1 {
		t.Errorf("with a dead first server: %v, %v", got, err)
	}
}

// Programs in the container may use port 53 themselves.
func TestPortIsFree(t *testing.T) {
	w := start(t)
	err := namespace.Do(w.netns, func() error {
		c, err := net.ListenPacket("udp4", "0.0.0.0:53")
		if err == nil {
			err = c.Close()
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Nothing that a client sends ends the server.
func TestHostileQueries(t *testing.T) {
	w := start(t)
	if err := w.tables.Add("id", names.Entry{Names: []string{"web"}, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}); err != nil {
		t.Fatal(err)
	}
	if err := w.tables.SetMemberships("c", []names.Membership{{Network: "n", ID: "id"}}); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, msg := range [][]byte{{}, {1}, make([]byte, 12), make([]byte, 600), {0, 0, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1}, {0, 1, 1, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 3, 'w', 'e', 'b', 0, 0, 1, 0, 1}} {
			err := namespace.Do(w.netns, func() error {
				c, err := net.Dial(network, "127.0.0.11:53")
				if err != nil {
					return err
				}
				if network == "tcp" {
					_ = writeMessage(c, msg)
				} else {
					_, _ = c.Write(msg)
				}
				return c.Close()
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if got, err := w.lookup(network, "web."); err != nil || len(got) != 1 {
			t.Errorf("%s: web after hostile queries = %v, %v", network, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 'w', 'e', 'b', 0, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, msg []byte) {
		q, err := parse(msg)
		if err != nil {
			return
		}
		answer, err := q.reply(dnsmessage.RCodeServerFailure, false, nil)
		if err == nil && !q.answeredBy(answer) {
			t.Errorf("the reply %x does not answer %x", answer, msg)
		}
	})
}

func TestReverseAddr(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.2.1.in-addr.arpa.": "1.2.3.4", "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4.ip6.arpa.": "4321:0:1:2:3:4:567:89ab",
		"1.in-addr.arpa.": "", "x.3.2.1.in-addr.arpa.": "", "1.ip6.arpa.": "", "web.": "",
	} {
		a, ok := reverseAddr(name)
		if ok != (want != "") || ok && a.String() != want {
			t.Errorf("reverseAddr(%q) = %v, %v, want %q", name, a, ok, want)
		}
	}
}
