package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// server is a registry that is measured: ply-registry, or Debian's docker-registry.
type server struct {
	engine        // of which it has the process; cpu and status work
	addr   string // host:port
	client *http.Client
}

const registryClients = 8

// servers starts both registries on empty directories.
func (w *world) servers() (list []*server, err error) {
	if w.measured != nil {
		return w.measured, nil
	}
	s, err := w.serve(filepath.Join(w.dir, "ply-registry"))
	if err != nil {
		return nil, err
	}
	list = append(list, s)
	if !w.alone {
		addr, err := w.startRegistry("measured")
		if err != nil {
			return nil, err
		}
		list = append(list, w.last("docker", addr))
	}
	w.measured = list
	return list, nil
}

// serve starts a ply-registry on a root.
func (w *world) serve(root string, flags ...string) (*server, error) {
	addr := fmt.Sprintf("127.0.0.1:%d", w.port)
	w.port++
	if _, err := w.spawn("ply-registry.log", filepath.Join(w.bin, "ply-registry"), append([]string{"--addr", addr, "--root", root, "--no-access-log"}, flags...)...); err != nil {
		return nil, err
	}
	return w.last("ply", addr), waitFor(30*time.Second, func() error {
		r, err := http.Get("http://" + addr + "/v2/")
		if err != nil {
			return err
		}
		return r.Body.Close()
	})
}

// last returns the registry that was started last.
func (w *world) last(name, addr string) *server {
	return &server{
		engine: engine{name: name, pid: w.procs[len(w.procs)-1].Process.Pid}, addr: addr,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}},
	}
}

// send makes a request and returns the body of the answer, which must have the status.
func (s *server) send(method, url, mediaType string, body []byte, status int) ([]byte, http.Header, error) {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
		req.Header.Set("Accept", mediaType)
	}
	r, err := s.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != status {
		err = fmt.Errorf("%s: %s %s: %s: %s", s.name, method, url, r.Status, b)
	}
	return b, r.Header, err
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// pushBlob uploads a blob as clients do: POST, then PUT of the whole.
func (s *server) pushBlob(repository string, b []byte) (digest string, err error) {
	digest = digestOf(b)
	_, h, err := s.send(http.MethodPost, "http://"+s.addr+"/v2/"+repository+"/blobs/uploads/", "", nil, http.StatusAccepted)
	if err != nil {
		return "", err
	}
	at := h.Get("Location")
	if at != "" && at[0] == '/' {
		at = "http://" + s.addr + at
	}
	mark := "?"
	if bytes.ContainsRune([]byte(at), '?') {
		mark = "&"
	}
	_, _, err = s.send(http.MethodPut, at+mark+"digest="+digest, "application/octet-stream", b, http.StatusCreated)
	return digest, err
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// pushManifest tags a manifest of a config and of one layer, which the repository has.
func (s *server) pushManifest(repository, tag, config, layer string, sizes [2]int, note string) error {
	b, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config":      map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": sizes[0]},
		"layers":      []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": sizes[1]}},
		"annotations": map[string]string{"note": note},
	})
	if err == nil {
		_, _, err = s.send(http.MethodPut, "http://"+s.addr+"/v2/"+repository+"/manifests/"+tag, manifestType, b, http.StatusCreated)
	}
	return err
}

