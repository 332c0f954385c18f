package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/command/system"
	"ply/internal/version"
)

// newRoot returns the tree of commands.
func newRoot(inv *command.Invocation) *cobra.Command {
	root := bareRoot(inv)
	addCommands(root, inv)
	finish(root, inv)
	return root
}

// rootFor returns what a command line needs of the tree of commands.
func rootFor(inv *command.Invocation, args []string) *cobra.Command {
	verb := alone(args)
	if verb == nil {
		return newRoot(inv)
	}
	root := bareRoot(inv)
	c := verb(inv)
	c.Aliases = nil // they are names below a noun
	root.AddCommand(c)
	finish(root, inv)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		// The help names the other forms of the command.
		if whole, _, err := newRoot(inv).Find([]string{cmd.Name()}); err == nil {
			cmd = whole
		}
		writeHelp(inv.Out, cmd, helpWidth(inv))
	})
	return root
}

// bareRoot returns the root of the tree of commands, with the global flags.
func bareRoot(inv *command.Invocation) *cobra.Command {
	root := &cobra.Command{
		Use:              "ply [OPTIONS] COMMAND",
		Short:            "A container image engine: docker's words, one file a layer",
		SilenceErrors:    true,
		SilenceUsage:     true,
		TraverseChildren: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if inv.Global.Version && len(args) == 0 {
				fmt.Fprintf(inv.Out, "ply version %s, build %s\n", version.Version, system.ShortCommit())
				return nil
			}
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args)
		},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			switch inv.Global.LogLevel {
			case "debug":
				inv.Global.Debug = true
			case "info", "warn", "warning", "error", "fatal":
			default:
				return &command.ExitError{Code: 1, Text: "unable to parse logging level: " + inv.Global.LogLevel}
			}
			return nil
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetOut(inv.Out)
	root.SetErr(inv.Err)
	root.SetHelpCommand(&cobra.Command{
		Use: "help [command]", Short: "Help about the command", Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			sub, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return &command.ExitError{Code: 1, Text: fmt.Sprintf("unknown help topic: %s", strings.Join(args, " "))}
			}
			return sub.Help()
		},
	})
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { writeHelp(inv.Out, cmd, helpWidth(inv)) })
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &command.UsageError{Cmd: cmd, Text: err.Error(), See: "Run", Code: 125}
	})
	inv.Global.Define(root.Flags())
	return root
}

// finish adds to the commands below root what all of them have.
func finish(root *cobra.Command, inv *command.Invocation) {
	completeArgs(root, inv)
	completeFlags(root, inv)
	helpFlags(root)
}

// helpFlags defines --help for every command, with the short form -h where that is free. The help lists --help only where -h means
// something else.
func helpFlags(c *cobra.Command) {
	if c.Flags().ShorthandLookup("h") == nil {
		c.Flags().BoolP("help", "h", false, "Print usage")
		c.Flags().Lookup("help").Hidden = true
	} else {
		c.Flags().Bool("help", false, "Print usage")
	}
	for _, sub := range c.Commands() {
		helpFlags(sub)
	}
}

// likeliest returns the suggestion for a typed word that has the same letters in another order, or else the first.
func likeliest(typed string, suggestions []string) string {
	letters := func(s string) string {
		r := []rune(s)
		slices.Sort(r)
		return string(r)
	}
	for _, s := range suggestions {
		if letters(s) == letters(typed) {
			return s
		}
	}
	return suggestions[0]
}

// unknownCommand returns the error for arguments that name no command below cmd.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if err := command.AnyArgs(cmd, args); err != nil {
		return err
	}
	text := "ply: unknown command: " + cmd.CommandPath() + " " + args[0]
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		text += "\n\nDid you mean '" + cmd.CommandPath() + " " + likeliest(args[0], s) + "'?"
	}
	if cmd.HasParent() {
		text += "\n\nUsage:  " + command.UseLine(cmd)
	}
	return &command.ExitError{Code: 1, Text: text + "\n\nRun '" + cmd.CommandPath() + " --help' for more information"}
}
