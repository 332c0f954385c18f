package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// drawnRecord is a struct that ply stores as JSON.
type drawnRecord struct {
	title   string // in the document
	dir     string // of its package, below internal
	name    string // of the struct
	version string // constant of that package, or "package.constant"; "" where the record has no version
}

// drawnRecords are the stored structs, in the order of each document's section "Fields".
var drawnRecords = map[string][]drawnRecord{
	"DB.md": {
		{"Name", "store/meta", "Name", "nameVersion"},
		{"Image", "store/meta", "Image", "imageVersion"},
		{"Index", "store/meta", "Index", "indexVersion"},
		{"Layer", "store/meta", "Layer", "layerVersion"},
		{"Container", "container", "record", "store/meta.containerVersion"},
		{"Volume", "store/meta", "Volume", "volumeVersion"},
		{"Network", "network", "networkRecord", "store/meta.networkVersion"},
		{"Step", "store/meta", "Step", "stepVersion"},
		{"StepKey", "store/meta", "StepKey", "stepKeyVersion"},
	},
	"DISK.md": {
		{"network/<hex>-<short>.json", "network", "Connection", "connectionVersion"},
		{"forwarding.json", "network/bridge", "switchedForwarding", "forwardingVersion"},
		{"partial/<hex>.json", "store/blob", "partialState", "partialVersion"},
		{"meta.db.mark", "store/meta", "mark", "markVersion"},
		{"records/names/<hex>.json", "store", "besideRecord", "besideVersion"},
		{"layers/sha256/<hex>/layer.json", "store/layer/erofs", "layerRecord", "layerVersion"},
		{"layers/sha256/<hex>/index.json", "store/layer/erofs", "indexRecord", "indexVersion"},
		{"layers/sha256/<hex>/meta.json", "store/layer/tree", "Meta", "metaVersion"},
		{"layers/sha256/<hex>@<hex>/variant.json", "store/layer/overlay2", "variantMeta", "variantVersion"},
		{"build/mounts/<hex>.json", "build/runner", "cacheRecord", "cacheVersion"},
		{"build/history/<name>.json", "build/history", "Record", "Version"},
		{"containers/<hex>/rw/copied.json", "store/layer/vfs", "copied", "copiedVersion"},
		{"containers/<hex>/exit.json", "container/shim", "ExitRecord", "Version"},
		{"containers/<hex>/shim.json", "container/shim", "Config", "Version"},
		{"containers/<hex>/shim.pid, init.pid", "container/shim", "Identity", "Version"},
	},
	"registry.md": {
		{"repositories", "registry/metadata/bolt", "repositoryRecord", "repositoryVersion"},
		{"manifests", "registry/metadata/bolt", "manifestRecord", "manifestVersion"},
		{"tags", "registry/metadata/bolt", "tagRecord", "tagVersion"},
		{"links", "registry/metadata/bolt", "linkRecord", "linkVersion"},
		{"uploads", "registry/metadata/bolt", "uploadRecord", "uploadVersion"},
		{"manifests.record", "registry/metadata/postgres", "manifestRecord", "manifestVersion"},
		{"uploads.state", "registry/blobs/s3", "stateRecord", "stateVersion"},
		{"uploads/<id>.json", "registry/blobs/directory", "sessionRecord", "sessionVersion"},
		{"documents/proxy-uses", "registry/proxy", "useRecord", "useVersion"},
		{"documents/retention", "registry/server", "retentionRecord", "retentionVersion"},
		{"documents/audit", "registry/audit", "Entry", "entryVersion"},
		{"documents/QUEUE", "registry/queue", "itemRecord", "itemVersion"},
		{"users.json", "registry/auth", "usersRecord", "usersVersion"},
		{"documents/access-tokens", "registry/auth", "AccessToken", "tokenVersion"},
		{"token-keys.json", "registry/auth", "keysRecord", "keysVersion"},
	},
}

