package bakefile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/userfunc"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"

	"ply/internal/errs"
)

// Parse reads files. Later ones add to and override earlier ones. lookup returns a variable of the environment.
func Parse(files []File, lookup func(string) (string, bool)) (*Bake, error) {
	p := &parser{lookup: lookup, variables: map[string]hcl.Expression{}, types: map[string]hcl.Expression{}, values: map[string]cty.Value{}, busy: map[string]bool{}, checks: map[string][]*hcl.Block{}}
	total := 0
	var bodies []hcl.Body
	for _, f := range files {
		if total += len(f.Data); total > MaxSize {
			return nil, errs.New(errs.Exhausted, "bake files are larger than %d bytes", MaxSize)
		}
		body, err := parseFile(f)
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body)
	}
	return p.bake(bodies)
}

// parseFile reads the syntax of a file. A name that ends in neither .json nor .hcl is tried as both.
func parseFile(f File) (hcl.Body, error) {
	json := strings.HasSuffix(f.Name, ".json")
	if !json && !strings.HasSuffix(f.Name, ".hcl") {
		json = strings.HasPrefix(strings.TrimSpace(string(f.Data)), "{")
	}
	if json {
		file, diags := hcljson.Parse(f.Data, f.Name)
		if diags.HasErrors() {
			return nil, diagnose(diags)
		}
		return file.Body, nil
	}
	file, diags := hclsyntax.ParseConfig(f.Data, f.Name, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, diagnose(diags)
	}
	return file.Body, nil
}

// diagnose returns the first error of HCL with its place.
func diagnose(diags hcl.Diagnostics) error {
	for _, d := range diags {
		if d.Severity == hcl.DiagError {
			text := d.Summary
			if d.Detail != "" {
				text += "; " + d.Detail
			}
			if d.Subject != nil {
				return errs.New(errs.Invalid, "%s:%d,%d: %s", d.Subject.Filename, d.Subject.Start.Line, d.Subject.Start.Column, text)
			}
			return errs.New(errs.Invalid, "%s", text)
		}
	}
	return nil
}

var schema = &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{
	{Type: "variable", LabelNames: []string{"name"}}, {Type: "group", LabelNames: []string{"name"}}, {Type: "target", LabelNames: []string{"name"}}, {Type: "function", LabelNames: []string{"name"}},
}}

var variableSchema = &hcl.BodySchema{
	Attributes: []hcl.AttributeSchema{{Name: "default"}, {Name: "description"}, {Name: "type"}},
	Blocks:     []hcl.BlockHeaderSchema{{Type: "validation"}},
}

var validationSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "condition", Required: true}, {Name: "error_message"}}}

type parser struct {
	lookup    func(string) (string, bool)
	functions map[string]function.Function
	variables map[string]hcl.Expression // nil = no default
	types     map[string]hcl.Expression
	checks    map[string][]*hcl.Block
	values    map[string]cty.Value
	busy      map[string]bool // under evaluation
}

