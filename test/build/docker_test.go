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

// The builders that cases are compared with: those of Debian's dockerd, and Debian's buildah.
var builders = []string{"classic", "buildkit", "buildah"}

// TestAgainstOthers compares the images of the cases with those that docker's builders and buildah made of them, as they are recorded. Every difference needs
// its reason in differences.txt, and every reason there a difference.
func TestAgainstOthers(t *testing.T) {
	rules := readRules(t)
	compared := map[string]int{}
	for _, c := range readCases(t) {
		for _, builder := range builders {
			recorded := c.file(t, builder)
			if recorded == "" {
				continue
			}
			compared[builder]++
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
	for _, builder := range builders {
		if compared[builder] < 80 {
			t.Errorf("%d cases are compared with %s, want at least 80", compared[builder], builder)
		}
	}
}

// differingLines returns the lines of another builder's text that ours lacks with a "-", and those that only ours has with a "+".
func differingLines(theirs, ours string) []string {
	d := difference(strings.Split(strings.TrimSpace(theirs), "\n"), strings.Split(strings.TrimSpace(ours), "\n"))
	if strings.HasPrefix(d, "the same lines") {
		if theirs == ours {
			return nil
		}
		return []string{"order"}
	}
	return strings.Split(strings.TrimSpace(d), "\n")
}

// rule explains differences.
type rule struct {
	line    int
	builder string // "*" = all
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

// unknownThere are what other builders of Debian's versions cannot do, so that there is nothing to compare.
var unknownThere = regexp.MustCompile(`(?i)unknown flag|unknown instruction|requires BuildKit|dockerfile parse error|failed to parse|the --mount option|the --chmod option|only supports the --|stat: "/<<`)

// TestRecordDocker builds the cases with docker's builders. With -update-docker it records the images; otherwise they must be as recorded.
func TestRecordDocker(t *testing.T) {
	if !*updateDocker && os.Getenv("PLY_NIGHTLY") == "" {
		t.Skip("the records are checked at night")
	}
	d := startDocker(t)
	for i, builder := range builders[:2] {
		e := *d
		e.env = append(slices.Clone(d.env), fmt.Sprintf("DOCKER_BUILDKIT=%d", i), "BUILDKIT_PROGRESS=plain")
		t.Run(builder, func(t *testing.T) {
			for _, c := range readCases(t) {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					c.record(t, &e, builder, *updateDocker)
				})
			}
		})
	}
}

// startDocker starts Debian's dockerd. It ends with the test.
func startDocker(t *testing.T) *engine {
	t.Helper()
	d := newEngine(t, "docker")
	d.cli = []string{"/usr/bin/docker"}           // the one of Debian has BuildKit without a plug-in
	config := filepath.Join(d.dir, "daemon.json") // not that of the machine
	if err := os.WriteFile(config, []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.run(t, "ip", "link", "del", "docker0") }) // it stays when dockerd ends
	d.start(t, exec.Command("dockerd", "--data-root", filepath.Join(d.dir, "data"), "--exec-root", filepath.Join(d.dir, "run"), "-H", "unix://"+d.sock,
		"--pidfile", filepath.Join(d.dir, "pid"), "--storage-driver", "overlay2", "--config-file", config))
	return d
}

// What buildah writes into images differs each time: the host name of the container that it builds in, and the IDs of the images before a step.
var (
	hostname = regexp.MustCompile(`(?m)^  Hostname "[0-9a-f]{12}"\n`)
	parentID = regexp.MustCompile(`FROM [0-9a-f]{12}`)
)

// record builds a case with another builder, and compares the image with the record or writes it.
func (c *buildCase) record(t *testing.T, e *engine, builder string, write bool) {
	tag, out, code := c.build(t, e)
	if code < 0 {
		t.Fatalf("the build did not end by itself: %s", out)
	}
	got := "error\n"
	failing := strings.HasPrefix(c.file(t, "want"), "error ")
	switch {
	case code == 0:
		var err error
		if got, _, err = e.describe(tag); err != nil && strings.Contains(err.Error(), "empty export") {
			got = "" // that docker cannot save an image without layers
		} else if err != nil && strings.Contains(err.Error(), "/.wh.") {
			got = "error\n" // that buildah cannot read a layer with such a file
		} else if err != nil {
			t.Fatal(err)
		}
		e.run(t, e.cli[0], slices.Concat(e.cli[1:], []string{"rmi", "-f", tag})...)
	case !failing && unknownThere.MatchString(out):
		got = ""
	}
	got = parentID.ReplaceAllString(hostname.ReplaceAllString(got, ""), "FROM ID")
	if old := c.file(t, builder); old == got {
		return
	}
	if !write {
		t.Errorf("%s does not make what is recorded; -update-docker and -update-buildah record it\n%s", builder, got)
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
