//go:build isal && cgo

package compress

/*
#include <stdlib.h>
#include <isa-l/igzip_lib.h>

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx"))) static void ply_zero_upper(void) { _mm256_zeroupper(); }

// See gunzip_isal.go.
static void ply_clear_upper_after_deflate(void) {
	if (__builtin_cpu_supports("avx"))
		ply_zero_upper();
}
#else
static void ply_clear_upper_after_deflate(void) {}
#endif

static int ply_deflate(struct isal_zstream *s, void *buf, int level, void *in, unsigned in_len, void *out, unsigned out_len, int last) {
	isal_deflate_stateless_init(s);
	s->level = level;
	s->level_buf = buf;
	s->level_buf_size = ISAL_DEF_LVL3_DEFAULT;
	s->gzip_flag = IGZIP_DEFLATE;
	s->flush = last ? NO_FLUSH : FULL_FLUSH;
	s->end_of_stream = last;
	s->next_in = in;
	s->avail_in = in_len;
	s->next_out = out;
	s->avail_out = out_len;
	int rc = isal_deflate_stateless(s);
	ply_clear_upper_after_deflate();
	s->next_in = NULL; // Go's memory
	s->next_out = NULL;
	if (rc == COMP_OK && s->avail_in != 0)
		rc = STATELESS_OVERFLOW;
	return rc;
}
*/
import "C"

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"sync"
	"unsafe"

	"ply/internal/errs"
)

// isalVersion returns the version of what ISA-L makes of some input. ISA-L chooses its code by the processor, and neither its output nor
// that of another release of it need be the same. So the version is taken from the output for a sample: parameters that were
// recorded with other output are not known here.
var isalVersion = sync.OnceValue(func() string {
	sample := make([]byte, blockSize+256<<10)
	x := uint32(1)
	for i := range sample {
		x = x*1664525 + 1013904223
		sample[i] = byte(x>>24) & byte(x>>16) & 0x7f // some values are frequent
		if i%64 >= 40 {
			sample[i] = sample[(i*7+int(x>>28))%(i+1)]
		} else if i >= 4096 && i%4096 < 1024 {
			sample[i] = sample[i-3000]
		}
	}
	h := sha256.New()
	w := newIsalWriter(h, 2)
	_, err := w.Write(sample)
	if closeErr := w.Close(); err != nil || closeErr != nil {
		return noISAL // it compresses nothing, and a push reports why
	}
	return "isal-" + hex.EncodeToString(h.Sum(nil)[:6])
})

// deflater is the memory of one call of ISA-L's deflate. It is C memory, because it is too large for a C stack.
type deflater struct {
	stream *C.struct_isal_zstream
	level  unsafe.Pointer
}

var deflaters = sync.Pool{New: func() any {
	d := &deflater{(*C.struct_isal_zstream)(C.malloc(C.sizeof_struct_isal_zstream)), C.malloc(C.ISAL_DEF_LVL3_DEFAULT)}
	runtime.SetFinalizer(d, func(d *deflater) {
		C.free(unsafe.Pointer(d.stream))
		C.free(d.level)
	})
	return d
}}

// isalBlock is a part of the input that is compressed without the others.
type isalBlock struct {
	in, out []byte
	err     error
	done    chan struct{}
}

// maxGrowth is how much longer than its input a block can be, in bytes: stored blocks of deflate have headers.
const maxGrowth = 16 << 10

var isalBlocks = sync.Pool{New: func() any {
	return &isalBlock{in: make([]byte, 0, blockSize), out: make([]byte, 0, blockSize+maxGrowth)}
}}

func (b *isalBlock) compress(level int, last bool) {
	defer close(b.done)
	d := deflaters.Get().(*deflater)
	defer deflaters.Put(d)
	final := C.int(0)
	if last {
		final = 1
	}
	out := b.out[:cap(b.out)]
	rc := C.ply_deflate(d.stream, d.level, C.int(level), unsafe.Pointer(unsafe.SliceData(b.in)), C.uint(len(b.in)), unsafe.Pointer(&out[0]), C.uint(len(out)), final)
	b.out = out[:int(d.stream.total_out)]
	if rc != C.COMP_OK {
		b.err = fmt.Errorf("deflate: error %d", int(rc))
	}
}

// isalWriter writes one gzip member of blocks of blockSize bytes, which are compressed at the same time and do not refer to each other.
type isalWriter struct {
	w     io.Writer
	level int
	cur   *isalBlock
	crc   uint32
	size  uint32

	queue   chan *isalBlock // in order; its capacity bounds how many are compressed
	written chan struct{}   // closed when the queue is written
	mu      sync.Mutex
	err     error // of the output or of a block; final
}

func newISAL(w io.Writer, p Params) (io.WriteCloser, error) {
	if p.Codec != Gzip || p.level() < 1 || p.level() > maxISAL {
		return nil, errs.New(errs.Invalid, "compression %s;level=%d: not known to ISA-L", p.Codec, p.level())
	}
	return newIsalWriter(w, p.level()), nil
}

func newIsalWriter(w io.Writer, level int) *isalWriter {
	z := &isalWriter{w: w, level: level, queue: make(chan *isalBlock, max(2, runtime.GOMAXPROCS(0))), written: make(chan struct{})}
	go z.write()
	return z
}

// write writes the blocks in order. After an error it writes nothing more, but still waits for them.
func (z *isalWriter) write() {
	defer close(z.written)
	z.put([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, nil) // deflate, no name, no time, unknown system
	for b := range z.queue {
		<-b.done
		z.put(b.out, b.err)
		isalBlocks.Put(b)
	}
}

func (z *isalWriter) put(p []byte, err error) {
	if z.failure() != nil {
		return
	}
	if err == nil {
		_, err = z.w.Write(p)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.err = err
}

func (z *isalWriter) failure() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.err
}

func (z *isalWriter) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		if err := z.failure(); err != nil {
			return n, err
		}
		if z.cur != nil && len(z.cur.in) == blockSize {
			z.pass(false)
		}
		if z.cur == nil {
			z.cur = newIsalBlock()
		}
		k := min(len(p), blockSize-len(z.cur.in))
		z.cur.in = append(z.cur.in, p[:k]...)
		p, n = p[k:], n+k
	}
	return n, nil
}

func newIsalBlock() *isalBlock {
	b := isalBlocks.Get().(*isalBlock)
	b.in, b.err, b.done = b.in[:0], nil, make(chan struct{})
	return b
}

// pass lets the current block be compressed and written.
func (z *isalWriter) pass(last bool) {
	b := z.cur
	z.cur = nil
	z.crc = crc32.Update(z.crc, crc32.IEEETable, b.in)
	z.size += uint32(len(b.in))
	z.queue <- b
	go b.compress(z.level, last)
}

// Close ends the stream and waits for everything that was started.
func (z *isalWriter) Close() error {
	if z.queue == nil {
		return z.failure()
	}
	if z.cur == nil {
		z.cur = newIsalBlock()
	}
	z.pass(true)
	close(z.queue)
	<-z.written
	z.queue = nil
	var trailer [8]byte
	binary.LittleEndian.PutUint32(trailer[:4], z.crc)
	binary.LittleEndian.PutUint32(trailer[4:], z.size)
	z.put(trailer[:], nil)
	return z.failure()
}
