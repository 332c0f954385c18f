//go:build isal && cgo

package compress

/*
#cgo LDFLAGS: -lisal
#cgo isal_dirty CFLAGS: -DPLY_ISAL_DIRTY
#include <stdlib.h>
#include <isa-l/igzip_lib.h>

#if defined(__x86_64__)
#include <immintrin.h>

// ISA-L's AVX code returns with dirty upper halves of the vector registers. Legacy SSE code, such as the SHA instructions of Go's
// sha256, then runs at a fifth of its speed on this thread until something clears them.
__attribute__((target("avx"))) static void ply_vzeroupper(void) { _mm256_zeroupper(); }

// The build tag isal_dirty is for benchmarks: it shows what the instruction is worth.
static void ply_clear_upper(void) {
#ifndef PLY_ISAL_DIRTY
	if (__builtin_cpu_supports("avx"))
		ply_vzeroupper();
#endif
}
#else
static void ply_clear_upper(void) {}
#endif

static void ply_init(struct inflate_state *s) {
	isal_inflate_init(s);
	s->crc_flag = ISAL_GZIP;
}

static void ply_next_member(struct inflate_state *s) {
	isal_inflate_reset(s);
	s->crc_flag = ISAL_GZIP;
}

static int ply_inflate(struct inflate_state *s, void *in, unsigned in_len, void *out, unsigned out_len) {
	s->next_in = in;
	s->avail_in = in_len;
	s->next_out = out;
	s->avail_out = out_len;
	int rc = isal_inflate(s);
	ply_clear_upper();
	s->next_in = NULL;
	s->next_out = NULL; // it may be Go's memory
	return rc;
}
*/
import "C"

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"unsafe"
)

// GzipEngine is the name of the library that decompresses gzip in this build.
const GzipEngine = "isa-l"

// gunzip decompresses with ISA-L's inflate, which is two to four times as fast as pure Go.
type gunzip struct {
	src     io.Reader
	c       *inflater
	pending []byte // the part of c.in that is not decompressed yet
	ready   []byte // the part of c.out that is not read yet
	srcEOF  bool
	started bool // the current member has consumed input
	err     error
}

// inflater is memory that C uses between calls. It is C memory, because C may not keep Go pointers.
type inflater struct {
	state   *C.struct_inflate_state
	in, out []byte
}

const (
	isalBuf    = 256 << 10
	directRead = 64 << 10 // a read of at least so many bytes is decompressed into without a copy
)

// inflaters are kept for the next stream: their pages are there already.
var inflaters = sync.Pool{New: func() any {
	c := &inflater{
		state: (*C.struct_inflate_state)(C.malloc(C.sizeof_struct_inflate_state)),
		in:    unsafe.Slice((*byte)(C.malloc(isalBuf)), isalBuf),
		out:   unsafe.Slice((*byte)(C.malloc(isalBuf)), isalBuf),
	}
	runtime.SetFinalizer(c, (*inflater).free)
	return c
}}

func (c *inflater) free() {
	C.free(unsafe.Pointer(c.state))
	C.free(unsafe.Pointer(&c.in[0]))
	C.free(unsafe.Pointer(&c.out[0]))
}

func newGunzip(r io.Reader) (io.ReadCloser, error) {
	g := &gunzip{src: r, c: inflaters.Get().(*inflater)}
	C.ply_init(g.c.state)
	return g, nil
}

// Close frees the memory. Reading afterwards is an error.
func (g *gunzip) Close() error {
	if g.c != nil {
		inflaters.Put(g.c)
	}
	g.c, g.ready, g.pending = nil, nil, nil
	g.err = errors.New("read after close")
	return nil
}

func (g *gunzip) Read(p []byte) (int, error) {
	for len(g.ready) == 0 {
		if g.err != nil {
			return 0, g.err
		}
		if len(p) < directRead {
			g.err = g.fill()
			continue
		}
		var n int
		if n, g.err = g.inflate(p); n > 0 {
			return n, nil
		}
	}
	n := copy(p, g.ready)
	g.ready = g.ready[n:]
	return n, nil
}

// fill decompresses into the buffer.
func (g *gunzip) fill() error {
	n, err := g.inflate(g.c.out)
	g.ready = g.c.out[:n]
	return err
}

// inflate calls inflate once, which writes to out. It returns io.EOF when the stream is complete.
func (g *gunzip) inflate(out []byte) (int, error) {
	if len(g.pending) == 0 && !g.srcEOF {
		n, err := g.src.Read(g.c.in)
		g.pending = g.c.in[:n]
		if errors.Is(err, io.EOF) {
			g.srcEOF = true
		} else if err != nil {
			return 0, err
		}
		if n == 0 && !g.srcEOF {
			return 0, nil
		}
	}
	if len(g.pending) == 0 && !g.started {
		return 0, io.EOF
	}
	var in unsafe.Pointer
	if len(g.pending) > 0 {
		in = unsafe.Pointer(&g.pending[0])
	}
	before := len(g.pending)
	room := min(len(out), 1<<30)
	rc := C.ply_inflate(g.c.state, in, C.uint(before), unsafe.Pointer(&out[0]), C.uint(room))
	produced := room - int(g.c.state.avail_out)
	g.pending = g.pending[before-int(g.c.state.avail_in):]
	g.started = g.started || before > 0
	switch {
	case rc < 0:
		return produced, fmt.Errorf("inflate: error %d", int(rc))
	case g.c.state.block_state == C.ISAL_BLOCK_FINISH:
		C.ply_next_member(g.c.state)
		g.started = false
	case produced == 0 && g.srcEOF && len(g.pending) == 0:
		return 0, io.ErrUnexpectedEOF
	}
	return produced, nil
}
