package server

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
)

var openUploads = flag.Int("registry.uploads", 1000, "how many uploads TestManyOpenUploads begins")

// Uploads behave like a list of bytes with an end: whatever clients do in whatever order, the registry answers as the model does.
func TestUploadsAgreeWithAModel(t *testing.T) {
	_, url, _ := start(t, Options{Root: t.TempDir()})
	c := newClient(url)
	defer c.http.CloseIdleConnections()
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		repo := fmt.Sprintf("model/r%d", run)
		open := map[string][]byte{} // by path
		stored := map[string]bool{}
		expect := func(what string, r reply, err error, status int) reply {
			if err != nil || r.status != status {
				t.Fatalf("%s: %d %s, %v; want %d", what, r.status, r.body, err, status)
			}
			return r
		}
		ended := "/v2/" + repo + "/blobs/uploads/" + blobs.NewID()
		pick := func(t *rapid.T) string {
			paths := []string{ended}
			for p := range open {
				paths = append(paths, p)
			}
			return rapid.SampledFrom(paths).Draw(t, "upload")
		}
		at := func(path string) string { return fmt.Sprintf("0-%d", max(len(open[path])-1, 0)) }
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(*rapid.T) {
				r, err := c.do("POST", "/v2/"+repo+"/blobs/uploads/", nil)
				open[expect("begin", r, err, 202).header.Get("Location")] = nil
			},
			"chunk": func(t *rapid.T) {
				path := pick(t)
				data := rapid.SliceOfN(rapid.Byte(), 1, 2000).Draw(t, "data")
				from := len(open[path]) + rapid.SampledFrom([]int{0, 0, 0, -1, 1, 1000}).Draw(t, "gap")
				from = max(from, 0)
				length := len(data) + rapid.SampledFrom([]int{0, 0, 0, 0, 1}).Draw(t, "lie")
				r, err := c.do("PATCH", path, data, fmt.Sprintf("Content-Range: %d-%d", from, from+length-1))
				_, exists := open[path]
				switch {
				case !exists:
					expect("a chunk of no upload", r, err, 404)
				case from != len(open[path]):
					if got := expect("a chunk with a gap", r, err, 416).header.Get("Range"); got != at(path) {
						t.Fatalf("Range %s, want %s", got, at(path))
					}
				case length != len(data):
					expect("a chunk of another length", r, err, 400)
				default:
					open[path] = append(open[path], data...)
					if got := expect("a chunk", r, err, 202).header.Get("Range"); got != at(path) {
						t.Fatalf("Range %s, want %s", got, at(path))
					}
				}
			},
			"stream": func(t *rapid.T) {
				path := pick(t)
				data := rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(t, "data")
				r, err := c.do("PATCH", path, data)
				if _, exists := open[path]; !exists {
					expect("a stream to no upload", r, err, 404)
					return
				}
				open[path] = append(open[path], data...)
				expect("a stream", r, err, 202)
			},
			"status": func(t *rapid.T) {
				path := pick(t)
				r, err := c.do("GET", path, nil)
				if _, exists := open[path]; !exists {
					expect("the status of no upload", r, err, 404)
				} else if got := expect("status", r, err, 204).header.Get("Range"); got != at(path) {
					t.Fatalf("Range %s, want %s", got, at(path))
				}
			},
			"cancel": func(t *rapid.T) {
				path := pick(t)
				r, err := c.do("DELETE", path, nil)
				if _, exists := open[path]; !exists {
					expect("to cancel no upload", r, err, 404)
					return
				}
				expect("cancel", r, err, 204)
				delete(open, path)
				ended = path
			},
			"finish": func(t *rapid.T) {
				path := pick(t)
				last := rapid.SliceOfN(rapid.Byte(), 0, 500).Draw(t, "last")
				whole := append(bytes.Clone(open[path]), last...)
				algorithm := rapid.SampledFrom(content.Algorithms).Draw(t, "algorithm")
				d := algorithm.Of(whole)
				how := rapid.SampledFrom([]string{"right", "right", "wrong", "malformed", "gap"}).Draw(t, "how")
				query, header := string(d), "X: x"
				switch how {
				case "wrong":
					query = string(algorithm.Of([]byte("other")))
				case "malformed":
					query = "sha256:x"
				case "gap":
					last = append(last, 'x')
					header = fmt.Sprintf("Content-Range: %d-%d", len(open[path])+1, len(open[path])+len(last))
				}
				r, err := c.do("PUT", path+"?digest="+query, last, header)
				_, exists := open[path]
				switch {
				case how == "malformed":
					expect("a malformed digest", r, err, 400)
				case !exists:
					expect("to finish no upload", r, err, 404)
				case how == "gap":
					expect("a last chunk with a gap", r, err, 416)
				case how == "wrong":
					expect("another digest", r, err, 400)
					delete(open, path)
					ended = path
				default:
					expect("finish", r, err, 201)
					delete(open, path)
					ended = path
					stored[string(d)] = true
					r, err := c.do("GET", "/v2/"+repo+"/blobs/"+string(d), nil)
					if got := expect("the blob", r, err, 200).body; !bytes.Equal(got, whole) {
						t.Fatalf("the blob has %d bytes, want %d", len(got), len(whole))
					}
				}
			},
			"elsewhere": func(t *rapid.T) {
				path := strings.Replace(pick(t), "/v2/model/", "/v2/other/", 1)
				for _, method := range []string{"GET", "PATCH", "DELETE"} {
					r, err := c.do(method, path, nil)
					expect(method+" through another repository", r, err, 404)
				}
			},
		})
	})
}

