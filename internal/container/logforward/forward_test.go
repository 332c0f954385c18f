package logforward

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"

	"ply/internal/container/logfile"
	"ply/internal/container/logremote"
	"ply/internal/container/shim"
)

// The tests run this binary as ply-log, which has no arguments.
func TestMain(m *testing.M) {
	if len(os.Args) == 1 {
		Main()
	}
	os.Exit(m.Run())
}

const (
	testID = "0123456789ab0123456789ab0123456789ab0123456789ab0123456789ab0123"
	wait   = time.Minute
)

// openLog opens a log as a shim does. The container has a label and a variable.
func openLog(t *testing.T, driver string, opts map[string]string) (*logfile.Writer, shim.Log, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := logremote.Parse(driver, opts)
	if err != nil {
		t.Fatal(err)
	}
	logremote.SetPath(&l, filepath.Join(t.TempDir(), "log"))
	err = logremote.Complete(l.Forward, self, &logfile.Subject{
		ContainerID: testID, ContainerName: "/web", ContainerImageID: "sha256:ff", ContainerImageName: "busybox", ContainerEntrypoint: "echo", ContainerArgs: []string{"hi"},
		ContainerLabels: map[string]string{"team": "red"}, ContainerEnv: []string{"STAGE=test", "OTHER=x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	w, err := logfile.Create(l)
	return w, l, err
}

// say writes a line to each stream and closes the log.
func say(t *testing.T, w *logfile.Writer) {
	t.Helper()
	for s, text := range map[byte]string{shim.Stdout: "to stdout\n", shim.Stderr: "to stderr\n"} {
		st := w.Stream(s)
		if _, err := st.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}
	w.End()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if n, err := w.Lost(); n > 0 {
		t.Errorf("%d records lost: %v", n, err)
	}
}

// received waits until something that was received matches.
func received(t *testing.T, from <-chan string, patterns ...string) {
	t.Helper()
	left := map[string]*regexp.Regexp{}
	for _, p := range patterns {
		left[p] = regexp.MustCompile(p)
	}
	var got []string
	for end := time.After(wait); len(left) > 0; {
		select {
		case s := <-from:
			got = append(got, s)
			maps.DeleteFunc(left, func(_ string, re *regexp.Regexp) bool { return re.MatchString(s) })
		case <-end:
			t.Fatalf("received %q, nothing like %q", got, left)
		}
	}
}

// datagrams receives from a socket.
func datagrams(t *testing.T, network, address string) (string, <-chan string) {
	t.Helper()
	c, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	got := make(chan string, 1000)
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			got <- string(buf[:n])
		}
	}()
	return c.LocalAddr().String(), got
}

// connections receives from a listener; split finds the messages.
func connections(t *testing.T, l net.Listener, read func(io.Reader, chan<- string)) <-chan string {
	t.Helper()
	t.Cleanup(func() { l.Close() })
	got := make(chan string, 1000)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				read(c, got)
			}()
		}
	}()
	return got
}

