package host

import (
	"strings"
	"testing"
)

const aarch64 = `enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POCF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
`

func TestEmulator(t *testing.T) {
	s390x := "enabled\ninterpreter /usr/bin/qemu-s390x-static\nflags: F\noffset 0\nmagic 7f454c4602020100000000000000000000020016\nmask ffffffffffffff00fffffffffffffffffffeffff\n"
	root := files(map[string]string{
		"status": "enabled\n", "register": "", "qemu-aarch64": aarch64, "qemu-s390x": s390x,
		"python3": "enabled\ninterpreter /usr/bin/python3\nflags:\nextension .py\n", "off": strings.Replace(strings.Replace(aarch64, "enabled", "disabled", 1), "b700", "f300", 1),
	})
	for arch, want := range map[string]string{
		"arm64": "/usr/libexec/qemu-binfmt/aarch64-binfmt-P", "s390x": "/usr/bin/qemu-s390x-static", "riscv64": "", "amd64": "", "arm": "", "other": "",
	} {
		if got := emulator(root, arch); got != want {
			t.Errorf("%s: %q, want %q", arch, got, want)
		}
	}
	root["status"].Data = []byte("disabled\n")
	if got := emulator(root, "arm64"); got != "" {
		t.Errorf("while binfmt_misc is off: %q", got)
	}
	if got := emulator(files(nil), "arm64"); got != "" {
		t.Errorf("without binfmt_misc: %q", got)
	}
}

// Entries that are no entries of the kernel stand for nothing.
func TestDamagedHandlers(t *testing.T) {
	h := header("arm64")
	if handler(aarch64, h) == "" {
		t.Fatal("a whole entry stands for nothing")
	}
	for _, c := range [][2]string{
		{"offset 0", "offset 120"}, {"offset 0", "offset -1"}, {"offset 0", "offset x"}, {"magic 7f45", "magic 7f4"}, {"mask ffff", "mask ff"}, {"magic 7f454c460201010000000000000000000200b700", "magic "},
	} {
		if got := handler(strings.Replace(aarch64, c[0], c[1], 1), h); got != "" {
			t.Errorf("%s: %q", c[1], got)
		}
	}
}
