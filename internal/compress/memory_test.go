package compress

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"

	"ply/internal/errs"
)

// xzBlockOf returns an xz block without check and padding that states a dictionary by its code and has these chunks.
func xzBlockOf(dict byte, chunks string) []byte {
	b := []byte{2, 0, xzLZMA2, 1, dict, 0, 0, 0}
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return append(append(b, chunks...), 0)
}

// xzStreamOf returns an xz stream of blocks that were made by xzBlockOf and have plain bytes each.
func xzStreamOf(plain byte, blocks ...[]byte) []byte {
	s := append(bytes.Clone(xzMagic), 0, 0)
	s = binary.LittleEndian.AppendUint32(s, crc32.ChecksumIEEE(s[6:]))
	number := binary.AppendUvarint
	index := number([]byte{0}, uint64(len(blocks)))
	for _, b := range blocks {
		s = append(append(s, b...), make([]byte, -len(b)&3)...)
		index = number(number(index, uint64(len(b))), uint64(plain))
	}
	index = append(index, make([]byte, -len(index)&3)...)
	index = binary.LittleEndian.AppendUint32(index, crc32.ChecksumIEEE(index))
	footer := binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1))
	footer = append(footer, 0, 0)
	s = append(s, index...)
	s = binary.LittleEndian.AppendUint32(s, crc32.ChecksumIEEE(footer))
	return append(append(s, footer...), 'Y', 'Z')
}

// plainChunk is an LZMA2 chunk that is not compressed and resets the dictionary.
func plainChunk(s string) string {
	return string([]byte{1, byte((len(s) - 1) >> 8), byte(len(s) - 1)}) + s
}

// allocated returns how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// The dictionary codes of the xz format: 2 or 3 times a power of two.
const (
	dict128M = 30
	dict192M = 31
	dict4G   = 40
)

// An xz header states the memory that its decoder needs, in each block of each stream.
func TestXzDictionaryIsLimited(t *testing.T) {
	small := xzBlockOf(0, plainChunk("ab"))
	for name, data := range map[string][]byte{
		"first block":                 xzStreamOf(2, xzBlockOf(dict4G, plainChunk("ab"))),
		"first block, 192 MiB":        xzStreamOf(2, xzBlockOf(dict192M, plainChunk("ab"))),
		"second block":                xzStreamOf(2, small, xzBlockOf(dict4G, plainChunk("ab"))),
		"second stream":               append(xzStreamOf(2, small), xzStreamOf(2, xzBlockOf(dict4G, plainChunk("ab")))...),
		"second stream after padding": append(append(xzStreamOf(2, small), 0, 0, 0, 0), xzStreamOf(2, xzBlockOf(dict4G, plainChunk("ab")))...),
		"six streams":                 bytes.Repeat(xzStreamOf(2, xzBlockOf(dict4G, plainChunk("ab"))), 6),
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			used := allocated(func() { _, _, err = decode(data) })
			if !errors.Is(err, errs.Invalid) || !strings.Contains(fmt.Sprint(err), "dictionary of") {
				t.Errorf("error = %v, want class Invalid and the size of the dictionary", err)
			}
			if used > 16<<20 {
				t.Errorf("allocated %d MiB before the refusal", used>>20)
			}
		})
	}
	data := xzStreamOf(2, xzBlockOf(dict128M, plainChunk("ab")), small)
	if got, codec, err := decode(append(data, data...)); err != nil || codec != Xz || string(got) != "abababab" {
		t.Errorf("dictionary of 128 MiB: %q, %s, %v", got, codec, err)
	}
}

// All blocks and streams share one dictionary: what many of them state together costs no more memory or time than the largest.
func TestXzBlocksShareTheDictionary(t *testing.T) {
	var blocks [][]byte
	for range 300 {
		blocks = append(blocks, xzBlockOf(dict128M, plainChunk("x")))
	}
	data := bytes.Repeat(xzStreamOf(1, blocks...), 3)
	var got []byte
	var err error
	used := allocated(func() { got, _, err = decode(data) })
	if err != nil || len(got) != 900 {
		t.Errorf("decode = %d bytes, %v", len(got), err)
	}
	if used > 192<<20 {
		t.Errorf("allocated %d MiB", used>>20)
	}
}

// The properties of a chunk state how large the model of its decoder is.
func TestXzPropertiesAreLimited(t *testing.T) {
	chunk := func(props byte) string { return string([]byte{0xe0, 0, 0, 0, 5, props, 0, 0, 0, 0, 0, 0}) }
	largest := byte((4*5+4)*9 + 8) // lc 8, lp 4
	many := xzStreamOf(1, xzBlockOf(0, strings.Repeat(chunk(largest), 1000)))
	var err error
	if used := allocated(func() { _, _, err = decode(many) }); used > 16<<20 || !errors.Is(err, errs.Invalid) {
		t.Errorf("lc + lp = 12: allocated %d MiB, %v", used>>20, err)
	}
	if got, _, err := decode(xzStreamOf(1, xzBlockOf(0, chunk(0x5d)))); err != nil || len(got) != 1 {
		t.Errorf("lc + lp = 3: %q, %v", got, err)
	}
}

