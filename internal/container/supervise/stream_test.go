package supervise_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ply/internal/container/logfile"
	"ply/internal/container/runspec"
	"ply/internal/container/shim"
	"ply/internal/errs"
)

func TestAttachStreams(t *testing.T) {
	b := sh(t, "echo out; echo err >&2; exit 5").launch()
	all := b.attach("", shim.AttachArgs{Stdout: true, Stderr: true})
	onlyErr := b.attach("", shim.AttachArgs{Stderr: true})
	b.start()
	out, errOut, err := collect(all)
	if err != nil || out != "out\n" || errOut != "err\n" {
		t.Errorf("both: %q %q %v", out, errOut, err)
	}
	out, errOut, err = collect(onlyErr)
	if err != nil || out != "" || errOut != "err\n" {
		t.Errorf("stderr only: %q %q %v", out, errOut, err)
	}
	if e := b.wait(); e.Code != 5 {
		t.Errorf("exit %+v", e)
	}
	if _, err := b.c.Attach(t.Context(), "", shim.AttachArgs{Stdout: true}); !errors.Is(err, errs.Precondition) {
		t.Errorf("attach after the end = %v, want errs.Precondition", err)
	}
}

func TestStdinHalfClose(t *testing.T) {
	b := newBox(t, "/bin/cat")
	b.cfg.Stdin, b.cfg.StdinOnce = true, true
	b.launch()
	s := b.attach("", shim.AttachArgs{Stdin: true, Stdout: true})
	b.start()
	big := strings.Repeat("0123456789abcdef", 20_000) // more than pipes and sockets buffer
	done := make(chan error, 1)
	go func() {
		_, err := s.Write([]byte(big))
		done <- errors.Join(err, s.CloseWrite())
	}()
	out, _, err := collect(s)
	if err != nil || out != big {
		t.Errorf("cat gave %d bytes of %d, %v", len(out), len(big), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if e := b.wait(); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
}

func TestStdinSurvivesDetach(t *testing.T) {
	b := newBox(t, "/bin/sh", "-c", "while read l; do echo got $l; done; echo eof")
	b.cfg.Stdin = true
	b.launch().start()
	for _, word := range []string{"one", "two"} {
		s := b.attach("", shim.AttachArgs{Stdin: true, Stdout: true})
		if _, err := s.Write([]byte(word + "\n")); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseWrite(); err != nil { // without StdinOnce, only this client's input ends
			t.Fatal(err)
		}
		b.logged("got " + word)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := b.c.State(t.Context(), ""); err != nil || st.Status != "running" {
		t.Errorf("state after two clients = %+v, %v", st, err)
	}
}

func TestStdinOnceClosesWithFirstClient(t *testing.T) {
	b := newBox(t, "/bin/sh", "-c", "cat; echo eof")
	b.cfg.Stdin, b.cfg.StdinOnce = true, true
	b.launch()
	s := b.attach("", shim.AttachArgs{Stdin: true})
	b.start()
	if _, err := s.Write([]byte("line\n")); err != nil {
		t.Fatal(err)
	}
	b.logged("line")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b.wait()
	if out := b.output(); out != "line\neof\n" {
		t.Errorf("output %q", out)
	}
}

func TestTerminalHasItsSizeBeforeTheFirstByte(t *testing.T) {
	b := sh(t, "stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo tty; echo $TERM; read l; stty size")
	b.cfg.Tty, b.cfg.Stdin, b.cfg.Height, b.cfg.Width = true, true, 11, 22
	b.launch()
	if err := b.c.Resize(t.Context(), "", 33, 44); err != nil {
		t.Fatal(err)
	}
	s := b.attach("", shim.AttachArgs{Stdin: true, Stdout: true, Stderr: true})
	b.start()
	b.logged("xterm")
	if err := b.c.Resize(t.Context(), "", 55, 66); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	out, _, err := collect(s)
	if want := "33 44\r\ntty\r\nxterm\r\n\r\n55 66\r\n"; err != nil || out != want {
		t.Errorf("terminal gave %q, %v, want %q", out, err, want)
	}
}

func TestTtySizeOfConfig(t *testing.T) {
	b := sh(t, "stty size")
	b.cfg.Tty, b.cfg.Height, b.cfg.Width = true, 11, 22
	if out, _ := b.run(); out != "11 22\r\n" {
		t.Errorf("size %q", out)
	}
	b = sh(t, "sleep 100").launch()
	if err := b.c.Resize(t.Context(), "", 1, 1); !errors.Is(err, errs.Invalid) {
		t.Errorf("resize without a terminal = %v, want errs.Invalid", err)
	}
}

func TestExecStreams(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	p := execProcess(b, "/bin/sh", "-c", "cat; echo err >&2; exit 9")
	if err := b.c.Exec(t.Context(), "x", p, shim.ExecOptions{Stdin: true}); err != nil {
		t.Fatal(err)
	}
	if err := b.c.Exec(t.Context(), "x", p, shim.ExecOptions{}); !errors.Is(err, errs.Exists) {
		t.Errorf("the same ID again = %v, want errs.Exists", err)
	}
	defer func() {
		if err := b.c.Start(t.Context(), "x"); !errors.Is(err, errs.Conflict) {
			t.Errorf("a second start = %v, want errs.Conflict", err)
		}
	}()
	s := b.attach("x", shim.AttachArgs{Stdin: true, Stdout: true, Stderr: true})
	if err := b.c.Start(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("in")); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	out, errOut, err := collect(s)
	if err != nil || out != "in" || errOut != "err\n" {
		t.Errorf("exec gave %q %q %v", out, errOut, err)
	}
	if e, err := b.c.Wait(t.Context(), "x"); err != nil || e.Code != 9 {
		t.Errorf("exec wait = %+v, %v", e, err)
	}
	if out := b.output(); out != "" {
		t.Errorf("an exec's output is in the container's log: %q", out)
	}
	if _, err := b.c.Wait(t.Context(), "y"); !errors.Is(err, errs.NotFound) {
		t.Errorf("wait for an unknown exec = %v, want errs.NotFound", err)
	}
}

func TestExecTty(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	p, _, err := runspec.Exec(b.in, b.spec, runspec.ExecInput{Args: []string{"/bin/sh", "-c", "stty size; echo $TERM"}, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.c.Exec(t.Context(), "x", p, shim.ExecOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := b.c.Resize(t.Context(), "x", 7, 8); err != nil {
		t.Fatal(err)
	}
	s := b.attach("x", shim.AttachArgs{Stdout: true})
	if err := b.c.Start(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if out, _, err := collect(s); err != nil || out != "7 8\r\nxterm\r\n" {
		t.Errorf("exec's terminal gave %q, %v", out, err)
	}
}

func TestExecThatStartsADaemon(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	p := execProcess(b, "/bin/sh", "-c", "(until [ -e /tmp/go ]; do sleep 0.1; done; echo late; touch /tmp/late) & echo now; exit 4")
	if err := b.c.Exec(t.Context(), "x", p, shim.ExecOptions{}); err != nil {
		t.Fatal(err)
	}
	s := b.attach("x", shim.AttachArgs{Stdout: true})
	if err := b.c.Start(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if out, _, err := collect(s); err != nil || out != "now\n" {
		t.Errorf("exec gave %q, %v", out, err)
	}
	if e, err := b.c.Wait(t.Context(), "x"); err != nil || e.Code != 4 {
		t.Errorf("exec wait = %+v, %v", e, err)
	}
	// The pipe stays open, so that the daemon's write does not kill it.
	if err := os.WriteFile(filepath.Join(b.in.Rootfs, "tmp/go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon's file", func() bool {
		_, err := os.Stat(filepath.Join(b.in.Rootfs, "tmp/late"))
		return err == nil
	})
}

func TestAllOutputIsInTheLogAtTheEnd(t *testing.T) {
	b := sh(t, "seq 1 20000; seq 20001 20100 >&2; echo -n 'an unfinished line'")
	b.cfg.Log.MaxFiles = 1
	out, e := b.run()
	if e.Code != 0 || strings.Count(out, "\n") != 20100 || !strings.Contains(out, "\n20000\n") || !strings.Contains(out, "an unfinished line") {
		t.Errorf("exit %+v, %d lines", e, strings.Count(out, "\n"))
	}
}

func TestSlowClientSlowsTheProcessDown(t *testing.T) {
	b := sh(t, "seq 1 400000; echo done").launch() // more than the queue, the socket and the pipe hold
	s := b.attach("", shim.AttachArgs{Stdout: true})
	b.start()
	time.Sleep(300 * time.Millisecond) // they fill up
	if st, err := b.c.State(t.Context(), ""); err != nil || st.Status != "running" {
		t.Fatalf("state = %+v, %v: the output should wait for its reader", st, err)
	}
	out, _, err := collect(s)
	if err != nil || strings.Count(out, "\n") != 400001 {
		t.Errorf("slow client got %d lines, %v", strings.Count(out, "\n"), err)
	}
	b.wait()
}

// A client that reads nothing does not delay the end of the container, nor the log, nor other clients. It gets everything
// when it reads later.
func TestStalledClientDoesNotDelayTheEnd(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprint("tty ", tty), func(t *testing.T) {
			b := sh(t, "stty raw 2>/dev/null; head -c 30000000 /dev/zero")
			b.cfg.Tty = tty
			b.launch()
			stalled := b.attach("", shim.AttachArgs{Stdout: true})
			b.start()
			size := 0
			eventually(t, "a process that blocks", func() bool { // nothing is added to the log any more
				before := size
				time.Sleep(300 * time.Millisecond)
				size = len(b.output())
				return size > 0 && size == before
			})
			other := b.attach("", shim.AttachArgs{Stdout: true})
			begun := time.Now()
			if err := b.c.Kill(t.Context(), "", shim.KillArgs{Signal: int(unix.SIGKILL)}); err != nil {
				t.Fatal(err)
			}
			if e := b.wait(); e.Code != 137 {
				t.Errorf("exit %+v", e)
			}
			if d := time.Since(begun); d > 30*time.Second {
				t.Errorf("the end took %v", d)
			}
			logged := len(b.output())
			if _, _, err := collect(other); err != nil {
				t.Errorf("other client: %v", err)
			}
			out, _, err := collect(stalled)
			if err != nil || len(out) != logged || logged == 0 {
				t.Errorf("the stalled client got %d bytes of the %d in the log, %v", len(out), logged, err)
			}
		})
	}
}

// The output that a process wrote just before its end is passed on while a child process holds the pipe open and a client is slow.
func TestOwnOutputIsReadWhileAChildHoldsThePipe(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	p := execProcess(b, "/bin/sh", "-c", "sleep 30 & exec head -c 1000000 /dev/zero")
	if err := b.c.Exec(t.Context(), "x", p, shim.ExecOptions{}); err != nil {
		t.Fatal(err)
	}
	s := b.attach("x", shim.AttachArgs{Stdout: true})
	if err := b.c.Start(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // longer than outputGrace
	if out, _, err := collect(s); err != nil || len(out) != 1000000 {
		t.Errorf("exec gave %d bytes of 1000000, %v", len(out), err)
	}
}

func TestDisconnectedClientsLeaveNoDescriptors(t *testing.T) {
	b := newBox(t, "/bin/sleep", "100")
	b.cfg.Stdin = true
	b.launch().start()
	fds := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.c.Identity().PID))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := fds()
	for i := range 40 {
		s := b.attach("", shim.AttachArgs{Stdin: true, Stdout: true})
		if i%2 == 0 {
			_, _ = s.Write([]byte(strings.Repeat("x", 100_000))) // the process does not read it, so the pipe is soon full
		}
		_ = s.Close()
	}
	for i := range 12 {
		id := fmt.Sprint("x", i)
		if err := b.c.Exec(t.Context(), id, execProcess(b, "/bin/sh", "-c", "sleep 0.2 &"), shim.ExecOptions{Stdin: i%2 == 0}); err != nil {
			t.Fatal(err)
		}
		if err := b.c.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if _, err := b.c.Wait(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the shim's descriptors of before", func() bool { return fds() <= before+5 })
}

func TestLogRotation(t *testing.T) {
	b := sh(t, "seq 1 3000")
	b.cfg.Log.MaxSize, b.cfg.Log.MaxFiles, b.cfg.Log.Compress = 20_000, 30, true
	b.launch()
	var followed strings.Builder
	ended := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- logfile.Read(t.Context(), b.cfg.Log, logfile.ReadOptions{Stdout: true, Stderr: true, Tail: -1, Follow: true, Ended: ended},
			func(list []logfile.Message) error {
				for _, m := range list {
					followed.Write(m.Line)
				}
				return nil
			})
	}()
	b.start()
	b.wait()
	close(ended)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.cfg.Log.Path + ".1.gz"); err != nil {
		t.Errorf("no rotated file: %v", err)
	}
	out := b.output()
	if n := strings.Count(out, "\n"); n != 3000 {
		t.Errorf("log has %d lines of 3000", n)
	}
	if followed.String() != out {
		t.Errorf("following gave %d bytes, reading %d", followed.Len(), len(out))
	}
}

func TestLogRefusesLink(t *testing.T) {
	b := sh(t, "echo secret")
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, b.cfg.Log.Path); err != nil {
		t.Fatal(err)
	}
	if err := b.launchErr(); err == nil {
		t.Error("a log that is a link was opened")
	}
	if got, _ := os.ReadFile(victim); string(got) != "mine" {
		t.Errorf("the link's target holds %q", got)
	}
}

func TestKillProcessOfExec(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	if err := b.c.Exec(t.Context(), "x", execProcess(b, "/bin/sleep", "100"), shim.ExecOptions{Detach: true}); err != nil {
		t.Fatal(err)
	}
	if err := b.c.Start(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if err := b.c.Kill(t.Context(), "x", shim.KillArgs{Signal: int(unix.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	if e, err := b.c.Wait(t.Context(), "x"); err != nil || e.Code != 137 {
		t.Errorf("exec wait = %+v, %v", e, err)
	}
}

func TestManyExecsAtOnce(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	var group errgroup.Group
	group.SetLimit(8)
	for i := range 40 {
		group.Go(func() error {
			id := fmt.Sprint("x", i)
			p, _, err := runspec.Exec(b.in, b.spec, runspec.ExecInput{Args: []string{"/bin/sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)}, Tty: i%2 == 0})
			if err != nil {
				return err
			}
			if err := b.c.Exec(t.Context(), id, p, shim.ExecOptions{}); err != nil {
				return err
			}
			s, err := b.c.Attach(t.Context(), id, shim.AttachArgs{Stdout: true, Stderr: true})
			if err != nil {
				return err
			}
			defer s.Close()
			if err := b.c.Start(t.Context(), id); err != nil {
				return err
			}
			out, _, err := collect(s)
			if err != nil || strings.TrimSpace(out) != fmt.Sprint(i) {
				return fmt.Errorf("exec %d gave %q: %w", i, out, err)
			}
			e, err := b.c.Wait(t.Context(), id)
			if err != nil || e.Code != i {
				return fmt.Errorf("exec %d: %+v: %w", i, e, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// Whatever a container does when it is killed, every client learns of the end and gets the same exit code.
func TestKillAtAnyTime(t *testing.T) {
	b := newBox(t, "/bin/sh", "-c", "while :; do echo line; done")
	b.cfg.Stdin = true
	b.launch()
	var streams []*shim.Stream
	for range 4 {
		streams = append(streams, b.attach("", shim.AttachArgs{Stdin: true, Stdout: true}))
	}
	b.start()
	var group errgroup.Group
	for _, s := range streams {
		group.Go(func() error {
			_, _, err := collect(s)
			return err
		})
	}
	for range 8 {
		group.Go(func() error {
			e, err := b.c.Wait(t.Context(), "")
			if err == nil && e.Code != 137 {
				return fmt.Errorf("exit %+v", e)
			}
			return err
		})
	}
	b.logged("line")
	if err := b.c.Kill(t.Context(), "", shim.KillArgs{Signal: int(unix.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}
