package cli

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// The same commands through a docker client, when one is named: PLY_DOCKER_CLI=/path/to/docker. Only the program's name may differ.
func TestTranscriptAgainstDocker(t *testing.T) {
	docker := os.Getenv("PLY_DOCKER_CLI")
	if docker == "" {
		t.Skip("PLY_DOCKER_CLI names no docker client to compare with")
	}
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
		if d := cmp.Diff(strings.ReplaceAll(transcript(want), "docker", "ply"), strings.ReplaceAll(transcript(got), "docker", "ply")); d != "" {
			t.Logf("%s (-docker +ply):\n%s", line, d)
		}
	}
}
