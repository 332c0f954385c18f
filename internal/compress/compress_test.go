package compress

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"ply/internal/errs"
)

// text is compressible and long enough for several blocks.
func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"layer ", "blob ", "digest ", "overlay ", "chain ", "\n", "whiteout "}
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString(words[r.IntN(len(words))])
	}
	return b.Bytes()[:n]
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func decode(b []byte) ([]byte, Codec, error) {
	r, c, err := NewReader(context.Background(), bytes.NewReader(b))
	if err != nil {
		return nil, c, err
	}
	defer r.Close()
	out, err := io.ReadAll(r)
	return out, c, err
}

func TestReadAllForms(t *testing.T) {
	plain := text(3 << 20)
	var zs, xs bytes.Buffer
	zw, _ := zstd.NewWriter(&zs)
	zw.Write(plain)
	zw.Close()
	xw, _ := xz.NewWriter(&xs)
	xw.Write(plain)
	xw.Close()
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, zs.Bytes()...)
	members := append(gz(t, plain[:1000]), gz(t, plain[1000:])...)
	for _, c := range []struct {
		name  string
		data  []byte
		codec Codec
	}{
		{"plain", plain, None},
		{"gzip", gz(t, plain), Gzip},
		{"gzip members", members, Gzip},
		{"zstd", zs.Bytes(), Zstd},
		{"zstd skippable first", skippable, Zstd},
		{"xz", xs.Bytes(), Xz},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, codec, err := decode(c.data)
			if err != nil || codec != c.codec || !bytes.Equal(got, plain) {
				t.Fatalf("decode = %d bytes, %s, %v; want %d bytes, %s", len(got), codec, err, len(plain), c.codec)
			}
		})
	}
	if got, codec, err := decode(nil); err != nil || codec != None || len(got) != 0 {
		t.Errorf("empty input = %d bytes, %s, %v", len(got), codec, err)
	}
	if got, codec, err := decode(gz(t, nil)); err != nil || codec != Gzip || len(got) != 0 {
		t.Errorf("gzip of nothing = %d bytes, %s, %v", len(got), codec, err)
	}
}

func TestBadDataIsInvalid(t *testing.T) {
	whole := gz(t, text(1<<20))
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 0x55
	badCRC := bytes.Clone(whole)
	badCRC[len(badCRC)-6] ^= 1
	for name, data := range map[string][]byte{
		"truncated":     whole[:len(whole)/2],
		"no trailer":    whole[:len(whole)-8],
		"flipped":       flipped,
		"bad crc":       badCRC,
		"garbage after": append(bytes.Clone(whole), "garbage that is no member"...),
		"header only":   whole[:5],
	} {
		if _, _, err := decode(data); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: error = %v, want class Invalid", name, err)
		}
	}
}

func TestSourceErrorIsPassedOn(t *testing.T) {
	whole := gz(t, text(4<<20))
	want := errors.New("connection reset")
	r, _, err := NewReader(context.Background(), io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), errReader{want}))
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if !errors.Is(err, want) || errors.Is(err, errs.Invalid) {
		t.Errorf("error = %v, want the source's own", err)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// A pushed layer must have the same digest when it is compressed again, however long the single writes are.
func TestWriterIsDeterministic(t *testing.T) {
	plain := text(5<<20 + 77)
	for _, p := range []Params{{Codec: None}, {Codec: Gzip}, {Codec: Gzip, Level: 1}, {Codec: Gzip, Level: 5}, {Codec: Zstd}} {
		var sums [4][32]byte
		for i, chunk := range []int{7 << 20, 1 << 20, 33333, 100 << 10} {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS([]int{1, 2, 3, 16}[i])) // the number of goroutines depends on it
			var out bytes.Buffer
			w, err := NewWriter(&out, p)
			if err != nil {
				t.Fatal(err)
			}
			for rest := plain; len(rest) > 0; {
				n := min(chunk, len(rest))
				if _, err := w.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			sums[i] = sha256.Sum256(out.Bytes())
			back, _, err := decode(out.Bytes())
			if err != nil || !bytes.Equal(back, plain) {
				t.Fatalf("%s: round trip returns %d bytes, %v", p, len(back), err)
			}
		}
		if sums[0] != sums[1] || sums[1] != sums[2] || sums[2] != sums[3] {
			t.Errorf("%s: output depends on how it was written, or on the number of processors", p)
		}
		got, err := ParseParams(p.String())
		if err != nil || got.String() != p.String() {
			t.Errorf("ParseParams(%q) = %v, %v", p.String(), got, err)
		}
	}
}

func TestParseParamsRefuses(t *testing.T) {
	for _, s := range []string{"", "gzip", "gzip;level=5;v=0", "xz;level=1;v=" + version, "gzip;level=x;v=" + version, strings.Repeat(";", 9)} {
		if p, err := ParseParams(s); err == nil {
			t.Errorf("ParseParams(%q) = %v, want an error", s, p)
		}
	}
	if _, err := NewWriter(io.Discard, Params{Codec: Xz}); !errors.Is(err, errs.Invalid) {
		t.Errorf("writing xz: %v", err)
	}
}

// The output of each codec is part of the identity of a pushed layer: when a new version of a library changes it, version must be
// raised, so that layers are not expected to have the digests of the old output.
func TestOutputIsThatOfTheVersion(t *testing.T) {
	for recorded, want := range map[string]string{
		"none;level=0;v=1": "44763c3f316c183da26c580cc917c96f57c1053800645c028acf6854efec5853",
		"gzip;level=3;v=1": "1c14ec08ed2fb34577442a257c4d2dd149f782c0bd866715f032016e444aa02b",
		"gzip;level=5;v=1": "bc31c21d84e56507e8c53a920140b2144d06a4394a4720d6118ded127f3003ff", // the default of earlier builds
		"zstd;level=3;v=1": "a8aad7cd80ec762606e12abf6da895d6f2f0e0523493fa9c66bd9cc72a571286",
	} {
		params, err := ParseParams(recorded)
		if err != nil || params.String() != recorded {
			t.Errorf("ParseParams(%q) = %v, %v", recorded, params, err)
			continue
		}
		var out bytes.Buffer
		w, err := NewWriter(&out, params)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text(5<<20 + 77)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(out.Bytes())); got != want {
			t.Errorf("output of %s has the digest %s, want %s", params, got, want)
		}
	}
}

