package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ply/internal/cli/command"
	"ply/internal/cli/command/run"
)

// oldTreeFlag replaces -tree of `images`, an old form with one dash, by --tree. It prints docker's warning of that time.
func oldTreeFlag(stderr io.Writer, args []string) []string {
	at := slices.Index(args, "-tree")
	if at < 0 {
		return args
	}
	words := 0
	for _, w := range args[:at] {
		if w == "images" || w == "image" || words == 1 && (w == "ls" || w == "list") {
			words++
			if w == "images" {
				words++
			}
		} else if w == "run" || w == "create" || w == "exec" || w == "--" {
			return args // -tree may belong to the container's command
		}
	}
	if words < 2 {
		return args
	}
	fmt.Fprintln(stderr, "Warning: '-tree' is deprecated, it will be removed soon. See usage.")
	out := slices.Clone(args)
	out[at] = "--tree"
	return out
}

// forgottenRun recognises a command line without its command that is one of run, such as `ply -d -p 5000:5000 IMAGE`. It returns the
// advice for the user, or "".
func forgottenRun(root *cobra.Command, args []string) string {
	n := globalPrefix(args)
	rest := args[n:]
	if len(rest) == 0 || !strings.HasPrefix(rest[0], "-") || namesCommand(root, args) {
		return ""
	}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	fs.SetInterspersed(false)
	run.AddFlags(fs)
	if err := fs.Parse(rest); err != nil {
		return ""
	}
	if fs.NArg() == 0 {
		if len(rest) == 1 && rest[0] == "-d" {
			return "unknown shorthand flag: 'd' in -d\n\nThe engine is a program of its own: run `plyd`. To run a container in the background: `ply run -d IMAGE`."
		}
		return ""
	}
	line := "ply"
	for _, w := range args[:n] {
		line += " " + shellQuote(w)
	}
	line += " run"
	for _, w := range rest {
		line += " " + shellQuote(w)
	}
	return "ply: the command is missing before '" + rest[0] + "'; did you mean `" + line + "`?"
}

// globalPrefix returns how many leading words are global flags that run does not have.
func globalPrefix(args []string) int {
	n := 0
	for n < len(args) {
		name, _, joined := strings.Cut(args[n], "=")
		switch name {
		case "--debug", "-D", "--tls", "--tlsverify":
			n++
		case "--config", "--context", "--host", "-H", "--log-level", "--tlscacert", "--tlscert", "--tlskey":
			if n++; !joined {
				n++
			}
		default:
			return n
		}
	}
	return min(n, len(args))
}

// namesCommand reports whether a command follows the global flags.
func namesCommand(root *cobra.Command, args []string) bool {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.SetInterspersed(false)
	new(command.Globals).Define(fs)
	if err := fs.Parse(args); err != nil {
		return false
	}
	c, _, err := root.Find(fs.Args())
	return err == nil && c != root
}

// shellQuote returns s as a word of a shell.
func shellQuote(s string) string {
	if s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=+.,:/@%^", r))
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
