package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bigText returns 3 MB of lines: more than the pipes, queues and sockets between a process and its reader hold together.
func bigText() []byte {
	var b bytes.Buffer
	random := rand.New(rand.NewSource(1))
	line := make([]byte, 768)
	for b.Len() < 3_000_000 {
		_, _ = random.Read(line) // never fails
		b.WriteString(base64.StdEncoding.EncodeToString(line) + "\n")
	}
	return b.Bytes()
}

// A reader reads the output of a command, of which it expects size bytes.
type reader struct {
	name   string
	read   func(r io.Reader, h hash.Hash, size int64) error
	closes bool // it leaves before the end
}

// readers end with io.EOF where they have read everything.
var readers = []reader{
	{name: "fast", read: func(r io.Reader, h hash.Hash, _ int64) error {
		_, err := io.Copy(h, r)
		return err
	}},
	{name: "slow", read: func(r io.Reader, h hash.Hash, size int64) error { // pauses before, at and after the end of the process
		for _, n := range []int64{size - 800_000, 300_000, 200_000, 200_000} {
			if _, err := io.CopyN(h, r, n); err != nil {
				return err
			}
			time.Sleep(500 * time.Millisecond)
		}
		_, err := io.Copy(h, r)
		return err
	}},
	{name: "stalled", read: func(r io.Reader, h hash.Hash, size int64) error {
		if _, err := io.CopyN(h, r, size-450_000); err != nil {
			return err
		}
		time.Sleep(3 * time.Second)
		_, err := io.Copy(h, r)
		return err
	}},
	{name: "closing", closes: true, read: func(r io.Reader, h hash.Hash, _ int64) error {
		_, err := io.CopyN(h, r, 100_000)
		return err
	}},
}

// streamed is the result of one command.
type streamed struct {
	sum    [32]byte
	size   int64
	err    error // of the command
	errOut string
}

// stream runs a command with a reader behind a small pipe. input is written to the command's stdin, which then stays open
// until the command ends.
func (w *world) stream(rd reader, size int64, input string, name string, args ...string) (streamed, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, w.program(name), args...)
	c.Env = append(os.Environ(), w.clientEnv()...)
	pr, pw, err := os.Pipe()
	if err != nil {
		return streamed{}, err
	}
	defer pr.Close()
	if _, err := unix.FcntlInt(pw.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		return streamed{}, err
	}
	var errOut bytes.Buffer
	c.Stdout, c.Stderr = pw, &errOut
	if input != "" {
		in, err := c.StdinPipe()
		if err != nil {
			return streamed{}, err
		}
		defer in.Close()
		if _, err := io.WriteString(in, input); err != nil {
			return streamed{}, err
		}
	}
	if err := c.Start(); err != nil {
		return streamed{}, errors.Join(err, pw.Close())
	}
	if err := pw.Close(); err != nil {
		return streamed{}, err
	}
	h := sha256.New()
	counted := &counter{r: pr}
	rerr := rd.read(counted, h, size)
	_ = pr.Close()
	res := streamed{err: c.Wait(), size: counted.n}
	h.Sum(res.sum[:0])
	res.errOut = errOut.String()
	if ctx.Err() != nil {
		return res, fmt.Errorf("the command does not end; it printed %q", res.errOut)
	}
	if rerr != nil && !errors.Is(rerr, io.EOF) {
		return res, rerr
	}
	return res, nil
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// streamCase is a command whose output is compared by digest.
type streamCase struct {
	name    string
	prepare func(id string) []string // makes what the command needs and returns its arguments
	input   string
	tty     bool   // the output is that of a terminal
	stored  bool   // the output is a tar stream, and not the text
	clients string // "" = all
}

// streamWorld is a world with the image "big", whose file /big is the text.
func streamWorld(t *testing.T) (*world, []byte) {
	w := newWorld(t)
	w.busybox()
	text := bigText()
	file := filepath.Join(w.dir, "big")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	w.ply("create", "--name", "maker", "busybox")
	w.ply("cp", file, "maker:/big")
	w.ply("commit", "maker", "big")
	w.ply("run", "-d", "--net", "none", "--name", "runs", "big", "sleep", "1000")
	w.ply("create", "--net", "none", "--name", "told", "big", "cat", "/big")
	w.ply("start", "-a", "told")
	return w, text
}

