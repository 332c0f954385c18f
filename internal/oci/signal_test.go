package oci

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"ply/internal/errs"
)

// The words and numbers that dockerd takes for kill, and those that it refuses.
func TestParseSignalAsDocker(t *testing.T) {
	want := map[string]int{
		"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "IOT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11,
		"USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20,
		"TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "POLL": 29,
		"PWR": 30, "SYS": 31, "RTMIN": 34, "RTMIN+1": 35, "RTMIN+15": 49, "RTMAX-14": 50, "RTMAX-1": 63, "RTMAX": 64,
	}
	check := func(word string, want int) {
		if got, err := ParseSignal(word); err != nil || int(got) != want {
			t.Errorf("ParseSignal(%q) = %d, %v, want %d", word, got, err, want)
		}
	}
	for name, n := range want {
		for _, word := range []string{name, "SIG" + name, strings.ToLower(name), "Sig" + strings.ToLower(name)} {
			check(word, n)
		}
	}
	for n := 1; n <= 64; n++ {
		if n != 32 && n != 33 {
			check(fmt.Sprint(n), n)
		}
	}
	check("+15", 15)
	check("015", 15)
	for _, word := range []string{"0", "-1", "-9", "32", "33", "65", "100", "4294967297", "99999999999999999999", "0x9", "9.0", " 9", "9 ", "", "SIG",
		"SIGSIGTERM", "UNUSED", "EMT", "INFO", "LOST", "RTMIN+0", "RTMIN+16", "RTMIN-1", "RTMAX-0", "RTMAX-15", "RTMAX+1", "garbage", "KILL9", "TERM\n",
		strings.Repeat("K", 1<<16)} {
		got, err := ParseSignal(word)
		if !errors.Is(err, errs.Invalid) || !strings.HasPrefix(err.Error(), "invalid signal: ") || len(err.Error()) > 300 {
			t.Errorf("ParseSignal(%.40q) = %d, %.300v, want an error", word, got, err)
		}
	}
}
