package spec

import (
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMergeLogFillsInEachOptionOfTheDefaultDriver(t *testing.T) {
	defaults := map[string]string{"max-size": "1m", "max-file": "3"}
	for _, c := range []struct {
		name   string
		driver string
		opts   map[string]string
		def    string
		want   Spec
	}{
		{"nothing set", "", nil, "json-file", Spec{LogDriver: "json-file", LogOpts: defaults}},
		{"an empty object, as the docker client sends it", "", map[string]string{}, "json-file", Spec{LogDriver: "json-file", LogOpts: defaults}},
		{"one option set", "", map[string]string{"max-file": "5"}, "json-file", Spec{LogDriver: "json-file", LogOpts: map[string]string{"max-size": "1m", "max-file": "5"}}},
		{"an option that has no default", "", map[string]string{"compress": "true"}, "json-file",
			Spec{LogDriver: "json-file", LogOpts: map[string]string{"max-size": "1m", "max-file": "3", "compress": "true"}}},
		{"the default driver by name", "json-file", nil, "json-file", Spec{LogDriver: "json-file", LogOpts: defaults}},
		{"another driver", "local", nil, "json-file", Spec{LogDriver: "local"}},
		{"another driver with options", "local", map[string]string{"max-size": "2m"}, "json-file", Spec{LogDriver: "local", LogOpts: map[string]string{"max-size": "2m"}}},
		{"no log by default", "", nil, "none", Spec{LogDriver: "none"}},
	} {
		before := maps.Clone(defaults)
		got := Spec{LogDriver: c.driver, LogOpts: maps.Clone(c.opts)}
		got.MergeLog(c.def, defaults)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if d := cmp.Diff(before, defaults); d != "" {
			t.Errorf("%s: the defaults changed:\n%s", c.name, d)
		}
		if len(got.LogOpts) > 0 {
			got.LogOpts["max-size"] = "changed"
			if defaults["max-size"] != "1m" {
				t.Errorf("%s: a container shares the map of the defaults", c.name)
			}
		}
	}
}