// The documents draw every field of every stored struct.
func TestFieldsDrawing(t *testing.T) {
	for doc, records := range drawnRecords {
		drawn := fieldsSection(read(t, filepath.Join("..", "..", "docs", doc)))
		for _, r := range records {
			want := structDrawing(t, r)
			if drawn[r.title] != want {
				t.Errorf("%s draws\n\t%s: %s\nthe code is\n\t%s: %s", doc, r.title, drawn[r.title], r.title, want)
			}
			delete(drawn, r.title)
		}
		for title := range drawn {
			t.Errorf("%s draws %q, which is not in drawnRecords", doc, title)
		}
	}
}

// The drawing of the database names every bucket of the code, and the drawn record of each.
func TestDatabaseDrawing(t *testing.T) {
	doc := read(t, filepath.Join("..", "..", "docs", "DB.md"))
	_, drawing, _ := strings.Cut(doc, "```\n")
	drawing, _, _ = strings.Cut(drawing, "```")
	fields := fieldsSection(doc)
	var buckets []string
	for line := range strings.Lines(drawing) {
		line = strings.TrimRight(line, "\n")
		if line != "" && line[0] != ' ' {
			buckets = append(buckets, line)
		}
		if _, title, ok := strings.Cut(line, "→ "); ok && fields[strings.TrimSpace(title)] == "" {
			t.Errorf("record %s has no fields in the drawing", title)
		}
	}
	coded := []string{"meta"}
	for _, f := range parseDir(t, "store/meta") {
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.CompositeLit); ok {
				if id, ok := lit.Type.(*ast.Ident); ok && id.Name == "table" && len(lit.Elts) == 3 {
					coded = append(coded, strings.Trim(lit.Elts[0].(*ast.BasicLit).Value, `"`))
				}
			}
			return true
		})
	}
	if len(coded) < 5 || !slices.Equal(buckets, coded) {
		t.Errorf("buckets drawn %v, coded %v", buckets, coded)
	}
}

// fieldsSection returns the records that the section "Fields" of a document draws: title → "version N: field, …".
func fieldsSection(doc string) map[string]string {
	_, section, _ := strings.Cut(doc, "\n## Fields\n")
	_, section, _ = strings.Cut(section, "```\n")
	section, _, _ = strings.Cut(section, "```")
	drawn := map[string]string{}
	title := ""
	for line := range strings.Lines(section) {
		if first, rest, ok := strings.Cut(line, ": "); ok && line[0] != ' ' {
			title = first
			drawn[title] = strings.TrimSpace(rest)
		} else {
			drawn[title] = strings.TrimSpace(drawn[title] + " " + strings.TrimSpace(line))
		}
	}
	return drawn
}

// structDrawing returns the drawing of a struct: its JSON names in order, with the fields of nested structs in braces,
// [] behind lists and {*} behind maps.
func structDrawing(t *testing.T, r drawnRecord) string {
	t.Helper()
	spec, file := findType(t, r.dir, r.name)
	if spec == nil {
		return "no such type in " + r.dir
	}
	p := &painter{t: t, open: map[*ast.TypeSpec]bool{spec: true}}
	fields := strings.Join(p.fields(r.dir, file, spec.Type.(*ast.StructType)), ", ")
	if r.version == "" {
		return fields
	}
	dir, name := r.dir, r.version
	if i := strings.LastIndex(name, "."); i >= 0 {
		dir, name = name[:i], name[i+1:]
	}
	return "version " + constant(t, dir, name) + ", " + fields
}

type painter struct {
	t    *testing.T
	open map[*ast.TypeSpec]bool // types being drawn, against recursion
}

func (p *painter) fields(dir string, file *ast.File, s *ast.StructType) (names []string) {
	for _, f := range s.Fields.List {
		tag := ""
		if f.Tag != nil {
			tag, _, _ = strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
		}
		switch {
		case tag == "-":
		case len(f.Names) == 0 && tag == "": // embedded
			d, fl, spec := p.resolve(dir, file, f.Type)
			if st, ok := spec.Type.(*ast.StructType); ok {
				names = append(names, p.fields(d, fl, st)...)
			} else {
				p.t.Errorf("%s: an embedded field is not a struct of this tree", dir)
			}
		case tag == "" && f.Names[0].IsExported():
			p.t.Errorf("%s: field %s of a stored struct has no explicit JSON name", dir, f.Names[0])
		case tag != "":
			names = append(names, tag+p.shape(dir, file, f.Type))
		}
	}
	return names
}

