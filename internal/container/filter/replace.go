//go:build cgo && seccomp

package filter

import (
	"fmt"

	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// The linker leads the calls of libseccomp's Go binding to the functions below.

/*
#cgo pkg-config: libseccomp
#cgo LDFLAGS: -Wl,-wrap=seccomp_rule_add_array -Wl,-wrap=seccomp_export_bpf

#include <errno.h>
#include <stddef.h>
#include <unistd.h>
#include <seccomp.h>

int __real_seccomp_rule_add_array(scmp_filter_ctx, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);
int __real_seccomp_export_bpf(const scmp_filter_ctx, int);

static unsigned char program[4096 * 8];
static size_t program_len;
static int copy_to = -1;

int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n, const struct scmp_arg_cmp *args) {
	if (program_len > 0)
		return 0; // the program that takes this one's place has the rule
	return __real_seccomp_rule_add_array(ctx, action, syscall, n, args);
}

static int write_all(int fd) {
	for (size_t done = 0; done < program_len;) {
		ssize_t n = write(fd, program + done, program_len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += n;
	}
	return 0;
}

static int read_program(int fd) {
	ssize_t n = pread(fd, program, sizeof program, 0);
	if (n <= 0 || n % 8 != 0)
		return -EIO;
	program_len = n;
	return 0;
}

int __wrap_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd) {
	int rc = 0;
	if (program_len == 0) {
		if (copy_to < 0)
			return __real_seccomp_export_bpf(ctx, fd);
		rc = __real_seccomp_export_bpf(ctx, copy_to);
		if (rc == 0)
			rc = read_program(copy_to);
	}
	return rc == 0 ? write_all(fd) : rc;
}

static void use_copy(int fd) { copy_to = fd; }
*/
import "C"

const replaceable = true

// library names libseccomp and what it believes of the kernel.
func library() string {
	major, minor, micro := libseccomp.GetLibraryVersion()
	api, _ := libseccomp.GetAPI() // 0 when it does not know
	return fmt.Sprintf("libseccomp %d.%d.%d %d", major, minor, micro, api)
}

// Adopt takes what Files handed over, if anything. Init calls it before libcontainer's own.
func Adopt() {
	seals, err := unix.FcntlInt(Descriptor, unix.F_GET_SEALS, 0)
	if err != nil {
		return // some other file
	}
	switch seals {
	case sealedProgram:
		C.read_program(Descriptor) // none or a bad one: libseccomp compiles
	case sealedEmpty:
		C.use_copy(Descriptor)
	default:
		return
	}
	// It stays open until the container's program runs, so that no other file gets its number, which libcontainer
	// would let the program have.
	unix.CloseOnExec(Descriptor)
}
