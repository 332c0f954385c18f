package dockerfile_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/oci"
)

// A Dockerfile may set as many variables, labels and volumes as it has lines, each on its own. The memory that stays in use grows with the lines, although
// the config after each line has all that the lines before it set.
func TestManySettings(t *testing.T) {
	const n = 3000
	for name, c := range map[string]struct {
		line string
		size func(oci.RunConfig) int
	}{
		"ENV":    {"ENV A%d=1\n", func(c oci.RunConfig) int { return len(c.Env) - 1 }}, // PATH
		"LABEL":  {"LABEL l%d=1\n", func(c oci.RunConfig) int { return len(c.Labels) }},
		"EXPOSE": {"EXPOSE %d\n", func(c oci.RunConfig) int { return len(c.ExposedPorts) }},
		"VOLUME": {"VOLUME /v%d\n", func(c oci.RunConfig) int { return len(c.Volumes) }},
	} {
		t.Run(name, func(t *testing.T) {
			var text strings.Builder
			text.WriteString("FROM alpine\n")
			for i := range n {
				fmt.Fprintf(&text, c.line, i+1)
			}
			retained := func() int64 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			before := retained()
			out, _, err := build(text.String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			img := out.Images[0]
			if mib := (retained() - before) >> 20; mib > 24 {
				t.Errorf("%d MiB stay in use", mib)
			}
			at := 0
			var last oci.RunConfig
			for cfg := range img.Configs() {
				if got := c.size(cfg); got != at {
					t.Fatalf("after step %d: %d settings", at, got)
				}
				last = cfg
				at++
			}
			if at != len(img.Steps) || at != n+1 {
				t.Errorf("%d configs of %d steps", at, len(img.Steps))
			}
			var want oci.Config
			if err := json.Unmarshal(img.Config, &want); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want.Config, last); d != "" {
				t.Error(d)
			}
			for range img.Configs() { // who stops early gets nothing more
				break
			}
		})
	}
}
