// Package compress decompresses and compresses layers and archives.
//
// A reader finds the codec by magic bytes, not by a name or media type. Memory is limited: every zstd window and every xz
// dictionary of a stream may have up to 128 MiB, and a header that asks for more is refused before anything is allocated. The
// windows of all readers together have a share of the memory that this process may use; a reader waits for its window. The output
// of a writer depends only on the input, the parameters and the version of ply, not on the number of cores; the text of Params says
// how to make the same bytes again.
package compress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"

	"ply/internal/errs"
)

// Codec is a compressed form.
type Codec string

// The codecs that are read. None, Gzip and Zstd are also written.
const (
	None  Codec = "none"
	Gzip  Codec = "gzip"
	Zstd  Codec = "zstd"
	Xz    Codec = "xz"
	Bzip2 Codec = "bzip2"
)

const bufSize = 1 << 20

var magics = []struct {
	codec Codec
	magic []byte
}{
	{Gzip, []byte{0x1f, 0x8b, 0x08}},
	{Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{Xz, xzMagic},
	{Bzip2, []byte("BZh")},
}

// Sniff returns the codec of data that starts with b; None when it is not a known one.
func Sniff(b []byte) Codec {
	for _, m := range magics {
		if bytes.HasPrefix(b, m.magic) {
			return m.codec
		}
	}
	// A zstd stream may begin with skippable frames (zstd:chunked, pzstd).
	if len(b) >= 4 && b[0]&0xf0 == 0x50 && b[1] == 0x2a && b[2] == 0x4d && b[3] == 0x18 {
		return Zstd
	}
	return None
}

// Reader decompresses a stream. While it is read, the error's class is errs.Invalid for damaged data; an error of the source is
// returned unchanged. It is not safe for concurrent use.
type Reader struct {
	dec    io.Reader
	src    *sourceReader
	codec  Codec
	close  func() error // nil after the end
	window *window
	err    error // final
}

// NewReader decompresses r with the codec that its first bytes show. A stream with a large window waits until other readers have
// freed enough memory, or ctx ends. The caller closes the Reader, which does not close r.
func NewReader(ctx context.Context, r io.Reader) (*Reader, Codec, error) {
	return newReader(ctx, r, &readerStack{})
}

// Inner is NewReader for a stream that is read through z, such as a layer of an archive. Instead of waiting for memory while z
// has some, it fails with errs.Exhausted.
func (z *Reader) Inner(ctx context.Context, r io.Reader) (*Reader, Codec, error) {
	return newReader(ctx, r, z.window.stack)
}

func newReader(ctx context.Context, r io.Reader, stack *readerStack) (*Reader, Codec, error) {
	src := &sourceReader{r: r}
	br := bufio.NewReaderSize(src, bufSize)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	z := &Reader{src: src, codec: Sniff(head), window: newWindow(ctx, stack), close: func() error { return nil }}
	switch z.codec {
	case Gzip:
		gz, err := newGunzip(br)
		if err != nil {
			z.window.close()
			return nil, "", z.blame(err)
		}
		z.dec, z.close = gz, gz.Close
	case Zstd:
		zs, err := zstd.NewReader(&zstdFrames{br: br, window: z.window}, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)))
		if err != nil {
			z.window.close()
			return nil, "", z.blame(err)
		}
		z.dec, z.close = zs, func() error { zs.Close(); return nil }
	case Xz:
		z.dec = newXz(br, z.window)
	case Bzip2:
		z.dec = bzip2.NewReader(br)
	default:
		z.dec = br
	}
	return z, z.codec, nil
}

func (z *Reader) Read(p []byte) (int, error) {
	if z.err != nil {
		return 0, z.err
	}
	n, err := z.dec.Read(p)
	if err == nil {
		return n, nil
	}
	if z.codec != None && (!errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = z.blame(err)
	}
	z.end(err)
	return n, err
}

// end frees the decoder and its window.
func (z *Reader) end(err error) {
	if z.close == nil {
		return
	}
	z.err = err
	z.window.cancel() // a decoder may still read ahead, and wait for memory
	_ = z.close()     // frees memory only
	z.dec, z.close = nil, nil
	z.window.close()
}

// Close frees the decoder.
func (z *Reader) Close() error {
	z.end(errors.New("read after close"))
	return nil
}

