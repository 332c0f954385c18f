package system

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/contexts"
	"ply/internal/cli/format"
	"ply/internal/version"
)

// Info returns the command info.
func Info(inv *command.Invocation) *cobra.Command {
	var tmpl string
	c := &cobra.Command{
		Use: "info [OPTIONS]", Short: "Display system-wide information", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return printInfo(cmd.Context(), inv, tmpl) },
	}
	c.Flags().StringVarP(&tmpl, "format", "f", "", format.DocumentHelp)
	return c
}

// printInfo asks the engine and prints its answer, as text or with a template.
func printInfo(ctx context.Context, inv *command.Invocation, tmpl string) error {
	api, err := inv.Running(ctx)
	var raw json.RawMessage
	if err == nil {
		raw, err = api.Raw(ctx, client.Request{Path: "/info"})
	}
	if tmpl != "" {
		if err != nil {
			return err
		}
		if tmpl == "json" {
			tmpl = "{{json .}}"
		}
		parsed, perr := format.Parse(tmpl)
		if perr != nil {
			return &command.ExitError{Code: 64, Text: perr.Error()}
		}
		return format.Execute(inv.Out, parsed, withClientInfo(raw, contextOf(inv)))
	}
	fmt.Fprintf(inv.Out, "Client:\n Version:    %s\n Context:    %s\n Debug Mode: %t\n\nServer:\n", version.Version, contextOf(inv), inv.Global.Debug)
	if err != nil {
		return err
	}
	var i engineInfo
	if err := json.Unmarshal(raw, &i); err != nil {
		return err
	}
	i.write(inv.Out)
	for _, w := range i.Warnings {
		fmt.Fprintln(inv.Err, w)
	}
	return nil
}

// contextOf returns the name of the context in use; "default" when none can be found out.
func contextOf(inv *command.Invocation) string {
	name, err := inv.ContextName()
	if err != nil {
		return contexts.Default
	}
	return name
}

// withClientInfo adds the field ClientInfo to the engine's document. Scripts read it there.
func withClientInfo(raw json.RawMessage, context string) json.RawMessage {
	raw = bytes.TrimSpace(raw)
	v := localVersion()
	add, err := json.Marshal(struct {
		Debug             bool
		Version           string
		GitCommit         string
		GoVersion, Os     string
		Arch, BuildTime   string
		Context           string
		Plugins, Warnings []string
	}{false, v.Version, v.GitCommit, v.GoVersion, v.Os, v.Arch, v.BuildTime, context, []string{}, nil})
	if err != nil || len(raw) < 2 || raw[len(raw)-1] != '}' {
		return raw
	}
	out := append(append(json.RawMessage{}, raw[:len(raw)-1]...), `,"ClientInfo":`...)
	return append(append(out, add...), '}')
}
