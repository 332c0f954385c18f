package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
	buildkit "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"ply/internal/build/ops"
	"ply/internal/errs"
)

// Error is an error about lines of a Dockerfile: it cannot be read, or one of its steps failed. Its class is that of Err, or
// errs.Invalid.
type Error struct {
	File   File
	Ranges []Range
	Step   string // "[2/3] RUN make"; "" for an error of the front end
	Err    error
}

// Error returns the message, without the lines.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the class of e, when Err has none of its own.
func (e *Error) Is(target error) bool { return target == errs.Invalid && !classified(e.Err) }

// Line returns the first line of the error, or 0.
func (e *Error) Line() int {
	if len(e.Ranges) == 0 {
		return 0
	}
	return e.Ranges[0].Start
}

// Source returns the lines that the error is about with those around them, as BuildKit prints them, or "".
//
//	Dockerfile:2
//	--------------------
//	   1 |     FROM busybox
//	   2 | >>> RUN false
//	--------------------
func (e *Error) Source() string {
	src := buildkit.Source{Info: &pb.SourceInfo{Filename: e.File.Name, Data: e.File.Data}}
	for _, r := range e.Ranges {
		src.Ranges = append(src.Ranges, &pb.Range{Start: &pb.Position{Line: int32(r.Start)}, End: &pb.Position{Line: int32(r.End)}})
	}
	var b strings.Builder
	if src.Print(&b) != nil {
		return ""
	}
	return b.String()
}

// Format returns an error of a build for people: the step, the lines of the Dockerfile, and the message.
func Format(err error) string {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err.Error()
	}
	var b strings.Builder
	if e.Step != "" {
		fmt.Fprintf(&b, " > %s:\n", e.Step)
	}
	b.WriteString(e.Source())
	b.WriteString(err.Error())
	return b.String()
}

// Wrap returns err as an error of a step, with its name and its lines in the Dockerfile. It returns err itself when that is an
// *Error already, and nil for nil.
func Wrap(err error, g *ops.Graph, v *ops.Vertex) error {
	if err == nil || v == nil {
		return err
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	e := &Error{Step: v.Name, Err: err}
	for _, l := range v.Locations {
		if l.File < 0 || l.File >= len(g.Files) {
			continue
		}
		if f := g.Files[l.File]; e.File.Name == "" || e.File.Name == f.Name {
			e.File = File{Name: f.Name, Data: f.Data}
			e.Ranges = append(e.Ranges, Range{Start: l.Start, StartChar: l.StartChar, End: l.End, EndChar: l.EndChar})
		}
	}
	return e
}

// refuse returns an error about a line of f, or about f as a whole if line is 0.
func refuse(f File, line int, format string, args ...any) *Error {
	e := &Error{File: f, Err: errs.New(errs.Invalid, format, args...)}
	if line > 0 {
		e.Ranges = []Range{{Start: line, End: line}}
	}
	return e
}

func classified(err error) bool {
	for _, class := range []error{
		errs.NotFound, errs.Exists, errs.Invalid, errs.Conflict, errs.Precondition, errs.Unauthorized, errs.Forbidden, errs.Unavailable,
		errs.Exhausted, errs.Unimplemented, errs.DataLoss, errs.Internal, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}

// explain returns an error of the front end with the lines that it is about. An error without a class of ours is about what the user
// wrote.
func (r *run) explain(err error) error {
	r.mu.Lock()
	fail, df := r.fail, r.df
	r.mu.Unlock()
	if fail != nil {
		return fail
	}
	err = r.hosts.showError(err)
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	if list := buildkit.Sources(err); len(list) > 0 {
		e := &Error{Err: err, File: df}
		// The first is the innermost, such as the line of an instruction in a stage.
		src := list[0]
		if src.Info != nil {
			e.File = File{Name: src.Info.Filename, Data: []byte(r.hosts.show(string(src.Info.Data)))}
		}
		e.Ranges = ranges(src.Ranges)
		return e
	}
	if el, ok := errors.AsType[*parser.LocationError](err); ok && len(el.Locations) > 0 {
		e := &Error{Err: err, File: df}
		for _, l := range el.Locations[0] {
			e.Ranges = append(e.Ranges, Range{Start: l.Start.Line, StartChar: l.Start.Character, End: l.End.Line, EndChar: l.End.Character})
		}
		return e
	}
	if !classified(err) {
		return errs.New(errs.Invalid, "%w", err)
	}
	return err
}
