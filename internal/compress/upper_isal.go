//go:build isal && cgo

package compress

/*
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

__attribute__((target("xsave"))) static int ply_upper_in_use(void) {
	unsigned a, b, c, d;
	if (!__builtin_cpu_supports("avx") || !__get_cpuid_count(13, 1, &a, &b, &c, &d) || !(a & 4))
		return -1;
	return (_xgetbv(1) >> 2) & 1;
}
#else
static int ply_upper_in_use(void) { return -1; }
#endif
*/
import "C"

// upperInUse returns 1 when the upper halves of this thread's vector registers are not in their initial state, 0 when they are, and
// -1 when the processor cannot tell. It is for the tests, because test files cannot use cgo.
func upperInUse() int { return int(C.ply_upper_in_use()) }
