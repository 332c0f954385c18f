// Package compress decompresses and compresses layers and archives.
//
// A reader finds the codec by magic bytes, not by a name or media type. Memory is limited: every zstd window and every xz
// dictionary of a stream may have up to 128 MiB, and a header that asks for more is refused before anything is allocated. The output of a writer depends only on the input, the parameters and the version of ply, not on the number
// of cores; the text of Params says how to make the same bytes again.
package compress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"

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

const (
	bufSize   = 1 << 20
	maxWindow = 128 << 20
)

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

// NewReader decompresses r with the codec that its first bytes show. While reading, the error's class is errs.Invalid for damaged
// data; an error of r itself is returned unchanged. Close frees the decoder and does not close r.
func NewReader(r io.Reader) (io.ReadCloser, Codec, error) {
	src := &sourceReader{r: r}
	br := bufio.NewReaderSize(src, bufSize)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	codec := Sniff(head)
	var dec io.Reader
	closeDec := func() error { return nil }
	switch codec {
	case Gzip:
		z, err := newGunzip(br)
		if err != nil {
			return nil, "", src.blame(codec, err)
		}
		dec, closeDec = z, z.Close
	case Zstd:
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)))
		if err != nil {
			return nil, "", src.blame(codec, err)
		}
		dec, closeDec = z, func() error { z.Close(); return nil }
	case Xz:
		dec = newXz(br)
	case Bzip2:
		dec = bzip2.NewReader(br)
	default:
		return io.NopCloser(br), None, nil
	}
	return &reader{dec: dec, src: src, codec: codec, close: closeDec}, codec, nil
}

type reader struct {
	dec   io.Reader
	src   *sourceReader
	codec Codec
	close func() error
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.dec.Read(p)
	if err != nil && !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = r.src.blame(r.codec, err)
	}
	return n, err
}

func (r *reader) Close() error { return r.close() }

// sourceReader keeps an error of the source, to tell it from an error of the decoder.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a wrapped EOF is not an end
		s.err = err
	}
	return n, err
}

func (s *sourceReader) blame(c Codec, err error) error {
	if s.err != nil {
		return s.err
	}
	return errs.New(errs.Invalid, "%s data: %w", c, err)
}

// Params say how to compress. Level 0 is the codec's default.
type Params struct {
	Codec Codec
	Level int
}

// blockSize is that of parallel gzip, in bytes. The output depends on it.
const blockSize = 1 << 20

// version changes whenever the same Params produce other bytes.
const version = "1"

// String returns a text that ParseParams parses and that is different when the output would be.
func (p Params) String() string {
	return fmt.Sprintf("%s;level=%d;v=%s", p.Codec, p.level(), version)
}

func (p Params) level() int {
	switch {
	case p.Level != 0:
		return p.Level
	case p.Codec == Gzip:
		return 5
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
	if len(parts) != 3 || parts[2] != "v="+version || !strings.HasPrefix(parts[1], "level=") {
		return Params{}, errs.New(errs.Invalid, "compression %q: not made by this version", s)
	}
	level, err := strconv.Atoi(strings.TrimPrefix(parts[1], "level="))
	p := Params{Codec(parts[0]), level}
	if err != nil || (p.Codec != None && p.Codec != Gzip && p.Codec != Zstd) {
		return Params{}, errs.New(errs.Invalid, "compression %q: unknown", s)
	}
	return p, nil
}

type nopWriter struct{ io.Writer }

func (nopWriter) Close() error { return nil }

// NewWriter compresses to w, in parallel. Close ends the stream and does not close w. The error's class is errs.Invalid for a
// codec that is only read.
func NewWriter(w io.Writer, p Params) (io.WriteCloser, error) {
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