// What a push sends is readable by gzip(1), also for every size around that of a block.
func TestGzipReadsOutput(t *testing.T) {
	for _, size := range []int{0, 1, blockSize - 1, blockSize, blockSize + 1, 3*blockSize + 5} {
		plain := text(size)
		var out bytes.Buffer
		w, err := NewWriter(&out, Params{Codec: Gzip})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "gzip", "-dc")
		cmd.Stdin = &out
		got, err := cmd.Output()
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("gzip -dc of %d bytes returns %d bytes, %v", size, len(got), err)
		}
	}
}

// A zstd frame states the memory that its decoder needs.
func TestZstdWindowIsLimited(t *testing.T) {
	frame := func(windowLog byte) []byte { // a frame with one empty raw block
		return []byte{0x28, 0xb5, 0x2f, 0xfd, 0, (windowLog - 10) << 3, 1, 0, 0}
	}
	if got, codec, err := decode(frame(27)); err != nil || codec != Zstd || len(got) != 0 {
		t.Errorf("window of 128 MiB: %d bytes, %s, %v", len(got), codec, err)
	}
	// A frame of one segment has no window: it states the size of its content, and its decoder keeps all of that.
	segment := func(size uint64) []byte {
		return append(binary.LittleEndian.AppendUint64([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}, size), 1, 0, 0)
	}
	small := frame(10)
	for name, data := range map[string][]byte{
		"window of 256 MiB":               frame(28),
		"window of 3.75 TiB":              frame(41),
		"segment of 256 MiB":              segment(256 << 20),
		"segment of 1 EiB":                segment(1 << 60),
		"window of 256 MiB, second frame": append(bytes.Clone(small), frame(28)...),
		"segment of 1 GiB, second frame":  append(bytes.Clone(small), segment(1<<30)...),
		"after a skippable frame":         append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, frame(31)...),
	} {
		var err error
		if used := allocated(func() { _, _, err = decode(data) }); used > 16<<20 || !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: allocated %d MiB, %v, want class Invalid", name, used>>20, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(gz(f, []byte("hello")))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0})
	f.Add(xzStreamOf(3, xzBlockOf(0, plainChunk("abc")), xzBlockOf(dict4G, plainChunk("abc"))))
	f.Add(xzStreamOf(1, xzBlockOf(4, string([]byte{0xe0, 0, 0, 0, 5, 0x5d, 0, 0, 0, 0, 0, 0}))))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, err := NewReader(context.Background(), bytes.NewReader(b))
		if err != nil {
			return
		}
		defer r.Close()
		io.Copy(io.Discard, io.LimitReader(r, 16<<20))
	})
}

func BenchmarkGunzip(b *testing.B) {
	data := gz(b, text(64<<20))
	b.SetBytes(64 << 20)
	b.ReportAllocs()
	for b.Loop() {
		r, _, err := NewReader(context.Background(), bytes.NewReader(data))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

// BenchmarkGunzipAndHash decompresses and hashes on one thread, as a pull does. Compare it with the sum of BenchmarkGunzip and a
// bare sha256: code that leaves the vector registers dirty makes the hash several times slower.
func BenchmarkGunzipAndHash(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	plain := make([]byte, 64<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range plain {
		plain[i] = byte(rng.ExpFloat64() * 12)
	}
	data := gz(b, plain)
	b.SetBytes(64 << 20)
	for b.Loop() {
		r, _, err := NewReader(context.Background(), bytes.NewReader(data))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(sha256.New(), r); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}
