package docker

import (
	"context"
	"io"

	"ply/internal/api/docker/stream"
	"ply/internal/errs"
	"ply/internal/store/check"
	"ply/internal/wire"
)

// Checker is what /system/check needs; engine.Engine implements it.
type Checker interface {
	// Check examines everything that the engine keeps. An error means that the examination is incomplete.
	Check(ctx context.Context, o check.Options, l check.Listener) (check.Summary, error)
}

// checkHandlers serves the examination of the data root.
type checkHandlers struct{ checker Checker }

func (h checkHandlers) routes(add adder) { add(post, "/system/check", h.check) }

func (h checkHandlers) check(c *call) error {
	o := check.Options{Full: c.bool("full"), Repair: c.bool("repair")}
	return c.progress(func(send sender) error { return runCheck(c.ctx(), h.checker, o, send) })
}

// WriteCheck runs an examination and writes what POST /system/check answers, for a plyd that does not serve.
func WriteCheck(ctx context.Context, w io.Writer, checker Checker, o check.Options) error {
	out := stream.NewMessages(w, func() {})
	err := runCheck(ctx, checker, o, out.Put)
	if err != nil {
		out.Put(wire.Message{ErrorDetail: &wire.ErrorDetail{Message: messageOf(err)}, Error: messageOf(err)}, 0)
	}
	if _, werr := out.Close(); werr != nil {
		return errs.New(errs.Internal, "answer: %w", werr)
	}
	return err
}

// runCheck sends the progress, the findings and, when the examination is complete, the summary.
func runCheck(ctx context.Context, checker Checker, o check.Options, send sender) error {
	aux := func(v wire.Check) { send(wire.Message{Aux: rawJSON(v)}, 0) }
	said := map[string]bool{}
	sum, err := checker.Check(ctx, o, check.Listener{
		Found: func(f check.Finding) {
			aux(wire.Check{Finding: &wire.CheckFinding{Kind: f.Kind, Object: f.Object, Problem: f.Problem, Heal: f.Heal, Repaired: f.Repaired}})
		},
		Progress: func(p check.Progress) {
			m := wire.Message{ID: p.Part, Status: "Checking"}
			if !said[p.Part] { // clients that show no bars print this one only
				said[p.Part] = true
				send(wire.Message{ID: p.Part, Status: "Checking", Detail: &wire.ProgressDetail{}}, 0)
			}
			m.Detail = &wire.ProgressDetail{Current: p.Done, Total: p.Total}
			if !p.Bytes {
				m.Detail.Units = "objects"
			}
			counter := 1
			if p.Done == p.Total {
				m.Status, counter = "Checked", 0
			}
			send(m, counter)
		},
	})
	if err != nil {
		return err
	}
	aux(wire.Check{Summary: &wire.CheckSummary{Full: sum.Full, Repair: sum.Repair, Checked: sum.Checked, Findings: sum.Findings, Repaired: sum.Repaired}})
	return nil
}
