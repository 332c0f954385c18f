package bakefile

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"ply/internal/errs"
)

// Parse reads files. Later ones add to and override earlier ones. Variables have the value of o.Set, or of the environment, or their default.
func Parse(files []File, o Options) (*Bake, error) {
	p := &parser{options: o, definitions: map[string]*definition{}, values: map[string]cty.Value{}, busy: map[string]bool{}, own: map[string]ownFunction{}, sources: map[string][]byte{}}
	total := 0
	var bodies []hcl.Body
	var services []File
	for _, f := range files {
		if total += len(f.Data); total > MaxSize {
			return nil, errs.New(errs.Exhausted, "bake files are larger than %d bytes", MaxSize)
		}
		if isCompose(f) {
			services = append(services, f)
			continue
		}
		p.sources[f.Name] = f.Data
		body, err := parseFile(f)
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, body)
	}
	out := &Bake{Groups: map[string]*Group{}, Targets: map[string]*Target{}}
	if len(services) > 0 {
		if err := compose(out, services, o); err != nil {
			return nil, err
		}
	}
	err := p.bake(out, bodies)
	out.Warnings = p.warnings
	return out, err
}

// Options are what an expression can see besides the files.
type Options struct {
	Lookup   func(string) (string, bool)  // the environment; nil = it is empty
	Environ  []string                     // the same as a list, for compose files
	Set      map[string]string            // values of --var
	Builtin  map[string]string            // variables that files cannot set
	ReadFile func(string) ([]byte, error) // reads .env, files of env_file and compose files that others name; nil = there are none
}

func (o *Options) lookup(name string) (string, bool) {
	if v, ok := o.Set[name]; ok {
		return v, true
	}
	if o.Lookup == nil {
		return "", false
	}
	return o.Lookup(name)
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

var functionSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "params", Required: true}, {Name: "variadic_params"}, {Name: "result", Required: true}}}

var validationSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "condition", Required: true}, {Name: "error_message"}}}

// definition is a variable, or an attribute of a file.
type definition struct {
	value       hcl.Expression // nil = no default
	attribute   bool           // it stands outside of blocks; the environment does not change it
	typ         hcl.Expression // nil = that of the default
	description string
	checks      []*hcl.Block

	constraint *cty.Type // what typ says
}

type parser struct {
	options     Options
	functions   map[string]function.Function
	own         map[string]ownFunction
	definitions map[string]*definition
	values      map[string]cty.Value
	busy        map[string]bool // under evaluation
	depth       int
	sources     map[string][]byte
	warnings    []string
	calling     int                  // calls of functions of files under way
	found       map[string]cty.Value // targets and groups that functions name
	blocks      []*instance
}

// ownFunction is a function of a file.
type ownFunction struct {
	params   []string
	variadic bool // the last one takes all arguments that are left
	result   hcl.Expression
}

// instance is a target or group of a file; a matrix makes several of one block.
type instance struct {
	kind, name string
	attrs      hcl.Attributes
	vars       map[string]cty.Value // of the matrix
	values     map[string]cty.Value // of attributes that were evaluated
}

func (p *parser) bake(out *Bake, bodies []hcl.Body) error {
	p.functions = functions()
	for name, v := range p.options.Builtin {
		p.values[name] = cty.StringVal(v)
	}
	var blocks []*hcl.Block
	for _, body := range bodies {
		content, rest, diags := body.PartialContent(schema)
		if diags.HasErrors() {
			return diagnose(diags)
		}
		attrs, err := p.constants(body, rest)
		if err != nil {
			return err
		}
		for name, a := range attrs {
			p.definitions[name] = &definition{value: a.Expr, attribute: true}
		}
		for _, b := range content.Blocks {
			var err error
			switch b.Type {
			case "variable":
				err = p.variable(b)
			case "function":
				err = p.function(b)
			default:
				blocks = append(blocks, b)
			}
			if err != nil {
				return err
			}
		}
	}
	names := slices.Sorted(maps.Keys(p.definitions))
	for _, name := range names {
		if _, err := p.value(name); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := p.validate(name); err != nil {
			return err
		}
	}
	out.Variables = p.variables(names)
	for _, b := range blocks {
		if err := p.expand(out, b); err != nil {
			return err
		}
	}
	for _, i := range p.blocks {
		if err := p.decode(out, i); err != nil {
			return err
		}
	}
	return nil
}

