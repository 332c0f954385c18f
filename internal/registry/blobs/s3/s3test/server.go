// Package s3test starts versitygw, an S3 server on a directory, for tests, and a proxy before it that makes faults.
package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ply/internal/registry/blobs/s3"
)

// Credentials of the server.
const (
	accessKey = "tester"
	secretKey = "testersecret"
)

// Fault is what happens to a request.
type Fault int

// The faults.
const (
	None    Fault = iota
	Busy          // 503 SlowDown
	Reset         // the connection is reset before the server sees the request
	Lost          // the server does what it is asked, and the answer is lost
	Cut           // the connection breaks in the middle of the answer
	Slow          // the server takes its time
	Missing       // 500 without a body
)

// Server is a running server.
type Server struct {
	dir   string
	cmd   *exec.Cmd
	proxy *httptest.Server
	next  atomic.Int64
	fault atomic.Pointer[func(*http.Request) Fault]

	// versitygw removes the directories that a deletion has left empty, and refuses an object that is put into one of them at that moment. A deletion
	// therefore has the lock for itself; requests that put something share it.
	deletes sync.RWMutex
}

// program returns versitygw, which it builds when this machine does not have it.
func program() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == "/" {
			return "", errors.New("the sources are not above the directory of the test")
		}
	}
	out, err := exec.CommandContext(context.Background(), "sh", filepath.Join(dir, "test/setup/versitygw")).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// Start starts a server. The caller stops it.
func Start() (_ *Server, err error) {
	bin, err := program()
	if err != nil {
		return nil, fmt.Errorf("versitygw: %w", err)
	}
	dir, err := os.MkdirTemp("", "s3")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir}
	for _, name := range []string{"data", "meta"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	socket := filepath.Join(dir, "socket")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer log.Close()
	s.cmd = exec.CommandContext(context.Background(), bin, "--quiet", "--keep-alive", "--port", socket, "--access", accessKey, "--secret", secretKey,
		"posix", "--sidecar", filepath.Join(dir, "meta"), filepath.Join(dir, "data"))
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := (&net.Dialer{}).DialContext(context.Background(), "unix", socket)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			return nil, errors.Join(fmt.Errorf("versitygw does not start: %s", text), s.Stop())
		}
	}
	s.proxy = httptest.NewServer(s.handler(socket))
	return s, nil
}

func (s *Server) handler(socket string) http.Handler {
	all := &httputil.ReverseProxy{
		// The signature is of the host that the client names.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "s3", r.In.Host
		},
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
			DisableCompression: true, DisableKeepAlives: true,
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	forward := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut || r.Method == http.MethodPost {
			body, err := io.ReadAll(r.Body) // a slow client does not hold the lock
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		switch {
		case r.Method == http.MethodDelete || r.Method == http.MethodPost && r.URL.Query().Has("delete"):
			s.deletes.Lock()
			defer s.deletes.Unlock()
		case r.Method == http.MethodPut || r.Method == http.MethodPost:
			s.deletes.RLock()
			defer s.deletes.RUnlock()
		}
		all.ServeHTTP(w, r)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fault := None
		if f := s.fault.Load(); f != nil {
			fault = (*f)(r)
		}
		switch fault {
		case Busy:
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>`)
			return
		case Missing:
			w.WriteHeader(http.StatusInternalServerError)
			return
		case Reset:
			panic(http.ErrAbortHandler)
		case Lost:
			forward.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		case Cut:
			forward.ServeHTTP(&cutting{ResponseWriter: w, left: 700}, r)
			return
		case Slow:
			time.Sleep(100 * time.Millisecond)
		}
		forward.ServeHTTP(w, r)
	})
}

// cutting breaks the connection after some bytes of a body.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	if len(p) <= c.left {
		c.left -= len(p)
		return c.ResponseWriter.Write(p)
	}
	_, _ = c.ResponseWriter.Write(p[:c.left])
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

// Inject sets what happens to requests from now on; nil = nothing.
func (s *Server) Inject(fault func(*http.Request) Fault) {
	if fault == nil {
		s.fault.Store(nil)
		return
	}
	s.fault.Store(&fault)
}

// Bucket makes an empty bucket and returns options for it, with small parts and without a place for uploads.
func (s *Server) Bucket(t testing.TB) s3.Options {
	t.Helper()
	name := fmt.Sprintf("bucket%d", s.next.Add(1))
	if err := os.Mkdir(filepath.Join(s.dir, "data", name), 0o700); err != nil {
		t.Fatal(err)
	}
	return s3.Options{Endpoint: s.proxy.URL, Bucket: name, Region: "us-east-1", AccessKey: accessKey, SecretKey: secretKey, PathStyle: true, PartSize: 5 << 20}
}

// Files returns the names of the files of a bucket, which are its objects.
func (s *Server) Files(t testing.TB, bucket string) (names []string) {
	t.Helper()
	root := filepath.Join(s.dir, "data", bucket)
	err := filepath.Walk(root, func(path string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			names = append(names, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Stop ends the server and removes its files.
func (s *Server) Stop() error {
	if s.proxy != nil {
		s.proxy.Close()
	}
	err := s.cmd.Process.Kill()
	_ = s.cmd.Wait() // it was killed
	return errors.Join(err, os.RemoveAll(s.dir))
}
