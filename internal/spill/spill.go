// Package spill provides arrays and a table of names that can become large and take little memory: what exceeds the bound of their Space moves to a file
// that is mapped, so that the kernel can write it out.
//
// Invariants: elements have no pointers. An element that moved keeps its index. Where there is no room for the file, elements stay in memory. The content
// of the file is of use to this process only.
package spill

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
)

// InDir returns a function that makes a file without a name in a directory.
func InDir(dir string) func() (*os.File, error) {
	return func() (*os.File, error) { return durable.Nameless(dir) }
}

// Space is what arrays have in memory and in one file together. Not safe for concurrent use.
type Space struct {
	limit   int64
	open    func() (*os.File, error)
	file    *os.File
	size    int64 // of the file
	memory  int64
	ticks   int
	windows []uint64 // a bit for each window of elements that was visited since pages were dropped
	visited int
	failed  bool // the file has no room
	maps    *maps
}

// NewSpace returns a Space that has about limit bytes in memory, besides the hash tables of names. It calls open when it needs its file, at most once; nil = everything stays in memory.
func NewSpace(limit int64, open func() (*os.File, error)) *Space {
	s := &Space{limit: limit, open: open, maps: &maps{}}
	runtime.AddCleanup(s, (*maps).close, s.maps)
	return s
}

// Memory returns how many bytes are in memory and not in the file.
func (s *Space) Memory() int64 { return s.memory }

// Close releases memory and file. Nothing of the arrays may be used afterwards.
func (s *Space) Close() error {
	s.maps.close()
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	return f.Close()
}

// tickEvery is after how many ticks pages that were read again are dropped.
const tickEvery = 1 << 12

// Tick is called for each element that a pass over the arrays looks at, when those that follow each other are near or their order is random. It keeps the
// pages of the file that the process has mapped few.
func (s *Space) Tick() {
	if s.ticks++; s.ticks >= tickEvery {
		s.drop()
	}
}

// The kernel maps 64 KiB around what is read, of each array that has something of an element. Pages are dropped when elements of this many windows were read.
const (
	windowBits = 9 // elements
	maxWindows = 32
)

// Visit is Tick for the element i of a pass that can go from one element to another one far away.
func (s *Space) Visit(i int) {
	if s.file == nil {
		return
	}
	w := i >> windowBits
	for w>>6 >= len(s.windows) {
		s.windows = append(s.windows, 0)
	}
	if bit := uint64(1) << (w & 63); s.windows[w>>6]&bit == 0 {
		if s.visited++; s.visited > maxWindows {
			s.drop()
		}
		s.windows[w>>6] |= bit
	}
}

func (s *Space) drop() {
	s.ticks, s.visited = 0, 0
	clear(s.windows)
	s.maps.drop()
}

// move returns b as a part of the file; nil when b stays in memory.
func (s *Space) move(b []byte) []byte {
	if s.open == nil || s.failed {
		return nil
	}
	s.failed = true
	if s.file == nil {
		f, err := s.open()
		if err != nil {
			return nil
		}
		s.file = f
	}
	page := int64(unix.Getpagesize())
	length := (int64(len(b)) + page - 1) / page * page
	fd := int(s.file.Fd())
	// Without blocks of its own, a page that cannot be written later would end the process.
	if err := unix.Fallocate(fd, 0, s.size, length); err != nil {
		return nil
	}
	m, err := unix.Mmap(fd, s.size, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil
	}
	s.failed = false
	s.size += length
	copy(m, b)
	s.maps.add(m, true)
	return m[:len(b)]
}

// large is from how many bytes on memory is not the garbage collector's, so that it is free at once when it is not needed any more.
const large = 64 << 10

// alloc returns n zero bytes.
func (s *Space) alloc(n int) []byte {
	s.memory += int64(n)
	if n >= large {
		if m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err == nil {
			s.maps.add(m, false)
			return m
		}
	}
	return make([]byte, n)
}

// free releases what alloc returned.
func (s *Space) free(b []byte) {
	s.memory -= int64(len(b))
	s.maps.remove(b)
}

// maps are the mappings of a Space. The garbage collector closes those of a Space that was forgotten.
type maps struct {
	mu  sync.Mutex
	all map[*byte]mapping
}

type mapping struct {
	b    []byte
	file bool
}

func (m *maps) add(b []byte, file bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all == nil {
		m.all = map[*byte]mapping{}
	}
	m.all[&b[0]] = mapping{b, file}
}

func (m *maps) remove(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(b) == 0 {
		return
	}
	if k, ok := m.all[&b[0]]; ok {
		delete(m.all, &b[0])
		_ = unix.Munmap(k.b) // never fails
	}
}

// drop takes the pages of the file out of the process. They are read again when they are needed.
func (m *maps) drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.all {
		if k.file {
			_ = unix.Madvise(k.b, unix.MADV_DONTNEED) // what stays is only memory
		}
	}
}

func (m *maps) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.all {
		_ = unix.Munmap(k.b) // never fails
	}
	m.all = nil
}

