//go:build cgo && seccomp

package seccomp

import (
	"fmt"

	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// The linker redirects two calls of libseccomp's Go binding to the functions below (-wrap).

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
		return 0; // the cached program already contains the rule
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

// library returns the version of libseccomp and the level of the kernel's interface that it found.
func library() string {
	major, minor, micro := libseccomp.GetLibraryVersion()
	api, _ := libseccomp.GetAPI() // 0 when it could not find out
	return fmt.Sprintf("libseccomp %d.%d.%d %d", major, minor, micro, api)
}

// Adopt reads the memory file that Files returned, if there is one. Init calls it before it calls libcontainer.Init.
func Adopt() {
	seals, err := unix.FcntlInt(Descriptor, unix.F_GET_SEALS, 0)
	if err != nil {
		return // some other file
	}
	switch seals {
	case sealedProgram:
		C.read_program(Descriptor) // on an error libseccomp compiles
	case sealedEmpty:
		C.use_copy(Descriptor)
	default:
		return
	}
	// The descriptor stays open until the container's program runs. Otherwise another file could get its number, and
	// libcontainer would pass that file to the program as an extra file.
	unix.CloseOnExec(Descriptor)
}
