package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
)

// The form of a bbolt file. Numbers have the byte order of the machine.
const (
	pageHeader   = 16 // id uint64, flags uint16, count uint16, overflow uint32
	pageElement  = 16 // branch: pos, ksize uint32, page uint64; leaf: flags, pos, ksize, vsize uint32
	bucketHeader = 16 // root page uint64, sequence uint64
	headerBytes  = 56 // of a header page, those that its checksum covers

	branchPage   = 0x01
	leafPage     = 0x02
	headerPage   = 0x04
	freelistPage = 0x10
	bucketElem   = 0x01 // flag of a leaf's element: its value is a bucket

	boltMagic   = 0xED0CDAED
	boltVersion = 2
	noFreelist  = math.MaxUint64

	maxDepth = 64 // of pages and buckets; a sound file has a handful
)

var order = binary.NativeEndian

// pageError says where a file is damaged.
type pageError struct {
	page uint64
	what string
	list bool // only the list of free pages is damaged: every record can be read
}

func (e *pageError) Error() string { return fmt.Sprintf("page %d: %s", e.page, e.what) }

// fileHeader is what the newest sound header page says.
type fileHeader struct {
	pageSize       int64
	root, freelist uint64
	end            uint64 // the first page number that is not in use
	tx             uint64
}

// checkPages reads a whole database file and checks its structure: the header pages, that each page that is referred to is
// inside the file, has the right kind and is referred to once, that elements lie inside their page, that keys are in order,
// and that no page in use is listed as free. bbolt checks little of this, and panics, or overwrites pages in use, where it
// does not hold. checkPages does not panic, whatever the file holds. The content of records has checksums of its own.
func checkPages(f io.ReaderAt, size int64) error {
	h, err := readHeader(f, size)
	if err != nil {
		return err
	}
	w := &pageWalk{f: f, size: size, h: h, used: map[uint64]bool{0: true, 1: true}}
	if err := w.page(h.root, nil, nil, 0); err != nil {
		return err
	}
	return w.freelist()
}

// readHeader chooses the header as bbolt does: the newest that is sound.
func readHeader(f io.ReaderAt, size int64) (best fileHeader, err error) {
	err = &pageError{0, "both header pages are damaged", false}
	try := func(at int64, want int64) {
		b := make([]byte, pageHeader+headerBytes+8)
		if at+int64(len(b)) > size {
			return
		}
		if _, readErr := f.ReadAt(b, at); readErr != nil {
			return
		}
		b = b[pageHeader:]
		sum := fnv.New64a()
		sum.Write(b[:headerBytes])
		h := fileHeader{
			pageSize: int64(order.Uint32(b[8:])), root: order.Uint64(b[16:]),
			freelist: order.Uint64(b[32:]), end: order.Uint64(b[40:]), tx: order.Uint64(b[48:]),
		}
		if order.Uint32(b) != boltMagic || order.Uint32(b[4:]) != boltVersion || order.Uint64(b[headerBytes:]) != sum.Sum64() ||
			h.pageSize < 1024 || h.pageSize > 16<<20 || h.pageSize&(h.pageSize-1) != 0 || want != 0 && h.pageSize != want {
			return
		}
		if err != nil || h.tx > best.tx {
			best, err = h, nil
		}
	}
	try(0, 0)
	if err == nil {
		try(best.pageSize, best.pageSize)
		return best, err
	}
	for s := int64(1024); s <= 16<<20; s <<= 1 {
		try(s, s)
	}
	return best, err
}

// pageWalk is one walk over the pages in use.
type pageWalk struct {
	f    io.ReaderAt
	size int64
	h    fileHeader
	used map[uint64]bool
}

// read reads a page with its overflow, and marks it as used.
func (w *pageWalk) read(id uint64) (data []byte, flags, count uint16, err error) {
	bad := func(format string, args ...any) ([]byte, uint16, uint16, error) {
		return nil, 0, 0, &pageError{page: id, what: fmt.Sprintf(format, args...)}
	}
	if id < 2 || id >= w.h.end || id > uint64(w.size/w.h.pageSize) {
		return bad("is not inside the file")
	}
	at := int64(id) * w.h.pageSize
	head := make([]byte, pageHeader)
	if _, err := w.f.ReadAt(head, at); err != nil {
		return bad("%v", atEnd(err))
	}
	if got := order.Uint64(head); got != id {
		return bad("calls itself page %d", got)
	}
	flags, count = order.Uint16(head[8:]), order.Uint16(head[10:])
	pages := uint64(order.Uint32(head[12:])) + 1
	if pages > w.h.end-id || int64(pages) > (w.size-at)/w.h.pageSize {
		return bad("ends behind the file")
	}
	for i := range pages {
		if w.used[id+i] {
			return bad("is used twice")
		}
		w.used[id+i] = true
	}
	data = make([]byte, int64(pages)*w.h.pageSize)
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
		return &pageError{page: id, what: "is nested too deep"}
	}
	switch flags {
	case leafPage:
		return w.leaf(id, data, count, low, high, depth)
	case branchPage:
	default:
		return &pageError{page: id, what: fmt.Sprintf("has the flags %#x", flags)}
	}
	if count == 0 {
		return &pageError{page: id, what: "has no elements"}
	}
	type child struct {
		key []byte
		id  uint64
	}
	children := make([]child, count)
	for i := range children {
		at := pageHeader + i*pageElement
		if at+pageElement > len(data) {
			return &pageError{page: id, what: "has more elements than fit"}
		}
		e := data[at:]
		key, ok := part(data, at, order.Uint32(e), order.Uint32(e[4:]), 0)
		if !ok || !inOrder(low, key, high, i > 0) {
			return &pageError{page: id, what: fmt.Sprintf("element %d is damaged", i)}
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
		at := pageHeader + i*pageElement
		bad := &pageError{page: id, what: fmt.Sprintf("element %d is damaged", i)}
		if at+pageElement > len(data) {
			return &pageError{page: id, what: "has more elements than fit"}
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
		if depth > maxDepth || len(inline) < pageHeader || order.Uint16(inline[8:]) != leafPage {
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
	if w.h.freelist == noFreelist {
		return nil
	}
	bad := func(format string, args ...any) error {
		return &pageError{w.h.freelist, "list of free pages: " + fmt.Sprintf(format, args...), true}
	}
	data, flags, n, err := w.read(w.h.freelist)
	if err != nil {
		return bad("%v", err)
	}
	if flags != freelistPage {
		return bad("has the flags %#x", flags)
	}
	data = data[pageHeader:]
	count := uint64(n)
	if n == math.MaxUint16 { // the number is too large for the header
		count, data = order.Uint64(data), data[8:]
	}
	if count > uint64(len(data)/8) {
		return bad("has more entries than fit")
	}
	for i := range int(count) {
		id := order.Uint64(data[i*8:])
		if id >= w.h.end || w.used[id] {
			return bad("page %d is listed but not free", id)
		}
		w.used[id] = true
	}
	return nil
}
