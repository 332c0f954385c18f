package logfile

import (
	"io/fs"
	"math"
	"os"
	"slices"
	"sync"
)

// Followers shares the work of those that follow one log: one of them reads and decodes what was added, and the others get the same records; one watcher wakes
// them all. The zero value is ready. Safe for concurrent use.
type Followers struct {
	mu      sync.Mutex
	windows []*window // one per file that is followed: more than one only while the log is rotated
	watcher *watcher  // nil while no one follows
	changed map[chan struct{}]struct{}
}

// watch returns a channel that gets an element after each change of the log, and a function that ends that. It reports everything that happens after watch has
// returned.
func (s *Followers) watch(path string) (changed <-chan struct{}, stop func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watcher == nil {
		if s.watcher, err = watch(path, s.notify); err != nil {
			return nil, nil, err
		}
		s.changed = map[chan struct{}]struct{}{}
	}
	c := make(chan struct{}, 1)
	s.changed[c] = struct{}{}
	return c, func() { s.unwatch(c) }, nil
}

func (s *Followers) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.changed {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// unwatch ends the reports to c.
func (s *Followers) unwatch(c chan struct{}) {
	s.mu.Lock()
	delete(s.changed, c)
	var last *watcher
	if len(s.changed) == 0 {
		last, s.watcher = s.watcher, nil
	}
	s.mu.Unlock()
	if last != nil {
		last.close()
	}
}

// join returns the window of a file for one more reader, who calls leave.
func (s *Followers) join(r *reader, file fs.FileInfo, off int64) *window {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.windows, func(w *window) bool { return os.SameFile(w.file, file) })
	if i < 0 {
		i = len(s.windows)
		s.windows = append(s.windows, &window{file: file, driver: r.opts.Driver, readers: map[*reader]int64{}, reading: map[int64]chan struct{}{}})
	}
	w := s.windows[i]
	w.mu.Lock()
	defer w.mu.Unlock()
	w.readers[r] = off
	return w
}

func (s *Followers) leave(r *reader, w *window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.readers, r)
	w.prune()
	if len(w.readers) == 0 {
		s.windows = slices.DeleteFunc(s.windows, func(other *window) bool { return other == w })
	}
}

// maxBlocks bounds the blocks of a window.
const maxBlocks = 8

// unused has blocks that no reader uses, for the next ones. A log that no one follows keeps none.
var unused = sync.Pool{New: func() any { return new(block) }}

// window has blocks of a file that some of its readers have read and others will want. Readers that are near each other get the same blocks, because one
// who finds a block is faster than the one who made it, and waits for the next.
type window struct {
	file   fs.FileInfo
	driver string

	mu      sync.Mutex
	readers map[*reader]int64       // where each is: it has visited everything before this offset, and may be using the block that begins there
	blocks  []*block                // the last that were made, oldest first
	reading map[int64]chan struct{} // the offsets of blocks that are being made; closed when they are
	resets  int
}

// reset forgets the blocks of a file that was truncated.
func (w *window) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blocks = nil
	w.resets++
}

// next returns the block that begins at an offset of f, which is the window's file. It is valid until r calls next again or leaves.
func (w *window) next(r *reader, f *os.File, from int64) (*block, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.readers[r] = from
	w.prune()
	end := int64(math.MaxInt64)
	for {
		i := slices.IndexFunc(w.blocks, func(b *block) bool { return b.from <= from && from < b.to })
		if i >= 0 && w.blocks[i].from == from {
			return w.blocks[i], nil
		}
		if i >= 0 { // read up to where the others go on
			end = w.blocks[i].to
			break
		}
		made := w.reading[from]
		if made == nil {
			break
		}
		w.mu.Unlock()
		<-made
		w.mu.Lock()
	}
	made, resets := make(chan struct{}), w.resets
	w.reading[from] = made
	w.mu.Unlock()
	b := unused.Get().(*block)
	st, err := f.Stat()
	if err == nil {
		b, err = readBlock(b, f, formatOf(w.driver, nil), from, min(end, st.Size()))
	}
	w.mu.Lock()
	delete(w.reading, from)
	close(made)
	if err != nil {
		return nil, err
	}
	if b.to == from {
		seen := b.seen
		unused.Put(b)
		return &block{from: from, to: from, seen: seen}, nil
	}
	if w.resets == resets {
		if len(w.blocks) == maxBlocks { // a reader who is far behind reads it again
			if oldest := w.blocks[0]; !w.uses(oldest) {
				unused.Put(oldest)
			}
			w.blocks = slices.Delete(w.blocks, 0, 1)
		}
		w.blocks = append(w.blocks, b)
	}
	return b, nil
}

// uses reports whether a reader may be using a block. The caller holds mu.
func (w *window) uses(b *block) bool {
	for _, at := range w.readers {
		if at == b.from {
			return true
		}
	}
	return false
}

// prune forgets the blocks that all readers have visited. The caller holds mu.
func (w *window) prune() {
	least := int64(math.MaxInt64)
	for _, at := range w.readers {
		least = min(least, at)
	}
	w.blocks = slices.DeleteFunc(w.blocks, func(b *block) bool {
		if b.from >= least {
			return false
		}
		unused.Put(b)
		return true
	})
}
