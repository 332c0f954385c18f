package server

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/registry/content"
)

var kills = flag.Int("registry.kills", 8, "how often TestKill kills the registry")

// child starts a registry in a process of its own.
func child(t *testing.T, o Options) (url string, kill func()) {
	t.Helper()
	url, _, kill = childProcess(t, o)
	return url, kill
}

// childProcess also returns the process.
func childProcess(t *testing.T, o Options) (url string, pid int, kill func()) {
	t.Helper()
	options, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childOptions+"="+string(options))
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill = func() {
		once.Do(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the registry does not start: %v", err)
	}
	return "http://" + strings.TrimSpace(line), cmd.Process.Pid, kill
}

// pushed is what a registry has acknowledged.
type pushed struct {
	mu    sync.Mutex
	blobs map[string][]byte
	tags  map[string]string
	over  bool // what is acknowledged from now on may be lost
}

// note records an acknowledgement, unless it may be lost.
func (p *pushed) note(acknowledged func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		acknowledged()
	}
}

// A registry that is killed at any moment has everything that it acknowledged when it comes back, serves no other bytes, and lets
// clients resume their uploads.
func TestKill(t *testing.T) {
	root := t.TempDir()
	p := &pushed{blobs: map[string][]byte{}, tags: map[string]string{}}
	open := make([]*resumable, 4)
	resumed := 0
	limit := time.Now().Add(time.Minute) // on a busy machine more kills are needed
	for n := 0; n < *kills || (len(p.blobs) == 0 || resumed == 0) && time.Now().Before(limit); n++ {
		url, kill := child(t, Options{Root: root})
		c := newClient(url)
		if err := p.verify(c); err != nil {
			t.Fatalf("after a kill: %v", err)
		}
		var wg sync.WaitGroup
		for i := range open {
			wg.Go(func() {
				for n := 0; ; n++ {
					if open[i] == nil {
						open[i] = &resumable{data: random(1 + rand.IntN(600_000))}
					} else if n == 0 && open[i].location != "" {
						p.mu.Lock()
						resumed++
						p.mu.Unlock()
					}
					err := open[i].send(c, p)
					if errors.Is(err, errLost) { // begun a moment before the kill
						open[i].location = ""
						continue
					}
					if errors.Is(err, errBroken) {
						t.Error(err)
					}
					if err != nil {
						return
					}
					open[i] = nil
				}
			})
		}
		time.Sleep(time.Duration(10+rand.IntN(120)) * time.Millisecond)
		kill()
		wg.Wait()
		c.http.CloseIdleConnections()
	}
	url, _ := child(t, Options{Root: root})
	c := newClient(url)
	defer c.http.CloseIdleConnections()
	if err := p.verify(c); err != nil {
		t.Fatal(err)
	}
	for _, r := range open {
		for r != nil {
			err := r.send(c, p)
			if !errors.Is(err, errLost) {
				if err != nil {
					t.Error(err)
				}
				break
			}
			r.location = ""
		}
	}
	if err := p.verify(c); err != nil {
		t.Error(err)
	}
	if len(p.blobs) == 0 || resumed == 0 {
		t.Errorf("%d blobs were acknowledged and %d uploads resumed: the test shows nothing", len(p.blobs), resumed)
	}
	t.Logf("%d blobs, %d tags, %d uploads resumed", len(p.blobs), len(p.tags), resumed)
}

var (
	errLost   = errors.New("the upload is lost")
	errBroken = errors.New("the registry broke its word")
	// errDiffers is an errBroken, except after a loss of power.
	errDiffers = errors.New("a resumed upload has other bytes")
)

// tagOf returns the tag of the image of a blob.
func tagOf(digest string) string { return "t" + digest[7:15] }

// resumable is an upload of a client that goes on after its registry was gone.
type resumable struct {
	data     []byte
	location string
}

func (r *resumable) send(c *client, p *pushed) error {
	from := 0
	if r.location == "" {
		a, err := c.want("POST", "/v2/kill/blobs/uploads/", nil, nil, 202)
		if err != nil {
			return err
		}
		r.location = a.header.Get("Location")
	} else {
		a, err := c.want("GET", r.location, nil, nil, 204, 404)
		if err != nil {
			return err
		}
		if a.status == 404 {
			return errLost
		}
		if _, err := fmt.Sscanf(a.header.Get("Range"), "0-%d", &from); err != nil {
			return fmt.Errorf("%w: Range %q", errBroken, a.header.Get("Range"))
		}
		if from > 0 {
			from++
		}
		if from > len(r.data) {
			return fmt.Errorf("%w: an upload of %d bytes has %d", errBroken, len(r.data), from)
		}
	}
	for from < len(r.data) {
		to := min(from+100_000, len(r.data))
		a, err := c.want("PATCH", r.location, r.data[from:to], []string{fmt.Sprintf("Content-Range: %d-%d", from, to-1)}, 202, 416)
		if err != nil {
			return err
		}
		if a.status == 416 && from == 0 { // one byte and none look alike
			from = 1
			continue
		}
		if a.status == 416 {
			return fmt.Errorf("%w: the offset that it told is wrong", errBroken)
		}
		from = to
	}
	d := string(content.SHA256.Of(r.data))
	a, err := c.do("PUT", r.location+"?digest="+d, nil)
	if err != nil {
		return err
	}
	if a.status == 400 {
		return fmt.Errorf("%w: %w: %s", errBroken, errDiffers, a.body)
	}
	if a.status != 201 {
		return fmt.Errorf("PUT: %d", a.status)
	}
	p.note(func() { p.blobs[d] = r.data })
	doc, err := c.image("kill", tagOf(d), "", r.data)
	if err == nil {
		p.note(func() { p.tags[tagOf(d)] = doc })
	}
	return err
}

// verify checks that everything acknowledged is there.
func (p *pushed) verify(c *client) error {
	for d, data := range p.blobs {
		r, err := c.want("GET", "/v2/kill/blobs/"+d, nil, nil, 200)
		if err != nil {
			return err
		}
		if string(r.body) != string(data) {
			return fmt.Errorf("blob %s has other bytes", d)
		}
	}
	for tag, want := range p.tags {
		if doc, err := c.pull("kill", tag); err != nil || doc != want {
			return fmt.Errorf("tag %s: %w", tag, err)
		}
	}
	return nil
}
