package compress

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// xzReader decompresses all streams of an xz file (format 1.2.0). The library's reader of the container allocates whatever
// dictionary a block header asks for, anew for each block, and keeps the sizes of all blocks. So the container is read here, and
// the library decodes LZMA2 only. The blocks share one dictionary: each block must begin with a reset of it, so the chunks of all
// blocks together are one LZMA2 sequence.
type xzReader struct {
	br     *bufio.Reader
	window *window
	next   func() error // reads the next part of the container; valid when left is 0
	err    error

	lzma  *lzma.Reader2
	dict  int // capacity of the dictionary of lzma
	chunk xzChunk
	left  int // bytes of the chunk that are not decompressed yet

	flags   [2]byte // of the stream
	check   hash.Hash
	blocks  uint64 // blocks of the stream so far
	records hash.Hash
	block   xzBlock
}

// xzBlock is the block that is being read. A stated size is -1 when the header does not state it.
type xzBlock struct {
	header                          int64 // bytes of the header
	packed, plain                   int64 // bytes so far: of the chunks with their headers, and of the content
	statedPacked, statedPlain, dict int64
	fresh                           bool // no chunk was read yet
}

// xzChunk is what the library may read of an LZMA2 chunk: its header and the compressed bytes.
type xzChunk struct {
	header []byte
	body   io.LimitedReader
}

func (c *xzChunk) Read(p []byte) (int, error) {
	if len(c.header) > 0 {
		n := copy(p, c.header)
		c.header = c.header[n:]
		return n, nil
	}
	return c.body.Read(p)
}

const (
	xzStreamHeader = 12
	xzMagicLen     = 6
	xzLZMA2        = 0x21
)

var (
	xzMagic  = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	crc64Tab = crc64.MakeTable(crc64.ECMA)
)

func newXz(br *bufio.Reader, w *window) *xzReader {
	x := &xzReader{br: br, window: w, records: sha256.New()}
	x.chunk.body.R = br
	x.next = x.streamHeader
	return x
}

// Read implements io.Reader. It returns io.EOF only after a whole stream.
func (x *xzReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for x.err == nil && x.left == 0 {
		x.err = x.next()
	}
	if x.err != nil {
		return 0, x.err
	}
	// The library never gets room for more than the chunk, so it does not read the header of the next chunk.
	n, err := x.lzma.Read(p[:min(len(p), x.left)])
	x.left -= n
	x.block.plain += int64(n)
	x.check.Write(p[:n])
	switch {
	case err != nil:
		x.err = unexpected(err)
	case x.left == 0 && x.chunk.body.N > 0:
		x.err = errors.New("chunk is longer than its content")
	}
	return n, x.err
}

// unexpected turns the end of the data into an error, where the format does not allow it.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// full reads b.
func (x *xzReader) full(b []byte) error {
	_, err := io.ReadFull(x.br, b)
	return unexpected(err)
}

// streamHeader reads the header of the first stream, or of the next one after padding.
func (x *xzReader) streamHeader() error {
	var h [xzStreamHeader]byte
	if err := x.full(h[:]); err != nil {
		return err
	}
	if !bytes.Equal(h[:xzMagicLen], xzMagic) {
		return errors.New("data after the end of a stream is no stream")
	}
	if crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
		return errors.New("stream header: wrong checksum")
	}
	x.flags = [2]byte(h[6:8])
	switch x.flags {
	case [2]byte{0, 0}:
		x.check = noCheck{}
	case [2]byte{0, 1}:
		x.check = crc32.NewIEEE()
	case [2]byte{0, 4}:
		x.check = crc64.New(crc64Tab)
	case [2]byte{0, 10}:
		x.check = sha256.New()
	default:
		return fmt.Errorf("stream flags %x are not supported", x.flags)
	}
	x.blocks = 0
	x.records.Reset()
	x.next = x.blockHeader
	return nil
}

// noCheck is the check of a stream that has none.
type noCheck struct{}

func (noCheck) Write(p []byte) (int, error) { return len(p), nil }
func (noCheck) Sum(b []byte) []byte         { return b }
func (noCheck) Reset()                      {}
func (noCheck) Size() int                   { return 0 }
func (noCheck) BlockSize() int              { return 1 }