func (p *parser) bake(bodies []hcl.Body) (*Bake, error) {
	p.functions = functions()
	var groups, targets []*hcl.Block
	for _, body := range bodies {
		mine, rest, diags := userfunc.DecodeUserFunctions(body, "function", p.context)
		if diags.HasErrors() {
			return nil, diagnose(diags)
		}
		maps.Copy(p.functions, mine)
		content, rest, diags := rest.PartialContent(&hcl.BodySchema{Blocks: schema.Blocks[:3]})
		if diags.HasErrors() {
			return nil, diagnose(diags)
		}
		attrs, err := constants(body, rest)
		if err != nil {
			return nil, err
		}
		for name, a := range attrs {
			p.variables[name] = a.Expr
		}
		for _, b := range content.Blocks {
			switch b.Type {
			case "variable":
				if err := p.variable(b); err != nil {
					return nil, err
				}
			case "group":
				groups = append(groups, b)
			case "target":
				targets = append(targets, b)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.variables)) {
		if _, err := p.value(name); err != nil {
			return nil, err
		}
	}
	out := &Bake{Groups: map[string]*Group{}, Targets: map[string]*Target{}}
	for _, b := range targets {
		if err := p.target(out, b); err != nil {
			return nil, err
		}
	}
	for _, b := range groups {
		if err := p.group(out, b); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// constants returns the attributes of a file that stand outside of blocks. rest is the file without the blocks that are known.
func constants(body, rest hcl.Body) (hcl.Attributes, error) {
	native, ok := body.(*hclsyntax.Body)
	if !ok {
		attrs, diags := rest.JustAttributes()
		return attrs, diagnose(diags)
	}
	for _, b := range native.Blocks {
		if !slices.ContainsFunc(schema.Blocks, func(s hcl.BlockHeaderSchema) bool { return s.Type == b.Type }) {
			return nil, errs.New(errs.Invalid, "%s:%d: unknown block %q", b.TypeRange.Filename, b.TypeRange.Start.Line, b.Type)
		}
	}
	out := hcl.Attributes{}
	for name, a := range native.Attributes {
		out[name] = a.AsHCLAttribute()
	}
	return out, nil
}

func (p *parser) variable(b *hcl.Block) error {
	name := b.Labels[0]
	content, diags := b.Body.Content(variableSchema)
	if diags.HasErrors() {
		return diagnose(diags)
	}
	if a := content.Attributes["default"]; a != nil || p.variables[name] == nil {
		p.variables[name] = nil
		if a != nil {
			p.variables[name] = a.Expr
		}
	}
	if a := content.Attributes["type"]; a != nil {
		p.types[name] = a.Expr
	}
	p.checks[name] = append(p.checks[name], content.Blocks...)
	return nil
}

// context is what expressions see: all variables that are evaluated, and the functions.
func (p *parser) context() *hcl.EvalContext {
	return &hcl.EvalContext{Variables: p.values, Functions: p.functions}
}

// value evaluates a variable, after those that it needs. The environment overrides its default.
func (p *parser) value(name string) (cty.Value, error) {
	if v, ok := p.values[name]; ok {
		return v, nil
	}
	expr, known := p.variables[name]
	if !known {
		return cty.NilVal, errs.New(errs.NotFound, "undefined variable %q", name)
	}
	if p.busy[name] {
		return cty.NilVal, errs.New(errs.Invalid, "variable cycle not allowed for %s", name)
	}
	p.busy[name] = true
	defer delete(p.busy, name)
	v := cty.NullVal(cty.String)
	if expr != nil {
		var err error
		if v, err = p.evaluate(expr, nil); err != nil {
			return v, err
		}
	}
	want := v.Type()
	if t := p.types[name]; t != nil {
		var err error
		if want, err = typeOf(t); err != nil {
			return v, err
		}
		if v, err = convert.Convert(v, want); err != nil {
			return v, errs.New(errs.Invalid, "variable %s: %v", name, err)
		}
	}
	if text, ok := p.lookup(name); ok {
		if !want.IsPrimitiveType() && want != cty.DynamicPseudoType {
			return v, errs.New(errs.Unimplemented, "variable %s: its value in the environment cannot be converted to %s", name, want.FriendlyName())
		}
		var err error
		if want.IsPrimitiveType() {
			if v, err = convert.Convert(cty.StringVal(text), want); err != nil {
				return v, errs.New(errs.Invalid, "failed to parse %s=%q of the environment: %v", name, text, err)
			}
		} else {
			v = cty.StringVal(text)
		}
	}
	p.values[name] = v
	return v, p.validate(name)
}

// typeOf reads the type of a variable.
func typeOf(e hcl.Expression) (cty.Type, error) {
	switch hcl.ExprAsKeyword(e) {
	case "string":
		return cty.String, nil
	case "number":
		return cty.Number, nil
	case "bool":
		return cty.Bool, nil
	case "any":
		return cty.DynamicPseudoType, nil
	}
	r := e.Range()
	return cty.NilType, errs.New(errs.Unimplemented, "%s:%d: this type of a variable is not supported: want string, number, bool or any", r.Filename, r.Start.Line)
}

func (p *parser) validate(name string) error {
	for _, b := range p.checks[name] {
		content, diags := b.Body.Content(validationSchema)
		if diags.HasErrors() {
			return diagnose(diags)
		}
		v, err := p.evaluate(content.Attributes["condition"].Expr, nil)
		if err != nil {
			return err
		}
		if v, err = convert.Convert(v, cty.Bool); err != nil || v.IsNull() || v.True() {
			if err != nil {
				return errs.New(errs.Invalid, "variable %s: validation: %v", name, err)
			}
			continue
		}
		message := "This check failed."
		if a := content.Attributes["error_message"]; a != nil {
			if text, err := p.evaluate(a.Expr, nil); err == nil && text.Type() == cty.String && !text.IsNull() {
				message = text.AsString()
			}
		}
		return errs.New(errs.Invalid, "variable %s: validation failed: %s", name, message)
	}
	return nil
}

// evaluate evaluates an expression after the variables that it uses. extra are variables of a matrix.
func (p *parser) evaluate(e hcl.Expression, extra map[string]cty.Value) (cty.Value, error) {
	for _, t := range e.Variables() {
		name := t.RootName()
		if _, ok := extra[name]; ok {
			continue
		}
		if _, err := p.value(name); err != nil {
			if errors.Is(err, errs.NotFound) {
				continue // HCL says where
			}
			return cty.NilVal, err
		}
	}
	ctx := p.context()
	if extra != nil {
		ctx = ctx.NewChild()
		ctx.Variables = extra
	}
	v, diags := e.Value(ctx)
	if diags.HasErrors() {
		return v, diagnose(diags)
	}
	return v, nil
}

func (p *parser) group(out *Bake, b *hcl.Block) error {
	attrs, diags := b.Body.JustAttributes()
	if diags.HasErrors() {
		return diagnose(diags)
	}
	g := out.Groups[b.Labels[0]]
	if g == nil {
		g = &Group{}
		out.Groups[b.Labels[0]] = g
	}
	for name, a := range attrs {
		v, err := p.evaluate(a.Expr, nil)
		if err != nil {
			return err
		}
		switch name {
		case "targets":
			if g.Targets, err = texts(a, v); err != nil {
				return err
			}
		case "description":
			d, err := text(a, v)
			if err != nil {
				return err
			}
			if d != nil {
				g.Description = *d
			}
		default:
			return unknown(a, "group")
		}
	}
	return nil
}

func unknown(a *hcl.Attribute, where string) error {
	return errs.New(errs.Invalid, "%s:%d: a %s has no attribute %q", a.Range.Filename, a.Range.Start.Line, where, a.Name)
}

// target decodes a target, or the targets of its matrix.
func (p *parser) target(out *Bake, b *hcl.Block) error {
	attrs, diags := b.Body.JustAttributes()
	if diags.HasErrors() {
		return diagnose(diags)
	}
	matrix := attrs["matrix"]
	if matrix == nil {
		if a := attrs["name"]; a != nil {
			return errs.New(errs.Invalid, "%s:%d: a target has a name only together with a matrix", a.Range.Filename, a.Range.Start.Line)
		}
		return p.one(out, b.Labels[0], attrs, nil)
	}
	name := attrs["name"]
	if name == nil {
		return errs.New(errs.Invalid, "%s:%d: a target with a matrix needs a name", matrix.Range.Filename, matrix.Range.Start.Line)
	}
	v, err := p.evaluate(matrix.Expr, nil)
	if err != nil {
		return err
	}
	all, err := combinations(matrix, v)
	if err != nil {
		return err
	}
	group := &Group{Targets: []string{}}
	for _, vars := range all {
		v, err := p.evaluate(name.Expr, vars)
		if err != nil {
			return err
		}
		n, err := text(name, v)
		if err != nil {
			return err
		}
		if n == nil || *n == "" {
			return errs.New(errs.Invalid, "%s:%d: the name of a target is empty", name.Range.Filename, name.Range.Start.Line)
		}
		if slices.Contains(group.Targets, *n) {
			return errs.New(errs.Invalid, "%s:%d: the matrix makes the name %s twice", name.Range.Filename, name.Range.Start.Line, *n)
		}
		group.Targets = append(group.Targets, *n)
		if err := p.one(out, *n, attrs, vars); err != nil {
			return err
		}
	}
	out.Groups[b.Labels[0]] = group
	return nil
}

// combinations returns the values of the variables of a matrix, for each of its targets.
func combinations(a *hcl.Attribute, v cty.Value) ([]map[string]cty.Value, error) {
	wrong := errs.New(errs.Invalid, "%s:%d: a matrix is a map of lists", a.Range.Filename, a.Range.Start.Line)
	if v.IsNull() || !v.IsKnown() || !v.CanIterateElements() || !(v.Type().IsObjectType() || v.Type().IsMapType()) {
		return nil, wrong
	}
	out := []map[string]cty.Value{{}}
	for it := v.ElementIterator(); it.Next(); {
		k, list := it.Element()
		if list.IsNull() || !list.CanIterateElements() || list.Type().IsObjectType() || list.Type().IsMapType() {
			return nil, wrong
		}
		var next []map[string]cty.Value
		for _, have := range out {
			for values := list.ElementIterator(); values.Next(); {
				_, one := values.Element()
				more := maps.Clone(have)
				more[k.AsString()] = one
				if next = append(next, more); len(next) > maxTargets {
					return nil, errs.New(errs.Exhausted, "%s:%d: the matrix makes more than %d targets", a.Range.Filename, a.Range.Start.Line, maxTargets)
				}
			}
		}
		out = next
	}
	return out, nil
}

// one decodes one target and merges it with what earlier files say about it.
func (p *parser) one(out *Bake, name string, attrs hcl.Attributes, vars map[string]cty.Value) error {
	t := &Target{}
	for _, key := range slices.Sorted(maps.Keys(attrs)) {
		if key == "matrix" || key == "name" {
			continue
		}
		a := attrs[key]
		v, err := p.evaluate(a.Expr, vars)
		if err == nil && !v.IsNull() {
			err = t.set(a, v)
		}
		if err != nil {
			return err
		}
	}
	if old := out.Targets[name]; old != nil {
		old.merge(t)
		return nil
	}
	out.Targets[name] = t
	if len(out.Targets) > maxTargets {
		return errs.New(errs.Exhausted, "more than %d targets", maxTargets)
	}
	return nil
}

// set sets an attribute of a target.
func (t *Target) set(a *hcl.Attribute, v cty.Value) (err error) {
	if l := t.list(a.Name); l != nil && a.Name != "platform" && a.Name != "secrets" {
		*l, err = texts(a, v)
		return err
	}
	if p := t.text(a.Name); p != nil {
		*p, err = text(a, v)
		return err
	}
	switch a.Name {
	case "inherits":
		t.Inherits, err = texts(a, v)
	case "description":
		var d *string
		if d, err = text(a, v); d != nil {
			t.Description = *d
		}
	case "args":
		t.Args, err = pairs(a, v)
	case "labels":
		t.Labels, err = pairs(a, v)
	case "contexts", "extra-hosts":
		var m map[string]*string
		if m, err = pairs(a, v); err != nil {
			return err
		}
		plain := map[string]string{}
		for k, s := range m {
			if s != nil {
				plain[k] = *s
			}
		}
		if a.Name == "contexts" {
			t.Contexts = plain
		} else {
			t.ExtraHosts = plain
		}
	case "no-cache":
		t.NoCache, err = truth(a, v)
	case "pull":
		t.Pull, err = truth(a, v)
	default:
		return unknown(a, "target")
	}
	return err
}

func wrong(a *hcl.Attribute, err any) error {
	return errs.New(errs.Invalid, "%s:%d: %s: %v", a.Range.Filename, a.Range.Start.Line, a.Name, err)
}

func text(a *hcl.Attribute, v cty.Value) (*string, error) {
	v, err := convert.Convert(v, cty.String)
	if err != nil {
		return nil, wrong(a, err)
	}
	if v.IsNull() {
		return nil, nil
	}
	s := v.AsString()
	return &s, nil
}

func truth(a *hcl.Attribute, v cty.Value) (*bool, error) {
	v, err := convert.Convert(v, cty.Bool)
	if err != nil || v.IsNull() {
		if err != nil {
			err = wrong(a, err)
		}
		return nil, err
	}
	b := v.True()
	return &b, nil
}

// texts reads a list. An element that is an object is KEY=VALUE,… as in the flags of build.
func texts(a *hcl.Attribute, v cty.Value) ([]string, error) {
	if v.Type() == cty.String && !v.IsNull() {
		return nil, wrong(a, "want a list")
	}
	out := []string{}
	if v.IsNull() {
		return out, nil
	}
	if !v.CanIterateElements() || v.Type().IsObjectType() || v.Type().IsMapType() {
		return nil, wrong(a, "want a list")
	}
	for it := v.ElementIterator(); it.Next(); {
		_, e := it.Element()
		if e.IsNull() {
			continue
		}
		if e.Type().IsObjectType() || e.Type().IsMapType() {
			m, err := pairs(a, e)
			if err != nil {
				return nil, err
			}
			var fields []string
			for _, k := range slices.Sorted(maps.Keys(m)) {
				if m[k] != nil {
					fields = append(fields, field(k+"="+*m[k]))
				}
			}
			out = append(out, strings.Join(fields, ","))
			continue
		}
		s, err := text(a, e)
		if err != nil {
			return nil, err
		}
		out = append(out, *s)
	}
	return out, nil
}

// field quotes a field of CSV if it needs that.
func field(s string) string {
	if strings.ContainsAny(s, ",\"\n") {
		return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
	}
	return s
}

func pairs(a *hcl.Attribute, v cty.Value) (map[string]*string, error) {
	if !v.CanIterateElements() || !(v.Type().IsObjectType() || v.Type().IsMapType()) {
		return nil, wrong(a, "want a map")
	}
	out := map[string]*string{}
	for it := v.ElementIterator(); it.Next(); {
		k, e := it.Element()
		s, err := text(a, e)
		if err != nil {
			return nil, wrong(a, fmt.Sprintf("%s: %v", k.AsString(), err))
		}
		out[k.AsString()] = s
	}
	return out, nil
}