// blame returns the cause of an error of the decoder.
func (z *Reader) blame(err error) error {
	if broken := z.src.broken.Load(); broken != nil {
		return *broken
	}
	if refused := z.window.refused.Load(); refused != nil {
		return *refused
	}
	return errs.New(errs.Invalid, "%s data: %w", z.codec, err)
}

// sourceReader keeps an error of the source, to tell it from an error of the decoder.
type sourceReader struct {
	r      io.Reader
	broken atomic.Pointer[error] // a decoder may still read ahead when its error is looked at
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a wrapped EOF is not an end
		s.broken.Store(&err)
	}
	return n, err
}

// Params say how to compress. Level 0 is the engine's default.
type Params struct {
	Codec  Codec
	Level  int
	Engine Engine
}

// Engine is a library that compresses.
type Engine string

// The engines. ISA-L is in builds with the tag isal only, and only for gzip. It is two to four times as fast.
const (
	EngineGo   Engine = ""
	EngineISAL Engine = "isal"
)

// FastGzip returns the parameters with which this build compresses gzip fastest.
func FastGzip() Params {
	if isalVersion() != noISAL {
		return Params{Codec: Gzip, Engine: EngineISAL}
	}
	return Params{Codec: Gzip}
}

// blockSize is that of parallel gzip, in bytes. The output depends on it.
const blockSize = 1 << 20

// version changes whenever the same Params produce other bytes, with EngineGo.
const version = "1"

// version returns what changes when the same Params produce other bytes.
func (p Params) version() string {
	if p.Engine == EngineISAL {
		return isalVersion()
	}
	return version
}

// String returns a text that ParseParams parses and that is different when the output would be.
func (p Params) String() string {
	return fmt.Sprintf("%s;level=%d;v=%s", p.Codec, p.level(), p.version())
}

func (p Params) level() int {
	switch {
	case p.Level != 0:
		return p.Level
	case p.Engine == EngineISAL:
		return 2
	case p.Codec == Gzip:
		return 3 // a third faster than 5, for 4 % more bytes
	case p.Codec == Zstd:
		return 3
	default:
		return 0
	}
}

// ParseParams parses what String returned. The error's class is errs.Invalid for the text of another version and for any other
// text.
func ParseParams(s string) (Params, error) {
	parts := strings.Split(s, ";")
	if len(parts) != 3 || !strings.HasPrefix(parts[1], "level=") {
		return Params{}, errs.New(errs.Invalid, "compression %q: not made by this version", s)
	}
	level, err := strconv.Atoi(strings.TrimPrefix(parts[1], "level="))
	p := Params{Codec: Codec(parts[0]), Level: level}
	switch {
	case parts[2] == "v="+version:
	case p.Codec == Gzip && level >= 1 && level <= maxISAL && isalVersion() != noISAL && parts[2] == "v="+isalVersion():
		p.Engine = EngineISAL
	default:
		return Params{}, errs.New(errs.Invalid, "compression %q: not made by this version", s)
	}
	if err != nil || (p.Codec != None && p.Codec != Gzip && p.Codec != Zstd) {
		return Params{}, errs.New(errs.Invalid, "compression %q: unknown", s)
	}
	return p, nil
}

const (
	maxISAL = 3           // the highest level of ISA-L
	noISAL  = "isal-none" // the version of what cannot be made
)

type nopWriter struct{ io.Writer }

func (nopWriter) Close() error { return nil }

// NewWriter compresses to w, in parallel. Close ends the stream and does not close w. The error's class is errs.Invalid for a
// codec that is only read.
func NewWriter(w io.Writer, p Params) (io.WriteCloser, error) {
	if p.Engine == EngineISAL {
		return newISAL(w, p)
	}
	switch p.Codec {
	case None:
		return nopWriter{w}, nil
	case Gzip:
		z, err := pgzip.NewWriterLevel(w, p.level())
		if err != nil {
			return nil, errs.New(errs.Invalid, "gzip: %w", err)
		}
		if err := z.SetConcurrency(blockSize, max(2, runtime.GOMAXPROCS(0))); err != nil {
			return nil, errs.New(errs.Invalid, "gzip: %w", err)
		}
		return z, nil
	case Zstd:
		// The encoder divides the input into blocks in the same way however many goroutines it uses.
		z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(p.level())), zstd.WithWindowSize(8<<20))
		if err != nil {
			return nil, errs.New(errs.Invalid, "zstd: %w", err)
		}
		return z, nil
	default:
		return nil, errs.New(errs.Invalid, "compression %q: can be read, not written", p.Codec)
	}
}
