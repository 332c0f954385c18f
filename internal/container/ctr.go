package container

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"ply/internal/container/rootfs"
	"ply/internal/container/session"
	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/oci"
	"ply/internal/volume"
)

// ctr is one container in memory.
type ctr struct {
	id       oci.ContainerID
	env      *env
	paths    paths
	op       chan struct{} // see Service
	root     *rootfs.Root  // nil until the container has a record
	sessions *session.Set
	copies   copies

	saveMu sync.Mutex

	mu      sync.Mutex
	rec     record
	private []string // variables of the process besides those of rec; no record has them
	life    *life    // while a process lives
	waiters map[*waiter]struct{}
	again   context.CancelFunc // cancels a restart that is due
	failed  int                // restarts in a row after runs that did not last
	gone    bool               // removed, or being removed

	// done ends when the container is removed, after its copies; see copies.
	done   context.Context
	remove context.CancelFunc
}

// paths are the directories and files of one container.
type paths struct {
	dir      string // <data-root>/containers/<id>
	writable string // the writable layer
	log      string
	exit     string // exit file, written by the shim
	hosts    string
	hostname string
	resolv   string

	checkpoints string // directory of its checkpoints
	criu        string // where CRIU writes its log

	bundle string // <exec-root>/containers/<id>
	rootfs string // where the root is mounted
	init   string // identity of the first process
	netns  string
	shm    string
}

// newCtr returns a container without a record.
func (e *env) newCtr(id oci.ContainerID) *ctr {
	dir := filepath.Join(e.opts.DataRoot, "containers", string(id))
	bundle := filepath.Join(e.opts.ExecRoot, "containers", string(id))
	c := &ctr{
		id: id, env: e, op: make(chan struct{}, 1), waiters: map[*waiter]struct{}{},
		paths: paths{
			dir: dir, writable: filepath.Join(dir, "rw"), log: filepath.Join(dir, string(id)+"-json.log"),
			exit: filepath.Join(dir, shim.ExitFile), hosts: filepath.Join(dir, "hosts"),
			hostname: filepath.Join(dir, "hostname"), resolv: filepath.Join(dir, "resolv.conf"),
			checkpoints: filepath.Join(dir, "checkpoints"), criu: filepath.Join(dir, "criu"),
			bundle: bundle, rootfs: filepath.Join(bundle, shim.RootfsDir), init: filepath.Join(bundle, shim.InitFile),
			netns: filepath.Join(bundle, "netns"), shm: filepath.Join(bundle, "shm"),
		},
	}
	c.sessions = session.NewSet(sessionHost{c}, e.execs)
	c.done, c.remove = context.WithCancel(context.Background())
	return c
}

// setRecord gives a new container its record, before other goroutines see it.
func (c *ctr) setRecord(r record) {
	c.rec = r
	c.root = rootfs.New(rootfs.Options{
		Driver: c.env.opts.Store.Layers, Container: c.id, Writable: c.paths.writable, Chain: r.Chain,
		Dir: c.paths.rootfs, Volatile: r.volatile(),
	})
}

// lock takes the life-cycle slot of a container that is not removed; release gives it back.
func (c *ctr) lock(ctx context.Context) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	if gone {
		c.release()
		return errs.New(errs.NotFound, "No such container: %s", c.id)
	}
	return nil
}

// acquire takes the life-cycle slot.
func (c *ctr) acquire(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	default:
	}
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *ctr) release() { <-c.op }

// idle waits for a start, or the end of a run, that is under way.
func (c *ctr) idle(ctx context.Context) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	c.release()
	return nil
}

func (c *ctr) status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.State.Status
}

// isActive reports whether there is a process, or a policy will start one again.
func (c *ctr) isActive() bool { return c.status().active() }

func (c *ctr) name() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Name
}

func (c *ctr) chain() oci.Chain {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Chain
}

// running returns the run of a container that runs, frozen or not. The error has docker's words.
func (c *ctr) running() (*life, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life == nil || (c.rec.State.Status != StatusRunning && c.rec.State.Status != StatusPaused) {
		return nil, errs.New(errs.Conflict, "container %s is not running", c.id)
	}
	return c.life, nil
}

// publish sends an event of the container with docker's attributes: its labels, image and name, and the keys and values
// in more.
func (c *ctr) publish(action string, more ...string) {
	c.mu.Lock()
	attrs := make(map[string]string, len(c.rec.Spec.Labels)+4)
	for k, v := range c.rec.Spec.Labels {
		attrs[k] = v
	}
	attrs["image"], attrs["name"] = c.rec.ImageName, c.rec.Name
	c.mu.Unlock()
	for i := 0; i+1 < len(more); i += 2 {
		attrs[more[i]] = more[i+1]
	}
	c.env.opts.Events.Publish(events.Event{Type: "container", Action: action, ID: string(c.id), Attributes: attrs, Time: time.Now()})
}

func volumeNames(ms []volume.Mount) []string {
	var out []string
	for _, m := range ms {
		if m.Type == "volume" && m.Name != "" {
			out = append(out, m.Name)
		}
	}
	return out
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
