package compress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

// zstdFrames passes zstd data on and reserves the window of each frame before the decoder sees the frame's header. What is no
// zstd frame is passed on as it is: the decoder refuses it.
type zstdFrames struct {
	br     *bufio.Reader
	window *window
	left   int64 // bytes of the current part that are passed on without a look
	part   zstdPart
	check  bool // the frame ends with a checksum
	err    error
}

// zstdPart is what follows when left is 0.
type zstdPart int

const (
	zstdFrame zstdPart = iota
	zstdBlock
	zstdRest // not understood
)

const (
	zstdMagic     = 0xfd2fb528
	zstdSkippable = 0x184d2a50
)

func (z *zstdFrames) Read(p []byte) (int, error) {
	for z.left == 0 && z.err == nil {
		switch z.part {
		case zstdFrame:
			z.err = z.frame()
		case zstdBlock:
			z.err = z.block()
		default:
			return z.br.Read(p)
		}
	}
	if z.err != nil {
		return 0, z.err
	}
	n, err := z.br.Read(p[:min(int64(len(p)), z.left)])
	z.left -= int64(n)
	return n, err
}

// peek returns the next bytes, up to n. It returns an error only when there is none.
func (z *zstdFrames) peek(n int) ([]byte, error) {
	b, err := z.br.Peek(n)
	if len(b) > 0 {
		return b, nil
	}
	return nil, err
}

// frame looks at the header of the next frame.
func (z *zstdFrames) frame() error {
	b, err := z.peek(18)
	if err != nil {
		return err
	}
	if len(b) < 8 {
		z.part = zstdRest
		return nil
	}
	switch magic := binary.LittleEndian.Uint32(b); {
	case magic&^0xf == zstdSkippable:
		z.left = 8 + int64(binary.LittleEndian.Uint32(b[4:]))
		return nil
	case magic != zstdMagic:
		z.part = zstdRest
		return nil
	}
	window, size, err := zstdWindow(b[4:])
	if err != nil {
		z.part = zstdRest
		return nil //nolint:nilerr // the decoder finds it
	}
	z.left, z.part, z.check = int64(4+size), zstdBlock, b[4]&4 != 0
	return z.window.grow(window)
}

// zstdWindow returns how much a decoder of a frame keeps, and the size of the frame's header without the magic bytes.
func zstdWindow(b []byte) (window uint64, size int, err error) {
	flags := b[0]
	single := flags&0x20 != 0
	size = 1
	if !single {
		window = 1 << (10 + b[1]>>3)
		window += window / 8 * uint64(b[1]&7)
		size++
	}
	size += [4]int{0, 1, 2, 4}[flags&3] // the ID of a dictionary
	length := [4]int{0, 2, 4, 8}[flags>>6]
	if single && length == 0 {
		length = 1
	}
	if size+length > len(b) {
		return 0, 0, errors.New("short header")
	}
	if single {
		var content [8]byte
		copy(content[:], b[size:size+length])
		window = binary.LittleEndian.Uint64(content[:])
		if length == 2 {
			window += 256
		}
	}
	return window, size + length, nil
}

// block looks at the header of the next block.
func (z *zstdFrames) block() error {
	b, err := z.peek(3)
	if err != nil {
		return err
	}
	if len(b) < 3 {
		z.part = zstdRest
		return nil
	}
	h := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
	z.left = 3 + int64(h>>3)
	if h>>1&3 == 1 { // one byte that is repeated
		z.left = 4
	}
	if h&1 != 0 { // the last one
		z.part = zstdFrame
		if z.check {
			z.left += 4
		}
	}
	return nil
}

var _ io.Reader = (*zstdFrames)(nil)
