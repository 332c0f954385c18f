package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// flagValues are the values of flags that mean the same for all commands that have them.
var flagValues = map[string][]string{
	"cgroupns":   {"host", "private"},
	"log-driver": {"json-file", "local", "none", "syslog", "journald", "fluentd", "gelf"},
	"progress":   {"auto", "tty", "plain", "json"},
	"restart":    {"no", "on-failure", "on-failure:", "always", "unless-stopped"},
	"userns":     {"host"},
}

// flagsOfCommands are the values of flags of one command, by its path.
var flagsOfCommands = map[string]map[string][]string{
	"build":          {"network": {"default", "host", "none"}, "progress": {"auto", "tty", "plain", "quiet", "rawjson"}},
	"bake":           {"progress": {"auto", "tty", "plain", "quiet", "rawjson"}},
	"inspect":        {"type": {"container", "image", "network", "volume"}},
	"network create": {"driver": {"bridge", "macvlan", "ipvlan"}},
	"container run":  {"pull": {"always", "missing", "never"}, "ipc": {"host", "none", "private", "shareable", "container:"}, "pid": {"host", "container:"}},
}

// containerFlags are flags whose value is the name of a container, or begins with it.
var containerFlags = []string{"volumes-from", "link"}

// filterKeys are the keys of --filter, by the path of the command; a prune of objects that has no entry of its own takes those of "prune".
var filterKeys = map[string][]string{
	"container ls":  {"ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "name", "network", "publish", "since", "status", "volume"},
	"image ls":      {"before", "dangling", "label", "reference", "since", "until"},
	"volume ls":     {"dangling", "driver", "label", "name"},
	"network ls":    {"dangling", "driver", "id", "label", "name", "scope", "type"},
	"events":        {"container", "daemon", "event", "image", "label", "network", "scope", "type", "volume"},
	"search":        {"is-automated", "is-official", "stars"},
	"builder prune": {"description", "id", "inuse", "parent", "private", "shared", "type", "until", "unused-for"},
	"builder du":    {"description", "id", "inuse", "private", "shared", "type", "until", "unused-for"},
	"image prune":   {"dangling", "label", "label!", "until", "unused"},
	"volume prune":  {"all", "label", "label!"},
	"prune":         {"label", "label!", "until"},
}

// filterValues are the values of keys of --filter that have few. Of objects the names are asked for.
var filterValues = map[string][]string{
	"dangling": {"true", "false"}, "is-task": {"true", "false"}, "is-automated": {"true", "false"}, "is-official": {"true", "false"}, "all": {"true", "false"},
	"inuse": {"true", "false"}, "private": {"true", "false"}, "shared": {"true", "false"},
	"health": {"healthy", "none", "starting", "unhealthy"},
	"status": {"created", "dead", "exited", "paused", "removing", "restarting", "running"},
	"scope":  {"global", "local", "swarm"},
}

// filterObjects are the keys of --filter whose values are names of objects.
var filterObjects = map[string]string{"ancestor": "IMAGE", "image": "IMAGE", "reference": "IMAGE", "before": "CONTAINER", "since": "CONTAINER", "container": "CONTAINER", "network": "NETWORK", "volume": "VOLUME"}

// completeFlags lets shells complete the values of flags.
func completeFlags(c *cobra.Command, inv *command.Invocation) {
	for _, sub := range c.Commands() {
		completeFlags(sub, inv)
	}
	path := commandPath(c)
	register := func(flag string, complete cobra.CompletionFunc) {
		if f := c.Flags().Lookup(flag); f != nil && f.NoOptDefVal == "" { // no flag that is on or off
			if err := c.RegisterFlagCompletionFunc(flag, complete); err != nil {
				panic(err) // a bug: the flag has one already
			}
		}
	}
	fixed := func(values []string) cobra.CompletionFunc {
		return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return values, directive(values)
		}
	}
	named := flagsOfCommands[path]
	for flag, values := range named {
		register(flag, containerOr(inv, values))
	}
	for flag, values := range flagValues {
		if named[flag] == nil {
			register(flag, fixed(values))
		}
	}
	for _, flag := range containerFlags {
		register(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return objects(cmd.Context(), inv, "CONTAINER"), cobra.ShellCompDirectiveNoFileComp
		})
	}
	if path == "container run" {
		register("network", func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
			if strings.HasPrefix(word, "container:") {
				return containers(cmd, inv), cobra.ShellCompDirectiveNoFileComp
			}
			return append(objects(cmd.Context(), inv, "NETWORK"), "container:"), cobra.ShellCompDirectiveNoFileComp
		})
	}
	register("filter", func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return filters(cmd, inv, path, word)
	})
}

// commandPath returns the path of a command as the tables name it: without the name of the program, and the long form of commands that have two.
func commandPath(c *cobra.Command) string {
	_, path, _ := strings.Cut(c.CommandPath(), " ")
	switch path {
	case "ps", "container ps", "container list":
		return "container ls"
	case "images", "image list":
		return "image ls"
	case "run", "create", "container create":
		return "container run"
	case "image build", "builder build", "buildx build":
		return "build"
	case "system events":
		return "events"
	}
	return path
}

// directive keeps the cursor at a value that is not complete.
func directive(values []string) cobra.ShellCompDirective {
	open := func(v string) bool { return strings.HasSuffix(v, ":") || strings.HasSuffix(v, "=") }
	if len(values) > 0 && !slices.ContainsFunc(values, func(v string) bool { return !open(v) }) {
		return cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	return cobra.ShellCompDirectiveNoFileComp
}

// containerOr completes values, one of which may be "container:" with the name of a container behind it.
func containerOr(inv *command.Invocation, values []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		if strings.HasPrefix(word, "container:") && slices.Contains(values, "container:") {
			return containers(cmd, inv), cobra.ShellCompDirectiveNoFileComp
		}
		return values, directive(values)
	}
}

// containers returns the value container:NAME for every container.
func containers(cmd *cobra.Command, inv *command.Invocation) []string {
	names := objects(cmd.Context(), inv, "CONTAINER")
	for i, n := range names {
		names[i] = "container:" + n
	}
	return names
}

// filters completes a filter: its key, or the value behind the key.
func filters(cmd *cobra.Command, inv *command.Invocation, path, word string) ([]string, cobra.ShellCompDirective) {
	keys := filterKeys[path]
	if keys == nil && strings.HasSuffix(path, " prune") {
		keys = filterKeys["prune"]
	}
	key, _, hasValue := strings.Cut(word, "=")
	if !hasValue {
		list := make([]string, len(keys))
		for i, k := range keys {
			list[i] = k + "="
		}
		return list, directive(list)
	}
	if !slices.Contains(keys, key) {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	values := slices.Clone(filterValues[key])
	kind := filterObjects[key]
	if path == "image ls" && kind == "CONTAINER" {
		kind = "IMAGE" // before and since name images there
	}
	if kind != "" {
		values = objects(cmd.Context(), inv, kind)
	}
	for i, v := range values {
		values[i] = key + "=" + v
	}
	return values, cobra.ShellCompDirectiveNoFileComp
}
