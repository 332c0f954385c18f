package command

import (
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// unicodeDashes are the characters that word processors and web pages put in the place of a hyphen.
const unicodeDashes = "‐‑‒–—―−﹘﹣－"

// refuseDashes refuses an argument that begins with a Unicode dash in a position where flags may stand. The error shows the
// argument with hyphens.
func refuseDashes(cmd *cobra.Command, args []string) error {
	n := len(args)
	if !interspersed(cmd) {
		n = min(n, 1) // the arguments after the first are the container's command
	}
	for _, arg := range args[:n] {
		if fixed, ok := fixDash(cmd, arg); ok {
			r, _ := utf8.DecodeRuneInString(arg)
			return &ExitError{Code: 125, Text: "ply: '" + arg + "' begins with '" + string(r) + "' (a Unicode dash, as pasted from a web page), not with a hyphen. Did you mean '" + fixed + "'?"}
		}
	}
	return nil
}

// fixDash returns arg with hyphens in place of its Unicode dashes, and false when it has none. The flags of cmd decide between
// the long and the short form.
func fixDash(cmd *cobra.Command, arg string) (string, bool) {
	rest := strings.TrimLeft(arg, unicodeDashes+"-")
	r, _ := utf8.DecodeRuneInString(arg)
	if rest == "" || !strings.ContainsRune(unicodeDashes, r) && !(r == '-' && len(arg) > 1 && hasDashSecond(arg)) {
		return "", false
	}
	name, _, _ := strings.Cut(rest, "=")
	if cmd.Flags().Lookup(name) != nil || utf8.RuneCountInString(name) > 1 && cmd.Flags().ShorthandLookup(name[:1]) == nil {
		return "--" + rest, true
	}
	return "-" + rest, true
}

// hasDashSecond reports whether a Unicode dash follows the hyphen with which arg begins.
func hasDashSecond(arg string) bool {
	r, _ := utf8.DecodeRuneInString(arg[1:])
	return strings.ContainsRune(unicodeDashes, r)
}
