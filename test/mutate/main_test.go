package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Every patch of the tree can be read and names its tests.
func TestPatches(t *testing.T) {
	all, err := load("patches")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 30 {
		t.Errorf("%d mutations, want at least 30", len(all))
	}
	for _, m := range all {
		for _, args := range m.tests {
			if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "./") }) { // flags of the test itself stand after it
				t.Errorf("%s: go test %v names no package", m.name, args)
			}
		}
	}
}

// Every patch applies to the tree as it is. A change that moves a safeguard has to move its mutation too.
func TestPatchesApply(t *testing.T) {
	all, err := load("patches")
	if err != nil {
		t.Fatal(err)
	}
	root := tree{dir: filepath.Join("..", "..")}
	for _, m := range all {
		if err := root.apply(t.Context(), m.patch, "--dry-run"); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no patch":       "Why: x\nTest: ./a\n",
		"no reason":      "Test: ./a\n\n--- a/x\n+++ b/x\n",
		"no test":        "Why: x\n\n--- a/x\n+++ b/x\n",
		"unknown header": "Why: x\nTest: ./a\nBecause: y\n\n--- a/x\n+++ b/x\n",
	} {
		if m, err := parse("m", []byte(text)); err == nil {
			t.Errorf("%s: parse = %+v, want an error", name, m)
		}
	}
}

// The same seed chooses the same mutations, and other seeds choose others.
func TestChoose(t *testing.T) {
	all, err := load("patches")
	if err != nil {
		t.Fatal(err)
	}
	names := func(seed string) string {
		var out []string
		for _, m := range choose(slices.Clone(all), 3, seed) {
			out = append(out, m.name)
		}
		return strings.Join(out, " ")
	}
	if names("a") != names("a") {
		t.Error("the same seed chose other mutations")
	}
	if names("a") == names("b") && names("b") == names("c") {
		t.Error("three seeds chose the same mutations")
	}
}

const (
	code     = "package x\n\nfunc Double(n int) int {\n\treturn n + n\n}\n"
	goodTest = "package x\n\nimport \"testing\"\n\nfunc TestDouble(t *testing.T) {\n\tif Double(2) != 4 {\n\t\tt.Fail()\n\t}\n}\n"
	idleTest = "package x\n\nimport \"testing\"\n\nfunc TestDouble(t *testing.T) { Double(2) }\n"
	mutant   = "Why: a sum\nTest: .\n\n--- a/x.go\n+++ b/x.go\n@@ -1,5 +1,5 @@\n package x\n \n func Double(n int) int {\n-\treturn n + n\n+\treturn n - n\n }\n"
)

// A mutation is caught, or survives, or proves nothing because its patch does not apply or does not compile.
func TestTry(t *testing.T) {
	for _, tc := range []struct{ name, code, test, patch, caught, fails string }{
		{"caught", code, goodTest, mutant, "TestDouble", ""},
		{"survives", code, idleTest, mutant, "", "survived: a sum"},
		{"does not apply", strings.ReplaceAll(code, "n + n", "2 * n"), goodTest, mutant, "", "does not apply"},
		{"does not compile", code, goodTest, strings.ReplaceAll(mutant, "n - n", "n - m"), "", "does not compile"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"go.mod": "module x\n\ngo 1.26\n", "x.go": tc.code, "x_test.go": tc.test} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			m, err := parse(tc.name, []byte(tc.patch))
			if err != nil {
				t.Fatal(err)
			}
			by, err := tree{dir: dir}.try(t.Context(), m)
			if by != tc.caught || (err != nil) != (tc.fails != "") || err != nil && !strings.Contains(err.Error(), tc.fails) {
				t.Errorf("try = %q, %v; want %q and an error with %q", by, err, tc.caught, tc.fails)
			}
			after, err := os.ReadFile(filepath.Join(dir, "x.go"))
			if err != nil || string(after) != tc.code {
				t.Errorf("the code is %q after the try, %v", after, err)
			}
		})
	}
}
