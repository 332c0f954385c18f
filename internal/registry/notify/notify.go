// Package notify tells web servers what happens to repositories, in the format of Docker's notifications.
//
// Invariants: an event is durable before the request that it tells of is acknowledged, and is sent until the server takes it, in order;
// when a server does not take events for so long that the queue is full, further ones are dropped and counted. Redirects are not followed.
package notify

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/queue"
)

// Kind is the kind of the documents of the queue.
const Kind = "webhooks"

const (
	mediaType = "application/vnd.docker.distribution.events.v1+json"
	maxEvents = 10_000 // of an endpoint
	timeout   = 15 * time.Second
	maxAnswer = 64 << 10
)

// Actions that are told, by their names in the format.
const (
	Push   = "push"
	Pull   = "pull"
	Mount  = "mount"
	Delete = "delete"
)

// Endpoint is a web server that is told.
type Endpoint struct {
	URL     string
	Headers map[string]string // such as Authorization
	Actions []string          // empty = all but pull
}

// Validate reports what is wrong with an endpoint.
func (e *Endpoint) Validate() error {
	u, err := url.Parse(e.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errs.New(errs.Invalid, "webhook: %q is not the URL of a web server", e.URL)
	}
	for _, a := range e.Actions {
		if a != Push && a != Pull && a != Mount && a != Delete {
			return errs.New(errs.Invalid, "webhook: %q is none of push, pull, mount and delete", a)
		}
	}
	return nil
}

func (e *Endpoint) wants(action string) bool {
	if len(e.Actions) == 0 {
		return action != Pull
	}
	return slices.Contains(e.Actions, action)
}

// id names an endpoint in keys.
func (e *Endpoint) id() string {
	h := sha256.Sum256([]byte(e.URL))
	return hex.EncodeToString(h[:8])
}

// Event is something that happened to a repository.
type Event struct {
	Action     string
	Repository content.Repository
	From       content.Repository // of a mount
	Digest     content.Digest     // "" = a tag or a repository was deleted
	Tag        content.Tag
	MediaType  string
	Size       int64
	User       string // "" = anonymous
	Address    string // of the client; "" = the registry itself
	Host       string // as the client calls the registry
	Method     string
	UserAgent  string
}

// message is an event in the format.
type message struct {
	ID        string    `json:"id"`
	Timestamp time.Time `json:"timestamp"`
	Action    string    `json:"action"`
	Target    target    `json:"target"`
	Request   request   `json:"request"`
	Actor     actor     `json:"actor"`
	Source    source    `json:"source"`
}

type target struct {
	MediaType      string             `json:"mediaType,omitempty"`
	Size           int64              `json:"size,omitempty"`
	Digest         content.Digest     `json:"digest,omitempty"`
	Length         int64              `json:"length,omitempty"`
	Repository     content.Repository `json:"repository"`
	FromRepository content.Repository `json:"fromRepository,omitempty"`
	URL            string             `json:"url,omitempty"`
	Tag            content.Tag        `json:"tag,omitempty"`
}

type request struct {
	ID        string `json:"id"`
	Addr      string `json:"addr,omitempty"`
	Host      string `json:"host,omitempty"`
	Method    string `json:"method"`
	UserAgent string `json:"useragent"`
}

type actor struct {
	Name string `json:"name,omitempty"`
}

type source struct {
	Addr       string `json:"addr,omitempty"`
	InstanceID string `json:"instanceID,omitempty"`
}

// Options configure a Notifier.
type Options struct {
	Endpoints []Endpoint
	Documents metadata.Documents
	URL       string       // what clients reach the registry by; "" = what each request says
	Source    string       // names this registry
	Client    *http.Client // nil = one of its own

	// Sent is told how each try ended, and Dropped about each event that found the queue full. Both may be nil.
	Sent    func(endpoint string, took time.Duration, err error)
	Dropped func(endpoint string)
	Failed  func(what string, err error)
}

// Notifier tells endpoints. Safe for concurrent use.
type Notifier struct {
	o        Options
	queue    *queue.Queue
	instance string
	sequence atomic.Int64
	stop     context.CancelFunc
	work     sync.WaitGroup
}

