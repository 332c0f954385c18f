package docker

import (
	"encoding/json"
	"maps"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"ply/internal/wire"
)

// bodies are the types of the JSON bodies of requests.
var bodies = map[string]any{
	"/containers/create": wire.CreateBody{}, "/containers/web/update": wire.UpdateBody{}, "/containers/web/exec": wire.ExecBody{},
	"/exec/e1/start": wire.ExecStart{}, "/networks/create": wire.NetworkBody{}, "/networks/mine/connect": wire.NetworkConnect{},
	"/networks/mine/disconnect": wire.NetworkDisconnect{}, "/volumes/create": wire.VolumeBody{}, "/auth": wire.Auth{}, "/commit?container=web": wire.Config{},
}

// wrongs returns, for each field below a type, a document in which that field alone has a value of the wrong type.
func wrongs(typ reflect.Type, depth int) []any {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if depth > 6 || reflect.PointerTo(typ).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	var out []any
	switch typ.Kind() {
	case reflect.Struct:
		for f := range typ.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "-" || !f.IsExported() {
				continue
			}
			below := wrongs(f.Type, depth+1)
			if f.Anonymous && name == "" {
				out = append(out, below...)
				continue
			}
			if name == "" {
				name = f.Name
			}
			for _, v := range below {
				out = append(out, map[string]any{name: v})
			}
		}
		return append(out, "text", 5, []any{1})
	case reflect.Map:
		for _, v := range wrongs(typ.Elem(), depth+1) {
			out = append(out, map[string]any{"key": v})
		}
		return append(out, "text", 5, []any{1})
	case reflect.Slice, reflect.Array:
		for _, v := range wrongs(typ.Elem(), depth+1) {
			out = append(out, []any{v})
		}
		return append(out, 5, map[string]any{"a": 1})
	case reflect.String:
		return []any{5, []any{"x"}, map[string]any{"a": 1}}
	case reflect.Bool:
		return []any{"yes", 5, []any{}}
	case reflect.Interface:
		return nil
	}
	return []any{"many", []any{1}, map[string]any{}, 1e300}
}

// A field of the wrong type, wherever it is in a body, is refused, and no handler panics.
func TestEveryFieldOfTheWrongType(t *testing.T) {
	w := newWorld(t)
	tried, codes := 0, map[int]int{}
	for _, path := range slices.Sorted(maps.Keys(bodies)) {
		for _, doc := range wrongs(reflect.TypeOf(bodies[path]), 0) {
			body, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest("POST", "/v1.51"+path, strings.NewReader(string(body)))
			r.Header.Set("Content-Type", "application/json")
			rec := httptest.NewRecorder()
			w.api.ServeHTTP(&fullDuplex{rec}, r)
			tried++
			codes[rec.Code]++
			if rec.Code < 400 || rec.Code >= 500 || strings.Contains(rec.Body.String(), "this is a bug") {
				t.Errorf("POST %s %s = %d %s, want 4xx", path, body, rec.Code, rec.Body)
			}
		}
	}
	if tried < 500 || codes[400] < tried*9/10 { // the others name what is not there
		t.Errorf("%d documents, statuses %v", tried, codes)
	}
}
