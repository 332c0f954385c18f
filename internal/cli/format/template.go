// Package format turns rows and JSON documents into what the user asked for: docker's tables, Go templates with
// docker's functions, JSON lines, and re-indented JSON.
//
// A row is a struct whose exported string fields (and methods) are the template's fields; the table's titles are a
// Titles map with the same keys.
package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"text/template"

	"ply/internal/errs"
)

// Titles maps a field of a row to its column title.
type Titles map[string]string

// Label is the title of a column made with .Label "key".
func (t Titles) Label(name string) string {
	parts := strings.Split(name, ".")
	return strings.NewReplacer("-", " ", "_", " ").Replace(parts[len(parts)-1])
}

// Row marks a struct as a row: it is JSON-encoded as docker does, by field name in alphabetical order.
type Row interface{ IsRow() }

// RowMark is embedded in row structs.
type RowMark struct{}

// IsRow marks.
func (RowMark) IsRow() {}

// Funcs are docker's template functions.
func funcs(extra template.FuncMap) template.FuncMap {
	m := template.FuncMap{
		"json":     func(v any) (string, error) { return encodeJSON(v) },
		"split":    strings.Split,
		"join":     strings.Join,
		"title":    title,
		"lower":    strings.ToLower,
		"upper":    strings.ToUpper,
		"pad":      pad,
		"truncate": truncate,
	}
	for k, v := range extra {
		m[k] = v
	}
	return m
}

// titleFuncs leave titles alone where docker's header functions do.
var titleFuncs = template.FuncMap{
	"json":     func(v any) string { return fmt.Sprint(v) },
	"split":    func(v any, _ string) any { return v },
	"join":     func(v any, _ string) any { return v },
	"title":    func(v any) string { return fmt.Sprint(v) },
	"lower":    func(v any) string { return fmt.Sprint(v) },
	"upper":    func(v any) string { return fmt.Sprint(v) },
	"truncate": func(v any, _ int) string { return fmt.Sprint(v) },
}

func title(s string) string {
	up := true
	return strings.Map(func(r rune) rune {
		was := up
		up = r == ' '
		if was {
			return []rune(strings.ToUpper(string(r)))[0]
		}
		return r
	}, s)
}

func pad(s string, before, after int) string {
	if s == "" {
		return s
	}
	return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
}

func truncate(s string, n int) string {
	r := []rune(s)
	if len(r) < n {
		return s
	}
	return string(r[:n])
}

// Parse makes a template with docker's functions; the error is docker's.
func Parse(text string) (*template.Template, error) { return parse(text, nil) }

func parse(text string, extra template.FuncMap) (*template.Template, error) {
	t, err := template.New("").Funcs(funcs(extra)).Parse(text)
	if err != nil {
		return nil, errs.New(errs.Invalid, "template parsing error: %w", err)
	}
	return t, nil
}

// unescape turns the two-character forms \t and \n, as typed in a shell, into the characters.
var unescape = strings.NewReplacer(`\t`, "\t", `\n`, "\n")

// Uses reports whether a format names a field, so that costly fields are only asked for when shown.
func Uses(format, field string) bool {
	return strings.Contains(format, "."+field) || strings.Contains(format, "json")
}

// Table writes rows. format is "" or "table" (which both use def), "table TEMPLATE", "json" or TEMPLATE; def is a
// template without the word table. Rows are structs that embed RowMark.
func Table[T Row](w io.Writer, format, def string, titles Titles, rows []T) error {
	body, isTable := def, true
	switch {
	case format == "" || format == "table":
	case format == "json":
		body, isTable = "{{json .}}", false
	case strings.HasPrefix(format, "table"):
		body = strings.TrimSpace(strings.TrimPrefix(format, "table"))
	default:
		body, isTable = format, false
	}
	body = unescape.Replace(body)
	t, err := parse(body, nil)
	if err != nil {
		return errs.New(errs.Invalid, "failed to parse template: %w", errors.Unwrap(err))
	}
	if len(rows) == 0 { // a wrong field is told even when there is nothing to show
		var zero T
		if err := t.Execute(io.Discard, &zero); err != nil {
			return errs.New(errs.Invalid, "failed to execute template: %w", err)
		}
	}
	var buf bytes.Buffer
	if isTable {
		ht, err := parse(body, titleFuncs)
		if err != nil {
			return err
		}
		if err := ht.Execute(&buf, titles); err != nil {
			return errs.New(errs.Invalid, "template parsing error: %w", err)
		}
		buf.WriteByte('\n')
	}
	for i := range rows {
		if err := t.Execute(&buf, &rows[i]); err != nil {
			return errs.New(errs.Invalid, "failed to execute template: %w", err)
		}
		buf.WriteByte('\n')
	}
	if !isTable {
		_, err := w.Write(buf.Bytes())
		return err
	}
	tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	if _, err := tw.Write(buf.Bytes()); err != nil {
		return err
	}
	return tw.Flush()
}

// encodeJSON encodes without HTML escapes, but a row as docker's own marshaller does.
func encodeJSON(v any) (string, error) {
	if v == nil {
		return "null", nil
	}
	if _, ok := v.(Row); ok {
		b, err := json.Marshal(rowMap(reflect.Indirect(reflect.ValueOf(v))))
		return string(b), err
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSpace(buf.String()), nil
}

func rowMap(v reflect.Value) map[string]any {
	m := make(map[string]any, v.NumField())
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() || f.Anonymous || f.Tag.Get("json") == "-" {
			continue
		}
		m[f.Name] = v.Field(i).Interface()
	}
	return m
}