func streamCases(w *world) []streamCase {
	ran := func(args ...string) func(string) []string {
		return func(id string) []string {
			return append(append([]string{"run", "--net", "none", "--name", id}, args...), "big", "cat", "/big")
		}
	}
	fixed := func(args ...string) func(string) []string { return func(string) []string { return args } }
	made := func(args ...string) func(string) []string {
		return func(id string) []string {
			w.ply("create", "--net", "none", "--name", id, "big", "cat", "/big")
			return append(args, id)
		}
	}
	return []streamCase{
		{name: "run --rm", prepare: ran("--rm")},
		{name: "run", prepare: ran()},
		{name: "run -t", prepare: ran("--rm", "-t"), tty: true},
		{name: "run -i", prepare: ran("--rm", "-i"), input: "unread\n"},
		{name: "start -a", prepare: made("start", "-a")},
		{name: "attach", input: "go\n", prepare: func(id string) []string {
			w.ply("run", "-d", "-i", "--net", "none", "--name", id, "big", "sh", "-c", "read word; cat /big")
			return []string{"attach", id}
		}},
		{name: "exec", prepare: fixed("exec", "runs", "cat", "/big")},
		{name: "exec -t", prepare: fixed("exec", "-t", "runs", "cat", "/big"), tty: true},
		{name: "logs", prepare: fixed("logs", "told")},
		{name: "logs -f", prepare: func(id string) []string {
			w.ply("run", "-d", "--net", "none", "--name", id, "big", "sh", "-c", "cat /big; sleep 0.5")
			return []string{"logs", "-f", id}
		}},
		{name: "export", prepare: fixed("export", "told"), stored: true},
		{name: "save", prepare: fixed("save", "big"), stored: true},
		{name: "cp", prepare: fixed("cp", "told:/big", "-"), stored: true},
	}
}

