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
	"ply/internal/cli/format"
	"ply/internal/wire"
)

// engineStatus is what status prints.
type engineStatus struct {
	State             string // "running", "waiting" (for systemd to start it) or "stopped"
	Host              string
	PID               int       `json:",omitempty"`
	Unit              string    `json:",omitempty"`
	Started           time.Time `json:",omitzero"`
	Log               string    `json:",omitempty"` // file, or "journal"
	Version           string    `json:",omitempty"`
	DataRoot          string    `json:",omitempty"`
	Containers        int
	ContainersRunning int
	Images            int
	Error             string `json:",omitempty"` // of a process that listens and does not answer
}

// notRunning is the exit code of status where no engine runs, as service scripts have it.
const notRunning = 3

// Status returns the command system status.
func Status(inv *command.Invocation) *cobra.Command {
	var tmpl string
	c := &cobra.Command{
		Use: "status [OPTIONS]", Short: "Show whether the engine of this machine runs", Args: command.NoArgs,
		Long: `Show whether plyd runs, since when, who started it and where its log is. It is not started.

The exit code is 0 when it runs and answers, 1 when it does not answer, and 3 when it does not run.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			host, state, err := localEngine(ctx, inv)
			if err != nil {
				return err
			}
			s := engineStatus{State: "stopped", Host: host}
			if state.Waiting {
				s.State = "waiting"
			}
			if p := state.Process; p != nil {
				s.State, s.PID, s.Unit, s.Started, s.Log = "running", p.PID, p.Unit, p.Started, p.Log
				if p.Journal {
					s.Log = "journal"
				}
				s.ask(ctx, inv)
			}
			if tmpl == "" {
				s.write(inv.Out, inv.Now())
			} else if err := s.execute(inv.Out, tmpl); err != nil {
				return err
			}
			switch {
			case state.Process == nil:
				return &command.ExitError{Code: notRunning}
			case s.Error != "":
				return &command.ExitError{Code: 1}
			}
			return nil
		},
	}
	c.Flags().StringVarP(&tmpl, "format", "f", "", format.DocumentHelp)
	return c
}

// ask adds what the engine says about itself.
func (s *engineStatus) ask(ctx context.Context, inv *command.Invocation) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var info wire.Info
	var version wire.Version
	api, err := inv.Running(ctx)
	if err == nil {
		err = api.Do(ctx, client.Request{Path: "/info"}, &info)
	}
	if err == nil {
		err = api.Do(ctx, client.Request{Path: "/version"}, &version)
	}
	if err != nil {
		s.Error = err.Error()
		return
	}
	s.Version, s.DataRoot, s.Containers, s.ContainersRunning, s.Images = version.Version, info.DockerRootDir, info.Containers, info.ContainersRunning, info.Images
	for _, c := range version.Components {
		if c.Name == "ply" {
			s.Version = c.Version
		}
	}
}

func (s *engineStatus) execute(w io.Writer, tmpl string) error {
	if tmpl == "json" {
		tmpl = "{{json .}}"
	}
	parsed, err := format.Parse(tmpl)
	if err != nil {
		return &command.ExitError{Code: 64, Text: err.Error()}
	}
	doc, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return format.Execute(w, parsed, doc)
}

func (s *engineStatus) write(w io.Writer, now time.Time) {
	if s.PID == 0 {
		writeNotRunning(w, s.State == "waiting")
		return
	}
	p := func(name, text string) { fmt.Fprintf(w, "%-12s%s\n", name+":", text) }
	fmt.Fprintf(w, "plyd runs, process %d\n", s.PID)
	p("Host", s.Host)
	if !s.Started.IsZero() {
		p("Started", s.Started.Local().Format("2006-01-02 15:04:05 -0700")+" ("+format.Ago(now, s.Started)+")")
	}
	if s.Unit != "" {
		p("Unit", s.Unit)
	}
	if s.Log != "" {
		p("Log", s.Log)
	}
	if s.Error != "" {
		p("Error", s.Error)
		return
	}
	p("Version", s.Version)
	p("Data root", s.DataRoot)
	p("Containers", fmt.Sprintf("%d, %d running", s.Containers, s.ContainersRunning))
	p("Images", fmt.Sprint(s.Images))
}