func TestXzIsStrict(t *testing.T) {
	block := xzBlockOf(0, plainChunk("abc"))
	whole := xzStreamOf(3, block, block)
	if got, _, err := decode(whole); err != nil || string(got) != "abcabc" {
		t.Fatalf("whole: %q, %v", got, err)
	}
	for i := range whole {
		flipped := bytes.Clone(whole)
		flipped[i] ^= 0x10
		if got, codec, err := decode(flipped); codec == Xz && err == nil && string(got) == "abcabc" {
			t.Errorf("a flipped bit in byte %d was not noticed", i)
		} else if err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("a flipped bit in byte %d: %v, want class Invalid", i, err)
		}
		if _, codec, err := decode(whole[:i]); codec == Xz && !errors.Is(err, errs.Invalid) {
			t.Errorf("cut at byte %d: %v, want class Invalid", i, err)
		}
	}
	for name, data := range map[string][]byte{
		"garbage after":                 append(bytes.Clone(whole), "garbage that is no stream"...),
		"padding of three bytes":        append(bytes.Clone(whole), 0, 0, 0),
		"chunk without a dictionary":    xzStreamOf(1, xzBlockOf(0, "\x02\x00\x00a")),
		"second block continues":        xzStreamOf(3, block, xzBlockOf(0, "\x02\x00\x02abc")),
		"compressed chunk is too long":  xzStreamOf(1, xzBlockOf(0, string([]byte{0xe0, 0, 0, 0, 6, 0x5d, 0, 0, 0, 0, 0, 0, 0}))),
		"compressed chunk is too short": xzStreamOf(1, xzBlockOf(0, string([]byte{0xe0, 0, 0, 0, 4, 0x5d, 0, 0, 0, 0, 0}))),
		"index of another length":       xzStreamOf(4, block, block),
	} {
		if _, _, err := decode(data); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want class Invalid", name, err)
		}
	}
}

// Streams as the library and the xz program write them.
func TestXzOfOthers(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 200_000)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	plain := append(append(text(500_000), noise...), text(300_000)...)
	for _, c := range []xz.WriterConfig{
		{DictCap: 64 << 20}, {DictCap: 1 << 16}, {BlockSize: 100_000, DictCap: 1 << 20}, {CheckSum: xz.SHA256}, {NoCheckSum: true}, {CheckSum: xz.CRC32},
	} {
		var b bytes.Buffer
		w, err := c.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, _, err := decode(b.Bytes()); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%+v: %d bytes, %v", c, len(got), err)
		}
	}
	for _, args := range []string{
		"xz -9e", "xz -0", "xz -T2 --block-size=200000", "xz -T2 -9 --block-size=1MiB", "xz --block-list=100000,1,0", "xz -C sha256", "xz -C none", "xz -C crc32",
		"xz --lzma2=preset=6,dict=4KiB", "xz --lzma2=preset=6,dict=128MiB", "xz --lzma2=preset=1,lc=0,lp=4,pb=4", "xz --lzma2=preset=1,lc=4,lp=0,pb=0",
		"zstd -q --ultra -22 --long=27", "zstd -q -1", "zstd -q -T2 -19 --no-check", "zstd -q --long=27 --single-thread", "bzip2 -9", "gzip -9",
	} {
		t.Run(args, func(t *testing.T) {
			cmd := strings.Fields(args)
			packed := pipe(t, plain, cmd[0], cmd[1:]...)
			twice := bytes.Clone(packed)
			if cmd[0] == "xz" {
				twice = append(twice, 0, 0, 0, 0)
			}
			twice = append(twice, packed...)
			if got, _, err := decode(twice); err != nil || !bytes.Equal(got, append(bytes.Clone(plain), plain...)) {
				t.Errorf("twice: %d bytes, %v", len(got), err)
			}
			if _, _, err := decode(packed[:len(packed)*2/3]); !errors.Is(err, errs.Invalid) {
				t.Errorf("cut: %v, want class Invalid", err)
			}
			if got, _, err := decode(pipe(t, nil, cmd[0], cmd[1:]...)); err != nil || len(got) != 0 {
				t.Errorf("empty: %d bytes, %v", len(got), err)
			}
		})
	}
}

// pipe runs a program over data. It skips the test when the program is not installed.
func pipe(t *testing.T, data []byte, name string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	cmd := exec.Command(path, append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

func BenchmarkUnxz(b *testing.B) {
	var packed bytes.Buffer
	w, err := xz.NewWriter(&packed)
	if err != nil {
		b.Fatal(err)
	}
	_, _ = w.Write(text(8 << 20))
	_ = w.Close()
	b.SetBytes(8 << 20)
	b.ReportAllocs()
	for b.Loop() {
		r, _, err := NewReader(context.Background(), bytes.NewReader(packed.Bytes()))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}
