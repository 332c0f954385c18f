package server

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ply/internal/durable/powercut"
	"ply/internal/registry/auth"
	"ply/internal/registry/check"
	"ply/internal/registry/content"
	"ply/internal/registry/gc"
)

var cuts = flag.Int("registry.cuts", 6, "how often TestPowerCut cuts the power of each file system")

// When the power of the machine fails at any moment, the registry has everything that it acknowledged when it comes back: blobs with every byte, images, users
// and personal access tokens; what was deleted is gone; nothing refers to what is not there. Uploads go on, or are refused and begin again.
func TestPowerCut(t *testing.T) {
	for _, kind := range powercut.Kinds {
		t.Run(string(kind), func(t *testing.T) { powerCut(t, kind) })
	}
}

func powerCut(t *testing.T, kind powercut.Kind) {
	disk := powercut.New(t, kind)
	o := Options{Root: filepath.Join(disk.Dir, "root"), Untagged: true}
	m := &surviving{pushed: pushed{blobs: map[string][]byte{}, tags: map[string]string{}}, deleted: map[string]bool{}}
	must(t, m.addUser(o.Root, "root"))
	open := make([]*resumable, 4)
	begunAgain := 0
	for i := range *cuts {
		m.over = false
		collecting := i%3 == 2
		url, kill := child(t, o)
		c := m.client(url)
		if err := m.verify(c); err != nil {
			t.Fatalf("after %d cuts: %v", i, err)
		}
		if collecting { // what nothing needs goes at once, so nobody pushes meanwhile
			kill()
			m.forgetUntagged()
			alone := o
			alone.Collect = gc.Schedule{Interval: 5 * time.Millisecond, Grace: -time.Hour, Idle: time.Hour}
			_, kill = child(t, alone)
		}
		var wg sync.WaitGroup
		for w := range open {
			if collecting {
				break
			}
			wg.Go(func() { m.work(t, c, w, &open[w], &begunAgain) })
		}
		if !collecting {
			wg.Go(func() { m.people(t, c, o.Root) })
		}
		time.Sleep(time.Duration(20+rand.IntN(150)) * time.Millisecond)
		for last := time.Now().Add(time.Minute); !collecting && !m.some() && time.Now().Before(last); { // on a busy machine
			time.Sleep(10 * time.Millisecond)
		}
		m.mu.Lock()
		m.over = true
		m.mu.Unlock()
		disk.Cut(kind.Cuts()[rand.IntN(len(kind.Cuts()))])
		kill()
		wg.Wait()
		c.http.CloseIdleConnections()
		disk.Restart()
		examine(t, o)
	}
	m.over = false
	url, _ := child(t, o)
	c := m.client(url)
	defer c.http.CloseIdleConnections()
	for w := range open {
		for open[w] != nil {
			if err := open[w].send(c, &m.pushed); err == nil {
				open[w] = nil
			} else if !m.again(open[w], err, &begunAgain) {
				t.Fatal(err)
			}
		}
	}
	if err := m.verify(c); err != nil {
		t.Fatal(err)
	}
	if !m.some() {
		t.Errorf("%d tags, %d deletions, %d users and %d tokens: the test shows nothing", len(m.tags), len(m.deleted), len(m.users), len(m.tokens))
	}
	t.Logf("%d tags, %d deletions, %d users, %d tokens; %d uploads began again", len(m.tags), len(m.deleted), len(m.users), len(m.tokens), begunAgain)
}

// surviving is what must be there after a loss of power.
type surviving struct {
	pushed
	deleted map[string]bool // tags
	users   []string        // their passwords are their names
	tokens  []string        // of root
}

// some reports whether there is something of everything that could be lost.
func (m *surviving) some() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.tags) > 0 && len(m.deleted) > 0 && len(m.users) > 1 && len(m.tokens) > 0
}

// authorized logs in as root where a request has no login.
type authorized struct{ http.RoundTripper }

func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Authorization") == "" {
		r = r.Clone(r.Context())
		r.SetBasicAuth("root", "root")
	}
	return a.RoundTripper.RoundTrip(r)
}

func (m *surviving) client(url string) *client {
	c := newClient(url)
	c.http.Transport = authorized{c.http.Transport}
	return c
}

