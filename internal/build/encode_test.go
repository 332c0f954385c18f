package build

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"ply/internal/build/dockerfile"
	"ply/internal/oci"
)

// The config of an image has the fields that are unknown here, also those that the config of another image does not have.
func TestConfigsKeepUnknownFields(t *testing.T) {
	const known = `{"architecture":"amd64","config":{"Env":["A=<1>"]},"history":[{"created_by":"x"}],"os":"linux","rootfs":{"type":"layers","diff_ids":[]}`
	for more, want := range map[string]string{"": "", `,"os.version":"1"`: `"os.version":"1"`, `,"x":{"b":1,"a":2}`: `"x":{"b":1,"a":2}`} {
		m := &making{out: &dockerfile.Image{}}
		var err error
		if m.config, m.fields, err = decodeConfig([]byte(known + more + "}")); err != nil {
			t.Fatal(err)
		}
		raw, err := m.encode(nil, 1)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), want) || !strings.Contains(string(raw), `"Env":["A=\u003c1\u003e"]`) {
			t.Errorf("%q is lost in %s", more, raw)
		}
		m.fields["never-there"] = json.RawMessage("null")
		long, err := m.encode(nil, 1)
		if got := strings.Replace(string(long), `,"never-there":null`, "", 1); err != nil || got != string(raw) {
			t.Errorf("%v\n%s is another config than\n%s", err, got, raw)
		}
	}
}

// BenchmarkEncode encodes the config after 150 steps.
func BenchmarkEncode(b *testing.B) {
	m := &making{out: &dockerfile.Image{}}
	m.config = oci.Config{Architecture: "amd64", OS: "linux"}
	m.fields = map[string]json.RawMessage{"architecture": json.RawMessage(`"amd64"`), "os": json.RawMessage(`"linux"`)}
	for i := range 150 {
		m.chain = append(m.chain, oci.DiffID(oci.DigestOf(fmt.Append(nil, i))))
		m.config.History = append(m.config.History, oci.History{CreatedBy: "RUN /bin/sh -c echo a command of some length", Comment: "a comment"})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.encode(nil, 150); err != nil {
			b.Fatal(err)
		}
	}
}
