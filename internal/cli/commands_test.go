package cli

import (
	"bytes"
	"path/filepath"
	"slices"
	"testing"

	"github.com/spf13/cobra"
)

// Every command has a file with its name. Below a noun it is in the package of the noun, or in run or builder.
func TestEveryCommandHasAFile(t *testing.T) {
	var out bytes.Buffer
	checked := 0
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			check(sub)
		}
		if c.HasSubCommands() || c.Name() == "help" || refused[c.Name()] != "" {
			return
		}
		checked++
		dirs := []string{".", filepath.Join("command", "*")}
		if c.Parent().HasParent() {
			dirs = []string{filepath.Join("command", c.Parent().Name()), filepath.Join("command", "run"), filepath.Join("command", "builder")}
		}
		for _, dir := range dirs {
			if found, err := filepath.Glob(filepath.Join(dir, c.Name()+".go")); err == nil && len(found) > 0 {
				return
			}
		}
		t.Errorf("%s: there is no file %s.go", c.CommandPath(), c.Name())
	}
	check(newRoot(invocation(nil, &out, &out)))
	if checked < 80 {
		t.Errorf("found only %d commands", checked)
	}
}

// A plain verb and the one below a noun name each other in their help, and a verb that has no plain form does not.
func TestHelpNamesOtherForms(t *testing.T) {
	var out bytes.Buffer
	root := newRoot(invocation(nil, &out, &out))
	for path, want := range map[string]string{
		"ps":            "ply container ls, ply container list, ply container ps, ply ps",
		"container ls":  "ply container ls, ply container list, ply container ps, ply ps",
		"rm":            "ply container rm, ply container remove, ply rm",
		"images":        "ply image ls, ply image list, ply images",
		"rmi":           "ply image rm, ply image remove, ply rmi",
		"build":         "ply image build, ply build",
		"builder build": "ply builder build, ply build",
		"volume ls":     "ply volume ls, ply volume list",
		"volume create": "",
		"inspect":       "",
	} {
		c, _, err := root.Find(words(path))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Annotations["aliases"]; got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// A command that is made without the others prints what it prints among them.
func TestAloneAsAmongOthers(t *testing.T) {
	var out bytes.Buffer
	var without []string
	for _, e := range table {
		if e.plain == nil {
			continue
		}
		name := e.plain(invocation(nil, &out, &out)).Name()
		if e.verb == "" {
			without = append(without, name)
			continue
		}
		if e.verb != name {
			t.Errorf("the table calls %s %q", name, e.verb)
		}
		for _, args := range [][]string{{name, "--help"}, {name, "--nosuch"}} {
			var alone, among bytes.Buffer
			code := Run(t.Context(), invocation(nil, &alone, &alone), args)
			inv := invocation(nil, &among, &among)
			root := newRoot(inv)
			root.SetArgs(args)
			want, text := 0, ""
			if err := root.ExecuteContext(t.Context()); err != nil {
				if want, text = outcome(err); text != "" {
					among.WriteString(text + "\n")
				}
			}
			if code != want || alone.String() != among.String() {
				t.Errorf("%q: exit code %d, %q\nwant %d, %q", args, code, &alone, want, &among)
			}
		}
	}
	if want := []string{"build", "completion", "man"}; !slices.Equal(without, want) {
		t.Errorf("made with all others: %v, want %v", without, want)
	}
}
