package format

import (
	"encoding/json"
	"strings"
	"testing"
)

// Fields that docker leaves out of the JSON when they are empty are there for templates, as in docker. The error of a field of an
// absent object is docker's.
func TestAbsentFields(t *testing.T) {
	docs := []json.RawMessage{json.RawMessage(`{"Id":"c1","State":{"Status":"running"},"Config":{"Image":"box","Labels":null}}`)}
	for tmpl, want := range map[string]string{
		`{{.Config.Healthcheck}}`:                                         "<nil>",
		`{{json .Config.Healthcheck}}`:                                    "null",
		`{{if .State.Health}}{{.State.Health.Status}}{{end}}ok`:           "ok",
		`{{if .Config.Healthcheck}}has{{else}}{{.State.Status}}{{end}}`:   "running",
		`{{.Config.StopSignal}}{{.Config.ExposedPorts}}{{.Config.Shell}}`: "map[][]",
		`{{with .Config.StopTimeout}}{{.}}{{end}}{{.SizeRw}}`:             "<nil>",
		`{{json .Config}}`: `{"Image":"box","Labels":null}`,
	} {
		var b strings.Builder
		if err := Inspect(&b, tmpl, docs); err != nil || b.String() != want+"\n" {
			t.Errorf("%s = %q, %v, want %q", tmpl, b.String(), err, want)
		}
	}
	for tmpl, want := range map[string]string{
		`{{.State.Health.Status}}`: `map has no entry for key "Health"`,
		`{{.Config.Nothing}}`:      `map has no entry for key "Nothing"`,
		`{{.Nothing}}`:             `map has no entry for key "Nothing"`,
	} {
		var b strings.Builder
		if err := Inspect(&b, tmpl, docs); err == nil || !strings.Contains(err.Error(), want) || b.Len() > 0 {
			t.Errorf("%s = %q, %v, want the error %q", tmpl, b.String(), err, want)
		}
	}
	network := []json.RawMessage{json.RawMessage(`{"Name":"n"}`)}
	if err := Inspect(&strings.Builder{}, `{{.SizeRw}}`, network); err == nil {
		t.Error("a network has the fields of a container")
	}
}
