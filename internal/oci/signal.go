package oci

import (
	"strconv"
	"strings"
	"syscall"

	"ply/internal/errs"
)

// signals are the names that Docker has for signals, without SIG. RTMIN+n and RTMAX-n are added below.
var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "BUS": syscall.SIGBUS, "CHLD": syscall.SIGCHLD, "CLD": syscall.SIGCHLD,
	"CONT": syscall.SIGCONT, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP, "ILL": syscall.SIGILL, "INT": syscall.SIGINT,
	"IO": syscall.SIGIO, "IOT": syscall.SIGIOT, "KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE, "POLL": syscall.SIGPOLL,
	"PROF": syscall.SIGPROF, "PWR": syscall.SIGPWR, "QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV, "STKFLT": syscall.SIGSTKFLT,
	"STOP": syscall.SIGSTOP, "SYS": syscall.SIGSYS, "TERM": syscall.SIGTERM, "TRAP": syscall.SIGTRAP, "TSTP": syscall.SIGTSTP,
	"TTIN": syscall.SIGTTIN, "TTOU": syscall.SIGTTOU, "URG": syscall.SIGURG, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
	"VTALRM": syscall.SIGVTALRM, "WINCH": syscall.SIGWINCH, "XCPU": syscall.SIGXCPU, "XFSZ": syscall.SIGXFSZ,
	"RTMIN": firstRealtime, "RTMAX": lastRealtime,
}

// The range of real-time signals. The C library keeps 32 and 33 for itself.
const (
	firstRealtime = syscall.Signal(34)
	lastRealtime  = syscall.Signal(64)
)

func init() {
	for n := 1; n <= 15; n++ {
		signals["RTMIN+"+strconv.Itoa(n)] = firstRealtime + syscall.Signal(n)
	}
	for n := 1; n <= 14; n++ {
		signals["RTMAX-"+strconv.Itoa(n)] = lastRealtime - syscall.Signal(n)
	}
}

// ParseSignal reads the name of a signal, with or without SIG, in any case, or its number. It accepts what docker kill does.
// Errors are errs.Invalid with Docker's words.
func ParseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		sig := syscall.Signal(n)
		if sig >= 1 && sig <= syscall.SIGSYS || sig >= firstRealtime && sig <= lastRealtime {
			return sig, nil
		}
	} else if sig, ok := signals[strings.TrimPrefix(strings.ToUpper(s), "SIG")]; ok {
		return sig, nil
	}
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return 0, errs.New(errs.Invalid, "invalid signal: %s", s)
}