// Clients that stall are cut off, and the others are served meanwhile.
func TestSlowClients(t *testing.T) {
	_, url, _ := start(t, Options{Root: t.TempDir(), Stall: 500 * time.Millisecond})
	c := newClient(url)
	defer c.http.CloseIdleConnections()
	if _, err := c.image("slow", "v1", "", random(1000)); err != nil {
		t.Fatal(err)
	}
	big := random(8 << 20)
	if err := c.blob("slow", big); err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(url, "http://")
	dial := func(request string) net.Conn {
		conn, err := net.Dial("tcp", address) //nolint:noctx // loopback
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	var readers, writers []net.Conn
	for range 50 {
		r, err := c.want("POST", "/v2/slow/blobs/uploads/", nil, nil, 202)
		if err != nil {
			t.Fatal(err)
		}
		writers = append(writers, dial("PATCH "+r.header.Get("Location")+" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nbegun"))
		readers = append(readers, dial("GET /v2/slow/blobs/"+string(content.SHA256.Of(big))+" HTTP/1.1\r\nHost: x\r\n\r\n"))
		dial("GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow")
	}
	for i := range 20 {
		if _, err := c.image("slow", "v"+strconv.Itoa(i), "", random(1000)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.pull("slow", "v1"); err != nil {
			t.Fatal(err)
		}
	}
	// A writer that stalls gets an answer, or at least an end, and its upload goes on where it was.
	for _, conn := range writers {
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		b, err := io.ReadAll(conn)
		if !strings.HasPrefix(string(b), "HTTP/1.1 408 ") {
			t.Fatalf("a stalled writer: %q, %v", b, err)
		}
	}
	for _, conn := range readers {
		_ = conn.Close()
	}
}

// Headers without an end and requests that are not HTTP are refused.
func TestHostileRequests(t *testing.T) {
	_, url, _ := start(t, Options{Root: t.TempDir()})
	c := newClient(url)
	defer c.http.CloseIdleConnections()
	for name, request := range map[string]string{
		"a header of a megabyte":     "GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"many headers":               "GET /v2/ HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: "+strings.Repeat("x", 100)+"\r\n", 10_000) + "\r\n",
		"not HTTP":                   "\x00\x01\x02\r\n\r\n",
		"two lengths":                "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"a negative length":          "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
		"a length that is a word":    "PUT /v2/a/manifests/x HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
		"a path that leaves the top": "GET /v2/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"a path of a megabyte":       "GET /v2/" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")) //nolint:noctx // loopback
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			go func() { _, _ = io.WriteString(conn, request) }()
			_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
			b := make([]byte, 12)
			if _, err := io.ReadFull(conn, b); err == nil && !strings.HasPrefix(string(b), "HTTP/1.1 4") {
				t.Errorf("answer %q", b)
			}
		})
	}
	if _, err := c.want("GET", "/v2/", nil, nil, 200); err != nil {
		t.Error(err)
	}
}

// Thousands of uploads that are begun and left do not keep others from pushing. Those with bytes outlive a restart, and a collection removes them.
func TestManyOpenUploads(t *testing.T) {
	o := Options{Root: t.TempDir(), Untagged: true}
	_, url, stop := start(t, o)
	c := newClient(url)
	var wg sync.WaitGroup
	locations := make([]string, *openUploads)
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < len(locations); i += 8 {
				r, err := c.want("POST", "/v2/left/blobs/uploads/", nil, nil, 202)
				if err == nil && i%10 == 0 {
					_, err = c.want("PATCH", r.header.Get("Location"), []byte("begun"), nil, 202)
				}
				if err != nil {
					t.Error(i, err)
					return
				}
				locations[i] = r.header.Get("Location")
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i := range 20 {
		tag := "v" + strconv.Itoa(i)
		if _, err := c.image("other", tag, "", random(1000)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.pull("other", tag); err != nil {
			t.Fatal(err)
		}
	}
	c.http.CloseIdleConnections()
	stop()
	s, url, _ := start(t, o)
	c = newClient(url)
	defer c.http.CloseIdleConnections()
	r, err := c.want("GET", locations[0], nil, nil, 204)
	if err != nil || r.header.Get("Range") != "0-4" {
		t.Errorf("the first upload after a restart: Range %q, %v", r.header.Get("Range"), err)
	}
	later := time.Now().Add(time.Hour)
	report, err := s.Collector().Run(t.Context(), later, later)
	if want := (len(locations) + 9) / 10; err != nil || report.Uploads != want {
		t.Errorf("collected %d uploads, want %d, %v", report.Uploads, want, err)
	}
	for _, at := range []string{locations[0], locations[len(locations)-1]} {
		if _, err := c.want("GET", at, nil, nil, 404); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.pull("other", "v1"); err != nil {
		t.Error(err)
	}
}
