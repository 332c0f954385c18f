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
	return rc;
}
*/
import "C"

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"unsafe"
)

// GzipEngine is the name of the library that decompresses gzip in this build.
const GzipEngine = "isa-l"

// gunzip decompresses with ISA-L's inflate, which is two to four times as fast as pure Go. The state and both buffers are in C
// memory, because C may not keep Go pointers between calls.
type gunzip struct {
	src     io.Reader
	state   *C.struct_inflate_state
	in      []byte // C memory
	out     []byte // C memory
	pending []byte // the part of in that is not decompressed yet
	ready   []byte // the part of out that is not read yet
	srcEOF  bool
	started bool // the current member has consumed input
	err     error
}

const isalBuf = 256 << 10

func newGunzip(r io.Reader) (io.ReadCloser, error) {
	state := (*C.struct_inflate_state)(C.malloc(C.sizeof_struct_inflate_state))
	in, out := C.malloc(isalBuf), C.malloc(isalBuf)
	C.ply_init(state)
	g := &gunzip{
		src: r, state: state,
		in:  unsafe.Slice((*byte)(in), isalBuf),
		out: unsafe.Slice((*byte)(out), isalBuf),
	}
	runtime.SetFinalizer(g, (*gunzip).Close)
	return g, nil
}

// Close frees the memory. Reading afterwards is an error.
func (g *gunzip) Close() error {
	if g.state == nil {
		return nil
	}
	runtime.SetFinalizer(g, nil)
	C.free(unsafe.Pointer(g.state))
	C.free(unsafe.Pointer(&g.in[0]))
	C.free(unsafe.Pointer(&g.out[0]))
	g.state, g.in, g.out, g.ready, g.pending = nil, nil, nil, nil, nil
	g.err = errors.New("read after close")
	return nil
}

func (g *gunzip) Read(p []byte) (int, error) {
	for len(g.ready) == 0 {
		if g.err != nil {
			return 0, g.err
		}
		g.err = g.fill()
	}
	n := copy(p, g.ready)
	g.ready = g.ready[n:]
	return n, nil
}

// fill calls inflate once. It returns io.EOF when the stream is complete.
func (g *gunzip) fill() error {
	if len(g.pending) == 0 && !g.srcEOF {
		n, err := g.src.Read(g.in)
		g.pending = g.in[:n]
		if errors.Is(err, io.EOF) {
			g.srcEOF = true
		} else if err != nil {
			return err
		}
		if n == 0 && !g.srcEOF {
			return nil
		}
	}
	if len(g.pending) == 0 && !g.started {
		return io.EOF
	}
	var in unsafe.Pointer
	if len(g.pending) > 0 {
		in = unsafe.Pointer(&g.pending[0])
	}
	before := len(g.pending)
	rc := C.ply_inflate(g.state, in, C.uint(before), unsafe.Pointer(&g.out[0]), isalBuf)
	produced := isalBuf - int(g.state.avail_out)
	g.pending = g.pending[before-int(g.state.avail_in):]
	g.started = g.started || before > 0
	g.ready = g.out[:produced]
	switch {
	case rc < 0:
		return fmt.Errorf("inflate: error %d", int(rc))
	case g.state.block_state == C.ISAL_BLOCK_FINISH:
		C.ply_next_member(g.state)
		g.started = false
	case produced == 0 && g.srcEOF && len(g.pending) == 0:
		return io.ErrUnexpectedEOF
	}
	return nil
}