// function defines a function of a file. Its arguments may be of any type.
func (p *parser) function(b *hcl.Block) error {
	content, diags := b.Body.Content(functionSchema)
	if diags.HasErrors() {
		return diagnose(diags)
	}
	f := ownFunction{result: content.Attributes["result"].Expr}
	list, diags := hcl.ExprList(content.Attributes["params"].Expr)
	if a := content.Attributes["variadic_params"]; a != nil {
		list = append(list, a.Expr)
		f.variadic = true
	}
	for _, e := range list {
		name := hcl.ExprAsKeyword(e)
		if name == "" && !diags.HasErrors() {
			diags = hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Invalid param element", Detail: "Each parameter name must be an identifier.", Subject: e.Range().Ptr()}}
		}
		f.params = append(f.params, name)
	}
	if diags.HasErrors() {
		return diagnose(diags)
	}
	p.own[b.Labels[0]] = f
	p.functions[b.Labels[0]] = p.callable(f)
	return nil
}

// callable returns a function of a file as expressions call it. What it needs is evaluated before (need).
func (p *parser) callable(f ownFunction) function.Function {
	run := func(args []cty.Value) (cty.Value, error) {
		ctx := p.context().NewChild()
		ctx.Variables = maps.Clone(p.found)
		if ctx.Variables == nil {
			ctx.Variables = map[string]cty.Value{}
		}
		fixed := len(f.params)
		if f.variadic {
			fixed--
			ctx.Variables[f.params[fixed]] = cty.TupleVal(args[fixed:])
		}
		for i, n := range f.params[:fixed] {
			ctx.Variables[n] = args[i]
		}
		if p.calling++; p.calling > maxDepth {
			return cty.DynamicVal, errs.New(errs.Exhausted, "more than %d functions call each other", maxDepth)
		}
		defer func() { p.calling-- }()
		v, diags := f.result.Value(ctx)
		if diags.HasErrors() {
			return cty.DynamicVal, diagnose(diags)
		}
		return v, nil
	}
	spec := &function.Spec{Type: function.StaticReturnType(cty.DynamicPseudoType), Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) { return run(args) }}
	parameter := func(name string) function.Parameter {
		return function.Parameter{Name: name, Type: cty.DynamicPseudoType, AllowNull: true}
	}
	fixed := f.params
	if f.variadic {
		last := parameter(f.params[len(f.params)-1])
		spec.VarParam, fixed = &last, f.params[:len(f.params)-1]
	}
	for _, n := range fixed {
		spec.Params = append(spec.Params, parameter(n))
	}
	return function.New(spec)
}

// constants returns the attributes of a file that stand outside of blocks. rest is the file without the blocks that are known.
func (p *parser) constants(body, rest hcl.Body) (hcl.Attributes, error) {
	native, ok := body.(*hclsyntax.Body)
	if !ok {
		attrs, diags := rest.JustAttributes()
		return attrs, diagnose(diags)
	}
	for _, b := range native.Blocks {
		if !slices.ContainsFunc(schema.Blocks, func(s hcl.BlockHeaderSchema) bool { return s.Type == b.Type }) {
			p.warn(b.TypeRange, "unknown block %q", b.Type)
		}
	}
	out := hcl.Attributes{}
	for name, a := range native.Attributes {
		out[name] = a.AsHCLAttribute()
	}
	return out, nil
}

// variable notes a variable. It replaces one of the same name in an earlier file.
func (p *parser) variable(b *hcl.Block) error {
	content, diags := b.Body.Content(variableSchema)
	if diags.HasErrors() {
		return diagnose(diags)
	}
	d := &definition{checks: content.Blocks}
	if a := content.Attributes["default"]; a != nil {
		d.value = a.Expr
	}
	if a := content.Attributes["type"]; a != nil {
		d.typ = a.Expr
	}
	if a := content.Attributes["description"]; a != nil {
		v, diags := a.Expr.Value(nil)
		if diags.HasErrors() {
			return diagnose(diags)
		}
		t, err := text(a, v)
		if err != nil {
			return err
		}
		if t != nil {
			d.description = *t
		}
	}
	p.definitions[b.Labels[0]] = d
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
	d, known := p.definitions[name]
	if !known {
		return cty.NilVal, errs.New(errs.NotFound, "undefined variable %q", name)
	}
	leave, err := p.enter(name, "variable cycle not allowed for "+name)
	if err != nil {
		return cty.NilVal, err
	}
	defer leave()
	v, err := p.define(name, d)
	if err == nil {
		p.values[name] = v
	}
	return v, err
}

