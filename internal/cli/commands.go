package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/command/builder"
	"ply/internal/cli/command/checkpoint"
	"ply/internal/cli/command/container"
	enginecontext "ply/internal/cli/command/context"
	"ply/internal/cli/command/image"
	"ply/internal/cli/command/network"
	"ply/internal/cli/command/registry"
	"ply/internal/cli/command/run"
	"ply/internal/cli/command/system"
	"ply/internal/cli/command/volume"
)

// maker makes one command. Each position in the tree needs a command of its own.
type maker func(*command.Invocation) *cobra.Command

// entry is one line of the table of commands: a verb that stands below ply, below a noun such as "container", or both.
type entry struct {
	group string // of the plain verb in the help of ply
	verb  string // name of the plain verb, if it needs no other command; see alone
	plain maker  // makes the plain verb; nil when there is none
	nouns string // below which it stands, separated by blanks; the help of the plain verb names the last one
	noun  maker  // makes it below a noun
}

// Groups of the help.
const (
	common     = "common"
	management = "management"
	other      = ""
)

// nouns are the management commands.
var nouns = map[string]string{
	"builder":    "Manage builds",
	"checkpoint": "Manage checkpoints",
	"container":  "Manage containers",
	"context":    "Manage contexts: the engines that have a name",
	"image":      "Manage images",
	"network":    "Manage networks",
	"system":     "Manage ply",
	"volume":     "Manage volumes",
}

// table has all commands, by noun. A new command is one line here.
var table = []entry{
	{common, "bake", builder.Bake, "builder", builder.Bake},
	{common, "", builder.BuildOrHistory, "builder image", builder.Build},
	{other, "", nil, "builder", builder.Du},
	{other, "", nil, "builder", builder.Inspect},
	{other, "", nil, "builder", builder.Logs},
	{other, "", nil, "builder", builder.Ls},
	{other, "", nil, "builder", builder.Prune},
	{other, "", nil, "builder", builder.Rm},

	{other, "", nil, "checkpoint", checkpoint.Create},
	{other, "", nil, "checkpoint", checkpoint.Ls},
	{other, "", nil, "checkpoint", checkpoint.Rm},

	{other, "attach", run.Attach, "container", run.Attach},
	{other, "commit", container.Commit, "container", container.Commit},
	{other, "cp", container.Cp, "container", container.Cp},
	{other, "create", run.Create, "container", run.Create},
	{other, "diff", container.Diff, "container", container.Diff},
	{common, "exec", run.Exec, "container", run.Exec},
	{other, "export", container.Export, "container", container.Export},
	{other, "", nil, "container", container.Inspect},
	{other, "kill", container.Kill, "container", container.Kill},
	{other, "logs", container.Logs, "container", container.Logs},
	{common, "ps", container.Ps, "container", container.Ls},
	{other, "pause", container.Pause, "container", container.Pause},
	{other, "port", container.Port, "container", container.Port},
	{other, "", nil, "container", container.Prune},
	{other, "rename", container.Rename, "container", container.Rename},
	{other, "restart", container.Restart, "container", container.Restart},
	{other, "rm", container.Rm, "container", container.Rm},
	{common, "run", run.Run, "container", run.Run},
	{other, "start", run.Start, "container", run.Start},
	{other, "stats", container.Stats, "container", container.Stats},
	{other, "stop", container.Stop, "container", container.Stop},
	{other, "top", container.Top, "container", container.Top},
	{other, "unpause", container.Unpause, "container", container.Unpause},
	{other, "update", run.Update, "container", run.Update},
	{other, "wait", container.Wait, "container", container.Wait},

	{other, "", nil, "context", enginecontext.Create},
	{other, "", nil, "context", enginecontext.Export},
	{other, "", nil, "context", enginecontext.Import},
	{other, "", nil, "context", enginecontext.Inspect},
	{other, "", nil, "context", enginecontext.Ls},
	{other, "", nil, "context", enginecontext.Rm},
	{other, "", nil, "context", enginecontext.Show},
	{other, "", nil, "context", enginecontext.Update},
	{other, "", nil, "context", enginecontext.Use},

	{other, "history", image.History, "image", image.History},
	{other, "import", image.Import, "image", image.Import},
	{other, "", nil, "image", image.Inspect},
	{other, "load", image.Load, "image", image.Load},
	{common, "images", image.Images, "image", image.Ls},
	{other, "", nil, "image", image.Prune},
	{common, "pull", image.Pull, "image", image.Pull},
	{common, "push", image.Push, "image", image.Push},
	{other, "rmi", image.Rmi, "image", image.Rm},
	{other, "save", image.Save, "image", image.Save},
	{other, "tag", image.Tag, "image", image.Tag},

	{other, "", nil, "network", network.Connect},
	{other, "", nil, "network", network.Create},
	{other, "", nil, "network", network.Disconnect},
	{other, "", nil, "network", network.Inspect},
	{other, "", nil, "network", network.Ls},
	{other, "", nil, "network", network.Prune},
	{other, "", nil, "network", network.Rm},

	{other, "", nil, "system", system.Check},
	{other, "", nil, "system", system.Df},
	{other, "", nil, "system", system.DialStdio},
	{other, "events", system.Events, "system", system.Events},
	{other, "import-docker", system.ImportDocker, "system", system.ImportDocker},
	{common, "info", system.Info, "system", system.Info},
	{other, "", nil, "system", system.Logs},
	{other, "", nil, "system", system.Prune},
	{other, "", nil, "system", system.Start},
	{other, "", nil, "system", system.Status},
	{other, "", nil, "system", system.Stop},

	{other, "", nil, "volume", volume.Cp},
	{other, "", nil, "volume", volume.Create},
	{other, "", nil, "volume", volume.Export},
	{other, "", nil, "volume", volume.Import},
	{other, "", nil, "volume", volume.Inspect},
	{other, "", nil, "volume", volume.Ls},
	{other, "", nil, "volume", volume.Prune},
	{other, "", nil, "volume", volume.Rename},
	{other, "", nil, "volume", volume.Rm},

	{common, "login", registry.Login, "", nil},
	{common, "logout", registry.Logout, "", nil},
	{common, "search", registry.Search, "", nil},
	{other, "inspect", system.Inspect, "", nil},
	{common, "version", system.Version, "", nil},
	{other, "", newCompletion, "", nil},
	{other, "", newMan, "", nil},
}

