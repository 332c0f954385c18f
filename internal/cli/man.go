package cli

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ply/internal/cli/command"
	"ply/internal/manual"
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

// manPage returns the page of one command.
func manPage(cmd *cobra.Command) string {
	p := manual.New(dashed(cmd.CommandPath()), 1, cmd.Short)
	p.Section("SYNOPSIS")
	for _, l := range strings.Split(command.UseLine(cmd), "\n") {
		p.Bold(strings.TrimSpace(l))
	}
	text := cmd.Long
	if text == "" {
		text = cmd.Short
	}
	p.Section("DESCRIPTION")
	p.Text(text)
	if flags := visibleFlags(cmd.Flags()); len(flags) > 0 {
		p.Section("OPTIONS")
		for _, f := range flags {
			name := "--" + f.Name
			if f.Shorthand != "" {
				name = "-" + f.Shorthand + ", " + name
			}
			if t := f.Value.Type(); t != "bool" {
				name += " " + t
			}
			p.Item(name, f.Usage)
		}
	}
	if cmd.HasAvailableSubCommands() {
		p.Section("COMMANDS")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() && sub.Name() != "help" {
				p.Refer(dashed(sub.CommandPath()), 1, sub.Short)
			}
		}
	}
	p.Section("SEE ALSO")
	if cmd.HasParent() {
		p.Refer(dashed(cmd.Parent().CommandPath()), 1, "")
	} else {
		p.Refer("plyd", 8, "the engine")
		p.Refer("ply-daemon.json", 5, "its settings")
	}
	return p.String()
}
