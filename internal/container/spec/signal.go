package spec

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ParseSignal parses a signal: a number, a name with or without SIG, SIGRTMIN+n or SIGRTMAX-n. The error has docker's words.
func ParseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > 64 {
			return 0, invalid("invalid signal: %s", clip(s))
		}
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if rest, ok := strings.CutPrefix(name, "RTMIN"); ok {
		return realtime(s, rest, 34, "+")
	}
	if rest, ok := strings.CutPrefix(name, "RTMAX"); ok {
		return realtime(s, rest, 64, "-")
	}
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	return 0, invalid("invalid signal: %s", clip(s))
}

func realtime(raw, rest string, base int, sign string) (unix.Signal, error) {
	if rest == "" {
		return unix.Signal(base), nil
	}
	digits, ok := strings.CutPrefix(rest, sign)
	n, err := strconv.ParseUint(digits, 10, 8)
	if !ok || err != nil || n > 30 {
		return 0, invalid("invalid signal: %s", clip(raw))
	}
	if sign == "-" {
		return unix.Signal(base - int(n)), nil
	}
	return unix.Signal(base + int(n)), nil
}
