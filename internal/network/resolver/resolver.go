// Package resolver answers the DNS queries of a container at 127.0.0.11: names of the container's networks from the tables of package names,
// and all others by asking the servers outside.
//
// A Server runs in the container's shim, so it answers for as long as the container lives, whether plyd runs or not. It holds no state
// but its sockets. What clients and servers send is bounded and checked: an answer from outside counts only if it comes from the server that
// was asked and repeats the query.
package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"ply/internal/network/names"
	"ply/internal/network/namespace"
	"ply/internal/network/nft"
)

// Address is where programs in the container ask.
var Address = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// Config says how a Server answers. A shim stores it.
type Config struct {
	Netns     string   `json:"netns"`             // path of the container's network namespace
	Tables    string   `json:"tables"`            // directory of the names
	Container string   `json:"container"`         // whose view of the names it is
	Servers   []string `json:"servers,omitempty"` // asked for other names, in this order; none = they are refused
	Inside    bool     `json:"inside,omitempty"`  // ask from the container's namespace, not from the host's
}

const (
	ttl          = 600              // seconds, as docker's
	askTimeout   = 4 * time.Second  // of one server
	idleTimeout  = 10 * time.Second // of a client's TCP connection
	maxConcur    = 256              // queries that wait for servers outside
	maxClients   = 64               // TCP connections
	maxMessage   = 65535
	plainUDP     = 512 // bytes that a client takes that does not say more
	maxUDPAnswer = 1232
)

// Server is a running resolver.
type Server struct {
	cfg  Config
	view names.View
	udp  net.PacketConn
	tcp  net.Listener

	queries chan struct{}
	clients chan struct{}
	stop    context.Context
	end     context.CancelFunc
	work    sync.WaitGroup
}