// Guard makes a page of the file that cannot be read an error of what the goroutine does until it calls the function that Guard returns:
//
//	defer spill.Guard(&err)()
func Guard(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		r := recover()
		if r == nil {
			return
		}
		fault, ok := r.(interface {
			runtime.Error
			Addr() uintptr
		})
		if !ok {
			panic(r)
		}
		*err = errors.Join(*err, errs.New(errs.Internal, "memory that moved to a file: %w", fmt.Errorf("%w: %w", unix.EIO, fault)))
	}
}

// Elements of a part of an Array, and bytes of a part of a Text.
const (
	partBits = 13
	partSize = 1 << partBits
	textBits = 18
	textSize = 1 << textBits
)

// Array is a growing array. T has no pointers.
type Array[T any] struct {
	s     *Space
	parts [][]T
	n     int
	moved int // the first parts, which are in the file
}

// NewArray returns an empty array.
func NewArray[T any](s *Space) Array[T] { return Array[T]{s: s} }

// Len returns the number of elements.
func (a *Array[T]) Len() int { return a.n }

// At returns an element. The pointer is valid until the next Append.
func (a *Array[T]) At(i int) *T { return &a.parts[i>>partBits][i&(partSize-1)] }

// Append adds an element.
func (a *Array[T]) Append(v T) {
	a.room()
	p := &a.parts[len(a.parts)-1]
	*p = append(*p, v)
	a.n++
}

// Extend adds n zero elements.
func (a *Array[T]) Extend(n int) {
	for n > 0 {
		a.room()
		p := &a.parts[len(a.parts)-1]
		k := min(n, cap(*p)-len(*p))
		*p = (*p)[:len(*p)+k]
		a.n += k
		n -= k
	}
}

// room makes the last part one that has room.
func (a *Array[T]) room() {
	var zero T
	size := int(unsafe.Sizeof(zero))
	if len(a.parts) == 0 || len(a.parts[len(a.parts)-1]) == partSize {
		n := partSize
		if len(a.parts) == 0 {
			n = 16
		}
		for a.moved < len(a.parts) && a.s.memory > a.s.limit {
			b := bytesOf(a.parts[a.moved])
			m := a.s.move(b)
			if m == nil {
				break
			}
			a.s.free(b)
			a.parts[a.moved] = unsafe.Slice((*T)(unsafe.Pointer(&m[0])), partSize)
			a.moved++
		}
		a.parts = append(a.parts, elements[T](a.s.alloc(n*size), 0))
		return
	}
	p := &a.parts[len(a.parts)-1]
	if len(*p) < cap(*p) {
		return
	}
	old := *p
	*p = elements[T](a.s.alloc(min(2*cap(old), partSize)*size), len(old))
	copy(*p, old)
	a.s.free(bytesOf(old))
}

// elements returns b as a slice of n elements.
func elements[T any](b []byte, n int) []T {
	var zero T
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), len(b)/int(unsafe.Sizeof(zero)))[:n]
}

// bytesOf returns the memory of a slice, with what is beyond its length.
func bytesOf[T any](v []T) []byte {
	var zero T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), cap(v)*int(unsafe.Sizeof(zero)))
}

// Text is a growing array of strings without their lengths.
type Text struct {
	s     *Space
	parts [][]byte
	moved int
}

// NewText returns an empty Text.
func NewText(s *Space) Text { return Text{s: s} }

// MaxText is how long one string of a Text may be.
const MaxText = textSize

// Append adds a string of at most MaxText bytes and returns where it is.
func (t *Text) Append(v string) uint32 {
	if len(v) > MaxText {
		panic("spill: the string is too long")
	}
	last := len(t.parts) - 1
	if last < 0 || len(t.parts[last])+len(v) > textSize {
		for t.moved < len(t.parts) && t.s.memory > t.s.limit {
			m := t.s.move(t.parts[t.moved][:cap(t.parts[t.moved])])
			if m == nil {
				break
			}
			t.s.free(t.parts[t.moved][:cap(t.parts[t.moved])])
			t.parts[t.moved] = m
			t.moved++
		}
		n := textSize
		if last < 0 {
			n = max(256, len(v))
		}
		t.parts = append(t.parts, t.s.alloc(n)[:0])
		last++
	}
	p := &t.parts[last]
	if len(*p)+len(v) > cap(*p) {
		old := *p
		*p = append(t.s.alloc(min(max(2*cap(old), len(old)+len(v)), textSize))[:0], old...)
		t.s.free(old[:cap(old)])
	}
	at := uint32(last)<<textBits | uint32(len(*p))
	*p = append(*p, v...)
	return at
}

// At returns the n bytes at a place that Append returned. They may not be changed.
func (t *Text) At(at uint32, n int) []byte {
	if n == 0 {
		return nil
	}
	i := int(at & (textSize - 1))
	return t.parts[at>>textBits][i : i+n]
}

// Make returns n zero elements that stay in memory until the Space is closed.
func Make[T any](s *Space, n int) []T {
	var zero T
	return elements[T](s.alloc(max(n, 1)*int(unsafe.Sizeof(zero))), n)
}
