package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// helpWidth returns the width to which help texts are wrapped.
func helpWidth(inv *command.Invocation) int {
	if w, _ := inv.OutTerm.Size(); w > 20 {
		return w
	}
	return 80
}

// writeHelp prints the help of a command in docker's layout.
func writeHelp(w io.Writer, cmd *cobra.Command, width int) {
	use := cmd.Use
	if cmd.HasParent() {
		use = command.UseLine(cmd)
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

// writeCommands lists the commands below cmd, by group.
func writeCommands(w io.Writer, cmd *cobra.Command) {
	groups := []struct{ id, title string }{{common, "Common Commands"}, {management, "Management Commands"}, {other, "Commands"}}
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
