package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// addCommands hangs every command into the tree: the plain verb, and the same below its management command.
func (a *App) addCommands(root *cobra.Command) {
	group := func(name string, makers ...func() *cobra.Command) {
		for _, mk := range makers {
			c := mk()
			c.Annotations = annotate(c.Annotations, "group", name)
			root.AddCommand(c)
		}
	}
	group("common", a.cmdRun, a.cmdExec, a.cmdPs, a.cmdBuild, a.cmdPull, a.cmdPush, a.cmdImages, a.cmdLogin, a.cmdLogout, a.cmdSearch, a.cmdVersion, a.cmdInfo)
	group("management", a.manageBuilder, a.manageContainer, a.manageImage, a.manageNetwork, a.manageSystem, a.manageVolume)
	group("", a.cmdAttach, a.cmdCommit, a.cmdCp, a.cmdCreate, a.cmdDiff, a.cmdEvents, a.cmdExport, a.cmdHistory, a.cmdImport, a.cmdInspect,
		a.cmdKill, a.cmdLoad, a.cmdLogs, a.cmdPause, a.cmdPort, a.cmdRename, a.cmdRestart, a.cmdRm, a.cmdRmi, a.cmdSave, a.cmdStart,
		a.cmdStats, a.cmdStop, a.cmdTag, a.cmdTop, a.cmdUnpause, a.cmdUpdate, a.cmdWait, a.cmdCompletion, a.cmdMan)
	for name, why := range refused {
		root.AddCommand(refusal(name, why))
	}
	noteAliases(root)
	a.completeArgs(root)
}

func (a *App) manageBuilder() *cobra.Command {
	return manage("builder", "Manage builds", a.cmdBuild(), a.cmdBuilderPrune())
}

func (a *App) manageContainer() *cobra.Command {
	ls := named(a.cmdPs(), "ls [OPTIONS]", "list", "ps")
	rm := named(a.cmdRm(), "", "remove")
	return manage("container", "Manage containers", a.cmdAttach(), a.cmdCommit(), a.cmdCp(), a.cmdCreate(), a.cmdDiff(), a.cmdExec(), a.cmdExport(),
		a.cmdContainerInspect(), a.cmdKill(), a.cmdLogs(), ls, a.cmdPause(), a.cmdPort(), a.cmdContainerPrune(), a.cmdRename(), a.cmdRestart(), rm,
		a.cmdRun(), a.cmdStart(), a.cmdStats(), a.cmdStop(), a.cmdTop(), a.cmdUnpause(), a.cmdUpdate(), a.cmdWait())
}

func (a *App) manageImage() *cobra.Command {
	ls := named(a.cmdImageLs(), "ls [OPTIONS] [REPOSITORY[:TAG]]", "list")
	rm := named(a.cmdRmi(), "rm [OPTIONS] IMAGE [IMAGE...]", "remove")
	return manage("image", "Manage images", a.cmdBuild(), a.cmdHistory(), a.cmdImport(), a.cmdImageInspect(), a.cmdLoad(), ls, a.cmdImagePrune(),
		a.cmdPull(), a.cmdPush(), rm, a.cmdSave(), a.cmdTag())
}

func (a *App) manageSystem() *cobra.Command {
	return manage("system", "Manage ply", a.cmdDf(), a.cmdEvents(), a.cmdInfo(), a.cmdSystemPrune())
}

func (a *App) manageVolume() *cobra.Command {
	return manage("volume", "Manage volumes", a.cmdVolumeCreate(), a.cmdVolumeInspect(), a.cmdVolumeLs(), a.cmdVolumePrune(), a.cmdVolumeRm())
}

func (a *App) manageNetwork() *cobra.Command {
	return manage("network", "Manage networks", a.cmdNetworkConnect(), a.cmdNetworkCreate(), a.cmdNetworkDisconnect(), a.cmdNetworkInspect(),
		a.cmdNetworkLs(), a.cmdNetworkPrune(), a.cmdNetworkRm())
}

// refused are docker's commands that ply does not have, and what to do instead.
var refused = map[string]string{
	"context": "name the engine with -H, PLY_HOST or DOCKER_HOST",
	"plugin":  "there are no plugins", "trust": "Notary is not supported", "manifest": "use a registry client such as skopeo or crane",
	"swarm": "there is no swarm mode", "node": "there is no swarm mode", "service": "there is no swarm mode", "stack": "there is no swarm mode",
	"secret": "there is no swarm mode", "config": "there is no swarm mode",
	"buildx": "run docker's with DOCKER_HOST", "compose": "run docker's with DOCKER_HOST",
}

func refusal(name, why string) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, DisableFlagParsing: true, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return &exitError{1, "ply: '" + cmd.CommandPath() + "' is not supported: " + why}
		},
	}
}

func manage(name, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name + " COMMAND", Short: short}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args)
	}
	c.Args = cobra.ArbitraryArgs
	c.AddCommand(subs...)
	return c
}

// named gives a command another name below a management command.
func named(c *cobra.Command, use string, aliases ...string) *cobra.Command {
	if use != "" {
		c.Use = use
	}
	c.Aliases = aliases
	return c
}

func annotate(m map[string]string, k, v string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}

// noInterspersed stops flag parsing at the first argument: what follows belongs to the container's command.
func noInterspersed(c *cobra.Command) {
	c.Flags().SetInterspersed(false)
	c.Annotations = annotate(c.Annotations, "interspersed", "no")
}

// otherNames are verbs whose plain form has another name than the one below the management command.
var otherNames = map[string]string{"container ls": "ps", "image ls": "images", "image rm": "rmi"}

// noManaged are plain verbs that only look like the managed one.
var noManaged = map[string]bool{"container inspect": true, "image inspect": true, "container prune": true, "image prune": true}

func noteAliases(root *cobra.Command) {
	for _, mgr := range root.Commands() {
		for _, sub := range mgr.Commands() {
			key := mgr.Name() + " " + sub.Name()
			paths := []string{"ply " + key}
			for _, al := range sub.Aliases {
				paths = append(paths, "ply "+mgr.Name()+" "+al)
			}
			plain := sub.Name()
			if o, ok := otherNames[key]; ok {
				plain = o
			}
			top, _, err := root.Find([]string{plain})
			hasPlain := err == nil && top != root && !noManaged[key] && mgr.Name() != "volume" && mgr.Name() != "network"
			if hasPlain {
				paths = append(paths, "ply "+plain)
			}
			if len(paths) == 1 {
				continue
			}
			text := strings.Join(paths, ", ")
			sub.Annotations = annotate(sub.Annotations, "aliases", text)
			if hasPlain {
				top.Annotations = annotate(top.Annotations, "aliases", text)
			}
		}
	}
}