// Start opens the sockets in the container's namespace, redirects port 53 of Address to them, and serves until Close. A program in the container may
// use port 53 of every address itself.
func Start(ctx context.Context, cfg Config) (_ *Server, err error) {
	s := &Server{cfg: cfg, view: names.New(cfg.Tables).View(cfg.Container), queries: make(chan struct{}, maxConcur), clients: make(chan struct{}, maxClients)}
	err = namespace.Do(cfg.Netns, func() (err error) {
		if s.udp, err = net.ListenPacket("udp4", netip.AddrPortFrom(Address, 0).String()); err != nil {
			return err
		}
		if s.tcp, err = net.Listen("tcp4", netip.AddrPortFrom(Address, 0).String()); err != nil {
			return errors.Join(err, s.udp.Close())
		}
		if err = nft.Apply(ctx, redirect(s.udp.LocalAddr(), s.tcp.Addr())); err != nil {
			return errors.Join(err, s.udp.Close(), s.tcp.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	s.stop, s.end = context.WithCancel(context.Background())
	s.work.Go(s.serveUDP)
	s.work.Go(s.serveTCP)
	return s, nil
}

func redirect(udp, tcp net.Addr) string {
	port := func(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
	return fmt.Sprintf(`table ip ply-resolver
delete table ip ply-resolver
table ip ply-resolver {
	chain output {
		type nat hook output priority -100; policy accept;
		ip daddr %[1]s udp dport 53 dnat to %[1]s:%[2]d
		ip daddr %[1]s tcp dport 53 dnat to %[1]s:%[3]d
	}
}
`, Address, port(udp), port(tcp))
}

// Close ends the server and waits for it.
func (s *Server) Close() error {
	s.end()
	err := errors.Join(s.udp.Close(), s.tcp.Close())
	s.work.Wait()
	return err
}

func (s *Server) serveUDP() {
	buf := make([]byte, maxMessage)
	for {
		n, from, err := s.udp.ReadFrom(buf)
		if s.stop.Err() != nil {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // without a pause the loop would spin while something is exhausted
			continue
		}
		q, err := parse(buf[:n])
		if err != nil {
			continue
		}
		reply := func(answer []byte) {
			if len(answer) > 0 {
				_, _ = s.udp.WriteTo(answer, from) // datagrams may be lost
			}
		}
		if answer, known := s.local(q); known {
			reply(q.fit(answer))
			continue
		}
		s.ask(q, "udp", func(answer []byte) { reply(q.fit(answer)) })
	}
}

func (s *Server) serveTCP() {
	for {
		c, err := s.tcp.Accept()
		if s.stop.Err() != nil {
			if err == nil {
				_ = c.Close() // nobody asked anything yet
			}
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // see serveUDP
			continue
		}
		select {
		case s.clients <- struct{}{}:
			s.work.Go(func() {
				defer func() { <-s.clients }()
				s.serveClient(c)
			})
		default:
			_ = c.Close() // too many; the client tries again
		}
	}
}

// serveClient answers the queries of one connection, one after the other.
func (s *Server) serveClient(c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(s.stop, func() { _ = c.Close() })() // ends a read
	for {
		if c.SetDeadline(time.Now().Add(idleTimeout)) != nil {
			return
		}
		msg, err := readMessage(c)
		if err != nil {
			return
		}
		q, err := parse(msg)
		if err != nil {
			return
		}
		answer, known := s.local(q)
		if !known {
			done := make(chan []byte, 1)
			s.ask(q, "tcp", func(a []byte) { done <- a })
			answer = <-done
		}
		if len(answer) == 0 || c.SetDeadline(time.Now().Add(idleTimeout)) != nil || writeMessage(c, answer) != nil {
			return
		}
	}
}

// query is a query with one question.
type query struct {
	raw    []byte
	header dnsmessage.Header
	q      dnsmessage.Question
	limit  int // bytes of an answer by UDP
}

func parse(msg []byte) (*query, error) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil {
		return nil, err
	}
	if h.Response {
		return nil, errors.New("not a query")
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	out := &query{raw: append([]byte(nil), msg...), header: h, q: q, limit: plainUDP}
	if p.SkipAllQuestions() == nil && p.SkipAllAnswers() == nil && p.SkipAllAuthorities() == nil {
		for {
			r, err := p.AdditionalHeader()
			if err != nil {
				break
			}
			if r.Type == dnsmessage.TypeOPT {
				out.limit = max(plainUDP, min(int(r.Class), maxUDPAnswer))
			}
			if p.SkipAdditional() != nil {
				break
			}
		}
	}
	return out, nil
}

// fit returns an answer that a client takes by UDP: one that is too long loses its records, and says so.
func (q *query) fit(answer []byte) []byte {
	if len(answer) <= q.limit {
		return answer
	}
	short, err := q.reply(dnsmessage.RCodeSuccess, true, nil)
	if err != nil {
		return nil
	}
	return short
}

// reply builds an answer.
func (q *query) reply(code dnsmessage.RCode, truncated bool, add func(*dnsmessage.Builder) error) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RecursionDesired: q.header.RecursionDesired,
		RecursionAvailable: true, Truncated: truncated, RCode: code})
	b.EnableCompression()
	err := errors.Join(b.StartQuestions(), b.Question(q.q), b.StartAnswers())
	if err == nil && add != nil {
		err = add(&b)
	}
	if err != nil {
		return nil, err
	}
	return b.Finish()
}

// local answers what the tables know; false when the servers outside are to be asked.
func (s *Server) local(q *query) ([]byte, bool) {
	if q.q.Class != dnsmessage.ClassINET || q.header.OpCode != 0 {
		return nil, false
	}
	head := dnsmessage.ResourceHeader{Name: q.q.Name, Class: dnsmessage.ClassINET, TTL: ttl}
	name := q.q.Name.String()
	switch q.q.Type {
	case dnsmessage.TypeA, dnsmessage.TypeAAAA:
		addrs, known := s.view.Lookup(name)
		if !known {
			return nil, false
		}
		// Clients take the first address, so that each gets its share.
		rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
		answer, err := q.reply(dnsmessage.RCodeSuccess, false, func(b *dnsmessage.Builder) error {
			for _, a := range addrs {
				var err error
				switch {
				case a.Is4() && q.q.Type == dnsmessage.TypeA:
					err = b.AResource(head, dnsmessage.AResource{A: a.As4()})
				case a.Is6() && q.q.Type == dnsmessage.TypeAAAA:
					err = b.AAAAResource(head, dnsmessage.AAAAResource{AAAA: a.As16()})
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		return answer, err == nil
	case dnsmessage.TypePTR:
		a, ok := reverseAddr(name)
		if !ok {
			return nil, false
		}
		host := s.view.Reverse(a)
		if host == "" {
			return nil, false
		}
		target, err := dnsmessage.NewName(host + ".")
		if err != nil {
			return nil, false
		}
		answer, err := q.reply(dnsmessage.RCodeSuccess, false, func(b *dnsmessage.Builder) error {
			return b.PTRResource(head, dnsmessage.PTRResource{PTR: target})
		})
		return answer, err == nil
	}
	return nil, false
}

// reverseAddr reads a name below in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if digits, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		p := strings.Split(digits, ".")
		if len(p) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(p[3] + "." + p[2] + "." + p[1] + "." + p[0])
		return a, err == nil
	}
	digits, ok := strings.CutSuffix(name, ".ip6.arpa.")
	p := strings.Split(digits, ".")
	if !ok || len(p) != 32 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		if len(p[i]) != 1 {
			return netip.Addr{}, false
		}
		b.WriteString(p[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// ask passes a query to the servers outside, in the background, and calls done with the answer once.
func (s *Server) ask(q *query, network string, done func([]byte)) {
	refuse := func() {
		answer, _ := q.reply(dnsmessage.RCodeServerFailure, false, nil) // nil: no answer is the only answer
		done(answer)
	}
	if len(s.cfg.Servers) == 0 {
		refuse()
		return
	}
	select {
	case s.queries <- struct{}{}:
	default:
		refuse()
		return
	}
	s.work.Go(func() {
		defer func() { <-s.queries }()
		var failed []byte
		for _, server := range s.cfg.Servers {
			answer, err := s.exchange(q, network, server)
			if s.stop.Err() != nil {
				break
			}
			if err != nil {
				continue
			}
			if code := dnsmessage.RCode(answer[3] & 0xf); code == dnsmessage.RCodeServerFailure || code == dnsmessage.RCodeRefused {
				failed = answer
				continue
			}
			done(answer)
			return
		}
		if failed != nil {
			done(failed)
			return
		}
		refuse()
	})
}

// exchange asks one server.
func (s *Server) exchange(q *query, network, server string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(s.stop, askTimeout)
	defer cancel()
	var c net.Conn
	dial := func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(server, "53"))
		return err
	}
	var err error
	if s.cfg.Inside {
		err = namespace.Do(s.cfg.Netns, dial)
	} else {
		err = dial()
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if network == "tcp" {
		if err := writeMessage(c, q.raw); err != nil {
			return nil, err
		}
		answer, err := readMessage(c)
		if err == nil && !q.answeredBy(answer) {
			err = errors.New("the answer is that of another query")
		}
		return answer, err
	}
	if _, err := c.Write(q.raw); err != nil {
		return nil, err
	}
	buf := make([]byte, maxMessage)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if q.answeredBy(buf[:n]) {
			return buf[:n], nil
		}
	}
}

// answeredBy reports whether a message is an answer to the query.
func (q *query) answeredBy(msg []byte) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != q.header.ID {
		return false
	}
	a, err := p.Question()
	return err == nil && a.Type == q.q.Type && a.Class == q.q.Class && strings.EqualFold(a.Name.String(), q.q.Name.String())
}

// readMessage reads a message as TCP carries it, after its length.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeMessage(w io.Writer, msg []byte) error {
	if len(msg) > maxMessage {
		return errors.New("message too long")
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}
