package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/template"

	"ply/internal/errs"
)

// stringMaps and stringList name the fields that are null in JSON when they are empty, and that templates index and join.
var (
	stringMaps = set("Labels", "Options", "Opts", "DriverOpts", "Sysctls", "Annotations", "StorageOpt", "Tmpfs", "Data")
	stringList = set("Cmd", "Entrypoint", "Env", "Args", "RepoTags", "RepoDigests", "Binds", "VolumesFrom", "CapAdd", "CapDrop",
		"Dns", "DnsOptions", "DnsSearch", "ExtraHosts", "GroupAdd", "Links", "SecurityOpt", "Aliases", "OnBuild", "Shell",
		"Layers", "ExecIDs", "Warnings", "MaskedPaths", "ReadonlyPaths", "DNSNames", "SecurityOptions")
)

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// Document decodes one JSON document for templates. Numbers become int64 or float64, and lists of strings []string. The fields
// that stringMaps and stringList name become map[string]string and []string, also when they are null.
func Document(raw []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, errs.New(errs.Invalid, "answer of the daemon: %w", err)
	}
	return refine("", v), nil
}

func refine(name string, v any) any {
	switch x := v.(type) {
	case nil:
		if stringMaps[name] {
			return map[string]string(nil)
		}
		if stringList[name] {
			return []string(nil)
		}
		return nil
	case json.Number:
		if n, err := x.Int64(); err == nil {
			return n
		}
		f, _ := x.Float64()
		return f
	case []any:
		return refineList(name, x)
	case map[string]any:
		return refineMap(name, x)
	}
	return v
}

func refineList(name string, list []any) any {
	strs := make([]string, 0, len(list))
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			break
		}
		strs = append(strs, s)
	}
	if len(strs) == len(list) && (len(list) > 0 || stringList[name]) {
		return strs
	}
	for i, e := range list {
		list[i] = refine("", e)
	}
	return list
}

func refineMap(name string, m map[string]any) any {
	if stringMaps[name] {
		out := make(map[string]string, len(m))
		for k, e := range m {
			s, ok := e.(string)
			if !ok {
				out = nil
				break
			}
			out[k] = s
		}
		if out != nil {
			return out
		}
	}
	for k, e := range m {
		m[k] = refine(k, e)
	}
	return m
}

// sources maps a decoded object or list to its JSON source, so that {{json .X}} keeps the engine's order of keys.
type sources map[identity]string

// identity identifies a decoded object or list: its address, and the length of a list, because a part of the list may have the
// same address.
type identity struct {
	at  uintptr
	len int
}

func identityOf(v any) (id identity, ok bool) {
	switch x := v.(type) {
	case map[string]any:
		return identity{at: reflect.ValueOf(x).Pointer()}, true
	case []any:
		return identity{reflect.ValueOf(x).Pointer(), len(x)}, len(x) > 0
	}
	return id, false
}

// encode encodes v as JSON: from its source when there is one.
func (s sources) encode(v any) (string, error) {
	if id, ok := identityOf(v); ok {
		if text, ok := s[id]; ok {
			return text, nil
		}
	}
	return encodeJSON(v)
}

// add records the source of v.
func (s sources) add(v any, raw []byte) {
	var c bytes.Buffer
	if id, ok := identityOf(v); ok && json.Compact(&c, raw) == nil {
		s[id] = unescapeHTML(c.String())
	}
}

// index walks a document and its decoded value side by side, and records the source of every object and list.
func index(raw []byte, v any, into sources) {
	switch x := v.(type) {
	case map[string]any:
		var parts map[string]json.RawMessage
		if json.Unmarshal(raw, &parts) != nil {
			return
		}
		into.add(v, raw)
		for k, p := range parts {
			index(p, x[k], into)
		}
	case []any:
		var parts []json.RawMessage
		if json.Unmarshal(raw, &parts) != nil || len(parts) != len(x) {
			return
		}
		into.add(v, raw)
		for i := range parts {
			index(parts[i], x[i], into)
		}
	}
}