// enter notes that something is being evaluated. What needs itself, and expressions that need each other too deeply, are errors.
func (p *parser) enter(name, circle string) (leave func(), err error) {
	if p.busy[name] {
		return nil, errs.New(errs.Invalid, "%s", circle)
	}
	if p.depth > maxNesting {
		return nil, errs.New(errs.Exhausted, "%s needs more than %d others", name, maxNesting)
	}
	p.busy[name] = true
	p.depth++
	return func() {
		delete(p.busy, name)
		p.depth--
	}, nil
}

// maxNesting bounds how many expressions wait for each other.
const maxNesting = 1000

// define evaluates a definition.
func (p *parser) define(name string, d *definition) (v cty.Value, err error) {
	v = cty.StringVal("")
	typ := cty.DynamicPseudoType
	if d.typ != nil {
		t, diags := typeexpr.TypeConstraint(d.typ)
		if diags.HasErrors() {
			return v, diagnose(diags)
		}
		typ, d.constraint = t, &t
		v = cty.NullVal(t)
	}
	if d.value != nil {
		if v, err = p.evaluate(d.value, nil); err != nil {
			return v, err
		}
		if v, err = convert.Convert(v, typ); err != nil {
			return v, errs.New(errs.Invalid, "variable %s: invalid type %s of its default value: %v", name, typ.FriendlyName(), err)
		}
	}
	if d.attribute {
		return v, nil
	}
	set, json, ok := p.fromOutside(name, d)
	if !ok {
		return v, nil
	}
	if v, err = read(set, json, typ, v, d); err != nil {
		return v, errs.New(errs.Invalid, "variable %s: its value %q: %v", name, set, err)
	}
	return v, nil
}

// fromOutside returns the value that the environment or --var has for a variable. A variable with a type may have it as JSON, under its name with _JSON.
func (p *parser) fromOutside(name string, d *definition) (value string, json, ok bool) {
	value, ok = p.options.lookup(name)
	if ok && d.constraint == nil {
		return value, false, true
	}
	if p.definitions[name+"_JSON"] == nil {
		if j, found := p.options.lookup(name + "_JSON"); found {
			return j, true, true
		}
	}
	return value, false, ok
}

// read reads the value of a variable from outside: JSON, or for lists and maps fields of CSV.
func read(set string, json bool, typ cty.Type, v cty.Value, d *definition) (cty.Value, error) {
	switch {
	case d.constraint != nil && json:
		return ctyjson.Unmarshal([]byte(set), typ)
	case typ.IsPrimitiveType():
		return primitive(set, typ)
	case typ.IsListType(), typ.IsSetType(), typ.IsTupleType(), typ.IsMapType():
		return fromCSV(set, typ)
	case d.constraint != nil && typ != cty.DynamicPseudoType:
		return v, errs.New(errs.Unimplemented, "a value of the type %s is given as JSON, in the variable with _JSON at the end of its name", typ.FriendlyName())
	case d.value == nil, v.Type() == cty.DynamicPseudoType:
		return cty.StringVal(set), nil
	case v.Type().IsPrimitiveType():
		return primitive(set, v.Type())
	}
	return v, errs.New(errs.Unimplemented, "unsupported type %s: give the variable a type", v.Type().FriendlyName())
}

func primitive(s string, t cty.Type) (cty.Value, error) {
	switch t {
	case cty.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return cty.NilVal, errs.New(errs.Invalid, "want a truth value")
		}
		return cty.BoolVal(b), nil
	case cty.Number:
		return cty.ParseNumberVal(s)
	case cty.String:
		return cty.StringVal(s), nil
	}
	return cty.NilVal, errs.New(errs.Unimplemented, "a %s is not given as CSV", t.FriendlyName())
}

