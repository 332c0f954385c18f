package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// The last lines are found however long they are, and whether or not the last one is complete.
func TestLastLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("x", 200<<10)
	for _, c := range []struct {
		text string
		tail int
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc", 2, "b\nc"}, {"a\nb\nc\n", 3, "a\nb\nc\n"}, {"a\nb\n", 9, "a\nb\n"}, {"a\nb\n", 0, ""}, {"a\nb\n", -1, "a\nb\n"},
		{"", 3, ""}, {"\n\n\n", 2, "\n\n"}, {"a\n" + long + "\nb\n", 2, long + "\nb\n"}, {long + "\n" + long + "\n", 1, long + "\n"},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := (Paths{Log: file}).Logs(t.Context(), State{}, c.tail, false, &out, &out); err != nil || out.String() != c.want {
			t.Errorf("%d lines of %.20q: %.40q, %v; want %.40q", c.tail, c.text, out.String(), err, c.want)
		}
	}
}

// A log that is followed is followed across its renaming, when everything was read from the old file, and across its truncation.
func TestFollowLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	add := func(name, text string) {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	add(file, "old\nfirst\n")
	ctx, cancel := context.WithCancelCause(t.Context())
	end := errors.New("enough")
	var out buffer
	done := make(chan error, 1)
	go func() { done <- (Paths{Log: file}).Logs(ctx, State{}, 1, true, &out, &out) }()
	reads := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); out.String() != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("followed %q, want %q", out.String(), want)
			}
		}
	}
	reads("first\n")
	add(file, "second\n")
	reads("first\nsecond\n")
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	add(file+".1", "third\n")
	add(file, "fourth\n")
	reads("first\nsecond\nthird\nfourth\n")
	if err := os.Truncate(file, 0); err != nil {
		t.Fatal(err)
	}
	add(file, "5\n")
	reads("first\nsecond\nthird\nfourth\n5\n")
	cancel(end)
	if err := <-done; !errors.Is(err, end) {
		t.Error(err)
	}
}

// systemdWorld makes programs with the names of systemd's. Units are installed when the file loaded exists; the socket and the service are active when the files
// with their names exist, and the service's contains the number of its process.
func systemdWorld(t *testing.T) (Paths, string) {
	t.Helper()
	dir := t.TempDir()
	script := `#!/bin/sh
cd ` + dir + `
echo "$0 $*" | sed 's|.*/||' >>calls
case "$1" in
show)
	for unit; do :; done
	load=not-found; [ ! -e loaded ] || load=loaded
	active=inactive; [ ! -e "$unit" ] || active=active
	printf 'LoadState=%s\nActiveState=%s\nMainPID=%s\n' $load $active "$(cat $unit 2>/dev/null || echo 0)";;
start) : >ply.socket; echo ` + fmt.Sprint(os.Getpid()) + ` >ply.service;;
stop) rm -f ply.socket ply.service;;
*) echo "Nov 22 plyd[1]: a line of the journal";;
esac
`
	for _, name := range []string{"systemctl", "journalctl"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Paths{Host: "unix://" + filepath.Join(dir, "s"), Log: filepath.Join(dir, "log"), Lock: filepath.Join(dir, "lock"), Dir: filepath.Join(dir, "none"), Systemd: dir}, dir
}

// Where ply's units are installed, systemd starts and stops plyd, and a socket of systemd is not connected to.
func TestSystemd(t *testing.T) {
	p, dir := systemdWorld(t)
	ctx := t.Context()
	ping := func(context.Context) error { return nil }
	if s, err := p.State(ctx, p.Host); err != nil || s.Process != nil || s.Waiting {
		t.Errorf("without units: %+v, %v", s, err)
	}
	if _, err := p.Up(ctx, ping); err == nil || !strings.Contains(err.Error(), "plyd was not found") {
		t.Errorf("without units: %v", err)
	}
	for _, name := range []string{"loaded", "ply.socket"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := p.State(ctx, p.Host); err != nil || s.Process != nil || !s.Waiting {
		t.Errorf("with a socket only: %+v, %v", s, err)
	}
	if how, err := p.Up(ctx, ping); err != nil || how != "systemd (ply.service)" {
		t.Errorf("start: %q, %v", how, err)
	}
	s, err := p.State(ctx, p.Host)
	if err != nil || s.Process == nil || s.PID != os.Getpid() || s.Unit != "ply.service" || time.Since(s.Started).Abs() > time.Hour {
		t.Fatalf("started: %+v, %v", s.Process, err)
	}
	s.Log, s.Journal = "", true
	var out bytes.Buffer
	if err := p.Logs(ctx, s, 5, true, &out, &out); err != nil || out.String() != "Nov 22 plyd[1]: a line of the journal\n" {
		t.Errorf("logs: %q, %v", out.String(), err)
	}
	if err := p.Stop(ctx, s, time.Minute); err != nil {
		t.Error(err)
	}
	if s, err := p.State(ctx, p.Host); err != nil || s.Process != nil || s.Waiting {
		t.Errorf("stopped: %+v, %v", s, err)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	var acts []string
	for line := range strings.Lines(string(calls)) {
		if !strings.HasPrefix(line, "systemctl show ") {
			acts = append(acts, strings.TrimSpace(line))
		}
	}
	want := "systemctl start ply.socket ply.service|journalctl --unit=ply.service --no-pager --lines=5 --follow|systemctl stop ply.socket ply.service"
	if got := strings.Join(acts, "|"); got != want {
		t.Errorf("called %s, want %s", got, want)
	}
}
