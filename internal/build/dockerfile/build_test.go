package dockerfile_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/oci"
)

// The error of a step has its name and its lines.
func TestWrap(t *testing.T) {
	out, _, err := build("FROM alpine\n\nRUN one && \\\n  two\nCOPY a /\nUSER u\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	g := out.Images[0].Graph
	var run *ops.Vertex
	for _, v := range g.Vertices {
		if _, ok := v.Op.(*ops.Exec); ok {
			run = v
		}
	}
	cause := errs.New(errs.Precondition, "process %q did not complete successfully: exit code: 1", "/bin/sh -c one")
	err = dockerfile.Wrap(cause, g, run)
	want := ` > [2/3] RUN one &&   two:
Dockerfile:3
--------------------
   2 |     
   3 | >>> RUN one && \
   4 | >>>   two
   5 |     COPY a /
--------------------
process "/bin/sh -c one" did not complete successfully: exit code: 1`
	if d := cmp.Diff(want, dockerfile.Format(err)); d != "" {
		t.Error(d)
	}
	if !errors.Is(err, errs.Precondition) || errors.Is(err, errs.Invalid) || err.Error() != cause.Error() {
		t.Errorf("the class or the message changed: %v", err)
	}
	if again := dockerfile.Wrap(err, g, g.Vertices[0]); again != err {
		t.Errorf("wrapped twice: %v", again)
	}
	if dockerfile.Wrap(nil, g, run) != nil || dockerfile.Wrap(cause, g, nil) != error(cause) {
		t.Error("Wrap of nothing")
	}
	if got := dockerfile.Format(cause); got != cause.Error() {
		t.Errorf("Format = %q", got)
	}
	if e := new(dockerfile.Error); !errors.Is(&dockerfile.Error{Err: errors.New("x")}, errs.Invalid) || e.Line() != 0 || e.Source() != "" {
		t.Error("an error without a class is the user's")
	}
}

// failing is a solver whose images or results fail.
type failing struct {
	*solver
	image, solve error
	cancel       context.CancelFunc
	calls        atomic.Int32
}

func (f *failing) Solve(ctx context.Context, g *ops.Graph) (dockerfile.Result, error) {
	if f.calls.Add(1); f.cancel != nil {
		f.cancel()
		return nil, ctx.Err()
	}
	if f.solve != nil {
		return nil, f.solve
	}
	return f.solver.Solve(ctx, g)
}

func (f *failing) ImageConfig(ctx context.Context, ref string, opt dockerfile.ImageOptions) (string, oci.Digest, []byte, error) {
	if f.image != nil {
		return "", "", nil, f.image
	}
	return f.solver.ImageConfig(ctx, ref, opt)
}

// The errors of the builder keep their class, and those about an image have the line of its FROM.
func TestErrorsOfTheSolver(t *testing.T) {
	files := &solver{locals: map[string]map[string]string{"dockerfile": {"Dockerfile": "FROM scratch AS s\nFROM alpine\n"}}}
	unauthorized := errs.New(errs.Unauthorized, "log in first")
	_, err := dockerfile.Build(t.Context(), dockerfile.Request{}, &failing{solver: files, image: unauthorized})
	var e *dockerfile.Error
	if !errors.Is(err, errs.Unauthorized) || errors.Is(err, errs.Invalid) || !errors.As(err, &e) || e.Line() != 2 {
		t.Errorf("err = %v, %+v", err, e)
	}
	gone := errs.New(errs.Unavailable, "the client is gone")
	_, err = dockerfile.Build(t.Context(), dockerfile.Request{}, &failing{solver: files, solve: gone})
	if !errors.Is(err, errs.Unavailable) || errors.Is(err, errs.Invalid) {
		t.Errorf("err = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = dockerfile.Build(ctx, dockerfile.Request{}, &failing{solver: files, cancel: cancel})
	if !errors.Is(err, context.Canceled) || errors.Is(err, errs.Invalid) {
		t.Errorf("err = %v", err)
	}
	large := &solver{locals: files.locals, images: map[string]string{"docker.io/library/alpine:latest": "{" + strings.Repeat(" ", 9<<20) + "}"}}
	if _, err := dockerfile.Build(t.Context(), dockerfile.Request{}, large); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("err = %v", err)
	}
	bad := &solver{locals: files.locals, images: map[string]string{"docker.io/library/alpine:latest": "nothing"}}
	if _, err := dockerfile.Build(t.Context(), dockerfile.Request{}, bad); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "image config") {
		t.Errorf("err = %v", err)
	}
}

// A .dockerignore that is too large is an error, and not cut.
func TestDockerignoreIsNotCut(t *testing.T) {
	s := &solver{
		locals: map[string]map[string]string{
			"dockerfile": {"Dockerfile": "FROM alpine\nCOPY . /\n"}, "context": {".dockerignore": strings.Repeat("pattern\n", 17<<20/8)},
		},
		images: map[string]string{"docker.io/library/alpine:latest": ""},
	}
	_, err := dockerfile.Build(t.Context(), dockerfile.Request{}, s)
	if err == nil || !strings.Contains(err.Error(), "exceeds maximum allowed size") {
		t.Errorf("err = %v", err)
	}
}

func TestCacheImports(t *testing.T) {
	got, err := dockerfile.Request{Options: map[string]string{
		"cache-from": "a,b", "cache-imports": `[{"Type":"local","Attrs":{"src":"/c"}}]`,
	}}.CacheImports()
	want := []dockerfile.CacheImport{
		{Type: "local", Attrs: map[string]string{"src": "/c"}}, {Type: "registry", Attrs: map[string]string{"ref": "a"}},
		{Type: "registry", Attrs: map[string]string{"ref": "b"}},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%s %v", d, err)
	}
	if _, err := (dockerfile.Request{Options: map[string]string{"cache-imports": "x"}}).CacheImports(); !errors.Is(err, errs.Invalid) {
		t.Errorf("err = %v", err)
	}
}

// Inputs are as hostile as every definition of a client.
func TestInputsAreChecked(t *testing.T) {
	for name, raw := range map[string][]byte{"bytes": []byte("\xff\xff"), "no operation": {10, 1, 0}} {
		s := &solver{locals: map[string]map[string]string{"dockerfile": {"Dockerfile": "FROM alpine\n"}}, images: map[string]string{"docker.io/library/alpine:latest": ""}}
		_, err := dockerfile.Build(t.Context(), dockerfile.Request{Inputs: map[string][]byte{"in": raw}}, s)
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Warnings have the rule, the text, the line and where the rule is explained.
func TestWarnings(t *testing.T) {
	_, s, err := build("FROM alpine\nENV a b # tail\n", nil)
	if err != nil || len(s.warnings) != 2 {
		t.Fatalf("%v, %v", s.warnings, err)
	}
	for _, w := range s.warnings {
		if w.Line() != 2 || w.File.Name != "Dockerfile" || w.Detail == "" {
			t.Errorf("%+v", w)
		}
		switch w.Rule {
		case "LegacyKeyValueFormat":
			if !strings.HasPrefix(w.URL, "https://docs.docker.com/") || w.String() != `LegacyKeyValueFormat: "ENV key=value" should be used instead of legacy "ENV key value" format (line 2)` {
				t.Errorf("%s %s", w, w.URL)
			}
		case dockerfile.RuleTrailingComment:
		default:
			t.Errorf("rule %q", w.Rule)
		}
	}
}

// A build that is cancelled ends although what the front end asked for does not come.
func TestCancelWhileNothingComes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan struct{})
	defer close(end)
	s := &silent{solver: &solver{locals: map[string]map[string]string{"dockerfile": {"Dockerfile": "FROM scratch\n"}}}, asked: cancel, end: end}
	if _, err := dockerfile.Build(ctx, dockerfile.Request{}, s); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// silent is a solver that has no answer until end is closed, whatever happens to the context.
type silent struct {
	*solver
	asked func()
	end   chan struct{}
}

func (s *silent) Solve(context.Context, *ops.Graph) (dockerfile.Result, error) {
	s.asked()
	<-s.end
	return nil, errors.New("the end")
}
