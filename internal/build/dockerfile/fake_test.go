package dockerfile_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"reflect"
	"sort"
	"strings"
	"sync"
	"time"

	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/oci"
)

// solver is a builder whose sources are maps and that executes nothing.
type solver struct {
	locals map[string]map[string]string // files of a directory of the client, or by the address of a git or http source
	images map[string]string            // configs by reference; "" = an image without anything

	mu       sync.Mutex
	warnings []dockerfile.Warning
	solved   []*ops.Graph
}

var _ dockerfile.Solver = (*solver)(nil)

func (s *solver) Solve(_ context.Context, g *ops.Graph) (dockerfile.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.solved = append(s.solved, g)
	r := tree{}
	if v := g.Root.Vertex; v != nil {
		r = s.files(v)
	}
	return r, nil
}

func (s *solver) files(v *ops.Vertex) tree {
	switch op := v.Op.(type) {
	case *ops.Local:
		return tree(s.locals[op.Name])
	case *ops.Git:
		return tree(s.locals[op.Remote])
	case *ops.HTTP:
		return tree(s.locals[op.URL])
	case *ops.Files:
		for _, a := range op.Actions {
			if c, ok := a.Do.(*ops.Copy); ok && a.From >= 0 && a.From < len(v.Inputs) {
				if c.Unpack {
					return s.files(v.Inputs[a.From].Vertex)
				}
				out := tree{}
				for name, text := range s.files(v.Inputs[a.From].Vertex) {
					if rel, ok := strings.CutPrefix("/"+name, strings.TrimSuffix(path.Join("/", c.Src), "/")+"/"); ok {
						out[rel] = text
					}
				}
				return out
			}
		}
	}
	return tree{}
}

func (s *solver) ImageConfig(_ context.Context, ref string, opt dockerfile.ImageOptions) (string, oci.Digest, []byte, error) {
	config, ok := s.images[ref]
	if opt.Layout != nil {
		config, ok = s.images[opt.Layout.Store]
	}
	if !ok {
		return "", "", nil, errs.New(errs.NotFound, "%s: not found", ref)
	}
	if config == "" {
		config = `{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000001"]},"history":[{"created_by":"base"}]}`
	}
	if p := opt.Platform; p != nil {
		config = strings.Replace(config, `"architecture":"amd64"`, `"architecture":"`+p.Architecture+`"`, 1)
	}
	if strings.Contains(ref, "@") {
		return ref, "", []byte(config), nil
	}
	return ref, oci.DigestOf([]byte(config)), []byte(config), nil
}

func (s *solver) SourceTime(_ context.Context, source ops.Op) (time.Time, error) {
	if _, ok := source.(*ops.Git); ok {
		return time.Unix(1700000000, 0), nil
	}
	return time.Unix(1600000000, 0), nil
}

func (s *solver) Warn(_ context.Context, w dockerfile.Warning) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnings = append(s.warnings, w)
}

// tree is a Result of files.
type tree map[string]string

func (t tree) Evaluate(context.Context) error { return nil }

func (t tree) ReadFile(_ context.Context, name string, off, n int64) ([]byte, error) {
	text, ok := t[strings.TrimPrefix(path.Clean(name), "/")]
	if !ok {
		return nil, errs.New(errs.NotFound, "%s: not found", name)
	}
	off = min(off, int64(len(text)))
	return []byte(text[off:min(int64(len(text)), off+n)]), nil
}

func (t tree) Stat(_ context.Context, name string) (dockerfile.FileInfo, error) {
	text, ok := t[strings.TrimPrefix(path.Clean(name), "/")]
	if !ok {
		return dockerfile.FileInfo{}, errs.New(errs.NotFound, "%s: not found", name)
	}
	return dockerfile.FileInfo{Name: path.Base(name), Mode: uint32(fs.FileMode(0o644)), Size: int64(len(text))}, nil
}

func (t tree) ReadDir(context.Context, string, string) ([]dockerfile.FileInfo, error) {
	return nil, nil
}