// fromCSV reads a list, or a map from KEY:VALUE.
func fromCSV(s string, t cty.Type) (cty.Value, error) {
	r := csv.NewReader(strings.NewReader(s))
	fields, err := r.Read()
	if err != nil && !errors.Is(err, io.EOF) {
		return cty.NilVal, err
	}
	if t.IsTupleType() {
		types := t.TupleElementTypes()
		if len(types) != len(fields) {
			return cty.NilVal, errs.New(errs.Invalid, "want %d values", len(types))
		}
		list := make([]cty.Value, len(fields))
		for i, f := range fields {
			if list[i], err = primitive(f, types[i]); err != nil {
				return cty.NilVal, err
			}
		}
		return cty.TupleVal(list), nil
	}
	m, list := map[string]cty.Value{}, []cty.Value{}
	for _, f := range fields {
		k := ""
		if t.IsMapType() {
			var ok bool
			if k, f, ok = strings.Cut(f, ":"); !ok {
				return cty.NilVal, errs.New(errs.Invalid, "want KEY:VALUE")
			}
		}
		v, err := primitive(f, t.ElementType())
		if err != nil {
			return cty.NilVal, err
		}
		m[k], list = v, append(list, v)
	}
	switch {
	case len(fields) == 0 && t.IsMapType():
		return cty.MapValEmpty(t.ElementType()), nil
	case t.IsMapType():
		return cty.MapVal(m), nil
	case len(fields) == 0 && t.IsSetType():
		return cty.SetValEmpty(t.ElementType()), nil
	case t.IsSetType():
		return cty.SetVal(list), nil
	case len(fields) == 0:
		return cty.ListValEmpty(t.ElementType()), nil
	}
	return cty.ListVal(list), nil
}

// variables describes the variables.
func (p *parser) variables(names []string) (out []Variable) {
	for _, n := range names {
		d := p.definitions[n]
		if d.attribute {
			continue
		}
		v := Variable{Name: n, Description: d.description}
		if d.constraint != nil {
			v.Type = d.constraint.FriendlyNameForConstraint()
		}
		if value := p.values[n]; !value.IsNull() {
			s := ""
			if value.Type().IsPrimitiveType() {
				if t, err := convert.Convert(value, cty.String); err == nil {
					s = t.AsString()
				}
			} else if data, err := ctyjson.Marshal(value, value.Type()); err == nil {
				s = string(data)
			}
			v.Value = &s
		}
		out = append(out, v)
	}
	return out
}

