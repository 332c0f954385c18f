// Package recordtest compares stored records with golden files, so that no change of their form goes unnoticed.
package recordtest

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"ply/internal/record"
	"ply/internal/version"
)

var update = flag.Bool("update-records", false, "rewrite the golden files of records")

// writer stands in golden files for the release that wrote the record.
const writer = `"writer": "RELEASE"`

// Golden compares data, an encoded record, with testdata/<name>, where it is indented and the writer is replaced. It
// fails when a stored record would change its form. A deliberate change gets a golden file of its own, and the old file
// stays for Decodes. The flag -update-records writes the file instead.
func Golden(t testing.TB, name string, data []byte) {
	t.Helper()
	var got bytes.Buffer
	if err := json.Indent(&got, data, "", "  "); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	text := strings.Replace(got.String(), `"writer": "`+version.Version+`"`, writer, 1) + "\n"
	if !strings.Contains(text, writer) {
		t.Errorf("%s: the record does not name its writer:\n%s", name, data)
	}
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s: a stored record has changed its form\ngot:\n%s\nwant:\n%s", name, text, want)
	}
}

// Read returns testdata/<name> as it would be stored.
func Read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	if err := json.Compact(&data, b); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return data.Bytes()
}

// Decodes decodes testdata/<name>, written by this build or an earlier one, and compares the result with want.
func Decodes[T any](t testing.TB, name string, known int, want T) {
	t.Helper()
	var got T
	if err := record.Unmarshal(name, Read(t, name), known, &got); err != nil {
		t.Error(err)
	} else if !reflect.DeepEqual(got, want) {
		t.Errorf("%s decodes to\n%+v, want\n%+v", name, got, want)
	}
}

// Filled fails when a field of v, at any depth, is zero: a golden file of v would not show that field's name.
// Fields named in except, by their path such as "Platform.Variant", may be zero.
func Filled(t testing.TB, v any, except ...string) {
	t.Helper()
	skip := map[string]bool{}
	for _, e := range except {
		skip[e] = true
	}
	filled(t, "", reflect.ValueOf(v), skip)
}

func filled(t testing.TB, path string, v reflect.Value, skip map[string]bool) {
	t.Helper()
	switch {
	case skip[path]:
	case v.IsZero():
		t.Errorf("%s is zero, so the golden file would not show it", path)
	case v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface:
		filled(t, path, v.Elem(), skip)
	case v.Kind() == reflect.Slice || v.Kind() == reflect.Array:
		if v.Len() == 0 {
			t.Errorf("%s is empty, so the golden file would not show it", path)
		} else {
			filled(t, path, v.Index(0), skip)
		}
	case v.Kind() == reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if it.Value().Type().Size() > 0 {
				filled(t, path, it.Value(), skip)
			}
			break
		}
	case v.Kind() == reflect.Struct && v.Type().String() != "time.Time":
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() && !f.Anonymous || f.Tag.Get("json") == "-" {
				continue
			}
			name := f.Name
			if path != "" {
				name = path + "." + name
			}
			if f.Anonymous {
				name = path
			} else if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == "" {
				t.Errorf("%s has no explicit JSON name", name)
			}
			filled(t, name, v.Field(i), skip)
		}
	}
}
