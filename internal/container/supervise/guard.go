package supervise

import (
	"sync"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
)

// guarded keeps the reaper away while a runtime may have children of its own. create, exec and update are
// guarded by the server, which has more to do under the lock.
type guarded struct {
	runtime
	forks *sync.RWMutex
}

func (g guarded) hold() func() {
	g.forks.RLock()
	return g.forks.RUnlock
}

func (g guarded) start() error {
	defer g.hold()()
	return g.runtime.start()
}

func (g guarded) signal(sig unix.Signal) error {
	defer g.hold()()
	return g.runtime.signal(sig)
}

func (g guarded) signalAll(sig unix.Signal) error {
	defer g.hold()()
	return g.runtime.signalAll(sig)
}

func (g guarded) pause() error {
	defer g.hold()()
	return g.runtime.pause()
}

func (g guarded) resume() error {
	defer g.hold()()
	return g.runtime.resume()
}

func (g guarded) stats() (shim.StatsReply, error) {
	defer g.hold()()
	return g.runtime.stats()
}

func (g guarded) pids() ([]int, error) {
	defer g.hold()()
	return g.runtime.pids()
}

func (g guarded) ended() error {
	defer g.hold()()
	return g.runtime.ended()
}

func (g guarded) destroy() error {
	defer g.hold()()
	return g.runtime.destroy()
}