// prepare pushes a small config and layer to a repository and returns a function that pushes manifests of them.
func (s *server) prepare(repository string) (func(tag string) error, error) {
	config, layer := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`), []byte("a layer of a few bytes")
	c, err := s.pushBlob(repository, config)
	if err != nil {
		return nil, err
	}
	l, err := s.pushBlob(repository, layer)
	return func(tag string) error {
		return s.pushManifest(repository, tag, c, l, [2]int{len(config), len(layer)}, tag)
	}, err
}

// rate calls f by some clients for a while and returns the calls per second, the times of the calls in seconds, and the processor time of the server per call.
func (s *server) rate(clients int, limit time.Duration, f func(client, n int) error) (perSecond float64, took []float64, cpu float64, err error) {
	before, err := s.cpu()
	if err != nil {
		return 0, nil, 0, err
	}
	var g errgroup.Group
	var mu sync.Mutex
	began := time.Now()
	for c := range clients {
		g.Go(func() error {
			var mine []float64
			for n := 0; time.Since(began) < limit; n++ {
				at := time.Now()
				if err := f(c, n); err != nil {
					return err
				}
				mine = append(mine, time.Since(at).Seconds())
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, nil, 0, err
	}
	whole := time.Since(began).Seconds()
	after, err := s.cpu()
	return float64(len(took)) / whole, took, (after - before) / float64(max(1, len(took))), err
}

// compareRates measures a call at both registries in turns.
func (w *world) compareRates(clients int, limit time.Duration, f func(s *server) func(client, n int) error) (perSecond, cpu [2]float64, err error) {
	list, err := w.servers()
	if err != nil {
		return perSecond, cpu, err
	}
	var rates, used [2][]float64
	for range max(3, w.rounds) {
		for i, s := range list {
			r, _, c, err := s.rate(clients, limit, f(s))
			if err != nil {
				return perSecond, cpu, err
			}
			rates[i], used[i] = append(rates[i], r), append(used[i], c)
		}
	}
	for i := range list {
		fmt.Fprintf(os.Stderr, "bench:   %s: %.4g per second\n", list[i].name, rates[i])
		perSecond[i], cpu[i] = median(rates[i]), median(used[i])
	}
	return perSecond, cpu, nil
}

// faster makes the row of a rate that must be a multiple of the other one.
func faster(what string, rate [2]float64, unit string, factor float64) row {
	r := row{what: what, ply: rate[0], docker: rate[1], unit: unit, budget: "–", met: true}
	if rate[1] > 0 {
		r.budget, r.met = fmt.Sprintf(">= %.2g of docker-registry", factor), rate[0] >= factor*rate[1]
	}
	return r
}

// registryReads measures reading a large blob and a small manifest by eight clients.
func (w *world) registryReads() ([]row, error) {
	list, err := w.servers()
	if err != nil {
		return nil, err
	}
	const size = 64 << 20
	blob := make([]byte, size)
	for i := 0; i < size; i += 8 {
		v := rand.Uint64()
		for k := range 8 {
			blob[i+k] = byte(v >> (8 * k))
		}
	}
	var digest string
	for _, s := range list {
		if digest, err = s.pushBlob("read", blob); err != nil {
			return nil, err
		}
		put, err := s.prepare("read")
		if err == nil {
			err = put("small")
		}
		if err != nil {
			return nil, err
		}
	}
	blobs, cpu, err := w.compareRates(registryClients, 2*time.Second, func(s *server) func(int, int) error {
		conns := make([]*rawConn, registryClients)
		return func(c, _ int) (err error) {
			if conns[c] == nil {
				if conns[c], err = dialRaw(s.addr); err != nil {
					return err
				}
			}
			return conns[c].get("/v2/read/blobs/"+digest, size)
		}
	})
	if err != nil {
		return nil, err
	}
	const mb = size / 1e6
	rows := []row{faster("GET of a blob of 64 MB, 8 clients", [2]float64{blobs[0] * mb, blobs[1] * mb}, "MB/s", 1.5)}
	r := row{what: "processor time of the registry for it", ply: cpu[0] * 1000, docker: cpu[1] * 1000, unit: "ms", budget: "<= docker-registry", met: cpu[1] == 0 || cpu[0] <= cpu[1]}
	manifests, _, err := w.compareRates(registryClients, 2*time.Second, func(s *server) func(int, int) error {
		return func(int, int) error {
			_, _, err := s.send(http.MethodGet, "http://"+s.addr+"/v2/read/manifests/small", manifestType, nil, http.StatusOK)
			return err
		}
	})
	return append(rows, r, faster("GET of a small manifest, 8 clients", manifests, "per s", 3)), err
}

// rawConn is a connection that drops what it reads in the kernel, so that the client takes little of the processors.
type rawConn struct {
	conn net.Conn
	r    *bufio.Reader
}

func dialRaw(addr string) (*rawConn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &rawConn{c, bufio.NewReaderSize(c, 4096)}, nil
}

func (c *rawConn) get(path string, size int) error {
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: registry\r\n\r\n", path); err != nil {
		return err
	}
	t := textproto.NewReader(c.r)
	line, err := t.ReadLine()
	if err != nil {
		return err
	}
	h, err := t.ReadMIMEHeader()
	if err != nil {
		return err
	}
	if h.Get("Content-Length") != strconv.Itoa(size) {
		return fmt.Errorf("GET %s: %s, %s bytes", path, line, h.Get("Content-Length"))
	}
	rest := size - c.r.Buffered()
	if _, err := c.r.Discard(c.r.Buffered()); err != nil {
		return err
	}
	raw, err := c.conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 4<<20) // not written to
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for rest > 0 {
			n, _, err := unix.Recvfrom(int(fd), buf[:min(rest, len(buf))], unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false
			case errors.Is(err, unix.EINTR):
			case err != nil || n == 0:
				failed = errors.Join(err, io.ErrUnexpectedEOF)
				return true
			default:
				rest -= n
			}
		}
		return true
	})
	return errors.Join(err, failed)
}

// registryWrites measures pushes by eight clients: of blobs of a megabyte, and of small images.
func (w *world) registryWrites() ([]row, error) {
	var serial atomic.Int64
	blobs, _, err := w.compareRates(registryClients, 3*time.Second, func(s *server) func(int, int) error {
		bodies := make([][]byte, registryClients)
		for i := range bodies {
			bodies[i] = bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		}
		return func(c, _ int) error {
			copy(bodies[c], fmt.Sprintf("%d ", serial.Add(1)))
			_, err := s.pushBlob(fmt.Sprintf("write/%d", c), bodies[c])
			return err
		}
	})
	if err != nil {
		return nil, err
	}
	rows := []row{faster("push of blobs of 1 MB, 8 clients", blobs, "per s", 2)}
	list, err := w.servers()
	if err != nil {
		return nil, err
	}
	var pushes [2]float64
	for i, s := range list {
		n := 10_000
		if i > 0 {
			n = 2000
		}
		var left atomic.Int64
		left.Store(int64(n))
		began := time.Now()
		var g errgroup.Group
		for c := range registryClients {
			g.Go(func() error {
				for left.Add(-1) >= 0 {
					text := strconv.FormatInt(serial.Add(1), 10)
					config, layer := []byte(`{"architecture":"amd64","os":"linux","author":"`+text+`"}`), []byte("layer "+text)
					repository := fmt.Sprintf("small/%d", c)
					a, err := s.pushBlob(repository, config)
					if err != nil {
						return err
					}
					b, err := s.pushBlob(repository, layer)
					if err != nil {
						return err
					}
					if err := s.pushManifest(repository, text, a, b, [2]int{len(config), len(layer)}, text); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		pushes[i] = float64(n) / time.Since(began).Seconds()
	}
	return append(rows, faster("small images pushed, 10,000 (docker-registry: 2,000), 8 clients", pushes, "per s", 1)), nil
}

// registryLists measures the catalogue of 5,000 repositories and the tags of a repository that has 100,000, and what the registry took of the memory meanwhile.
func (w *world) registryLists() (rows []row, err error) {
	list, err := w.servers()
	if err != nil {
		return nil, err
	}
	var catalogue, tags [2][]float64
	for i, s := range list {
		const n = 5000
		var g errgroup.Group
		g.SetLimit(registryClients)
		began := time.Now()
		for k := range n {
			g.Go(func() error {
				put, err := s.prepare(fmt.Sprintf("many/%d", k))
				if err == nil {
					err = put("1")
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "bench:   %s: %d repositories after %s\n", s.name, n, time.Since(began).Round(time.Second))
		for range 10 {
			at := time.Now()
			found, last := 0, ""
			for { // docker-registry has pages of at most 1,000
				b, _, err := s.send(http.MethodGet, "http://"+s.addr+"/v2/_catalog?n=1000&last="+url.QueryEscape(last), "", nil, http.StatusOK)
				if err != nil {
					return nil, err
				}
				var got struct{ Repositories []string }
				if err := json.Unmarshal(b, &got); err != nil {
					return nil, err
				}
				if len(got.Repositories) == 0 {
					break
				}
				found += len(got.Repositories)
				last = got.Repositories[len(got.Repositories)-1]
			}
			catalogue[i] = append(catalogue[i], time.Since(at).Seconds())
			if found < n {
				return nil, fmt.Errorf("%s: %d repositories", s.name, found)
			}
		}
		put, err := s.prepare("tagged")
		if err != nil {
			return nil, err
		}
		many := 100_000
		if i > 0 {
			many = 10_000 // it would take minutes
		}
		for k := range many {
			g.Go(func() error { return put(tagName(k)) })
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		for k := range 20 {
			at := time.Now()
			b, _, err := s.send(http.MethodGet, "http://"+s.addr+"/v2/tagged/tags/list?n=1000&last="+tagName(many/20*k), "", nil, http.StatusOK)
			if err != nil {
				return nil, err
			}
			tags[i] = append(tags[i], time.Since(at).Seconds())
			var got struct{ Tags []string }
			if err := json.Unmarshal(b, &got); err != nil || len(got.Tags) == 0 || i == 0 && len(got.Tags) > 1000 { // this docker-registry has no pages of tags
				return nil, fmt.Errorf("%s: %d tags: %w", s.name, len(got.Tags), err)
			}
		}
		fmt.Fprintf(os.Stderr, "bench:   %s: filled after %s\n", s.name, time.Since(began).Round(time.Second))
	}
	memory, err := memoryOf(list[0].pid)
	return append([]row{
		listed("catalogue of 5,000 repositories, in pages of 1,000", catalogue[0], catalogue[1], 0.02),
		listed("page of 1,000 of 100,000 tags (docker-registry: all of 10,000)", tags[0], tags[1], 0.05),
	}, memory...), err
}

func tagName(n int) string { return fmt.Sprintf("tag%07d", n) }

// memoryOf makes the rows of the memory that ply-registry takes. The kernel counts in VmRSS the pages of its database that it has read, too.
func memoryOf(pid int) ([]row, error) {
	peak, err1 := status(pid, "VmHWM")
	own, err2 := status(pid, "RssAnon")
	file, err3 := status(pid, "RssFile")
	return []row{
		{what: "ply-registry at its largest during all this", ply: peak, unit: "MB", budget: "<= 60 MB", met: peak <= 60},
		{what: "of it at the end: memory of its own", ply: own, unit: "MB", budget: "–", met: true},
		{what: "of it at the end: pages of files", ply: file, unit: "MB", budget: "–", met: true},
	}, errors.Join(err1, err2, err3)
}

// registryOthers measures small reads while 200 clients read a blob slowly, and while garbage is collected.
func (w *world) registryOthers() (rows []row, err error) {
	list, err := w.servers()
	if err != nil {
		return nil, err
	}
	var alone, among [2]float64
	for i, s := range list {
		put, err := s.prepare("others")
		if err == nil {
			err = put("small")
		}
		if err != nil {
			return nil, err
		}
		digest, err := s.pushBlob("others", make([]byte, 64<<20))
		if err != nil {
			return nil, err
		}
		small := func(int, int) error {
			_, _, err := s.send(http.MethodGet, "http://"+s.addr+"/v2/others/manifests/small", manifestType, nil, http.StatusOK)
			return err
		}
		p99 := func() (float64, error) {
			_, took, _, err := s.rate(2, 3*time.Second, small)
			slices.Sort(took)
			return took[len(took)*99/100] * 1000, err
		}
		if alone[i], err = p99(); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() { slowReader(ctx, s.addr, "/v2/others/blobs/"+digest) })
		}
		time.Sleep(time.Second)
		among[i], err = p99()
		cancel()
		wg.Wait()
		if err != nil {
			return nil, err
		}
	}
	beside, err := w.besideCollections()
	if err != nil {
		return nil, err
	}
	rows = append(rows,
		row{what: "GET of a small manifest, p99, 2 clients", ply: alone[0], docker: alone[1], unit: "ms", budget: "–", met: true},
		row{what: "the same beside 200 slow clients", ply: among[0], docker: among[1], unit: "ms", budget: "<= twice that, or 2 ms", met: among[0] <= max(2, 2*alone[0])},
		row{what: "of 100,000 manifests, p99, 2 clients", ply: beside[0], unit: "ms", budget: "–", met: true},
		row{what: "the same beside collections of them, one each second", ply: beside[1], unit: "ms", budget: "<= twice that, or 2 ms", met: beside[1] <= max(2, 2*beside[0])})
	return rows, nil
}

// besideCollections measures small reads of a registry with 100,000 manifests, first without and then beside collections.
func (w *world) besideCollections() (p99 [2]float64, err error) {
	root := filepath.Join(w.dir, "collected")
	if err := fillManifests(root, 0, 100_000); err != nil {
		return p99, err
	}
	for i, flags := range [][]string{{"--gc-interval", "0"}, {"--gc-interval", "1s", "--gc-untagged"}} {
		s, err := w.serve(root, flags...)
		if err != nil {
			return p99, err
		}
		_, took, _, err := s.rate(2, 6*time.Second, func(int, int) error {
			_, _, err := s.send(http.MethodGet, "http://"+s.addr+"/v2/tagged/manifests/"+tagName(rand.IntN(100_000)), manifestType, nil, http.StatusOK)
			return err
		})
		w.stopLast()
		if err != nil {
			return p99, err
		}
		slices.Sort(took)
		p99[i] = took[len(took)*99/100] * 1000
	}
	return p99, os.RemoveAll(root)
}

// slowReader reads a kilobyte of a blob every tenth of a second.
func slowReader(ctx context.Context, addr, path string) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetReadBuffer(4096)
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: registry\r\n\r\n", path); err != nil {
		return
	}
	buf := make([]byte, 1024)
	for ctx.Err() == nil {
		if _, err := conn.Read(buf); err != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}
