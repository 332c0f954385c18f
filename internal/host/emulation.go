package host

import (
	"bytes"
	"encoding/hex"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// binaries are the ELF headers of programs, by the names of architectures in images: class, byte order, machine.
var binaries = map[string]struct {
	class, order byte
	machine      uint16
}{
	"386": {1, 1, 3}, "amd64": {2, 1, 62}, "arm": {1, 1, 40}, "arm64": {2, 1, 183}, "loong64": {2, 1, 258}, "mips": {1, 2, 8}, "mipsle": {1, 1, 8},
	"mips64": {2, 2, 8}, "mips64le": {2, 1, 8}, "ppc64": {2, 2, 21}, "ppc64le": {2, 1, 21}, "riscv64": {2, 1, 243}, "s390x": {2, 2, 22},
}

// header returns how an executable of an architecture begins; nil for an unknown one.
func header(arch string) []byte {
	b, ok := binaries[arch]
	if !ok {
		return nil
	}
	h := make([]byte, 128)
	copy(h, "\x7fELF")
	h[4], h[5], h[6] = b.class, b.order, 1
	put := func(at int, v uint16) {
		h[at], h[at+1] = byte(v), byte(v>>8)
		if b.order == 2 {
			h[at], h[at+1] = h[at+1], h[at]
		}
	}
	put(16, 2) // an executable
	put(18, b.machine)
	return h
}

// Emulator returns the program by which the kernel runs executables of another architecture, registered in binfmt_misc; "" when there is none.
func Emulator(arch string) string { return emulator(os.DirFS("/proc/sys/fs/binfmt_misc"), arch) }

func emulator(root fs.FS, arch string) string {
	h := header(arch)
	entries, err := fs.ReadDir(root, ".")
	if err != nil || h == nil || word(root, "status") == "disabled" {
		return ""
	}
	for _, e := range entries {
		if e.Name() == "status" || e.Name() == "register" {
			continue
		}
		data, err := fs.ReadFile(root, path.Base(e.Name()))
		if err != nil {
			continue
		}
		if interpreter := handler(string(data), h); interpreter != "" {
			return interpreter
		}
	}
	return ""
}

// handler returns the interpreter of an entry of binfmt_misc that is enabled and stands for executables that begin with h, and otherwise "".
func handler(entry string, h []byte) (interpreter string) {
	var magic, mask []byte
	enabled, offset := false, 0
	for line := range strings.Lines(entry) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		var err error
		switch key {
		case "enabled":
			enabled = true
		case "interpreter":
			interpreter = value
		case "offset":
			offset, err = strconv.Atoi(value)
		case "magic":
			magic, err = hex.DecodeString(value)
		case "mask":
			mask, err = hex.DecodeString(value)
		}
		if err != nil {
			return ""
		}
	}
	if !enabled || len(magic) == 0 || offset < 0 || offset+len(magic) > len(h) || mask != nil && len(mask) != len(magic) {
		return ""
	}
	got := bytes.Clone(h[offset : offset+len(magic)])
	for i := range mask {
		got[i] &= mask[i]
		magic[i] &= mask[i]
	}
	if !bytes.Equal(got, magic) {
		return ""
	}
	return interpreter
}