// until reads messages that a byte ends.
func until(end byte) func(io.Reader, chan<- string) {
	return func(r io.Reader, got chan<- string) {
		var line []byte
		b := make([]byte, 1)
		for {
			if _, err := r.Read(b); err != nil {
				return
			}
			if b[0] != end {
				line = append(line, b[0])
				continue
			}
			got <- string(line)
			line = nil
		}
	}
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// certificate makes a key and a certificate for 127.0.0.1, and the file of it.
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

// Records reach syslog over each transport, in each format, with the tag, the facility and the level of their stream.
func TestSyslog(t *testing.T) {
	t.Parallel()
	cert, ca := certificate(t)
	udp, fromUDP := datagrams(t, "udp", "127.0.0.1:0")
	sock := filepath.Join(t.TempDir(), "s")
	_, fromUnix := datagrams(t, "unixgram", sock)
	tcp := listen(t, "tcp", "127.0.0.1:0")
	fromTCP := connections(t, tcp, until('\n'))
	secure := tls.NewListener(listen(t, "tcp", "127.0.0.1:0"), &tls.Config{Certificates: []tls.Certificate{cert}})
	fromTLS := connections(t, secure, func(c io.Reader, got chan<- string) {
		for r := bufio.NewReader(c); ; {
			var n int
			if _, err := fmt.Fscanf(r, "%d ", &n); err != nil || n > 1000 {
				return
			}
			b := make([]byte, n)
			if _, err := io.ReadFull(r, b); err != nil {
				return
			}
			got <- string(b)
		}
	})
	const stamp = `[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d`
	for name, c := range map[string]struct {
		opts map[string]string
		from <-chan string
		want []string
	}{
		"udp":      {map[string]string{"syslog-address": "udp://" + udp}, fromUDP, []string{`^<30>` + stamp + ` 0123456789ab\[\d+\]: to stdout`, `^<27>.*: to stderr`}},
		"unixgram": {map[string]string{"syslog-address": "unixgram://" + sock, "tag": "{{.Name}}/{{.ID}}", "syslog-facility": "local3"}, fromUnix, []string{`^<158>.* web/0123456789ab\[\d+\]: to stdout`, `^<155>.*: to stderr`}},
		"tcp":      {map[string]string{"syslog-address": "tcp://" + tcp.Addr().String(), "syslog-format": "rfc5424micro", "tag": "t"}, fromTCP, []string{`^<30>1 \d{4}-\d\d-\d\dT[\d:]+\.\d{6}\S+ \S+ t \d+ t - to stdout$`, `to stderr$`}},
		"tls":      {map[string]string{"syslog-address": "tcp+tls://" + secure.Addr().String(), "syslog-format": "rfc5424", "syslog-tls-ca-cert": ca}, fromTLS, []string{`^<30>1 .* - to stdout\n?$`, `^<27>1 .* - to stderr\n?$`}},
	} {
		t.Run(name, func(t *testing.T) {
			w, l, err := openLog(t, logfile.Syslog, c.opts)
			if err != nil {
				t.Fatal(err)
			}
			say(t, w)
			received(t, c.from, c.want...)
			var kept []string
			err = logfile.Read(t.Context(), l, logfile.ReadOptions{Stdout: true, Stderr: true, Tail: -1}, func(list []logfile.Message) error {
				for _, m := range list {
					kept = append(kept, string(m.Line))
				}
				return nil
			})
			if err != nil || len(kept) != 2 {
				t.Errorf("the cache has %q, %v", kept, err)
			}
		})
	}
	if _, _, err := openLog(t, logfile.Syslog, map[string]string{"syslog-address": "tcp+tls://" + secure.Addr().String()}); err == nil || !strings.Contains(err.Error(), "failed to initialize logging driver") {
		t.Errorf("a certificate that no one knows: %v", err)
	}
}

// GELF messages arrive over UDP, compressed, and over TCP, with what is said of the container.
func TestGELF(t *testing.T) {
	t.Parallel()
	udp, fromUDP := datagrams(t, "udp", "127.0.0.1:0")
	tcp := listen(t, "tcp", "127.0.0.1:0")
	fromTCP := connections(t, tcp, until(0))
	about := map[string]string{"labels": "team,absent", "env-regex": "^ST", "tag": "{{.ImageName}}"}
	for name, c := range map[string]struct {
		address string
		from    <-chan string
	}{"udp": {"udp://" + udp, fromUDP}, "tcp": {"tcp://" + tcp.Addr().String(), fromTCP}} {
		opts := maps.Clone(about)
		opts["gelf-address"] = c.address
		w, _, err := openLog(t, logfile.GELF, opts)
		if err != nil {
			t.Fatal(err)
		}
		say(t, w)
		seen := map[string]bool{}
		for range 2 {
			var raw string
			select {
			case raw = <-c.from:
			case <-time.After(wait):
				t.Fatalf("%s: received %v only", name, seen)
			}
			if name == "udp" {
				z, err := gzip.NewReader(strings.NewReader(raw))
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(z)
				if err != nil {
					t.Fatal(err)
				}
				raw = string(b)
			}
			var m map[string]any
			if err := json.Unmarshal([]byte(raw), &m); err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprint(m["short_message"])
			seen[text] = true
			want := map[string]any{"version": "1.1", "_container_id": testID, "_container_name": "web", "_image_name": "busybox", "_command": "echo hi", "_tag": "busybox", "_team": "red", "_STAGE": "test",
				"level": map[string]any{"to stdout": 6.0, "to stderr": 3.0}[text]}
			for k, v := range want {
				if m[k] != v {
					t.Errorf("%s: %s is %v, want %v", name, k, m[k], v)
				}
			}
			if m["_OTHER"] != nil || m["_absent"] != nil {
				t.Errorf("%s: has %v", name, m)
			}
		}
		if !seen["to stdout"] || !seen["to stderr"] {
			t.Errorf("%s: received %v", name, seen)
		}
	}
}

// Fluentd gets a map per record, with the tag, the stream and what is said of the container.
func TestFluentd(t *testing.T) {
	t.Parallel()
	l := listen(t, "tcp", "127.0.0.1:0")
	got := connections(t, l, func(r io.Reader, got chan<- string) {
		for m := msgp.NewReader(r); ; {
			v, err := m.ReadIntf()
			if err != nil {
				return
			}
			got <- fmt.Sprint(v)
		}
	})
	w, _, err := openLog(t, logfile.Fluentd, map[string]string{"fluentd-address": l.Addr().String(), "tag": "app.{{.Name}}", "env": "STAGE"})
	if err != nil {
		t.Fatal(err)
	}
	say(t, w)
	received(t, got, `^\[app\.web \d+ map\[STAGE:test container_id:`+testID+` container_name:/web log:to stdout source:stdout\]`, `log:to stderr source:stderr`)
	_ = l.Close()
	if _, _, err := openLog(t, logfile.Fluentd, map[string]string{"fluentd-address": l.Addr().String()}); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("without a receiver: %v", err)
	}
	w, _, err = openLog(t, logfile.Fluentd, map[string]string{"fluentd-address": l.Addr().String(), "fluentd-async": "true"})
	if err != nil {
		t.Fatalf("without a receiver, asynchronously: %v", err)
	}
	w.End()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// A receiver that reads nothing does not stop a log that does not block, and stops one that blocks until the container has ended.
func TestReceiverThatReadsNothing(t *testing.T) {
	t.Parallel()
	l := listen(t, "tcp", "127.0.0.1:0")
	defer l.Close()
	line := []byte(strings.Repeat("x", 8000) + "\n")
	open := func(mode string) *logfile.Writer {
		w, _, err := openLog(t, logfile.Syslog, map[string]string{"syslog-address": "tcp://" + l.Addr().String(), "mode": mode, "cache-disabled": "true"})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	write := func(w *logfile.Writer, n int) <-chan struct{} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			s := w.Stream(shim.Stdout)
			for range n {
				_, _ = s.Write(line)
			}
		}()
		return done
	}
	const many = 10_000 // 80 MB, more than sockets and pipes hold
	free := open("non-blocking")
	select {
	case <-write(free, many):
	case <-time.After(60 * time.Second):
		t.Fatal("a log that does not block is blocked")
	}
	held := open("blocking")
	done := write(held, many)
	select {
	case <-done:
		t.Error("a log that blocks went on without its receiver")
	case <-time.After(2 * time.Second):
	}
	for _, w := range []*logfile.Writer{free, held} {
		w.End()
	}
	select {
	case <-done:
	case <-time.After(logfile.EndTime + wait):
		t.Fatal("the end of the container does not end the wait")
	}
	for _, w := range []*logfile.Writer{free, held} {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	if n, err := held.Lost(); n == 0 || err == nil {
		t.Errorf("lost %d, %v", n, err)
	}
}

// child returns the ID of the only process that this one has started.
func child(t *testing.T) (pid int) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "pgrep", "-P", fmt.Sprint(os.Getpid())).Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(out), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// The program does not grow with what it has sent, in the environment that it has from a shim.
func TestMemoryStays(t *testing.T) {
	t.Setenv("GOGC", "off")
	address, _ := datagrams(t, "udp", "127.0.0.1:0")
	w, _, err := openLog(t, logfile.Syslog, map[string]string{"syslog-address": "udp://" + address, "cache-disabled": "true"})
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 16000) + "\n")
	s := w.Stream(shim.Stdout)
	for range 8000 { // 128 MB
		_, _ = s.Write(line)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", child(t)))
	if err != nil {
		t.Fatal(err)
	}
	var kib int
	if _, rest, ok := strings.Cut(string(status), "VmHWM:"); !ok {
		t.Fatalf("no size in %s", status)
	} else if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	if kib > 96<<10 {
		t.Errorf("the program takes %d MiB", kib>>10)
	}
	w.End()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// A program that was killed is started again, and later records arrive.
func TestProgramThatWasKilled(t *testing.T) {
	address, got := datagrams(t, "udp", "127.0.0.1:0")
	w, l, err := openLog(t, logfile.Syslog, map[string]string{"syslog-address": "udp://" + address})
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream(shim.Stdout)
	_, _ = s.Write([]byte("first\n"))
	received(t, got, "first")
	p, err := os.FindProcess(child(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	found := make(chan struct{})
	go func() {
		defer close(found)
		received(t, got, "again")
	}()
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		_, _ = s.Write([]byte("again\n"))
		select {
		case <-found:
		case <-tick.C:
			continue
		}
		break
	}
	w.End()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	n := 0
	err = logfile.Read(t.Context(), l, logfile.ReadOptions{Stdout: true, Tail: -1}, func(list []logfile.Message) error { n += len(list); return nil })
	if err != nil || n < 2 {
		t.Errorf("the cache has %d records, %v", n, err)
	}
}

// Debian's journald takes the records, with their fields, and journalctl shows them.
func TestJournald(t *testing.T) {
	const daemon = "/lib/systemd/systemd-journald"
	if os.Getenv("PLY_TEST_JOURNAL") == "" {
		if _, err := os.Stat(daemon); err != nil {
			t.Skip("no systemd-journald here")
		}
		// In a mount namespace of its own, with a journal of its own.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(ctx, "unshare", "-m", "sh", "-ec", `mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal /run/empty
mount --bind /run/empty /var/log
[ -s /etc/machine-id ] || { echo 0123456789abcdef0123456789abcdef >/run/id; touch /etc/machine-id; mount --bind /run/id /etc/machine-id; }
`+daemon+` & j=$!
trap 'kill -9 $j' EXIT
n=0; until [ -S /run/systemd/journal/socket ]; do n=$((n+1)); [ $n -lt 200 ]; sleep 0.05; done
"$0" -test.run '^TestJournald$' -test.v`, self)
		cmd.Env = append(os.Environ(), "PLY_TEST_JOURNAL=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	w, _, err := openLog(t, logfile.Journald, map[string]string{"labels": "team", "tag": "mark"})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("y", 16<<10) + "rest\n"
	s := w.Stream(shim.Stdout)
	_, _ = s.Write([]byte(long))
	say(t, w)
	var out []byte
	for end := time.Now().Add(wait); bytes.Count(out, []byte("\n")) < 4 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if out, err = exec.CommandContext(t.Context(), "journalctl", "-D", "/run/log/journal", "-o", "json", "--no-pager", "-a", "CONTAINER_NAME=web").Output(); err != nil && !errors.As(err, new(*exec.ExitError)) {
			t.Fatal(err)
		}
	}
	var texts []string
	for line := range bytes.Lines(out) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint(m["MESSAGE"])
		texts = append(texts, text[:min(len(text), 20)])
		want := map[string]any{"CONTAINER_ID": testID[:12], "CONTAINER_ID_FULL": testID, "CONTAINER_TAG": "mark", "SYSLOG_IDENTIFIER": "mark", "IMAGE_NAME": "busybox", "TEAM": "red", "PRIORITY": "6"}
		switch {
		case text == "to stderr":
			want["PRIORITY"] = "3"
		case strings.HasPrefix(text, "y"):
			want["CONTAINER_PARTIAL_MESSAGE"], want["CONTAINER_PARTIAL_LAST"] = "true", "false"
		case text == "rest":
			want["CONTAINER_PARTIAL_LAST"] = "true"
		}
		for k, v := range want {
			if m[k] != v {
				t.Errorf("%.20s: %s is %v, want %v", text, k, m[k], v)
			}
		}
	}
	if len(texts) != 4 {
		t.Errorf("the journal has %q", texts)
	}
}