// blockHeader reads the header of the next block, or the index when there is no block any more.
func (x *xzReader) blockHeader() error {
	size, err := x.br.ReadByte()
	if err != nil {
		return unexpected(err)
	}
	if size == 0 {
		return x.index()
	}
	h := make([]byte, (int(size)+1)*4)
	h[0] = size
	if err := x.full(h[1:]); err != nil {
		return err
	}
	end := len(h) - 4
	if crc32.ChecksumIEEE(h[:end]) != binary.LittleEndian.Uint32(h[end:]) {
		return errors.New("block header: wrong checksum")
	}
	b, err := parseXzBlock(h[1:end])
	if err != nil {
		return fmt.Errorf("block header: %w", err)
	}
	b.header = int64(len(h))
	if b.dict > int64(x.dict) {
		x.lzma, x.dict = nil, 0
		if err := x.window.grow(uint64(b.dict)); err != nil {
			return err
		}
		x.dict = int(b.dict)
	}
	x.block = b
	x.check.Reset()
	x.next = x.chunkHeader
	return nil
}

// parseXzBlock parses a block header without its size and checksum.
func parseXzBlock(h []byte) (b xzBlock, err error) {
	b = xzBlock{statedPacked: -1, statedPlain: -1, fresh: true}
	r := bytes.NewReader(h)
	flags, _ := r.ReadByte() // a header has at least four bytes
	if flags&0x3c != 0 {
		return b, errors.New("reserved flags are set")
	}
	if flags&0x40 != 0 {
		if b.statedPacked, err = xzNumber(r); err != nil {
			return b, err
		}
	}
	if flags&0x80 != 0 {
		if b.statedPlain, err = xzNumber(r); err != nil {
			return b, err
		}
	}
	id, err := xzNumber(r)
	if err != nil {
		return b, err
	}
	if flags&0x03 != 0 || id != xzLZMA2 {
		return b, fmt.Errorf("%d filters, the first is %#x: only LZMA2 is supported", flags&0x03+1, id)
	}
	var props [2]byte // the length of the properties, and the only one
	if _, err := io.ReadFull(r, props[:]); err != nil {
		return b, unexpected(err)
	}
	if props[0] != 1 || props[1] > 40 {
		return b, errors.New("malformed properties of LZMA2")
	}
	if b.dict, err = lzma.DecodeDictCap(props[1]); err != nil {
		return b, err
	}
	for r.Len() > 0 {
		if pad, _ := r.ReadByte(); pad != 0 {
			return b, errors.New("padding is not zero")
		}
	}
	return b, nil
}

// xzNumber reads an integer of the container. The end of r is io.ErrUnexpectedEOF.
func xzNumber(r io.ByteReader) (int64, error) {
	var n uint64
	for shift := 0; shift < 63; shift += 7 {
		c, err := r.ReadByte()
		if err != nil {
			return 0, unexpected(err)
		}
		n |= uint64(c&0x7f) << shift
		if c < 0x80 {
			if c == 0 && shift > 0 {
				break // not the shortest form
			}
			return int64(n), nil
		}
	}
	return 0, errors.New("malformed number")
}

// chunkHeader reads the header of the next LZMA2 chunk, or the end of the block.
func (x *xzReader) chunkHeader() error {
	control, err := x.br.ReadByte()
	if err != nil {
		return unexpected(err)
	}
	x.block.packed++
	if control == 0 {
		return x.blockEnd()
	}
	if x.block.fresh && control != 1 && control < 0xe0 {
		return errors.New("block does not begin with a new dictionary")
	}
	x.block.fresh = false
	h := make([]byte, 1, 6)
	h[0] = control
	var body, plain int
	switch {
	case control < 3:
		h = h[:3]
	case control < 0x80:
		return fmt.Errorf("chunk of type %#x", control)
	case control < 0xc0:
		h = h[:5]
	default:
		h = h[:6]
	}
	if err := x.full(h[1:]); err != nil {
		return err
	}
	plain = int(binary.BigEndian.Uint16(h[1:])) + 1
	body = plain
	if control >= 0x80 {
		plain += int(control&0x1f) << 16
		body = int(binary.BigEndian.Uint16(h[3:])) + 1
	}
	if len(h) == 6 {
		// LZMA2 limits the sum of lc and lp. The library does not, and allocates up to 6 MiB.
		if lc, lp := h[5]%9, h[5]/9%5; h[5] >= 9*5*5 || lc+lp > 4 {
			return errors.New("chunk with malformed properties")
		}
	}
	x.block.packed += int64(len(h)-1) + int64(body)
	if stated := x.block.statedPacked; stated >= 0 && x.block.packed > stated {
		return errors.New("block is longer than its header states")
	}
	x.left = plain
	x.chunk.header, x.chunk.body.N = h, int64(body)
	if x.lzma == nil {
		x.lzma, err = lzma.Reader2Config{DictCap: max(x.dict, lzma.MinDictCap)}.NewReader2(&x.chunk)
	}
	return err
}