func (p *parser) validate(name string) error {
	for _, b := range p.definitions[name].checks {
		content, diags := b.Body.Content(validationSchema)
		if diags.HasErrors() {
			return diagnose(diags)
		}
		v, err := p.evaluate(content.Attributes["condition"].Expr, nil)
		if err != nil {
			return err
		}
		if v, err = convert.Convert(v, cty.Bool); err != nil || v.IsNull() {
			return errs.New(errs.Invalid, "variable %s: validation: the condition is neither true nor false", name)
		}
		if v.True() {
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

// evaluate evaluates an expression after what it needs. extra are variables of a matrix.
func (p *parser) evaluate(e hcl.Expression, extra map[string]cty.Value) (cty.Value, error) {
	blocks := map[string]cty.Value{}
	if err := p.need(e, extra, blocks); err != nil {
		return cty.NilVal, err
	}
	ctx := p.context()
	if extra != nil || len(blocks) > 0 {
		ctx = ctx.NewChild()
		ctx.Variables = maps.Clone(blocks)
		maps.Copy(ctx.Variables, extra)
	}
	p.found = blocks
	v, diags := e.Value(ctx)
	if diags.HasErrors() {
		return v, diagnose(diags)
	}
	if left := maxSize(v, MaxSize); left < 0 {
		r := e.Range()
		return v, errs.New(errs.Exhausted, "%s:%d: the value is larger than %d bytes", r.Filename, r.Start.Line, MaxSize)
	}
	return v, nil
}

// maxSize returns what is left of a number of bytes after a value, and less than 0 when the value is larger.
func maxSize(v cty.Value, left int) int {
	if left--; left < 0 || v.IsNull() || !v.IsKnown() {
		return left
	}
	if v.Type() == cty.String {
		return left - len(v.AsString())
	}
	if v.CanIterateElements() {
		for it := v.ElementIterator(); it.Next() && left >= 0; {
			_, e := it.Element()
			left = maxSize(e, left)
		}
	}
	return left
}

// need evaluates what an expression needs: variables, attributes of targets and groups, and what functions need. hidden are names that mean something else in it.
func (p *parser) need(e hcl.Expression, hidden, blocks map[string]cty.Value) error {
	for _, t := range e.Variables() {
		name := t.RootName()
		if _, ok := hidden[name]; ok {
			continue
		}
		if p.definitions[name] == nil && (name == "target" || name == "group") {
			if err := p.reference(t, blocks); err != nil {
				return err
			}
			continue
		}
		if _, err := p.value(name); err != nil && !errors.Is(err, errs.NotFound) { // HCL says where a name is that does not exist
			return err
		}
	}
	for _, name := range p.calls(e) {
		f := p.own[name]
		if f.result == nil {
			continue
		}
		leave, err := p.enter("function "+name, "function cycle not allowed for "+name)
		if err != nil {
			return err
		}
		params := map[string]cty.Value{}
		for _, n := range f.params {
			params[n] = cty.NilVal
		}
		err = p.need(f.result, params, blocks)
		leave()
		if err != nil {
			return err
		}
	}
	return nil
}

// calls returns the functions of files that an expression calls. In JSON these are the names in its text before a parenthesis.
func (p *parser) calls(e hcl.Expression) []string {
	if len(p.own) == 0 {
		return nil
	}
	node, ok := e.(hclsyntax.Node)
	if !ok {
		r := e.Range()
		text := string(r.SliceBytes(p.sources[r.Filename]))
		return slices.DeleteFunc(slices.Sorted(maps.Keys(p.own)), func(name string) bool { return !strings.Contains(text, name+"(") })
	}
	found := map[string]bool{}
	_ = hclsyntax.VisitAll(node, func(n hclsyntax.Node) hcl.Diagnostics {
		if c, ok := n.(*hclsyntax.FunctionCallExpr); ok {
			found[c.Name] = true
		}
		return nil
	})
	return slices.Sorted(maps.Keys(found))
}

// reference evaluates the attribute of a target or group that an expression names, and puts it into blocks.
func (p *parser) reference(t hcl.Traversal, blocks map[string]cty.Value) error {
	rng := t.SourceRange()
	if len(t) < 2 {
		return errs.New(errs.Invalid, "%s:%d: cannot access %s as a variable", rng.Filename, rng.Start.Line, t.RootName())
	}
	step := func(i int) string {
		if len(t) <= i {
			return ""
		}
		switch s := t[i].(type) {
		case hcl.TraverseAttr:
			return s.Name
		case hcl.TraverseIndex:
			if s.Key.Type() == cty.String {
				return s.Key.AsString()
			}
		}
		return ""
	}
	name, key := step(1), step(2)
	all := map[string]cty.Value{}
	if v, ok := blocks[t.RootName()]; ok {
		all = v.AsValueMap()
	}
	attrs := map[string]cty.Value{}
	if v, ok := all[name]; ok {
		attrs = v.AsValueMap()
	}
	if attrs == nil {
		attrs = map[string]cty.Value{}
	}
	found := false
	for _, i := range p.blocks {
		if i.kind != t.RootName() || i.name != name {
			continue
		}
		found = true
		keys := []string{key}
		if key == "" {
			keys = slices.Sorted(maps.Keys(i.attrs))
		}
		for _, k := range keys {
			v, err := p.attribute(i, k)
			if err != nil {
				return err
			}
			if v != cty.NilVal {
				attrs[k] = v
			} else if _, ok := attrs[k]; !ok {
				attrs[k] = cty.NullVal(cty.DynamicPseudoType)
			}
		}
	}
	if !found {
		return errs.New(errs.NotFound, "%s:%d: %s %s is not defined", rng.Filename, rng.Start.Line, t.RootName(), name)
	}
	all[name] = cty.ObjectVal(attrs)
	blocks[t.RootName()] = cty.ObjectVal(all)
	return nil
}

// attribute evaluates an attribute of a target or group once; cty.NilVal = it has none of this name.
func (p *parser) attribute(i *instance, key string) (cty.Value, error) {
	if v, ok := i.values[key]; ok {
		return v, nil
	}
	a := i.attrs[key]
	if a == nil || key == "matrix" || key == "name" {
		return cty.NilVal, nil
	}
	name := i.kind + "." + i.name + "." + key
	leave, err := p.enter(fmt.Sprintf("%s %p", name, i), "reference cycle not allowed for "+name)
	if err != nil {
		return cty.NilVal, err
	}
	defer leave()
	v, err := p.evaluate(a.Expr, i.vars)
	if err != nil {
		return v, err
	}
	switch key { // maps of strings, whatever the file has
	case "args", "labels", "contexts", "extra-hosts":
		if m, err := convert.Convert(v, cty.Map(cty.String)); err == nil {
			v = m
		}
	}
	i.values[key] = v
	return v, nil
}

// warn notes what a file says and nothing reads. buildx says nothing of it.
func (p *parser) warn(r hcl.Range, format string, args ...any) {
	if len(p.warnings) < maxTargets {
		p.warnings = append(p.warnings, fmt.Sprintf("%s:%d: ", r.Filename, r.Start.Line)+fmt.Sprintf(format, args...))
	}
}

// unknown notes an attribute that a target or group does not have.
func (p *parser) unknown(a *hcl.Attribute, where string) {
	p.warn(a.Range, "a %s has no attribute %q", where, a.Name)
}

// targetName reports a name that a target or group cannot have.
func targetName(n string, r hcl.Range) error {
	if n == "" || sanitize(n) != n {
		return errs.New(errs.Invalid, "%s:%d: invalid name %q of a target or group: only letters, digits, _ and - are allowed", r.Filename, r.Start.Line, n)
	}
	return nil
}

// expand notes a group, a target, or the targets of its matrix.
func (p *parser) expand(out *Bake, b *hcl.Block) error {
	attrs, diags := b.Body.JustAttributes()
	if diags.HasErrors() {
		return diagnose(diags)
	}
	if err := targetName(b.Labels[0], b.LabelRanges[0]); err != nil {
		return err
	}
	matrix, name := attrs["matrix"], attrs["name"]
	if b.Type == "group" || matrix == nil {
		if name != nil && b.Type == "target" {
			return errs.New(errs.Invalid, "%s:%d: a target has a name only together with a matrix", name.Range.Filename, name.Range.Start.Line)
		}
		p.blocks = append(p.blocks, &instance{kind: b.Type, name: b.Labels[0], attrs: attrs, values: map[string]cty.Value{}})
		return p.bounded()
	}
	v, err := p.evaluate(matrix.Expr, nil)
	if err != nil {
		return err
	}
	all, err := combinations(matrix, v)
	if err != nil {
		return err
	}
	if name == nil && len(all) > 1 {
		return errs.New(errs.Invalid, "%s:%d: a target with a matrix needs a name", matrix.Range.Filename, matrix.Range.Start.Line)
	}
	group, seen := &Group{Targets: []string{}}, map[string]bool{}
	for _, vars := range all {
		n := &b.Labels[0]
		if name != nil {
			v, err := p.evaluate(name.Expr, vars)
			if err != nil {
				return err
			}
			if n, err = text(name, v); err != nil {
				return err
			}
			if n == nil {
				return targetName("", name.Range)
			}
			if err := targetName(*n, name.Range); err != nil {
				return err
			}
		}
		if seen[*n] {
			return errs.New(errs.Invalid, "%s:%d: the matrix makes the name %s twice", name.Range.Filename, name.Range.Start.Line, *n)
		}
		seen[*n] = true
		group.Targets = append(group.Targets, *n)
		p.blocks = append(p.blocks, &instance{kind: "target", name: *n, attrs: attrs, vars: vars, values: map[string]cty.Value{}})
		if err := p.bounded(); err != nil {
			return err
		}
	}
	if len(all) != 1 || group.Targets[0] != b.Labels[0] {
		out.Groups[b.Labels[0]] = group
	}
	return nil
}

func (p *parser) bounded() error {
	if len(p.blocks) > maxTargets {
		return errs.New(errs.Exhausted, "more than %d targets", maxTargets)
	}
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

// decode adds a target or group to what earlier files define: a target is merged, and a group replaced.
func (p *parser) decode(out *Bake, i *instance) error {
	if i.kind == "group" {
		g := &Group{}
		for _, key := range slices.Sorted(maps.Keys(i.attrs)) {
			a := i.attrs[key]
			v, err := p.attribute(i, key)
			if err != nil {
				return err
			}
			switch key {
			case "targets":
				g.Targets, err = texts(a, v)
			case "description":
				var d *string
				if d, err = text(a, v); d != nil {
					g.Description = *d
				}
			default:
				p.unknown(a, "group")
			}
			if err != nil {
				return err
			}
		}
		g.Targets = unique(g.Targets)
		out.Groups[i.name] = g
		return nil
	}
	t := &Target{}
	for _, key := range slices.Sorted(maps.Keys(i.attrs)) {
		if key == "matrix" || key == "name" {
			continue
		}
		a := i.attrs[key]
		v, err := p.attribute(i, key)
		if err == nil && !v.IsNull() {
			err = t.set(a, v)
		}
		if errors.Is(err, errUnknown) {
			p.unknown(a, "target")
			err = nil
		}
		if err != nil {
			return err
		}
	}
	if old := out.Targets[i.name]; old != nil {
		old.merge(t)
		return nil
	}
	out.Targets[i.name] = t
	return nil
}

// set sets an attribute of a target.
func (t *Target) set(a *hcl.Attribute, v cty.Value) (err error) {
	if l, k := t.entries(a.Name); l != nil {
		*l, err = entries(a, v, k)
		return err
	}
	if l := t.list(a.Name); l != nil {
		*l, err = texts(a, v)
		return err
	}
	if p := t.text(a.Name); p != nil {
		*p, err = text(a, v)
		return err
	}
	if p := t.truth(a.Name); p != nil {
		*p, err = truth(a, v)
		return err
	}
	if p := t.pairs(a.Name); p != nil {
		*p, err = pairs(a, v)
		return err
	}
	switch a.Name {
	case "description":
		var d *string
		if d, err = text(a, v); d != nil {
			t.Description = *d
		}
	case "contexts":
		var m map[string]*string
		if m, err = pairs(a, v); err != nil {
			return err
		}
		t.Contexts = map[string]string{}
		for k, s := range m {
			if s != nil {
				t.Contexts[k] = *s
			}
		}
	case "ssh":
		t.SSH, err = agents(a, v)
	case "policy":
		return errs.New(errs.Unimplemented, "%s:%d: policies are not evaluated by ply bake: build the target with docker buildx bake", a.Range.Filename, a.Range.Start.Line)
	default:
		return errUnknown
	}
	return err
}

// errUnknown is the error of an attribute that targets do not have.
var errUnknown = errors.New("unknown attribute")

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

// elements returns the elements of a list that are neither null nor empty.
func elements(a *hcl.Attribute, v cty.Value) ([]cty.Value, error) {
	if v.IsNull() {
		return nil, nil
	}
	if v.Type() == cty.String || !v.CanIterateElements() || v.Type().IsObjectType() || v.Type().IsMapType() {
		return nil, wrong(a, "want a list")
	}
	var out []cty.Value
	for it := v.ElementIterator(); it.Next(); {
		_, e := it.Element()
		if !e.IsNull() && e.IsKnown() && (e.Type() != cty.String || e.AsString() != "") {
			out = append(out, e)
		}
	}
	return out, nil
}

// texts reads a list of strings.
func texts(a *hcl.Attribute, v cty.Value) ([]string, error) {
	list, err := elements(a, v)
	out := []string{}
	for _, e := range list {
		s, err := text(a, e)
		if err != nil {
			return nil, err
		}
		out = append(out, *s)
	}
	return out, err
}

// entries reads a list of entries: objects, or strings as in the flags of build.
func entries(a *hcl.Attribute, v cty.Value, k kind) (Entries, error) {
	list, err := elements(a, v)
	out := Entries{}
	for _, e := range list {
		if e.Type().IsObjectType() || e.Type().IsMapType() {
			m, err := pairs(a, e)
			if err != nil {
				return nil, err
			}
			one := Entry{}
			for key, s := range m {
				if s != nil {
					one[key] = *s
				}
			}
			if one, err = k.check(one); err != nil {
				return nil, wrong(a, err)
			}
			out = append(out, one)
			continue
		}
		s, err := text(a, e)
		if err != nil {
			return nil, err
		}
		more, err := k.parse(*s)
		if err != nil {
			return nil, wrong(a, err)
		}
		out = append(out, more...)
	}
	return out, err
}

// agents reads a list of agents: objects, or strings as in --ssh.
func agents(a *hcl.Attribute, v cty.Value) ([]SSH, error) {
	list, err := elements(a, v)
	out := []SSH{}
	for _, e := range list {
		if !e.Type().IsObjectType() && !e.Type().IsMapType() {
			s, err := text(a, e)
			if err != nil {
				return nil, err
			}
			out = append(out, parseSSH(*s))
			continue
		}
		one := SSH{}
		for it := e.ElementIterator(); it.Next(); {
			key, value := it.Element()
			switch key.AsString() {
			case "id":
				s, err := text(a, value)
				if err != nil {
					return nil, err
				}
				if s != nil {
					one.ID = *s
				}
			case "paths":
				if one.Paths, err = texts(a, value); err != nil {
					return nil, err
				}
			default:
				return nil, wrong(a, fmt.Sprintf("an agent has no %q", key.AsString()))
			}
		}
		out = append(out, one)
	}
	return out, err
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
