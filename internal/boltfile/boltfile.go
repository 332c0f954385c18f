// Package boltfile checks the structure of bbolt files. It reads them without bbolt, which trusts its pages: a page that refers to itself would end the process.
//
// Invariants: whatever a file holds, a check ends, takes bounded memory and does not panic. What a check accepts, bbolt reads without leaving the pages that were checked.
package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
)

// The form of a bbolt file.
const (
	HeaderSize   = 16 // id uint64, flags uint16, count uint16, overflow uint32
	pageElement  = 16 // branch: pos, ksize uint32, page uint64; leaf: flags, pos, ksize, vsize uint32
	bucketHeader = 16 // root page uint64, sequence uint64
	metaBytes    = 56 // of a header page, those that its checksum covers

	BranchPage   = 0x01
	LeafPage     = 0x02
	HeaderPage   = 0x04
	FreelistPage = 0x10
	bucketElem   = 0x01 // flag of a leaf's element: its value is a bucket

	boltMagic   = 0xED0CDAED
	boltVersion = 2
	noFreelist  = math.MaxUint64

	minPage, maxPage = 1 << 10, 16 << 20 // bytes

	maxDepth = 64 // of pages and buckets; a sound file has a handful
)

// order is the byte order of the numbers in a file.
var order = binary.NativeEndian

// PageError says where a file is damaged.
type PageError struct {
	Page uint64
	What string
}

func (e *PageError) Error() string { return fmt.Sprintf("page %d: %s", e.Page, e.What) }

// Header is what the newest sound header page says.
type Header struct {
	PageSize       int64
	Root, Freelist uint64
	End            uint64 // the first page number that is not in use
	tx             uint64
}

// Check reads a whole database file and checks its structure: the header pages, that each page that is referred to is
// inside the file, has the right kind and is referred to once, that elements lie inside their page, that keys are in order,
// and that no page in use is listed as free. bbolt checks little of this, and panics, or overwrites pages in use, where it
// does not hold. The content of records has checksums of its own. The error is a *PageError when the file is damaged.
func Check(f io.ReaderAt, size int64) error {
	w, err := walk(f, size, math.MaxInt64)
	if err != nil {
		return err
	}
	return w.freelist()
}

// CheckToRead is Check for a file that is only read: nothing is said about the list of free pages. The pages that are looked at together have at most memory bytes.
func CheckToRead(f io.ReaderAt, size, memory int64) error {
	_, err := walk(f, size, memory)
	return err
}

// walk checks the pages with elements.
func walk(f io.ReaderAt, size, memory int64) (*pageWalk, error) {
	h, err := ReadHeader(f, size)
	if err != nil {
		return nil, err
	}
	w := &pageWalk{f: f, h: h, pages: uint64(size / h.PageSize), memory: memory}
	w.used = make([]uint64, w.pages/64+1)
	w.take(0)
	w.take(1)
	return w, w.page(h.Root, nil, nil, 0)
}

// ReadHeader chooses the header as bbolt does: the newest that is sound.
func ReadHeader(f io.ReaderAt, size int64) (Header, error) {
	first, err := headerAt(f, size, 0)
	if err != nil {
		return Header{}, err
	}
	if first != nil {
		second, err := headerAt(f, size, first.PageSize)
		if err == nil && second != nil && second.PageSize != first.PageSize {
			err = &PageError{1, "the header pages have different page sizes"}
		}
		if err != nil || second == nil || second.tx <= first.tx {
			return *first, err
		}
		return *second, nil
	}
	for at := int64(minPage); at <= maxPage; at <<= 1 {
		second, err := headerAt(f, size, at)
		if err != nil {
			return Header{}, err
		}
		if second == nil {
			continue
		}
		if second.PageSize != at {
			return Header{}, &PageError{1, fmt.Sprintf("a header page is at %d and says that pages have %d bytes", at, second.PageSize)}
		}
		return *second, nil
	}
	return Header{}, &PageError{0, "both header pages are damaged"}
}

