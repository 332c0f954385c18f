package compress

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"ply/internal/errs"
	"ply/internal/host"
)

const (
	maxWindow  = 128 << 20 // of one stream
	freeWindow = 1 << 20   // smaller windows are not counted: a reader has a buffer of this size anyway
	freeAtOnce = 32 << 20  // larger windows are collected before their memory is given to another reader
)

// windows returns the memory for the windows of all readers together: a quarter of what this process may use.
var windows = sync.OnceValue(func() *windowPool {
	size := host.MemoryLimit() / 4
	return &windowPool{semaphore.NewWeighted(size), size}
})

type windowPool struct {
	*semaphore.Weighted
	size int64
}

// window is the memory in which the decoder of one reader keeps what it has decompressed last. It is reserved before the decoder
// allocates it. A reader that does not get it waits for other readers, but not while it, or a reader that is read through it,
// has a reservation: two such readers would wait for each other.
type window struct {
	ctx    context.Context //nolint:containedctx // the reader waits in Read
	cancel context.CancelFunc
	stack  *readerStack

	refused atomic.Pointer[error] // why there was no reservation

	mu   sync.Mutex // taken while grow waits
	held int64
}

// readerStack is shared by a reader and the readers inside it.
type readerStack struct {
	mu    sync.Mutex
	users int // windows that are reserved or waited for
}

func newWindow(ctx context.Context, stack *readerStack) *window {
	w := &window{stack: stack}
	w.ctx, w.cancel = context.WithCancel(ctx)
	return w
}

// grow reserves the memory for a window of n bytes.
func (w *window) grow(n uint64) error {
	if n > maxWindow {
		return fmt.Errorf("needs a window or dictionary of %d MiB, at most %d MiB are supported", n>>20, maxWindow>>20)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n <= freeWindow || int64(n) <= w.held {
		return nil
	}
	if size := windows().size; int64(n) > size {
		var err error = errs.New(errs.Exhausted, "needs a window or dictionary of %d MiB, and no more than %d MiB of memory may be used for that", n>>20, size>>20).
			WithHint("A quarter of the memory that the engine may use is for this: give it more.")
		w.refused.Store(&err)
		return err
	}
	w.release()
	if err := w.acquire(int64(n)); err != nil {
		w.refused.Store(&err)
		return err
	}
	w.held = int64(n)
	return nil
}

func (w *window) acquire(n int64) error {
	w.stack.mu.Lock()
	alone := w.stack.users == 0
	w.stack.users++
	w.stack.mu.Unlock()
	var err error
	if alone {
		if err = windows().Acquire(w.ctx, n); err != nil {
			err = context.Cause(w.ctx)
		}
	} else if !windows().TryAcquire(n) {
		err = errs.New(errs.Exhausted, "needs %d MiB of memory for its window, beside that of the compressed data around it", n>>20).
			WithHint("Decompress the outer data first, or give the engine more memory.")
	}
	if err != nil {
		w.leave()
	}
	return err
}

func (w *window) leave() {
	w.stack.mu.Lock()
	defer w.stack.mu.Unlock()
	w.stack.users--
}

// release returns the reservation. The caller holds mu, and nothing refers to the window any more.
func (w *window) release() {
	if w.held == 0 {
		return
	}
	if w.held >= freeAtOnce {
		runtime.GC() // the next reader must not find this window as garbage beside its own
	}
	windows().Release(w.held)
	w.held = 0
	w.leave()
}

// close ends the waiting and returns the reservation.
func (w *window) close() {
	w.cancel()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.release()
}
