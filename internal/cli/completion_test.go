package cli

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// Values of flags are completed: those that are fixed without an engine, names with it.
func TestCompleteFlags(t *testing.T) {
	for _, c := range []struct {
		words string
		want  []string
	}{
		{"run --restart ", []string{"no", "on-failure", "on-failure:", "always", "unless-stopped"}},
		{"update --restart ", []string{"no", "on-failure", "on-failure:", "always", "unless-stopped"}},
		{"run --pull ", []string{"always", "missing", "never"}},
		{"container create --pull ", []string{"always", "missing", "never"}},
		{"build --network ", []string{"default", "host", "none"}},
		{"images --filter ", []string{"before=", "dangling=", "label=", "reference=", "since=", "until="}},
		{"ps --filter health=", []string{"health=healthy", "health=none", "health=starting", "health=unhealthy"}},
		{"container prune --filter ", []string{"label=", "label!=", "until="}},
		{"volume prune --filter ", []string{"all=", "label=", "label!="}},
		{"search --filter is-official=", []string{"is-official=true", "is-official=false"}},
	} {
		var out, errs bytes.Buffer
		if code := Run(t.Context(), invocation(nil, &out, &errs), append([]string{"__complete"}, strings.Split(c.words, " ")...)); code != 0 {
			t.Errorf("%q: exit code %d: %s", c.words, code, &errs)
		}
		got := strings.Split(out.String(), "\n")
		if len(got) < 2 || !slices.Equal(got[:len(got)-2], c.want) {
			t.Errorf("%q completes\n%q, want\n%q", c.words, got, c.want)
		}
	}
}

// Every command that has --filter has keys to complete, and what the tables name exists.
func TestCompletionTablesAreComplete(t *testing.T) {
	root := newRoot(invocation(nil, &bytes.Buffer{}, &bytes.Buffer{}))
	for path := range flagsOfCommands {
		if c, rest, err := root.Find(strings.Fields(path)); err != nil || len(rest) > 0 || commandPath(c) != path {
			t.Errorf("there is no command %q", path)
		}
	}
	for path := range filterKeys {
		if path == "prune" {
			continue
		}
		if c, rest, err := root.Find(strings.Fields(path)); err != nil || len(rest) > 0 || c.Flags().Lookup("filter") == nil || commandPath(c) != path {
			t.Errorf("there is no command %q with --filter", path)
		}
	}
	var walk func(path []string)
	walk = func(path []string) {
		c, _, err := root.Find(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, sub := range c.Commands() {
			walk(append(slices.Clone(path), sub.Name()))
		}
		if c.Flags().Lookup("filter") != nil && len(path) > 0 {
			var out bytes.Buffer
			Run(t.Context(), invocation(nil, &out, &bytes.Buffer{}), append(append([]string{"__complete"}, path...), "--filter", ""))
			if !strings.Contains(out.String(), "=\n") {
				t.Errorf("%q --filter completes nothing: %q", path, &out)
			}
		}
	}
	walk(nil)
}
