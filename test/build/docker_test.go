package build

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The builders of Debian's dockerd that cases are compared with.
var builders = []string{"classic", "buildkit"}

// TestAgainstDocker compares the images of the cases with those that docker's builders made of them, as they are recorded. Every difference needs its
// reason in differences.txt, and every reason there a difference.
func TestAgainstDocker(t *testing.T) {
	rules := readRules(t)
	compared := map[string]bool{}
	for _, c := range readCases(t) {
		for _, builder := range builders {
			recorded := c.file(t, builder)
			if recorded == "" {
				continue
			}
			compared[c.name] = true
			want := c.file(t, "want")
			if strings.HasPrefix(want, "error ") {
				want = "error\n"
			}
			for _, line := range differingLines(recorded, want) {
				if !slices.ContainsFunc(rules, func(r *rule) bool { return r.explains(builder, c.name, line) }) {
					t.Errorf("%s, %s: unexplained: %s", builder, c.name, line)
				}
			}
		}
	}
	for _, r := range rules {
		if !r.used {
			t.Errorf("differences.txt:%d: explains nothing", r.line)
		}
	}
	if len(compared) < 80 {
		t.Errorf("%d cases are compared with docker, want at least 80", len(compared))
	}
}

// differingLines returns the lines of docker's text that ours lacks with a "-", and those that only ours has with a "+".
func differingLines(docker, ours string) []string {
	d := difference(strings.Split(strings.TrimSpace(docker), "\n"), strings.Split(strings.TrimSpace(ours), "\n"))
	if strings.HasPrefix(d, "the same lines") {
		if docker == ours {
			return nil
		}
		return []string{"order"}
	}
	return strings.Split(strings.TrimSpace(d), "\n")
}

// rule explains differences.
type rule struct {
	line    int
	builder string // "*" = both
	cases   *regexp.Regexp
	text    *regexp.Regexp // of lines of a difference
	used    bool
}

func (r *rule) explains(builder, name, line string) bool {
	ok := (r.builder == "*" || r.builder == builder) && r.cases.MatchString(name) && r.text.MatchString(line)
	r.used = r.used || ok
	return ok
}

// readRules reads differences.txt: lines of a builder, an expression for names of cases and one for the text; the reason is a comment above them.
func readRules(t *testing.T) (list []*rule) {
	t.Helper()
	f, err := os.Open("differences.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	reason := false
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		n++
		line := strings.TrimSpace(s.Text())
		switch {
		case line == "":
			reason = false
			continue
		case strings.HasPrefix(line, "#"):
			reason = true
			continue
		}
		words := strings.SplitN(line, " ", 3)
		if len(words) != 3 || !reason {
			t.Fatalf("differences.txt:%d: want BUILDER CASES TEXT, below a comment with the reason", n)
		}
		cases, err := regexp.Compile("^(" + words[1] + ")$")
		if err != nil {
			t.Fatalf("differences.txt:%d: %v", n, err)
		}
		text, err := regexp.Compile("^(" + words[2] + ")$")
		if err != nil {
			t.Fatalf("differences.txt:%d: %v", n, err)
		}
		list = append(list, &rule{line: n, builder: words[0], cases: cases, text: text})
	}
	return list
}

// unknownThere are what docker's builders of Debian's version cannot do, so that there is nothing to compare.
var unknownThere = regexp.MustCompile(`(?i)unknown flag|unknown instruction|requires BuildKit|dockerfile parse error|failed to parse|the --mount option|the --chmod option`)

// TestRecordDocker builds the cases with docker's builders. With -update-docker it records the images; otherwise they must be as recorded.
func TestRecordDocker(t *testing.T) {
	if !*updateDocker && os.Getenv("PLY_NIGHTLY") == "" {
		t.Skip("the records are checked at night")
	}
	d := newEngine(t, "docker")
	d.cli = []string{"/usr/bin/docker"}           // the one of Debian has BuildKit without a plug-in
	config := filepath.Join(d.dir, "daemon.json") // not that of the machine
	if err := os.WriteFile(config, []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.start(t, exec.Command("dockerd", "--data-root", filepath.Join(d.dir, "data"), "--exec-root", filepath.Join(d.dir, "run"), "-H", "unix://"+d.sock,
		"--pidfile", filepath.Join(d.dir, "pid"), "--storage-driver", "overlay2", "--config-file", config))
	for i, builder := range builders {
		e := *d
		e.env = append(slices.Clone(d.env), fmt.Sprintf("DOCKER_BUILDKIT=%d", i), "BUILDKIT_PROGRESS=plain")
		t.Run(builder, func(t *testing.T) {
			for _, c := range readCases(t) {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					c.record(t, &e, builder)
				})
			}
		})
	}
}

// record builds a case with one of docker's builders.
func (c *buildCase) record(t *testing.T, e *engine, builder string) {
	tag, out, code := c.build(t, e)
	got := "error\n"
	failing := strings.HasPrefix(c.file(t, "want"), "error ")
	switch {
	case code == 0:
		var err error
		if got, _, err = e.describe(tag); err != nil && strings.Contains(err.Error(), "empty export") {
			got = "" // that docker cannot save an image without layers
		} else if err != nil {
			t.Fatal(err)
		}
		e.run(t, e.cli[0], "rmi", "-f", tag)
	case !failing && unknownThere.MatchString(out):
		got = ""
	}
	if old := c.file(t, builder); old == got {
		return
	}
	if !*updateDocker {
		t.Errorf("docker does not make what is recorded; -update-docker records it\n%s", got)
		return
	}
	name := filepath.Join(c.dir, builder)
	if got == "" {
		_ = os.Remove(name)
		return
	}
	if got == "error\n" && !failing {
		t.Logf("%s\n%s", c.name, out)
	}
	if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
		t.Fatal(err)
	}
}