// Execute prints one JSON document with a template, as docker's inspect does.
func Execute(w io.Writer, t *template.Template, raw []byte) error {
	v, err := Document(raw)
	if err != nil {
		return err
	}
	source := sources{}
	index(raw, v, source)
	if m, ok := v.(map[string]any); ok {
		if id, has := m["Id"]; has {
			if _, taken := m["ID"]; !taken {
				m["ID"] = id
			}
		}
	}
	var buf bytes.Buffer
	t.Funcs(template.FuncMap{"json": source.encode})
	err = t.Option("missingkey=error").Execute(&buf, v)
	if err != nil && missingInStrings(err) {
		buf.Reset()
		err = t.Option("missingkey=default").Execute(&buf, v)
	}
	if m, ok := v.(map[string]any); err != nil && ok && addAbsent(m) {
		var second bytes.Buffer
		if t.Option("missingkey=error").Execute(&second, v) == nil {
			buf, err = second, nil
		}
	}
	if err != nil {
		return errs.New(errs.Invalid, "template parsing error: %w", err)
	}
	buf.WriteByte('\n')
	_, err = w.Write(buf.Bytes())
	return err
}

// none is a field that docker's types declare as a pointer and that a document lacks. It is printed as <nil>, is false in a
// condition, and has no fields.
type none struct{}

// absent has, for each object of a container or an image, the fields that docker leaves out of the JSON when they are empty, with the
// values that docker's templates see then. "" is the document itself.
var absent = map[string]map[string]any{
	"": {"SizeRw": (*none)(nil), "SizeRootFs": (*none)(nil)},
	"Config": {"Healthcheck": (*none)(nil), "StopTimeout": (*none)(nil), "ExposedPorts": map[string]any(nil), "Shell": []string(nil),
		"StopSignal": "", "MacAddress": "", "ArgsEscaped": false, "NetworkDisabled": false},
	"State": {"Health": (*none)(nil)},
}

// addAbsent adds the fields of absent that a document lacks, and reports whether it has added one.
func addAbsent(doc map[string]any) (added bool) {
	if _, ok := doc["Config"].(map[string]any); !ok {
		return false
	}
	for name, fields := range absent {
		object := doc
		if name != "" {
			object, _ = doc[name].(map[string]any)
		}
		for field, value := range fields {
			if _, has := object[field]; !has && object != nil {
				object[field] = value
				added = true
			}
		}
	}
	return added
}

// missingInStrings reports whether err is about a missing key of a map of strings, such as a label. Unlike a missing field, that is
// not an error. text/template has no type for it.
func missingInStrings(err error) bool {
	text := err.Error()
	if !strings.Contains(text, "map has no entry for key") {
		return false
	}
	for name := range stringMaps {
		if strings.Contains(text, "."+name+".") {
			return true
		}
	}
	return false
}

// Inspect writes documents as `inspect` does: as an indented array, for "json" as an array on one line, or with a template per
// document.
func Inspect(w io.Writer, format string, docs []json.RawMessage) error {
	switch format {
	case "":
		return indentArray(w, docs)
	case "json":
		var c bytes.Buffer
		if err := json.Compact(&c, joinDocs(docs)); err != nil {
			return errs.New(errs.Invalid, "answer of the daemon: %w", err)
		}
		_, err := fmt.Fprintln(w, c.String())
		return err
	}
	t, err := Parse(unescape.Replace(format))
	if err != nil {
		return err
	}
	for _, d := range docs {
		if err := Execute(w, t, d); err != nil {
			return err
		}
	}
	return nil
}

func joinDocs(docs []json.RawMessage) []byte {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, d := range docs {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(d)
	}
	b.WriteByte(']')
	return b.Bytes()
}

func indentArray(w io.Writer, docs []json.RawMessage) error {
	var out bytes.Buffer
	if err := json.Indent(&out, joinDocs(docs), "", "    "); err != nil {
		return errs.New(errs.Invalid, "answer of the daemon: %w", err)
	}
	_, err := io.WriteString(w, strings.TrimRight(out.String(), "\n")+"\n")
	return err
}

// unescapeHTML replaces the escapes of <, > and & in JSON text, which Go's encoder makes, by the characters.
func unescapeHTML(s string) string {
	if !strings.Contains(s, `\u00`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 >= len(s) {
			b.WriteByte(s[i])
			continue
		}
		if i+6 <= len(s) {
			if c, ok := htmlEscapes[s[i:i+6]]; ok {
				b.WriteByte(c)
				i += 5
				continue
			}
		}
		b.WriteString(s[i : i+2])
		i++
	}
	return b.String()
}

var htmlEscapes = map[string]byte{`\u003c`: '<', `\u003e`: '>', `\u0026`: '&'}
