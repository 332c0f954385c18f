package cli

import (
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// unicodeDashes are what word processors and web pages make of a hyphen.
const unicodeDashes = "‐‑‒–—―−﹘﹣－"

// dashes refuses an argument that begins with such a dash, in the places where flags stand, and names the fix.
func dashes(cmd *cobra.Command, args []string) error {
	n := len(args)
	if !interspersed(cmd) {
		n = min(n, 1) // what follows belongs to the container's command
	}
	for _, arg := range args[:n] {
		if fixed, ok := fixDash(cmd, arg); ok {
			r, _ := utf8.DecodeRuneInString(arg)
			return &exitError{code: 125, text: "ply: '" + arg + "' begins with '" + string(r) + "' (a Unicode dash, as pasted from a web page), not with a hyphen. Did you mean '" + fixed + "'?"}
		}
	}
	return nil
}

// fixDash gives arg with hyphens, long or short form by what cmd knows.
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

func hasDashSecond(arg string) bool {
	r, _ := utf8.DecodeRuneInString(arg[1:])
	return strings.ContainsRune(unicodeDashes, r)
}

func interspersed(cmd *cobra.Command) bool { return cmd.Annotations["interspersed"] != "no" }
