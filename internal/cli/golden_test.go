package cli

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden transcript")

// words splits a line of the transcript as a shell would: blanks, and quotes that group.
func words(line string) []string {
	var out []string
	var b strings.Builder
	quoted, any := rune(0), false
	for _, r := range line {
		switch {
		case quoted != 0 && r == quoted:
			quoted = 0
		case quoted == 0 && (r == '\'' || r == '"'):
			quoted, any = r, true
		case quoted == 0 && r == ' ':
			if any {
				out = append(out, b.String())
				b.Reset()
				any = false
			}
		default:
			b.WriteRune(r)
			any = true
		}
	}
	if any {
		out = append(out, b.String())
	}
	return out
}

// commands of the transcript, in order.
func commands(t *testing.T, file string) (lines []string, text string) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if c, ok := strings.CutPrefix(l, "$ ply "); ok {
			lines = append(lines, c)
		}
	}
	return lines, string(b)
}

func transcript(r result) string {
	var b strings.Builder
	b.WriteString(r.out)
	if r.err != "" {
		for _, l := range strings.Split(strings.TrimSuffix(r.err, "\n"), "\n") {
			b.WriteString(strings.TrimRight("! "+l, " ") + "\n")
		}
	}
	if r.code != 0 {
		fmt.Fprintf(&b, "[exit %d]\n", r.code)
	}
	return b.String()
}

// Every table, message and exit code, against an engine made of canned answers. Lines that begin with ! came on stderr.
func TestTranscript(t *testing.T) {
	t.Setenv("TZ", "UTC")
	time.Local = time.UTC
	base := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	at(t, base)
	file := filepath.Join("testdata", "transcript.golden")
	lines, want := commands(t, file)
	var got strings.Builder
	for _, line := range lines {
		f := newFake(t, world(base))
		fmt.Fprintf(&got, "$ ply %s\n%s\n", line, transcript(f.run("", words(line)...)))
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, got.String()); d != "" {
		t.Errorf("transcript differs (-want +got); after a wanted change run with -update:\n%s", d)
	}
}

// dockerClient returns the docker client to compare with and its major version. PLY_DOCKER_CLI names it; make test sets the
// variable for every client that the machine has.
func dockerClient(t *testing.T) (path, major string) {
	t.Helper()
	path = os.Getenv("PLY_DOCKER_CLI")
	if path == "" {
		t.Skip("PLY_DOCKER_CLI names no docker client to compare with")
	}
	out, err := exec.Command(path, "--version").Output() // Docker version 28.2.2, build e6534b4
	m := regexp.MustCompile(`version (\d+)\.`).FindSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%s --version: %q, %v", path, out, err)
	}
	return path, string(m[1])
}

// differences reads the commands in which ply differs on purpose from a docker client of one major version: a line that starts
// with "# " is the reason for the commands below it.
func differences(t *testing.T, file string) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("no differences are recorded for this version of docker: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	reason := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if why, ok := strings.CutPrefix(line, "# "); ok {
			reason = why
		} else if line != "" {
			if reason == "" || known[line] {
				t.Errorf("%s: %q has no reason above it, or stands here twice", file, line)
			}
			known[line] = true
		}
	}
	return known
}

var (
	ages   = regexp.MustCompile(`\b\d+ seconds( ago)?`)
	blanks = regexp.MustCompile(`  +`)
	lists  = regexp.MustCompile(`[^\s,|"{}\[\]]+(,[^\s,|"{}\[\]]+)+`)
	times  = regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?`)
)

// comparable removes what differs from one run of the same client to the next: seconds that pass, and the order in which docker
// prints what it keeps in maps: sets, and the names of one image.
func comparable(r result) string {
	s := strings.ReplaceAll(transcript(r), "docker", "ply")
	s = times.ReplaceAllString(ages.ReplaceAllString(s, "N seconds$1"), "TIME")
	s = lists.ReplaceAllStringFunc(blanks.ReplaceAllString(s, "|"), func(list string) string {
		items := strings.Split(list, ",")
		slices.Sort(items)
		return strings.Join(items, ",")
	})
	if strings.HasPrefix(s, "REPOSITORY") {
		rows := strings.Split(s, "\n")
		slices.Sort(rows)
		s = strings.Join(rows, "\n")
	}
	return s
}

// The same commands through a docker client give the same output and exit code. Only the program's name may differ, and what
// testdata/differences-VERSION.txt explains.
func TestTranscriptAgainstDocker(t *testing.T) {
	docker, major := dockerClient(t)
	known := differences(t, filepath.Join("testdata", "differences-"+major+".txt"))
	base := time.Now()
	at(t, base)
	lines, _ := commands(t, filepath.Join("testdata", "transcript.golden"))
	for _, line := range lines {
		f := newFake(t, world(base))
		got := f.run("", words(line)...)
		cmd := exec.Command(docker, words(line)...)
		var out, errw bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errw
		err := cmd.Run()
		if _, isExit := err.(*exec.ExitError); err != nil && !isExit {
			t.Fatal(err)
		}
		want := result{out.String(), errw.String(), cmd.ProcessState.ExitCode()}
		d := cmp.Diff(comparable(want), comparable(got))
		explained := known[line]
		delete(known, line)
		switch {
		case d != "" && !explained:
			t.Errorf("%s (-docker +ply):\n%s", line, d)
		case d == "" && explained:
			t.Errorf("%s: recorded as a difference, but there is none", line)
		}
	}
	for line := range known {
		t.Errorf("%s: recorded as a difference, but not in the transcript", line)
	}
}