// work pushes images, moves a tag and deletes images until the registry is gone.
func (m *surviving) work(t *testing.T, c *client, w int, open **resumable, begunAgain *int) {
	moving := fmt.Sprint("moving", w)
	step := func() error {
		if *open == nil {
			*open = &resumable{data: random(1 + rand.IntN(400_000))}
		}
		if err := (*open).send(c, &m.pushed); err != nil {
			return err
		}
		data := (*open).data
		*open = nil
		m.forget(moving)
		doc, err := c.image("kill", moving, "", data)
		if err != nil {
			return err
		}
		m.note(func() { m.tags[moving] = doc })
		if w%2 == 0 {
			return nil
		}
		d := string(content.SHA256.Of(data))
		m.forget(tagOf(d))
		if _, err := c.want("DELETE", "/v2/kill/manifests/"+tagOf(d), nil, nil, 202); err != nil {
			return err
		}
		m.note(func() { m.deleted[tagOf(d)] = true })
		return nil
	}
	for {
		err := step()
		if err != nil && *open != nil && m.again(*open, err, begunAgain) {
			continue
		}
		if err != nil {
			m.note(func() { t.Errorf("writer %d: %v", w, err) })
			return
		}
	}
}

// again makes an upload begin again after an error that is no one's fault.
func (m *surviving) again(r *resumable, err error, count *int) bool {
	if !errors.Is(err, errLost) && !errors.Is(err, errDiffers) {
		return false
	}
	r.location = ""
	m.mu.Lock()
	defer m.mu.Unlock()
	*count++
	return true
}

// people makes tokens of root and adds users until the registry is gone.
func (m *surviving) people(t *testing.T, c *client, root string) {
	for range 10 { // a user has 100 tokens at most
		a, err := c.want("POST", "/api/v1/tokens", []byte(`{"name":"x","days":1,"scopes":[{"repositories":"kill","actions":["pull"]}]}`), nil, 201)
		var made struct{ Token string }
		if err == nil {
			err = json.Unmarshal(a.body, &made)
		}
		if err == nil {
			m.note(func() { m.tokens = append(m.tokens, made.Token) })
			err = m.addUser(root, fmt.Sprint("user", rand.Uint64()))
		}
		if err != nil {
			m.note(func() { t.Errorf("tokens and users: %v", err) })
			return
		}
	}
}

// addUser adds a user as the command does, in a process of its own.
func (m *surviving) addUser(root, name string) error {
	users, err := auth.OpenUsers(root)
	if err != nil {
		return err
	}
	users.Cost = bcrypt.MinCost
	_, err = users.Add(name, name, nil)
	if err == nil {
		m.note(func() { m.users = append(m.users, name) })
	}
	return err
}

// forget expects nothing of a tag any more, because it is being changed.
func (m *surviving) forget(tag string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tags, tag)
}

// forgetUntagged expects nothing of blobs any more that a collection may remove.
func (m *surviving) forgetUntagged() {
	for d := range m.blobs {
		if m.tags[tagOf(d)] == "" {
			delete(m.blobs, d)
		}
	}
}

// verify checks that everything acknowledged is there, and that what was deleted is not.
func (m *surviving) verify(c *client) error {
	if err := m.pushed.verify(c); err != nil {
		return err
	}
	for tag := range m.deleted {
		if _, err := c.want("GET", "/v2/kill/manifests/"+tag, nil, nil, 404); err != nil {
			return fmt.Errorf("a deleted tag: %w", err)
		}
	}
	for _, name := range m.users {
		if _, err := c.want("GET", "/v2/", nil, withPassword(name, name), 200); err != nil {
			return fmt.Errorf("user %s: %w", name, err)
		}
	}
	for _, token := range m.tokens {
		if _, err := c.want("GET", "/v2/", nil, withPassword("root", token), 200); err != nil {
			return fmt.Errorf("a token: %w", err)
		}
	}
	return nil
}

// examine checks a registry that does not run.
func examine(t *testing.T, o Options) {
	t.Helper()
	meta, blobs, err := OpenStores(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	k := check.Checker{Metadata: meta, Blobs: blobs, Found: func(f check.Finding) { t.Errorf("a check: %s", f) }}
	_, err = k.Run(t.Context())
	must(t, errors.Join(err, blobs.Close(), meta.Close()))
}
