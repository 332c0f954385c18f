package system

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/contexts"
	"ply/internal/cli/format"
	"ply/internal/version"
	"ply/internal/wire"
)

// clientVersion is the part of version and info that is about this program.
type clientVersion struct {
	Version           string
	APIVersion        string `json:"ApiVersion"`
	DefaultAPIVersion string
	GitCommit         string
	GoVersion         string
	Os                string
	Arch              string
	BuildTime         string
	Context           string
}

// localVersion returns the version of this program.
func localVersion() clientVersion {
	v := version.Get()
	return clientVersion{Version: v.Version, APIVersion: client.MaxAPI, DefaultAPIVersion: client.MaxAPI, GitCommit: ShortCommit(),
		GoVersion: v.Go, Os: v.OS, Arch: v.Arch, BuildTime: displayTime(v.Time), Context: contexts.Default}
}

// ShortCommit returns the commit that was built, or "unknown" when the Go tool did not record it.
func ShortCommit() string {
	c := version.Get().Commit
	if len(c) > 7 {
		c = c[:7]
	}
	if c == "" {
		return "unknown"
	}
	return c
}

// displayTime returns a build time in docker's form. Text that is not a time is returned as it is.
func displayTime(s string) string {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t.Format(time.ANSIC)
	}
	return s
}

// Version returns the command version.
func Version(inv *command.Invocation) *cobra.Command {
	var tmpl string
	var clientOnly bool
	c := &cobra.Command{
		Use: "version [OPTIONS]", Short: "Show the ply version information", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return printVersion(cmd.Context(), inv, tmpl, clientOnly) },
	}
	c.Flags().StringVarP(&tmpl, "format", "f", "", format.DocumentHelp)
	c.Flags().BoolVar(&clientOnly, "client", false, "Show the client's version only, without asking the engine")
	return c
}

// printVersion prints the version of this program and, unless clientOnly is set, of the engine.
func printVersion(ctx context.Context, inv *command.Invocation, tmpl string, clientOnly bool) error {
	if tmpl == "json" {
		tmpl = "{{json .}}"
	}
	parsed, err := format.Parse(tmpl)
	if err != nil {
		return &command.ExitError{Code: 64, Text: err.Error()}
	}
	cv := localVersion()
	if name, err := inv.ContextName(); err == nil {
		cv.Context = name
	}
	var server json.RawMessage
	var failed error
	if !clientOnly {
		var api *client.Client
		if api, failed = inv.Running(ctx); failed == nil {
			server, failed = api.Raw(ctx, client.Request{Path: "/version"})
			cv.APIVersion = api.APIVersion()
		}
	}
	if tmpl != "" {
		doc, err := json.Marshal(struct {
			Client clientVersion
			Server json.RawMessage
		}{cv, server})
		if err != nil {
			return err
		}
		if err := format.Execute(inv.Out, parsed, doc); err != nil {
			return err
		}
		return failed
	}
	writeClientVersion(inv.Out, cv)
	if failed != nil || clientOnly {
		return failed
	}
	var sv wire.Version
	if err := json.Unmarshal(server, &sv); err != nil {
		return err
	}
	writeServerVersion(inv.Out, &sv)
	return nil
}

func writeClientVersion(w io.Writer, v clientVersion) {
	api := v.APIVersion
	if api != v.DefaultAPIVersion {
		api += " (downgraded from " + v.DefaultAPIVersion + ")"
	}
	fmt.Fprintf(w, "Client:\n Version:           %s\n API version:       %s\n Go version:        %s\n Git commit:        %s\n Built:             %s\n OS/Arch:           %s/%s\n Context:           %s\n",
		v.Version, api, v.GoVersion, v.GitCommit, v.BuildTime, v.Os, v.Arch, v.Context)
}

func writeServerVersion(w io.Writer, v *wire.Version) {
	name := v.Platform.Name
	if name != "" {
		name = " " + name
	}
	fmt.Fprintf(w, "\nServer:%s\n", name)
	for _, c := range v.Components {
		fmt.Fprintf(w, " %s:\n  %-18s%s\n", c.Name, "Version:", c.Version)
		if c.Name == "Engine" {
			d := c.Details
			fmt.Fprintf(w, "  API version:      %s (minimum version %s)\n  Go version:       %s\n  Git commit:       %s\n  Built:            %s\n  OS/Arch:          %s/%s\n  Experimental:     %s\n",
				d["ApiVersion"], d["MinAPIVersion"], d["GoVersion"], d["GitCommit"], displayTime(d["BuildTime"]), d["Os"], d["Arch"], d["Experimental"])
			continue
		}
		if commit, ok := c.Details["GitCommit"]; ok {
			fmt.Fprintf(w, "  GitCommit:        %s\n", commit)
		}
	}
}
