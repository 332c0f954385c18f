package record_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/version"
)

type thing struct {
	Name  string            `json:"name"`
	Count int               `json:"count,omitempty"`
	Tags  map[string]string `json:"tags,omitempty"`
}

func TestMarshal(t *testing.T) {
	v := thing{Name: "a<b>", Count: 2, Tags: map[string]string{"z": "1", "a": "2"}}
	data, err := record.Marshal(3, v)
	want := `{"version":3,"writer":"` + version.Version + `","name":"a\u003cb\u003e","count":2,"tags":{"a":"2","z":"1"}}`
	if err != nil || string(data) != want {
		t.Errorf("Marshal = %s, %v; want %s", data, err, want)
	}
	for range 10 {
		if again, _ := record.Marshal(3, v); string(again) != want {
			t.Fatalf("Marshal is not deterministic: %s", again)
		}
	}
	var back thing
	if err := record.Unmarshal("thing", data, 3, &back); err != nil || back.Name != v.Name || back.Tags["z"] != "1" {
		t.Errorf("Unmarshal = %+v, %v", back, err)
	}
	if data, err := record.Marshal(1, struct{}{}); err != nil || string(data) != `{"version":1,"writer":"`+version.Version+`"}` {
		t.Errorf("Marshal of no fields = %s, %v", data, err)
	}
}

func TestMarshalRefusesWhatIsNoRecord(t *testing.T) {
	for name, v := range map[string]any{
		"a list":                   []int{1},
		"null":                     (*thing)(nil),
		"a number":                 7,
		"a field named version":    map[string]any{"version": 1},
		"a field named version: 0": map[string]any{"version": nil},
		"a field named writer":     struct{ Writer string }{"x"},
		"a channel":                make(chan int),
	} {
		if data, err := record.Marshal(1, v); !errors.Is(err, errs.Internal) {
			t.Errorf("%s: Marshal = %s, %v; want class Internal", name, data, err)
		}
	}
}

func TestOldAndUnknown(t *testing.T) {
	for name, text := range map[string]string{
		"without a version":                `{"name":"x","count":4}`,
		"version 1, unknown fields":        `{"version":1,"writer":"0.0.1","name":"x","count":4,"later":{"a":[1]}}`,
		"fields in any order, blank space": " {\n\"name\": \"x\", \"count\": 4, \"version\": 2}\n",
	} {
		var v thing
		if err := record.Unmarshal("thing", []byte(text), 2, &v); err != nil || v.Name != "x" || v.Count != 4 {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	h, err := record.ReadHeader("thing", []byte(`{"name":"x"}`), 2)
	if err != nil || h != (record.Header{Version: 1}) {
		t.Errorf("header of a record without one = %+v, %v", h, err)
	}
	h, err = record.ReadHeader("thing", []byte(`{"version":2,"writer":"9.8"}`), 2)
	if err != nil || h != (record.Header{Version: 2, Writer: "9.8"}) {
		t.Errorf("header = %+v, %v", h, err)
	}
}

func TestNewerIsRefusedWithItsWriter(t *testing.T) {
	for text, writer := range map[string]string{
		`{"version":3,"writer":"9.8.7","name":7}`:                    "ply 9.8.7",
		`{"version":3,"name":"x"}`:                                   "a newer release",
		`{"version":3,"writer":{"release":"9"}}`:                     "a newer release",
		`{"version":3,"writer":"\u001b[31mred"}`:                     "a newer release",
		`{"version":99999,"writer":"9.8.7-rc1+build.5"}`:             "ply 9.8.7-rc1+build.5",
		`{"version":3,"writer":"` + strings.Repeat("9", 1000) + `"}`: "a newer release",
	} {
		var v thing
		err := record.Unmarshal("container abc", []byte(text), 2, &v)
		if !errors.Is(err, errs.Precondition) || v.Name != "" {
			t.Errorf("%.60s: %v, %+v; want class Precondition", text, err, v)
			continue
		}
		for _, part := range []string{"container abc has version ", "written by " + writer, version.Version, "up to 2", "Run " + writer} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%.60s: the error %q does not say %q", text, err, part)
			}
		}
	}
}

func TestDamage(t *testing.T) {
	for _, text := range []string{
		``, ` `, `null`, `[]`, `7`, `"x"`, `{`, `{"name":"x"`, `{"name":"x"}}`, `{"name":"x"} {}`, "\x00\x00\x00", `{"name":7}`,
		`{"version":0}`, `{"version":-1}`, `{"version":1.5}`, `{"version":"1"}`, `{"version":null}`, `{"version":1e3}`,
		`{"version":99999999999999999999}`, `{"version":1,"writer":7}`, `{"version":1,"name":{}}`,
		strings.Repeat(`{"a":`, 20000),
	} {
		var v thing
		err := record.Unmarshal("thing", []byte(text), 1, &v)
		if !errors.Is(err, errs.DataLoss) || !strings.HasPrefix(err.Error(), "thing: ") {
			t.Errorf("%.60q: %v; want class DataLoss", text, err)
		}
	}
}

func TestFiles(t *testing.T) {
	name := filepath.Join(t.TempDir(), "thing.json")
	var v thing
	if err := record.ReadFile(durable.OS, name, 100, 1, &v); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadFile of no file: %v", err)
	}
	if err := record.WriteFile(durable.OS, name, 1, thing{Name: "x"}, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := record.ReadFile(durable.OS, name, 100, 1, &v); err != nil || v.Name != "x" {
		t.Errorf("ReadFile = %+v, %v", v, err)
	}
	if err := record.ReadFile(durable.OS, name, 10, 1, &v); err == nil {
		t.Error("ReadFile over its limit returned no error")
	}
	if err := record.WriteFile(durable.OS, name, 2, thing{Name: "y"}, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := record.ReadFile(durable.OS, name, 100, 1, &v); !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), name) {
		t.Errorf("ReadFile of a newer version: %v", err)
	}
}

func TestGolden(t *testing.T) {
	v := thing{Name: "x", Count: 1, Tags: map[string]string{"a": "b"}}
	recordtest.Filled(t, v)
	data, err := record.Marshal(1, v)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "thing.json", data)
	recordtest.Decodes(t, "thing.json", 1, v)
}

func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"version":1,"writer":"0.1.0","name":"x"}`))
	f.Add([]byte(`{"version":2,"writer":"\u0000"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var v thing
		err := record.Unmarshal("thing", data, 1, &v)
		if err != nil && !errors.Is(err, errs.DataLoss) && !errors.Is(err, errs.Precondition) {
			t.Errorf("%q: %v", data, err)
		}
	})
}

// CheckHeader fails where ReadHeader fails, for records as Marshal writes them and for others that are whole.
func TestCheckHeader(t *testing.T) {
	good, err := record.Marshal(2, map[string]any{"a": map[string]string{"version": "x"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range []string{
		string(good), `{"version":1,"writer":"x","a":1}`, `{"version":3,"writer":"x"}`, `{"version":0,"writer":"x"}`, `{"version":01,"writer":"x"}`, `{"version":"1","writer":"x"}`,
		`{"version":1,"writer":"x","version":3}`, `{"version":1,"writer":"\u0041"}`, `{"writer":"x","version":3}`, `{}`, `[]`, ``, `{"version":1,"writer":7}`, `{"version":99999999999999999999,"writer":"x"}`,
	} {
		_, want := record.ReadHeader("r", []byte(data), 2)
		if got := record.CheckHeader("r", []byte(data), 2); (got == nil) != (want == nil) || got != nil && got.Error() != want.Error() {
			t.Errorf("%s: %v, want %v", data, got, want)
		}
	}
}
