package supervise

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
)

// guarded read-locks forks during each call of a runtime, because the runtime may start and wait for children of its own,
// which the reaper must leave to it. For create, restore, exec and update the server takes the lock, because it needs it for longer.
type guarded struct {
	runtime
	forks *sync.RWMutex
}

// guard takes the lock and returns the function that releases it.
func (g guarded) guard() func() {
	g.forks.RLock()
	return g.forks.RUnlock
}

func (g guarded) start() error {
	defer g.guard()()
	return g.runtime.start()
}

func (g guarded) signal(sig unix.Signal) error {
	defer g.guard()()
	return g.runtime.signal(sig)
}

func (g guarded) signalAll(sig unix.Signal) error {
	defer g.guard()()
	return g.runtime.signalAll(sig)
}

func (g guarded) checkpoint(images *os.File, work string) error {
	defer g.guard()()
	return g.runtime.checkpoint(images, work)
}

func (g guarded) pause() error {
	defer g.guard()()
	return g.runtime.pause()
}

func (g guarded) resume() error {
	defer g.guard()()
	return g.runtime.resume()
}

func (g guarded) stats() (shim.StatsReply, error) {
	defer g.guard()()
	return g.runtime.stats()
}

func (g guarded) pids() ([]int, error) {
	defer g.guard()()
	return g.runtime.pids()
}

func (g guarded) ended() error {
	defer g.guard()()
	return g.runtime.ended()
}

func (g guarded) destroy() error {
	defer g.guard()()
	return g.runtime.destroy()
}
