package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// useLine is the usage of a command, without cobra's additions.
func useLine(cmd *cobra.Command) string {
	if cmd.HasParent() {
		parent := cmd.Parent().CommandPath() + " "
		return parent + strings.ReplaceAll(cmd.Use, "\n", "\n\t"+parent)
	}
	return cmd.Use + " [ARG...]"
}

// writeHelp prints the help of a command in docker's layout.
func writeHelp(w io.Writer, cmd *cobra.Command, width int) {
	use := cmd.Use
	if cmd.HasParent() {
		use = useLine(cmd)
	}
	fmt.Fprintf(w, "Usage:  %s\n\n", use)
	text := cmd.Long
	if text == "" {
		text = cmd.Short
	}
	fmt.Fprintf(w, "%s\n", strings.TrimSpace(text))
	if al := cmd.Annotations["aliases"]; al != "" {
		fmt.Fprintf(w, "\nAliases:\n  %s\n", al)
	}
	if cmd.HasAvailableSubCommands() {
		writeCommands(w, cmd)
	}
	if fs := cmd.Flags(); fs.HasAvailableFlags() {
		title := "Options"
		if !cmd.HasParent() {
			title = "Global Options"
		}
		fmt.Fprintf(w, "\n%s:\n%s\n", title, strings.TrimRight(fs.FlagUsagesWrapped(width-1), "\n"))
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "\nRun '%s COMMAND --help' for more information on a command.\n", cmd.CommandPath())
	}
}

func writeCommands(w io.Writer, cmd *cobra.Command) {
	groups := []struct{ id, title string }{{"common", "Common Commands"}, {"management", "Management Commands"}, {"", "Commands"}}
	for _, g := range groups {
		first := true
		for _, sub := range cmd.Commands() {
			if !sub.IsAvailableCommand() || sub.Annotations["group"] != g.id || sub.Name() == "help" {
				continue
			}
			if first {
				fmt.Fprintf(w, "\n%s:\n", g.title)
				first = false
			}
			fmt.Fprintf(w, "  %-11s %s\n", sub.Name(), sub.Short)
		}
	}
}
