// The only program of the fixture's image. Without a C library its static binary has a few kilobytes.
//
// Each argument is one step, VERB:OPERAND; the steps run in order.
//
//	say:TEXT       print a line to stdout
//	err:TEXT       print a line to stderr
//	put:PATH=TEXT  append a line to a file
//	cat:PATH       print a file; exit with 1 if it cannot be opened
//	rm:PATH        remove a file or an empty directory
//	mkdir:PATH     create a directory
//	sleep:SECONDS
//	exit:CODE
#include <sys/syscall.h>
#include <time.h>
#include <fcntl.h>

static long call(long number, long a, long b, long c) {
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

static long length(const char *s) {
	long n = 0;
	while (s[n])
		n++;
	return n;
}

static long number(const char *s) {
	long n = 0;
	for (; *s >= '0' && *s <= '9'; s++)
		n = n * 10 + (*s - '0');
	return n;
}

static void line(long fd, char *text) {
	long n = length(text);
	text[n] = '\n'; // one write per line, so that a log has one record per line
	call(SYS_write, fd, (long)text, n + 1);
	text[n] = 0;
}

static int is(const char *step, const char *verb) {
	while (*verb && *step == *verb)
		step++, verb++;
	return !*verb && *step == ':';
}

static void cat(const char *path) {
	static char buf[4096];
	long n, fd = call(SYS_open, (long)path, O_RDONLY, 0);
	if (fd < 0)
		call(SYS_exit_group, 1, 0, 0);
	while ((n = call(SYS_read, fd, (long)buf, sizeof buf)) > 0)
		call(SYS_write, 1, (long)buf, n);
	call(SYS_close, fd, 0, 0);
}

static void step(char *s) {
	char *operand = s;
	while (*operand && *operand != ':')
		operand++;
	if (*operand)
		operand++;
	if (is(s, "say")) {
		line(1, operand);
	} else if (is(s, "err")) {
		line(2, operand);
	} else if (is(s, "put")) {
		char *text = operand;
		while (*text && *text != '=')
			text++;
		if (!*text)
			call(SYS_exit_group, 2, 0, 0);
		*text++ = 0;
		long fd = call(SYS_open, (long)operand, O_WRONLY | O_CREAT | O_APPEND, 0644);
		if (fd < 0)
			call(SYS_exit_group, 1, 0, 0);
		line(fd, text);
		call(SYS_close, fd, 0, 0);
	} else if (is(s, "cat")) {
		cat(operand);
	} else if (is(s, "rm")) {
		if (call(SYS_unlink, (long)operand, 0, 0) < 0 && call(SYS_rmdir, (long)operand, 0, 0) < 0)
			call(SYS_exit_group, 1, 0, 0);
	} else if (is(s, "mkdir")) {
		if (call(SYS_mkdir, (long)operand, 0755, 0) < 0)
			call(SYS_exit_group, 1, 0, 0);
	} else if (is(s, "sleep")) {
		struct timespec t = {number(operand), 0};
		call(SYS_nanosleep, (long)&t, 0, 0);
	} else if (is(s, "exit")) {
		call(SYS_exit_group, number(operand), 0, 0);
	} else {
		call(SYS_exit_group, 2, 0, 0);
	}
}

void run(long *stack) {
	char **args = (char **)(stack + 1);
	for (long i = 1; i < stack[0]; i++)
		step(args[i]);
	call(SYS_exit_group, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tcall run\n");