// headerAt reads the header at an offset; nil = it is not sound. One that is sound and has a size of pages that cannot be is an error, because bbolt would use it.
func headerAt(f io.ReaderAt, size, at int64) (*Header, error) {
	b := make([]byte, HeaderSize+metaBytes+8)
	if at+int64(len(b)) > size {
		return nil, nil //nolint:nilnil // see above
	}
	if _, err := f.ReadAt(b, at); err != nil {
		return nil, nil //nolint:nilerr,nilnil // it is not sound
	}
	b = b[HeaderSize:]
	sum := fnv.New64a()
	sum.Write(b[:metaBytes])
	if order.Uint32(b) != boltMagic || order.Uint32(b[4:]) != boltVersion || order.Uint64(b[metaBytes:]) != sum.Sum64() {
		return nil, nil //nolint:nilnil // see above
	}
	h := &Header{
		PageSize: int64(order.Uint32(b[8:])), Root: order.Uint64(b[16:]),
		Freelist: order.Uint64(b[32:]), End: order.Uint64(b[40:]), tx: order.Uint64(b[48:]),
	}
	if h.PageSize < minPage || h.PageSize > maxPage || h.PageSize&(h.PageSize-1) != 0 {
		return nil, &PageError{0, fmt.Sprintf("a header page says that pages have %d bytes", h.PageSize)}
	}
	return h, nil
}

// pageWalk is one walk over the pages in use.
type pageWalk struct {
	f      io.ReaderAt
	h      Header
	pages  uint64   // that the file has
	used   []uint64 // one bit for each page
	memory int64    // bytes that further pages may have
}

// take marks a page as used. It returns false when it is already.
func (w *pageWalk) take(id uint64) bool {
	bit := uint64(1) << (id % 64)
	was := w.used[id/64]&bit != 0
	w.used[id/64] |= bit
	return !was
}

// read reads a page with its overflow, and marks it as used.
func (w *pageWalk) read(id uint64) (data []byte, flags, count uint16, err error) {
	bad := func(format string, args ...any) ([]byte, uint16, uint16, error) {
		return nil, 0, 0, &PageError{id, fmt.Sprintf(format, args...)}
	}
	if id < 2 || id >= min(w.h.End, w.pages) {
		return bad("is not inside the file")
	}
	at := int64(id) * w.h.PageSize
	head := make([]byte, HeaderSize)
	if _, err := w.f.ReadAt(head, at); err != nil {
		return bad("%v", atEnd(err))
	}
	if got := order.Uint64(head); got != id {
		return bad("calls itself page %d", got)
	}
	flags, count = order.Uint16(head[8:]), order.Uint16(head[10:])
	pages := uint64(order.Uint32(head[12:])) + 1
	if pages > min(w.h.End, w.pages)-id {
		return bad("ends behind the file")
	}
	for i := range pages {
		if !w.take(id + i) {
			return bad("is used twice")
		}
	}
	if int64(pages) > w.memory/w.h.PageSize {
		return bad("has %d pages, which is more than expected", pages)
	}
	data = make([]byte, int64(pages)*w.h.PageSize)
	if _, err := w.f.ReadAt(data, at); err != nil {
		return bad("%v", atEnd(err))
	}
	return data, flags, count, nil
}

func atEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// page checks a branch or leaf page and what is below it. Its keys are at least low and, unless high is nil, less than high.
func (w *pageWalk) page(id uint64, low, high []byte, depth int) error {
	data, flags, count, err := w.read(id)
	if err != nil {
		return err
	}
	if depth > maxDepth {
		return &PageError{id, "is nested too deep"}
	}
	w.memory -= int64(len(data))
	defer func() { w.memory += int64(len(data)) }()
	switch flags {
	case LeafPage:
		return w.leaf(id, data, count, low, high, depth)
	case BranchPage:
	default:
		return &PageError{id, fmt.Sprintf("has the flags %#x", flags)}
	}
	if count == 0 {
		return &PageError{id, "has no elements"}
	}
	type child struct {
		key []byte
		id  uint64
	}
	children := make([]child, count)
	for i := range children {
		at := HeaderSize + i*pageElement
		if at+pageElement > len(data) {
			return &PageError{id, "has more elements than fit"}
		}
		e := data[at:]
		key, ok := part(data, at, order.Uint32(e), order.Uint32(e[4:]), 0)
		if !ok || !inOrder(low, key, high, i > 0) {
			return &PageError{id, fmt.Sprintf("element %d is damaged", i)}
		}
		children[i] = child{key, order.Uint64(e[8:])}
		low = key
	}
	for i, c := range children {
		next := high
		if i+1 < len(children) {
			next = children[i+1].key
		}
		if err := w.page(c.id, c.key, next, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks the elements of a leaf, which may be inside the value of a bucket.
func (w *pageWalk) leaf(id uint64, data []byte, count uint16, low, high []byte, depth int) error {
	for i := range int(count) {
		at := HeaderSize + i*pageElement
		bad := &PageError{id, fmt.Sprintf("element %d is damaged", i)}
		if at+pageElement > len(data) {
			return &PageError{id, "has more elements than fit"}
		}
		e := data[at:]
		flags, pos, ksize, vsize := order.Uint32(e), order.Uint32(e[4:]), order.Uint32(e[8:]), order.Uint32(e[12:])
		key, okKey := part(data, at, pos, ksize, 0)
		value, okValue := part(data, at, pos, vsize, ksize)
		if !okKey || !okValue || flags > bucketElem || !inOrder(low, key, high, i > 0) {
			return bad
		}
		low = key
		if flags != bucketElem {
			continue
		}
		if len(value) < bucketHeader {
			return bad
		}
		if root := order.Uint64(value); root != 0 {
			if err := w.page(root, nil, nil, depth+1); err != nil {
				return err
			}
			continue
		}
		inline := value[bucketHeader:]
		if depth > maxDepth || len(inline) < HeaderSize || order.Uint16(inline[8:]) != LeafPage {
			return bad
		}
		if err := w.leaf(id, inline, order.Uint16(inline[10:]), nil, nil, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// part returns the n bytes at pos+skip behind the element at at.
func part(data []byte, at int, pos, n, skip uint32) ([]byte, bool) {
	from := uint64(at) + uint64(pos) + uint64(skip)
	to := from + uint64(n)
	if pos < pageElement || to > uint64(len(data)) {
		return nil, false
	}
	return data[from:to], true
}

// inOrder reports whether a key may stand where it does: not below low, which it equals only as the first of its page,
// and below high.
func inOrder(low, key, high []byte, after bool) bool {
	n := bytes.Compare(low, key)
	return len(key) > 0 && (n < 0 || n == 0 && !after) && (high == nil || bytes.Compare(key, high) < 0)
}

// freelist checks the list of the pages that the next write may overwrite.
func (w *pageWalk) freelist() error {
	if w.h.Freelist == noFreelist {
		return nil
	}
	bad := func(format string, args ...any) error {
		return &PageError{w.h.Freelist, "list of free pages: " + fmt.Sprintf(format, args...)}
	}
	data, flags, n, err := w.read(w.h.Freelist)
	if err != nil {
		return bad("%v", err)
	}
	if flags != FreelistPage {
		return bad("has the flags %#x", flags)
	}
	data = data[HeaderSize:]
	count := uint64(n)
	if n == math.MaxUint16 { // the number is too large for the header
		count, data = order.Uint64(data), data[8:]
	}
	if count > uint64(len(data)/8) {
		return bad("has more entries than fit")
	}
	absent := map[uint64]bool{} // free pages that the file does not have: its end was never written
	for i := range int(count) {
		id := order.Uint64(data[i*8:])
		if id < w.pages && !w.take(id) || id >= w.h.End || absent[id] {
			return bad("page %d is listed but not free", id)
		}
		if id >= w.pages {
			absent[id] = true
		}
	}
	return nil
}
