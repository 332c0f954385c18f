package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ply/internal/cli/command"
	"ply/internal/version"
)

// newMan returns the command man, which writes a manual page per command into a directory. `make install` calls it.
func newMan(*command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "man DIRECTORY", Short: "Write manual pages", Hidden: true, Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writeMan(cmd.Root(), args[0])
		},
	}
}

// writeMan writes the page of cmd and those of the commands below it.
func writeMan(cmd *cobra.Command, dir string) error {
	if cmd.Hidden || cmd.Name() == "help" {
		return nil
	}
	page := manPage(cmd)
	name := filepath.Join(dir, dashed(cmd.CommandPath())+".1")
	if err := os.WriteFile(name, []byte(page), 0o644); err != nil {
		return err
	}
	for _, sub := range cmd.Commands() {
		if err := writeMan(sub, dir); err != nil {
			return err
		}
	}
	return nil
}

// sourceDate returns the date of the pages: SOURCE_DATE_EPOCH when it is set, so that a build can be reproduced, else the time of the
// commit.
func sourceDate() time.Time {
	var sec int64
	if _, err := fmt.Sscan(os.Getenv("SOURCE_DATE_EPOCH"), &sec); err == nil {
		return time.Unix(sec, 0).UTC()
	}
	if t, err := time.Parse(time.RFC3339, version.Get().Time); err == nil {
		return t
	}
	return time.Now().UTC()
}

// visibleFlags returns the flags that are not hidden.
func visibleFlags(fs *pflag.FlagSet) []*pflag.Flag {
	var out []*pflag.Flag
	fs.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			out = append(out, f)
		}
	})
	return out
}

// dashed returns the path of a command as the name of its page.
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

// manPage returns the page of one command, in the format of man(7).
func manPage(cmd *cobra.Command) string {
	var b strings.Builder
	p := func(f string, args ...any) { fmt.Fprintf(&b, f+"\n", args...) }
	title := strings.ToUpper(dashed(cmd.CommandPath()))
	p(".TH \"%s\" 1 \"%s\" \"ply %s\" \"ply manual\"", roff(title), sourceDate().Format("2006-01-02"), roff(version.Version))
	p(".SH NAME\n%s \\- %s", roff(dashed(cmd.CommandPath())), roff(cmd.Short))
	p(".SH SYNOPSIS")
	for _, l := range strings.Split(command.UseLine(cmd), "\n") {
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