// blockEnd reads what follows the chunks of a block: padding and check.
func (x *xzReader) blockEnd() error {
	b := &x.block
	if b.statedPacked >= 0 && b.packed != b.statedPacked || b.statedPlain >= 0 && b.plain != b.statedPlain {
		return errors.New("block has other sizes than its header states")
	}
	if err := x.padding(b.packed); err != nil {
		return err
	}
	want := make([]byte, x.check.Size())
	if err := x.full(want); err != nil {
		return err
	}
	got := x.check.Sum(nil)
	if len(got) < sha256.Size { // the CRCs are stored in little endian
		for i, j := 0, len(got)-1; i < j; i, j = i+1, j-1 {
			got[i], got[j] = got[j], got[i]
		}
	}
	if !bytes.Equal(got, want) {
		return errors.New("block has a wrong checksum")
	}
	x.blocks++
	x.addRecord(b.header+b.packed+int64(len(want)), b.plain)
	x.next = x.blockHeader
	return nil
}

// addRecord adds what the index must say about a block to the hash of all records. The index may be long, so it is not kept.
func (x *xzReader) addRecord(unpadded, plain int64) {
	var rec [16]byte
	binary.LittleEndian.PutUint64(rec[:], uint64(unpadded))
	binary.LittleEndian.PutUint64(rec[8:], uint64(plain))
	x.records.Write(rec[:])
}

// padding reads the zeros that follow n bytes, up to a multiple of four.
func (x *xzReader) padding(n int64) error {
	for ; n%4 != 0; n++ {
		c, err := x.br.ReadByte()
		if err != nil {
			return unexpected(err)
		}
		if c != 0 {
			return errors.New("padding is not zero")
		}
	}
	return nil
}

// index reads the index, whose first byte was read, and the footer of the stream.
func (x *xzReader) index() error {
	r := &xzIndexReader{br: x.br, n: 1, crc: crc32.ChecksumIEEE([]byte{0})}
	count, err := xzNumber(r)
	if err != nil {
		return err
	}
	want := x.records.Sum(nil)
	if uint64(count) != x.blocks {
		return fmt.Errorf("index lists %d blocks, the stream has %d", count, x.blocks)
	}
	x.records.Reset()
	for range count {
		unpadded, err := xzNumber(r)
		if err != nil {
			return err
		}
		plain, err := xzNumber(r)
		if err != nil {
			return err
		}
		x.addRecord(unpadded, plain)
	}
	if !bytes.Equal(x.records.Sum(nil), want) {
		return errors.New("index does not match the blocks")
	}
	for r.n%4 != 0 {
		if c, err := r.ReadByte(); err != nil {
			return unexpected(err)
		} else if c != 0 {
			return errors.New("padding is not zero")
		}
	}
	var f [4 + 12]byte // the checksum of the index, and the footer
	if err := x.full(f[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(f[:]) != r.crc {
		return errors.New("index has a wrong checksum")
	}
	footer := f[4:]
	switch {
	case footer[10] != 'Y' || footer[11] != 'Z' || [2]byte(footer[8:10]) != x.flags:
		return errors.New("malformed stream footer")
	case crc32.ChecksumIEEE(footer[4:10]) != binary.LittleEndian.Uint32(footer):
		return errors.New("stream footer: wrong checksum")
	case (int64(binary.LittleEndian.Uint32(footer[4:]))+1)*4 != r.n+4:
		return errors.New("stream footer: wrong size of the index")
	}
	x.next = x.streamPadding
	return nil
}

// streamPadding reads the zeros after a stream, in groups of four, up to the next stream or the end.
func (x *xzReader) streamPadding() error {
	b, err := x.br.Peek(4)
	if len(b) == 0 && errors.Is(err, io.EOF) {
		return io.EOF
	}
	if err != nil {
		return unexpected(err)
	}
	if binary.LittleEndian.Uint32(b) != 0 {
		x.next = x.streamHeader
		return nil
	}
	_, err = x.br.Discard(4)
	return err
}

// xzIndexReader counts and sums the bytes of an index.
type xzIndexReader struct {
	br  *bufio.Reader
	n   int64
	crc uint32
}

func (r *xzIndexReader) ReadByte() (byte, error) {
	c, err := r.br.ReadByte()
	if err == nil {
		r.n++
		r.crc = crc32.Update(r.crc, crc32.IEEETable, []byte{c})
	}
	return c, err
}