// dump returns what the front end made, for golden files.
func dump(out *dockerfile.Output, warnings []dockerfile.Warning) string {
	var b strings.Builder
	sort.Slice(warnings, func(i, j int) bool { return warnings[i].String() < warnings[j].String() })
	for _, w := range warnings {
		fmt.Fprintf(&b, "warning %s\n", w)
	}
	if out == nil {
		return b.String()
	}
	if out.Metadata != nil {
		fmt.Fprintf(&b, "%s", out.Metadata["result.txt"])
	}
	for _, img := range out.Images {
		fmt.Fprintf(&b, "image %s", img.Platform)
		if out.Index {
			b.WriteString(" in an index")
		}
		if img.Epoch != nil {
			fmt.Fprintf(&b, " epoch %d", img.Epoch.Unix())
		}
		b.WriteByte('\n')
		dumpGraph(&b, img.Graph)
		var c struct {
			Author  string
			Config  json.RawMessage
			History []oci.History
		}
		if err := json.Unmarshal(img.Config, &c); err != nil {
			fmt.Fprintf(&b, "%v\n", err)
		}
		if c.Author != "" {
			fmt.Fprintf(&b, "author %s\n", c.Author)
		}
		fmt.Fprintf(&b, "config %s\n", c.Config)
		for _, h := range c.History {
			mark := ""
			if h.EmptyLayer {
				mark = "(empty) "
			}
			fmt.Fprintf(&b, "history %s%s\n", mark, strings.ReplaceAll(h.CreatedBy, "\n", `\n`))
		}
		for _, s := range img.Steps {
			fmt.Fprintf(&b, "step %d-%d %s%s\n", s.Start, s.End, strings.ReplaceAll(s.Text, "\n", `\n`), result(img.Graph, s))
		}
	}
	return b.String()
}

// result returns the numbers of the vertices that a step has and ends in.
func result(g *ops.Graph, s dockerfile.Step) string {
	out := ""
	for i, v := range g.Vertices {
		if v == s.Result.Vertex {
			out = fmt.Sprintf(" -> %d:%d", i+1, s.Result.Index)
		}
	}
	if s.Vertex != nil && s.Vertex != s.Result.Vertex {
		out += " but of another vertex"
	}
	if s.Vertex == nil {
		out += " (config)"
	}
	return out
}

func dumpGraph(b *strings.Builder, g *ops.Graph) {
	numbers := map[*ops.Vertex]int{}
	for i, v := range g.Vertices {
		numbers[v] = i + 1
		fmt.Fprintf(b, "%d. %s\n", i+1, strings.ReplaceAll(v.Name, "\n", `\n`))
		var ins []string
		for _, e := range v.Inputs {
			if e.Vertex == nil {
				ins = append(ins, "nothing")
				continue
			}
			ins = append(ins, fmt.Sprintf("%d:%d", numbers[e.Vertex], e.Index))
		}
		fmt.Fprintf(b, "   %T", v.Op)
		if len(ins) > 0 {
			fmt.Fprintf(b, " of %s", strings.Join(ins, " "))
		}
		for _, l := range v.Locations {
			fmt.Fprintf(b, " line %d-%d", l.Start, l.End)
		}
		if v.IgnoreCache {
			b.WriteString(" no-cache")
		}
		if v.Platform.Architecture != "" && v.Platform.Architecture != "amd64" {
			fmt.Fprintf(b, " %s", v.Platform)
		}
		b.WriteByte('\n')
		if f, ok := v.Op.(*ops.Files); ok {
			for _, a := range f.Actions {
				fmt.Fprintf(b, "   %d,%d>%d %s\n", a.Base, a.From, a.Output, value(reflect.ValueOf(a.Do)))
			}
			continue
		}
		fmt.Fprintf(b, "   %s\n", value(reflect.ValueOf(v.Op)))
	}
}

// value prints what is not zero.
func value(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return "nil"
		}
		return value(v.Elem())
	case reflect.Struct:
		if t, ok := v.Interface().(time.Time); ok {
			return t.UTC().Format(time.RFC3339)
		}
		var parts []string
		for i := range v.NumField() {
			if f := v.Field(i); !f.IsZero() {
				parts = append(parts, v.Type().Field(i).Name+"="+value(f))
			}
		}
		return "{" + strings.Join(parts, " ") + "}"
	case reflect.Slice:
		if b, ok := v.Interface().([]byte); ok {
			return fmt.Sprintf("%q", b)
		}
		var parts []string
		for i := range v.Len() {
			parts = append(parts, value(v.Index(i)))
		}
		return "[" + strings.Join(parts, " ") + "]"
	case reflect.String:
		return fmt.Sprintf("%q", v.String())
	}
	return fmt.Sprint(v.Interface())
}

// misplaced returns what is wrong with the operation of a step: it comes from other lines.
func misplaced(st dockerfile.Step) string {
	if st.Vertex == nil || st.Name == "FROM" {
		return ""
	}
	for _, l := range st.Vertex.Locations {
		if l.Start >= st.Start && l.End <= st.End {
			return ""
		}
	}
	return fmt.Sprintf("line %d, %s, has the operation %s of lines %v", st.Start, st.Text, st.Vertex.Name, st.Vertex.Locations)
}
