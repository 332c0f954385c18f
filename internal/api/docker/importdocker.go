package docker

import (
	"context"

	"ply/internal/importer"
	"ply/internal/wire"
)

// Importer is what /system/import-docker needs; importer.Service implements it.
type Importer interface {
	// Import takes over what a docker engine has in its data root. An error means that it was not carried through.
	Import(ctx context.Context, o importer.Options, l importer.Listener) (importer.Summary, error)
}

// importHandlers serves the import of the data roots of docker engines.
type importHandlers struct{ importer Importer }

func (h importHandlers) routes(add adder) { add(post, "/system/import-docker", h.run) }

// stateWords are what people read about the states.
var stateWords = map[importer.State]string{
	importer.Imported: "Imported", importer.Planned: "Would be imported", importer.Present: "Here already",
	importer.Conflict: "Name conflict", importer.Left: "Left out", importer.Failed: "Failed",
}

// run sends the progress, what became of each object and, when the import was carried through, the summary.
func (h importHandlers) run(c *call) error {
	o := importer.Options{Dir: c.get("dir"), Containerd: c.get("containerd"), Prefix: c.get("prefix"), DryRun: c.bool("dryrun"), Spec: createSpec}
	return c.progress(func(send sender) error {
		aux := func(v wire.ImportDocker) { send(wire.Message{Aux: rawJSON(v)}, 0) }
		began := ""
		sum, err := h.importer.Import(c.ctx(), o, importer.Listener{
			Progress: func(p importer.Progress) {
				m := wire.Message{ID: p.Kind + " " + p.Name, Status: "Importing", Detail: &wire.ProgressDetail{}}
				if began != m.ID { // clients that show no bars print this one only
					began = m.ID
					send(m, 0)
				}
				if p.Done > 0 {
					m.Detail = &wire.ProgressDetail{Current: p.Done, Total: p.Total}
					send(m, 1)
				}
			},
			Object: func(o importer.Object) {
				send(wire.Message{ID: o.Kind + " " + o.Name, Status: stateWords[o.State]}, 0)
				aux(wire.ImportDocker{Object: &wire.ImportedObject{Kind: o.Kind, Name: o.Name, ID: o.ID, As: o.As, State: string(o.State), Note: o.Note, Minor: o.Minor}})
			},
		})
		if err != nil {
			return err
		}
		states := map[string]int{}
		for s, n := range sum {
			states[string(s)] = n
		}
		aux(wire.ImportDocker{Summary: &wire.ImportSummary{DryRun: o.DryRun, States: states, Complete: sum.Complete()}})
		return nil
	})
}
