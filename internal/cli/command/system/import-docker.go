package system

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/progress"
	"ply/internal/errs"
	"ply/internal/wire"
)

// importOptions are the flags of import-docker.
type importOptions struct {
	containerd, prefix, mode string
	dryRun, json             bool
}

// ImportDocker returns the command import-docker.
func ImportDocker(inv *command.Invocation) *cobra.Command {
	var o importOptions
	c := &cobra.Command{
		Use: "import-docker [OPTIONS] DIR", Short: "Take over the images, containers, volumes and networks of a docker engine", Args: command.ExactArgs(1),
		Long: `Take over the images, containers, volumes and networks of a docker engine from its data root, such as
/var/lib/docker, a directory on the host of the ply engine.

The docker engine must not run. Its data root is only read. Containers come over stopped, with their IDs, names and
files. What is here already is not imported again, so an import that was interrupted is continued by the same command.
The exit code is 0 when everything is here, and 1 when something could not come over; each such object is named with
the reason. With --dry-run nothing is changed, and all objects are listed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			mode := o.mode
			if mode == "auto" && (o.json || inv.ErrTerm == nil) {
				mode = "quiet"
			}
			p, err := progress.New(mode, inv.Err, inv.ErrSize())
			if err != nil {
				return err
			}
			q, err := o.query(args[0])
			if err != nil {
				return err
			}
			api, err := inv.Client()
			if err != nil {
				return err
			}
			resp, err := api.Open(ctx, client.Request{Method: "POST", Path: "/system/import-docker", Query: q})
			if err != nil {
				return command.EndOf(ctx, err)
			}
			report := &importReport{out: inv.Out, asJSON: o.json, all: o.dryRun, Objects: []wire.ImportedObject{}}
			err = progress.Show(resp.Body, p, report.add)
			if cerr := resp.Body.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				return command.EndOf(ctx, err)
			}
			return report.end()
		},
	}
	fs := c.Flags()
	fs.BoolVar(&o.dryRun, "dry-run", false, "List what would come over and what would not, and change nothing")
	fs.StringVar(&o.containerd, "containerd", "", "Root of the containerd that has the images, such as /var/lib/containerd")
	fs.StringVar(&o.prefix, "prefix", "", "Put this before names that are taken here")
	fs.BoolVar(&o.json, "json", false, "Print the result as JSON")
	progress.Flag(fs, &o.mode)
	return c
}

func (o *importOptions) query(dir string) (url.Values, error) {
	q := url.Values{}
	for name, path := range map[string]string{"dir": dir, "containerd": o.containerd} {
		if path == "" {
			continue
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		q.Set(name, abs)
	}
	if o.prefix != "" {
		q.Set("prefix", o.prefix)
	}
	if o.dryRun {
		q.Set("dryrun", "1")
	}
	return q, nil
}

// importReport prints what became of the objects.
type importReport struct {
	out    io.Writer
	asJSON bool
	all    bool // also the objects of which there is nothing to say
	ended  bool

	wire.ImportSummary
	Objects []wire.ImportedObject `json:"objects"`
}

func (r *importReport) add(raw json.RawMessage) {
	var m wire.ImportDocker
	if json.Unmarshal(raw, &m) != nil {
		return
	}
	switch {
	case m.Summary != nil:
		r.ImportSummary, r.ended = *m.Summary, true
	case m.Object != nil && r.asJSON:
		r.Objects = append(r.Objects, *m.Object)
	case m.Object != nil:
		r.print(m.Object)
	}
}

// importWords are what people read about the states.
var importWords = map[string]string{
	"imported": "imported", "planned": "would be imported", "present": "is here already", "conflict": "name conflict", "left": "does not come over", "failed": "failed",
}

func (r *importReport) print(o *wire.ImportedObject) {
	plain := o.State == "imported" || o.State == "planned" || o.State == "present"
	if plain && !r.all && o.As == "" && o.Note == "" {
		return
	}
	line := o.Kind + " " + o.Name + ": " + importWords[o.State]
	if o.As != "" {
		line += " as " + o.As
	}
	if o.Note != "" {
		line += ": " + o.Note
	}
	fmt.Fprintln(r.out, line)
}

// end prints the result and returns an error with exit code 1 when something did not come over.
func (r *importReport) end() error {
	if !r.ended {
		return errs.New(errs.Unavailable, "the import was cut off before its end").WithHint("The same command continues it. See the log of plyd.")
	}
	if r.asJSON {
		b, err := json.MarshalIndent(r, "", "    ")
		if err != nil {
			return err
		}
		fmt.Fprintf(r.out, "%s\n", b)
	} else {
		var counts []string
		for _, state := range []string{"imported", "planned", "present", "conflict", "left", "failed"} {
			if n := r.States[state]; n > 0 {
				counts = append(counts, fmt.Sprintf("%s: %d", importWords[state], n))
			}
		}
		if len(counts) == 0 {
			counts = []string{"there is nothing to import"}
		}
		text := strings.Join(counts, ", ")
		fmt.Fprintf(r.out, "%s%s.\n", strings.ToUpper(text[:1]), text[1:])
	}
	if !r.Complete {
		return &command.ExitError{Code: 1}
	}
	return nil
}
