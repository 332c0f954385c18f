// Package command is what the commands of ply are built from. An Invocation holds what one run of the program works with: its
// streams, its configuration, the connection to the engine. Beside it are the checks of arguments, the errors with their exit
// codes, and the operations that commands of different nouns share: inspect, prune, pull, and writing an answer to a file.
//
// The commands are in the packages below this one, by noun, one command per file. A command is a function
//
//	func Stop(inv *command.Invocation) *cobra.Command
//
// that package cli puts into its table.
package command

import (
	"fmt"
	"time"

	"ply/internal/cli/client"
	"ply/internal/cli/config"
	"ply/internal/cli/contexts"
	"ply/internal/cli/daemon"
	"ply/internal/cli/terminal"
)

// Invocation is one run of the command line. Commands receive it when they are constructed, before the flags are parsed; they
// read it when they run.
type Invocation struct {
	terminal.Streams

	Global Globals          // the flags before the command
	Daemon daemon.Paths     // of the engine that is used, and started, when no other is named
	Clock  func() time.Time // nil means time.Now

	cfg *config.File
	ctx *contexts.Context // in use; read once
	api *client.Client
}

// New returns an Invocation on the streams of this process.
func New() *Invocation { return &Invocation{Streams: terminal.Process(), Daemon: daemon.Default} }

// Now returns the time to which tables and flags are relative.
func (inv *Invocation) Now() time.Time {
	if inv.Clock != nil {
		return inv.Clock()
	}
	return time.Now()
}

// ConfigDir returns the directory of config.json.
func (inv *Invocation) ConfigDir() string {
	if inv.Global.configDir != "" {
		return inv.Global.configDir
	}
	return config.Dir()
}

// Config returns the user's config.json, which it reads once. A damaged file costs a warning and counts as empty.
func (inv *Invocation) Config() *config.File {
	if inv.cfg == nil {
		f, err := config.Load(inv.ConfigDir())
		if err != nil {
			fmt.Fprintf(inv.Err, "WARNING: Error loading config file: %v\n", err)
		}
		inv.cfg = f
	}
	return inv.cfg
}

// Proxies returns the proxy variables that config.json sets for containers and builds of this engine.
func (inv *Invocation) Proxies() map[string]string {
	host, _, err := inv.Host()
	if err != nil {
		return nil
	}
	return inv.Config().ProxyEnv(host)
}

// DetachKeys returns the flag's value, or the one of config.json when the flag is empty.
func (inv *Invocation) DetachKeys(flag string) string {
	if flag != "" {
		return flag
	}
	return inv.Config().DetachKeys()
}
