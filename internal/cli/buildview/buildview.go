// Package buildview shows what happens in a build. New chooses between four views: tty draws the steps that run, with their times, sizes
// and the end of their output, again and again in place; plain prints lines in the order in which things happen; rawjson prints the
// events themselves, as BuildKit's clients do; quiet prints nothing unless the build fails.
//
// Invariants: output of a command is printed completely, by plain as it comes and by the others when the step fails; what a command
// prints cannot move the cursor of the view.
package buildview

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/wire"
)

// View shows a build. Its methods are called by one goroutine.
type View interface {
	// Show shows what happened next.
	Show(e *wire.BuildEvents) error
	// Close shows the end of the build; nil when the end is not known, because the connection broke.
	Close(done *wire.BuildDone) error
}

// Options of New.
type Options struct {
	Mode    string                     // a value of --progress, or "quiet"
	Out     io.Writer                  // where the view is
	Size    func() (width, height int) // of the terminal; nil when Out is none
	Explain bool                       // say why steps were not in the cache
	Log     io.Writer                  // where quiet prints the output of a step that failed
}

// New returns the view of a mode. The modes "auto" and "" select tty on a terminal, and plain otherwise.
func New(o Options) (View, error) {
	switch o.Mode {
	case "", "auto":
		if o.Size != nil {
			return newTTY(o), nil
		}
		return newPlain(o), nil
	case "tty":
		if o.Size == nil {
			return nil, errs.New(errs.Invalid, "--progress tty: the output is not a terminal")
		}
		return newTTY(o), nil
	case "plain":
		return newPlain(o), nil
	case "rawjson", "json":
		return &raw{w: json.NewEncoder(o.Out)}, nil
	case "quiet", "none":
		return &quiet{w: o.Log, model: newModel()}, nil
	}
	return nil, errs.New(errs.Invalid, "invalid progress mode %q: use auto, tty, plain, rawjson or quiet", o.Mode)
}

// raw prints the events, one JSON object per line.
type raw struct{ w *json.Encoder }

func (r *raw) Show(e *wire.BuildEvents) error { return r.w.Encode(e) }

func (r *raw) Close(*wire.BuildDone) error { return nil }

// quiet keeps the output of steps that run, and prints that of a step that failed.
type quiet struct {
	w     io.Writer
	model *model
}

func (q *quiet) Show(e *wire.BuildEvents) error {
	q.model.apply(e)
	return nil
}

func (q *quiet) Close(done *wire.BuildDone) error {
	defer q.model.close()
	if done == nil || done.Error == nil {
		return nil
	}
	return q.model.printFailed(q.w)
}

// printWarnings prints the warnings of a build, with the line of the Dockerfile and the page that explains each.
func printWarnings(w io.Writer, list []wire.BuildWarning) error {
	if len(list) == 0 {
		return nil
	}
	var b strings.Builder
	if len(list) == 1 {
		b.WriteString("\n 1 warning found:\n")
	} else {
		fmt.Fprintf(&b, "\n %d warnings found:\n", len(list))
	}
	for i := range list {
		x := &list[i]
		fmt.Fprintf(&b, " - %s\n", clean(string(x.Short)))
		if x.SourceInfo != nil && len(x.Range) > 0 {
			n := x.Range[0].Start.Line
			fmt.Fprintf(&b, "   %s:%d", clean(x.SourceInfo.Filename), n)
			if lines := strings.Split(string(x.SourceInfo.Data), "\n"); n > 0 && n <= len(lines) {
				fmt.Fprintf(&b, ": %s", clean(strings.TrimSpace(lines[n-1])))
			}
			b.WriteString("\n")
		}
		if x.URL != "" {
			fmt.Fprintf(&b, "   %s\n", clean(x.URL))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// short returns the first twelve digits of an ID.
func short(id string) string {
	_, hex, ok := strings.Cut(id, ":")
	if !ok {
		hex = id
	}
	return hex[:min(12, len(hex))]
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