// shape returns what stands behind the name of a field of type e.
func (p *painter) shape(dir string, file *ast.File, e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return p.shape(dir, file, e.X)
	case *ast.ArrayType:
		if id, ok := e.Elt.(*ast.Ident); ok && id.Name == "byte" {
			return ""
		}
		return "[]" + p.shape(dir, file, e.Elt)
	case *ast.MapType:
		return "{*}" + p.shape(dir, file, e.Value)
	case *ast.StructType:
		if names := p.fields(dir, file, e); len(names) > 0 {
			return "{" + strings.Join(names, ", ") + "}"
		}
	case *ast.Ident, *ast.SelectorExpr:
		d, fl, spec := p.resolve(dir, file, e)
		if spec == nil || hasMarshaler(p.t, d, spec.Name.Name) {
			return ""
		}
		if p.open[spec] {
			return "{…}"
		}
		p.open[spec] = true
		defer delete(p.open, spec)
		return p.shape(d, fl, spec.Type)
	}
	return ""
}

// resolve finds the declaration of a named type of this module; nil for any other type.
func (p *painter) resolve(dir string, file *ast.File, e ast.Expr) (string, *ast.File, *ast.TypeSpec) {
	switch e := e.(type) {
	case *ast.StarExpr:
		return p.resolve(dir, file, e.X)
	case *ast.Ident:
		spec, f := findType(p.t, dir, e.Name)
		return dir, f, spec
	case *ast.SelectorExpr:
		for _, imp := range file.Imports {
			path := strings.Trim(imp.Path.Value, `"`)
			name := path[strings.LastIndex(path, "/")+1:]
			if imp.Name != nil {
				name = imp.Name.Name
			}
			if name == fmt.Sprint(e.X) && strings.HasPrefix(path, "ply/internal/") {
				d := strings.TrimPrefix(path, "ply/internal/")
				spec, f := findType(p.t, d, e.Sel.Name)
				return d, f, spec
			}
		}
	}
	return "", nil, nil
}

var parsed = map[string][]*ast.File{}

// parseDir parses the sources of one package, without its tests.
func parseDir(t *testing.T, dir string) []*ast.File {
	t.Helper()
	if parsed[dir] != nil {
		return parsed[dir]
	}
	entries, err := os.ReadDir(filepath.Join("..", dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", dir, e.Name()), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		parsed[dir] = append(parsed[dir], f)
	}
	return parsed[dir]
}

func findType(t *testing.T, dir, name string) (spec *ast.TypeSpec, in *ast.File) {
	t.Helper()
	for _, f := range parseDir(t, dir) {
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.TypeSpec); ok && s.Name.Name == name {
				spec, in = s, f
			}
			return spec == nil
		})
	}
	return spec, in
}

// hasMarshaler reports whether a type encodes itself, so that its fields are not what is stored.
func hasMarshaler(t *testing.T, dir, name string) (found bool) {
	t.Helper()
	for _, f := range parseDir(t, dir) {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv != nil && (fn.Name.Name == "MarshalJSON" || fn.Name.Name == "MarshalText") {
				found = found || strings.TrimPrefix(exprName(fn.Recv.List[0].Type), "*") == name
			}
		}
	}
	return found
}

func exprName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return "*" + exprName(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// constant returns the value of an integer constant.
func constant(t *testing.T, dir, name string) (value string) {
	t.Helper()
	for _, f := range parseDir(t, dir) {
		ast.Inspect(f, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok {
				for i, id := range v.Names {
					if id.Name == name && i < len(v.Values) {
						if lit, ok := v.Values[i].(*ast.BasicLit); ok {
							value = lit.Value
						}
					}
				}
			}
			return true
		})
	}
	if !regexp.MustCompile(`^[1-9]\d*$`).MatchString(value) {
		t.Errorf("%s: no constant %s that is a version", dir, name)
	}
	return value
}