// Start begins to send what is queued. The caller closes the notifier.
func Start(ctx context.Context, o Options) (*Notifier, error) {
	if o.Client == nil {
		o.Client = &http.Client{
			Timeout:       timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	names := map[string]string{}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		if err := e.Validate(); err != nil {
			return nil, err
		}
		if names[e.id()] != "" {
			return nil, errs.New(errs.Invalid, "webhook: %q is there twice", e.URL)
		}
		u, _ := url.Parse(e.URL) // it is valid
		names[e.id()] = u.Host
	}
	n := &Notifier{o: o, instance: newID()}
	n.queue = queue.New(queue.Options{
		Documents: o.Documents, Kind: Kind, Limit: maxEvents, Workers: 1, Lease: 2 * timeout, First: time.Second, Longest: 5 * time.Minute,
		Done: func(group string, took time.Duration, err error) {
			if o.Sent != nil {
				o.Sent(names[group], took, err)
			}
		},
	})
	if err := n.queue.Drop(ctx, func(group string) bool { return names[group] != "" }); err != nil {
		return nil, err
	}
	ctx, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		n.work.Go(func() {
			n.queue.Run(ctx, e.id(), func(ctx context.Context, _ string, payload []byte) error { return n.send(ctx, e, payload) },
				func(err error) { n.failed("queue", err) })
		})
	}
	return n, nil
}

// Close ends the sending. What was not sent is sent after the next start.
func (n *Notifier) Close() error {
	n.stop()
	n.work.Wait()
	n.o.Client.CloseIdleConnections()
	return nil
}

// Len returns how many events wait.
func (n *Notifier) Len() int { return n.queue.Len() }

func (n *Notifier) failed(what string, err error) {
	if n.o.Failed != nil {
		n.o.Failed(what, err)
	}
}

// Notify queues an event for the endpoints that want it. It is durable when Notify returns.
func (n *Notifier) Notify(ctx context.Context, e Event) (all error) {
	now := time.Now().UTC()
	m := message{
		ID: newID(), Timestamp: now, Action: e.Action,
		Target: target{
			MediaType: e.MediaType, Size: e.Size, Length: e.Size, Digest: e.Digest, Repository: e.Repository, FromRepository: e.From, Tag: e.Tag,
			URL: n.address(e),
		},
		Request: request{ID: newID(), Addr: e.Address, Host: e.Host, Method: e.Method, UserAgent: e.UserAgent},
		Actor:   actor{e.User}, Source: source{n.o.Source, n.instance},
	}
	key := fmt.Sprintf("%019d-%06d", now.UnixNano(), n.sequence.Add(1)%1_000_000)
	for i := range n.o.Endpoints {
		to := &n.o.Endpoints[i]
		if !to.wants(e.Action) {
			continue
		}
		err := n.queue.Put(ctx, to.id(), key, m)
		if errors.Is(err, queue.ErrFull) {
			if n.o.Dropped != nil {
				u, _ := url.Parse(to.URL) // it is valid
				n.o.Dropped(u.Host)
			}
			continue
		}
		all = errors.Join(all, err)
	}
	return all
}

// address returns where the target can be read.
func (n *Notifier) address(e Event) string {
	base := n.o.URL
	if base == "" && e.Host != "" {
		base = "http://" + e.Host
	}
	switch {
	case base == "" || e.Digest == "":
		return ""
	case e.MediaType == blobType:
		return base + "/v2/" + string(e.Repository) + "/blobs/" + string(e.Digest)
	}
	return base + "/v2/" + string(e.Repository) + "/manifests/" + string(e.Digest)
}

const blobType = "application/octet-stream"

// send posts an event.
func (n *Notifier) send(ctx context.Context, e *Endpoint, payload []byte) error {
	body, err := json.Marshal(map[string][]json.RawMessage{"events": {payload}})
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	for k, v := range e.Headers {
		r.Header.Set(k, v)
	}
	r.Header.Set("Content-Type", mediaType)
	resp, err := n.o.Client.Do(r)
	if err != nil {
		return errs.New(errs.Unavailable, "webhook: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return errs.New(errs.Unavailable, "webhook %s: status %d", r.URL.Host, resp.StatusCode)
	}
	return nil
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
