package source

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"ply/internal/build/relay"
	"ply/internal/errs"
)

// proxy is an HTTP proxy on loopback for git, which otherwise resolves names itself: every connection of git goes through the dialer of this package.
// Only who knows its password may use it.
type proxy struct {
	s        *Sources
	password string
	l        net.Listener
	server   *http.Server
	forward  *httputil.ReverseProxy
	end      context.CancelFunc
	ctx      context.Context
	tunnels  sync.WaitGroup
	refused  *refusal
}

func (s *Sources) newProxy(refused *refusal) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errs.New(errs.Internal, "proxy for git: %w", err)
	}
	p := &proxy{s: s, password: rand.Text(), l: l, refused: refused}
	p.ctx, p.end = context.WithCancel(context.Background())
	p.forward = &httputil.ReverseProxy{
		Rewrite:   func(*httputil.ProxyRequest) {}, // the request names its host
		Transport: s.web.Transport, FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { p.refuse(w, err) },
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: connectTimeout}
	go func() { _ = p.server.Serve(l) }() // it ends with Close
	return p, nil
}

func (p *proxy) address() string {
	return (&url.URL{Scheme: "http", User: url.UserPassword("git", p.password), Host: p.l.Addr().String()}).String()
}

// Close ends all connections.
func (p *proxy) Close() error {
	p.end()
	err := p.server.Close()
	p.tunnels.Wait()
	return err
}

func (p *proxy) refuse(w http.ResponseWriter, err error) {
	code := http.StatusBadGateway
	if errors.Is(err, errs.Forbidden) {
		code = http.StatusForbidden
		p.refused.set(err)
	}
	http.Error(w, err.Error(), code)
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("git:"+p.password))
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("Proxy-Authorization")), []byte(want)) != 1 {
		w.Header().Set("Proxy-Authenticate", `Basic realm="ply"`)
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	r.Header.Del("Proxy-Authorization")
	switch {
	case r.Method == http.MethodConnect:
		p.tunnel(w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		p.forward.ServeHTTP(w, r)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

// tunnel connects git with a host, or with the proxy of the administrator for that host.
func (p *proxy) tunnel(w http.ResponseWriter, r *http.Request) {
	far, err := p.dial(r.Context(), r.Host)
	if err != nil {
		p.refuse(w, err)
		return
	}
	defer far.Close()
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	near, buf, err := hijacker.Hijack()
	if err != nil {
		return
	}
	defer near.Close()
	if _, err := near.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		return
	}
	p.tunnels.Add(1)
	defer p.tunnels.Done()
	relay.Join(p.ctx, far, &ahead{near, buf.Reader})
}

func (p *proxy) dial(ctx context.Context, hostport string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	upstream, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: hostport}})
	if err != nil {
		return nil, err
	}
	if upstream == nil {
		return p.s.dialer("").Dial(ctx, "tcp", hostport)
	}
	if err := checkLiteral(host); err != nil {
		return nil, err
	}
	if upstream.Scheme != "http" && upstream.Scheme != "https" {
		return nil, errs.New(errs.Unimplemented, "git through a proxy of the scheme %s is not supported", upstream.Scheme)
	}
	port := upstream.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[upstream.Scheme]
	}
	conn, err := p.s.dialer(host).Dial(ctx, "tcp", net.JoinHostPort(upstream.Hostname(), port))
	if err != nil {
		return nil, err
	}
	if upstream.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: upstream.Hostname(), RootCAs: p.s.o.Roots})
	}
	return connectThrough(conn, upstream, hostport)
}

// connectThrough asks a proxy for a connection.
func connectThrough(conn net.Conn, upstream *url.URL, hostport string) (_ net.Conn, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
		return nil, err
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: hostport}, Host: hostport, Header: http.Header{}}
	if u := upstream.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errs.New(errs.Unavailable, "the proxy answers %s", resp.Status)
	}
	return &ahead{conn, in}, conn.SetDeadline(time.Time{})
}

// ahead is a connection from which something was read already.
type ahead struct {
	net.Conn
	in *bufio.Reader
}

func (a *ahead) Read(p []byte) (int, error) { return a.in.Read(p) }

// ReadFrom lets the kernel move the bytes where it can.
func (a *ahead) ReadFrom(r io.Reader) (int64, error) { return io.Copy(a.Conn, r) }