// refused are the commands of docker that ply does not have, and what to do instead.
var refused = map[string]string{
	"plugin": "there are no plugins", "trust": "Notary is not supported", "manifest": "use a registry client such as skopeo or crane",
	"swarm": "there is no swarm mode", "node": "there is no swarm mode", "service": "there is no swarm mode", "stack": "there is no swarm mode",
	"secret": "there is no swarm mode", "config": "there is no swarm mode",
	"buildx": "run docker's with DOCKER_HOST", "compose": "run docker's with DOCKER_HOST",
}

// alone returns the maker of the verb that a command line begins with, or nil when the line may need more than that command. Making all commands takes
// longer than what most commands do themselves.
func alone(args []string) maker {
	if len(args) == 0 {
		return nil
	}
	for _, e := range table {
		if e.verb == args[0] && e.verb != "" {
			return e.plain
		}
	}
	return nil
}

// addCommands adds the table of commands to root.
func addCommands(root *cobra.Command, inv *command.Invocation) {
	below := map[string]*cobra.Command{}
	for name, short := range nouns {
		below[name] = newNoun(name, short)
		root.AddCommand(below[name])
	}
	for _, e := range table {
		var plain *cobra.Command
		if e.plain != nil {
			plain = e.plain(inv)
			plain.Aliases = nil // they are names below a noun
			command.Annotate(plain, "group", e.group)
			root.AddCommand(plain)
		}
		for noun := range strings.FieldsSeq(e.nouns) {
			c := e.noun(inv)
			below[noun].AddCommand(c)
			noteNames(c, plain)
		}
	}
	for name, why := range refused {
		root.AddCommand(newRefusal(name, why))
	}
}

// noteNames notes for the help under which names the command c below a noun can be called. plain is the verb for it; it may be nil.
func noteNames(c, plain *cobra.Command) {
	names := []string{c.CommandPath()}
	for _, alias := range c.Aliases {
		names = append(names, c.Parent().CommandPath()+" "+alias)
	}
	if plain != nil {
		names = append(names, plain.CommandPath())
	}
	if len(names) == 1 {
		return
	}
	text := strings.Join(names, ", ")
	command.Annotate(c, "aliases", text)
	if plain != nil {
		command.Annotate(plain, "aliases", text)
	}
}

// newNoun returns a management command, which only groups others.
func newNoun(name, short string) *cobra.Command {
	c := &cobra.Command{
		Use: name + " COMMAND", Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args)
		},
	}
	command.Annotate(c, "group", management)
	return c
}

// newRefusal returns a command that only says what to do instead.
func newRefusal(name, why string) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, DisableFlagParsing: true, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return &command.ExitError{Code: 1, Text: "ply: '" + cmd.CommandPath() + "' is not supported: " + why}
		},
	}
}
