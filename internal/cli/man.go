package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/version"
)

func dashed(path string) string { return strings.ReplaceAll(path, " ", "-") }

// roff escapes text for a manual page.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// manPage writes the page of one command in man(7).
func manPage(cmd *cobra.Command) string {
	var b strings.Builder
	p := func(f string, args ...any) { fmt.Fprintf(&b, f+"\n", args...) }
	title := strings.ToUpper(dashed(cmd.CommandPath()))
	p(".TH \"%s\" 1 \"%s\" \"ply %s\" \"ply manual\"", roff(title), sourceDate().Format("2006-01-02"), roff(version.Version))
	p(".SH NAME\n%s \\- %s", roff(dashed(cmd.CommandPath())), roff(cmd.Short))
	p(".SH SYNOPSIS")
	for _, l := range strings.Split(useLine(cmd), "\n") {
		p(".PP\n.B %s", roff(strings.TrimSpace(l)))
	}
	text := cmd.Long
	if text == "" {
		text = cmd.Short
	}
	p(".SH DESCRIPTION\n%s", roff(text))
	if flags := visibleFlags(cmd.Flags()); len(flags) > 0 {
		p(".SH OPTIONS")
		for _, f := range flags {
			name := "--" + f.Name
			if f.Shorthand != "" {
				name = "-" + f.Shorthand + ", " + name
			}
			if t := f.Value.Type(); t != "bool" {
				name += " " + t
			}
			p(".TP\n.B %s\n%s", roff(name), strings.ReplaceAll(roff(f.Usage), "\n", "\n.br\n"))
		}
	}
	if cmd.HasAvailableSubCommands() {
		p(".SH COMMANDS")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() && sub.Name() != "help" {
				p(".TP\n.BR %s (1)\n%s", roff(dashed(sub.CommandPath())), roff(sub.Short))
			}
		}
	}
	if cmd.HasParent() {
		p(".SH SEE ALSO\n.BR %s (1)", roff(dashed(cmd.Parent().CommandPath())))
	}
	return b.String()
}
