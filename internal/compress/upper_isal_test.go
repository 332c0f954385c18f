//go:build isal && cgo

package compress

import (
	"bytes"
	"io"
	"runtime"
	"testing"
)

// After compression they are clear too.
func TestDeflateLeavesVectorRegistersClear(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if upperInUse() < 0 {
		t.Skip("this processor does not say which registers are in use")
	}
	for level := 1; level <= maxISAL; level++ {
		b := newIsalBlock()
		b.in = append(b.in, text(blockSize)...)
		b.compress(level, true)
		if b.err != nil || upperInUse() == 1 {
			t.Errorf("level %d: %v, upper halves in use: %d", level, b.err, upperInUse())
		}
	}
}

// After decompression the upper halves of the vector registers are clear. While they are not, the SHA instructions of the hash that
// follows are several times slower on many processors.
func TestGunzipLeavesVectorRegistersClear(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if upperInUse() < 0 {
		t.Skip("this processor does not say which registers are in use")
	}
	z, err := newGunzip(bytes.NewReader(gz(t, text(2<<20))))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	g := z.(*gunzip)
	for n := 0; err == nil; n++ {
		err = g.fill()
		if upperInUse() == 1 {
			t.Fatalf("after call %d of inflate the upper halves of the vector registers are in use", n)
		}
	}
	if err != io.EOF {
		t.Fatal(err)
	}
}
