package supervise_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// ioctlProgram returns a program for amd64 that calls ioctl on /tmp with a request, and whose exit code is the error number.
func ioctlProgram(request uint64) []byte {
	const base, headers = 0x400000, 64 + 56
	le := binary.LittleEndian
	code := []byte{
		0xb8, 2, 0, 0, 0, // open
		0x48, 0x8d, 0x3d, 0, 0, 0, 0, // path
		0x31, 0xf6, 0x0f, 0x05, 0x89, 0xc7,
		0x48, 0xbe, 0, 0, 0, 0, 0, 0, 0, 0, // request
		0x48, 0x8d, 0x15, 0, 0, 0, 0, // buffer
		0xb8, 16, 0, 0, 0, 0x0f, 0x05, 0xf7, 0xd8, 0x89, 0xc7, // ioctl
		0xb8, 60, 0, 0, 0, 0x0f, 0x05, // exit
	}
	le.PutUint32(code[8:], uint32(len(code)-12))
	le.PutUint64(code[20:], request)
	le.PutUint32(code[31:], uint32(len(code)-35+len("/tmp\x00")))
	code = append(code, "/tmp\x00"...)
	code = append(code, make([]byte, 64)...)
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(base + headers), uint64(64), uint64(0), uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(7), uint64(0), uint64(base), uint64(base), uint64(headers + len(code)), uint64(headers + len(code)), uint64(4096),
	} {
		b, _ = binary.Append(b, le, v) // numbers of a fixed size always have a form
	}
	return append(b, code...)
}

// Root in a container with a limit can change the attributes of files, but not to which project they belong.
func TestLimitedContainerKeepsItsProject(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the program of this test is for amd64")
	}
	const get, set, getFlags, setFlags, setFlags32, winsize, refused = 0x801c581f, 0x401c5820, 0x80086601, 0x40086602, 0x40046602, 0x5413, 1
	for _, c := range []struct {
		request uint64
		limited bool
		refused bool
	}{
		{set, true, true}, {set | 1<<32, true, true}, {setFlags, true, true}, {setFlags32 | 7<<40, true, true},
		{get, true, false}, {getFlags, true, false}, {winsize, true, false}, {set, false, false}, {setFlags, false, false},
	} {
		b := newBox(t, "/bin/ioctl")
		b.in.Limited = c.limited
		if err := os.WriteFile(filepath.Join(b.in.Rootfs, "bin/ioctl"), ioctlProgram(c.request), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, e := b.run(); (e.Code == refused) != c.refused || e.Code > 133 {
			t.Errorf("request %#x, limited %v: %+v", c.request, c.limited, e)
		}
	}
}
