// Package format prints rows and JSON documents in the form that the user asked for: docker's tables, Go templates with docker's
// functions, JSON lines, and indented JSON.
//
// A row is a struct. Its exported fields and methods are the fields of the template, and a Titles map with the same keys holds the
// titles of the columns.
package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/template"

	"ply/internal/errs"
)

// Titles maps a field of a row to its column title.
type Titles map[string]string

// Label returns the title of a column that is made with .Label "key".
func (t Titles) Label(name string) string {
	parts := strings.Split(name, ".")
	return strings.NewReplacer("-", " ", "_", " ").Replace(parts[len(parts)-1])
}

// Row is a struct that embeds RowMark. It is encoded as JSON by field name, in alphabetical order, as docker does.
type Row interface{ IsRow() }

// RowMark makes the struct that embeds it a Row.
type RowMark struct{}

// IsRow does nothing.
func (RowMark) IsRow() {}

// funcs returns docker's template functions, and the extra ones.
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

// titleFuncs take the place of docker's functions in the line of titles, which they do not change.
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

// Parse parses a template that uses docker's functions. The error is docker's.
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

// Uses reports whether a template names a field, so that the engine computes expensive fields only when they are shown. A format
// that prints whole rows as JSON does not count.
func Uses(format, field string) bool {
	return strings.Contains(format, "."+field) && !strings.Contains(format, "json")
}

// Table writes rows. format is the value of --format: "" or "table", which both use the template def, or "table TEMPLATE", "json" or
// TEMPLATE.
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
	if len(rows) == 0 { // a wrong field is an error even when there is nothing to show
		var zero T
		if err := t.Execute(io.Discard, &zero); err != nil {
			return rowError[T](err)
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
	for _, row := range rows {
		if isTable { // the template is the user's and may drive the terminal; what it shows may not
			for _, field := range reflect.ValueOf(&row).Elem().Fields() {
				if field.Kind() == reflect.String && field.CanSet() {
					field.SetString(visible(field.String()))
				}
			}
		}
		if err := t.Execute(&buf, &row); err != nil {
			return rowError[T](err)
		}
		buf.WriteByte('\n')
	}
	if !isTable {
		_, err := w.Write(buf.Bytes())
		return err
	}
	return aligned(w, 10, buf.Bytes())
}

// rowError returns the error of a template that does not fit its row. Package text/template puts the Go type of the row into the
// text, which users see: it always reads cli.psRow, cli.imageRow and so on, wherever the type is declared.
func rowError[T Row](err error) error {
	t := reflect.TypeFor[T]()
	name := "cli." + strings.ToLower(t.Name()[:1]) + t.Name()[1:]
	return errs.New(errs.Invalid, "failed to execute template: %s", strings.ReplaceAll(err.Error(), t.String(), name))
}

// encodeJSON encodes v without HTML escapes. A row it encodes as docker does: by field name in order, and with the escapes.
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

// EncodeRows encodes rows as docker does, as a list.
func EncodeRows[T Row](rows []T) (json.RawMessage, error) {
	list := make([]map[string]any, len(rows))
	for i := range rows {
		list[i] = rowMap(reflect.ValueOf(rows[i]))
	}
	return json.Marshal(list)
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