// Every command that streams delivers every byte to a reader that is slow or pauses, around the end of the program too. A
// reader that leaves early ends the command, and the engine keeps nothing of it.
func TestEveryByteReachesEveryReader(t *testing.T) {
	w, text := streamWorld(t)
	cases := streamCases(w)
	terminal := bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
	want := map[string]streamed{}
	for _, c := range cases {
		switch {
		case c.stored:
			res, err := w.stream(readers[0], 0, "", "ply", c.prepare("")...)
			if err != nil || res.err != nil || res.size < int64(len(text)) {
				t.Fatalf("%s: %d bytes, %v, %v: %s", c.name, res.size, err, res.err, res.errOut)
			}
			want[c.name] = res
		case c.tty:
			want[c.name] = streamed{sum: sha256.Sum256(terminal), size: int64(len(terminal))}
		default:
			want[c.name] = streamed{sum: sha256.Sum256(text), size: int64(len(text))}
		}
	}
	held := w.held()
	slots := make(chan struct{}, 16) // most of them sleep
	var wg sync.WaitGroup
	n := 0
	for _, rd := range []reader{readers[2], readers[1], readers[0], readers[3]} { // those that sleep longest first
		for _, c := range cases {
			for _, client := range []string{"ply", "docker", "docker20"} {
				n++
				id := fmt.Sprint("s", n)
				wg.Go(func() {
					slots <- struct{}{}
					defer func() { <-slots }()
					t.Run(strings.Join([]string{rd.name, c.name, client}, "/"), func(t *testing.T) {
						w.checkStream(t, rd, c, want[c.name], client, id)
					})
				})
			}
		}
	}
	wg.Wait()
	w.ply("rm", "-f", "runs")
	deadline := time.Now().Add(time.Minute)
	for {
		now := w.held()
		if now.files <= held.files && now.goroutines <= held.goroutines && now.children <= held.children {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("plyd holds %+v, before the test %+v", now, held)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (w *world) checkStream(t *testing.T, rd reader, c streamCase, want streamed, client, id string) {
	begun := time.Now()
	got, err := w.stream(rd, want.size, c.input, client, c.prepare(id)...)
	if err != nil {
		t.Fatalf("%v (exit %v: %s)", err, got.err, got.errOut)
	}
	if rd.closes {
		if d := time.Since(begun); d > 2*time.Minute {
			t.Errorf("the command ended after %v", d)
		}
		return
	}
	if got.err != nil || got.size != want.size || got.sum != want.sum {
		t.Errorf("%d bytes of %d, digest %x, want %x, exit %v: %s", got.size, want.size, got.sum, want.sum, got.err, got.errOut)
	}
}

// held is what plyd and its containers use.
type held struct{ files, goroutines, children int }

func (w *world) held() held {
	w.t.Helper()
	var h held
	if _, err := fmt.Sscan(w.ply("info", "--format", "{{.NFd}} {{.NGoroutines}}"), &h.files, &h.goroutines); err != nil {
		w.t.Fatal(err)
	}
	out, _ := exec.Command("pgrep", "-P", fmt.Sprint(w.plyd.Process.Pid)).Output() // it fails when there is none
	h.children = strings.Count(string(out), "\n")
	return h
}

// A client that reads nothing does not keep a container that has ended: it is removed at once, and the client gets
// everything when it reads later.
func TestStalledClientDoesNotKeepTheContainer(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	for _, client := range []string{"ply", "docker", "docker20"} {
		for _, tty := range []bool{false, true} {
			args := []string{"run", "--rm", "--net", "none"}
			if tty {
				args = append(args, "-t")
			}
			const size = 400_000
			removed := make(chan error, 1)
			rd := reader{read: func(r io.Reader, h hash.Hash, _ int64) error {
				if _, err := io.CopyN(h, r, 1); err != nil { // the container runs
					return err
				}
				removed <- w.waitEmpty(5 * time.Second)
				_, err := io.Copy(h, r)
				return err
			}}
			got, err := w.stream(rd, size, "", client, append(args, "busybox", "head", "-c", fmt.Sprint(size), "/dev/zero")...)
			if err := <-removed; err != nil {
				t.Errorf("%s, terminal %v: %v", client, tty, err)
			}
			if err != nil || got.err != nil || got.size != size {
				t.Errorf("%s, terminal %v: %d bytes of %d, %v, exit %v: %s", client, tty, got.size, size, err, got.err, got.errOut)
			}
		}
	}
}

// waitEmpty waits until there is no container.
func (w *world) waitEmpty(limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		out, _, err := w.run("ply", "ps", "-aq")
		if err != nil {
			return err
		}
		if strings.TrimSpace(out) == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v there are still containers: %s", limit, out)
		}
	}
}

// A program that ends because of the client's Ctrl-C can still print: a slow reader gets all of it, and the exit code.
func TestOutputAfterInterrupt(t *testing.T) {
	w, text := streamWorld(t)
	for _, client := range []string{"ply", "docker", "docker20"} {
		c := exec.Command(w.program(client), "run", "--rm", "--net", "none", "big", "sh", "-c",
			`trap 'cat /big; exit 7' INT; echo ready; while :; do sleep 0.05; done`)
		c.Env = append(os.Environ(), w.clientEnv()...)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if _, err := io.CopyN(io.Discard, out, int64(len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		if err := c.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		rerr := readers[1].read(out, h, int64(len(text)))
		err = c.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 7 || rerr != nil || [32]byte(h.Sum(nil)) != sha256.Sum256(text) {
			t.Errorf("%s: exit %v, reader %v, digest %x", client, err, rerr, h.Sum(nil))
		}
	}
}

// A client that is interrupted or killed in the middle of a stream leaves nothing in the engine, and the process runs on.
func TestClientThatDiesInAStream(t *testing.T) {
	w, _ := streamWorld(t)
	w.ply("run", "-d", "--net", "none", "--name", "talks", "big", "sh", "-c", "while :; do echo word; sleep 0.1; done")
	before := w.held()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		for _, client := range []string{"ply", "docker", "docker20"} {
			for _, args := range [][]string{{"logs", "-f", "talks"}, {"attach", "--sig-proxy=false", "talks"}, {"exec", "talks", "sh", "-c", "yes"}, {"export", "runs"}} {
				c := exec.Command(w.program(client), args...)
				c.Env = append(os.Environ(), w.clientEnv()...)
				out, err := c.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				if _, err := io.CopyN(io.Discard, out, 5); err != nil {
					t.Errorf("%s %v: %v", client, args, err)
				}
				if err := c.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				done := make(chan struct{})
				go func() {
					_, _ = io.Copy(io.Discard, out)
					_ = c.Wait() // its status says which signal ended it
					close(done)
				}()
				limit := 3 * time.Second // a docker client may wait for the end of the container
				if client == "ply" {
					limit = time.Minute
				}
				select {
				case <-done:
				case <-time.After(limit):
					if client == "ply" {
						t.Errorf("ply %v does not end after %v", args, sig)
					}
					_ = c.Process.Kill()
					<-done
				}
			}
		}
	}
	w.ply("exec", "talks", "killall", "yes")
	if st := w.ply("inspect", "-f", "{{.State.Status}}", "talks"); st != "running" {
		t.Errorf("the container is %s", st)
	}
	var now held
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if now = w.held(); now.files <= before.files && now.goroutines <= before.goroutines {
			return
		}
	}
	t.Errorf("plyd holds %+v, before %+v", now, before)
}

// The third Ctrl-C ends ply although the program in the container takes no notice of any, and ply says so. The container runs on.
func TestThirdInterrupt(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	f := w.follow("run", "--net", "none", "--name", "stubborn", "busybox", "sh", "-c", `trap "" INT; echo ready; while :; do sleep 0.05; done`)
	f.until(t, "ready")
	for n := 1; ; n++ {
		if err := f.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		select {
		case <-f.done:
			if code := f.cmd.ProcessState.ExitCode(); code != 1 || n < 3 || !strings.Contains(f.err.String(), "got 3 SIGTERM/SIGINTs, forcefully exiting") {
				t.Errorf("after %d signals: exit code %d: %s", n, code, f.err.String())
			}
			if st := w.ply("inspect", "-f", "{{.State.Status}}", "stubborn"); st != "running" {
				t.Errorf("the container is %s", st)
			}
			return
		case <-time.After(200 * time.Millisecond): // signals that come together count once
		}
	}
}
