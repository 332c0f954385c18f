package shim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/errs"
	"ply/internal/procid"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	want := Request{Op: OpKill, Process: "x", Args: []byte(`{"signal":9}`)}
	if err := WriteFrame(&b, want); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(b.Bytes())
	got, err := ReadFrame[Request](&b)
	if err != nil || got.Op != want.Op || got.Process != "x" || string(got.Args) != string(want.Args) {
		t.Errorf("frame came back as %+v, %v", got, err)
	}
	for n := 1; n < len(whole); n++ {
		if _, err := ReadFrame[Request](bytes.NewReader(whole[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	if _, err := ReadFrame[Request](bytes.NewReader(nil)); !errors.Is(err, io.EOF) {
		t.Errorf("nothing: %v", err)
	}
	for _, n := range []uint32{MaxFrame + 1, 1 << 31, 1<<32 - 1} {
		if _, err := ReadFrame[Request](bytes.NewReader(binary.BigEndian.AppendUint32(nil, n))); !errors.Is(err, errs.Invalid) {
			t.Errorf("a frame of %d bytes: %v", n, err)
		}
	}
	if _, err := ReadFrame[Request](strings.NewReader("\x00\x00\x00\x01{")); !errors.Is(err, errs.Invalid) {
		t.Errorf("bad JSON: %v", err)
	}
	if err := WriteFrame(io.Discard, strings.Repeat("x", MaxFrame)); !errors.Is(err, errs.Invalid) {
		t.Errorf("too much to send: %v", err)
	}
}

func TestChunkHeaders(t *testing.T) {
	stream, n, err := ReadChunkHeader(bytes.NewReader(AppendChunkHeader(nil, Stderr, 77)))
	if stream != Stderr || n != 77 || err != nil {
		t.Errorf("header came back as %d, %d, %v", stream, n, err)
	}
	for _, bad := range []string{"\x04\x00\x00\x00\x00\x00\x00\x01", "\x01\x01\x00\x00\x00\x00\x00\x01", "\x01\x00\x00\x00\x00\x10\x00\x01", "\x01\x00\x00\x00\xff\xff\xff\xff"} {
		if _, _, err := ReadChunkHeader(strings.NewReader(bad)); !errors.Is(err, errs.Invalid) {
			t.Errorf("% x: %v", bad, err)
		}
	}
}

func TestSocketOfLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	st, err := os.Stat(filepath.Join(dir, SocketFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st, err)
	}
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = ReadFrame[Request](c)
			_ = WriteFrame(c, Response{Error: "no", Class: ClassConflict})
			_ = c.Close()
		}
	}()
	c := &Client{cfg: Config{ID: "x", Bundle: dir}}
	if _, err := c.State(t.Context(), ""); !errors.Is(err, errs.Conflict) {
		t.Errorf("state = %v, want the shim's errs.Conflict", err)
	}
}

func TestConnectNeedsARunningShim(t *testing.T) {
	dir := t.TempDir()
	if _, err := Connect(dir); !errors.Is(err, errs.NotFound) {
		t.Errorf("an empty bundle: %v", err)
	}
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(ConfigFile, `{"id":"x"}`)
	l, err := Listen(dir) // another process may use the name of the socket
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	write(PidFile, `{"boot":"0","pid":1,"start":1}`)
	if _, err := Connect(dir); !errors.Is(err, errs.NotFound) {
		t.Errorf("another boot: %v", err)
	}
	write(PidFile, "garbage")
	self, err := procid.Self()
	if err != nil {
		t.Fatal(err)
	}
	if c, err := Connect(dir); err != nil || c.Identity() != Identity(self) {
		t.Errorf("a damaged pid file of a process that listens: %+v, %v", c, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(dir); !errors.Is(err, errs.DataLoss) {
		t.Errorf("a damaged pid file: %v", err)
	}
	if _, err := ReadExit(filepath.Join(dir, "none")); !errors.Is(err, errs.NotFound) {
		t.Errorf("no exit file: %v", err)
	}
}

func TestLaunchChecks(t *testing.T) {
	dir := t.TempDir()
	good := Config{ID: "x", Bundle: dir, StateDir: dir, ExitPath: filepath.Join(dir, "exit")}
	for name, change := range map[string]func(*Config, *string){
		"binary": func(_ *Config, b *string) { *b = "ply-shim" }, "bundle": func(c *Config, _ *string) { c.Bundle = "b" },
		"state": func(c *Config, _ *string) { c.StateDir = "" }, "exit": func(c *Config, _ *string) { c.ExitPath = "e" },
		"id": func(c *Config, _ *string) { c.ID = "" }, "runtime": func(c *Config, _ *string) { c.Runtime = "runc" },
	} {
		cfg, bin := good, "/bin/false"
		change(&cfg, &bin)
		if _, err := Launch(t.Context(), bin, cfg, &specs.Spec{}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want errs.Invalid", name, err)
		}
	}
	if _, err := Launch(t.Context(), "/bin/false", good, &specs.Spec{}); !errors.Is(err, errs.Internal) {
		t.Errorf("a shim that ends at once: %v", err)
	}
	if _, err := Launch(t.Context(), "/nosuch/shim", good, &specs.Spec{}); err == nil {
		t.Error("a shim that is not there was launched")
	}
}

// Malformed responses are errors.
func TestMalformedResponses(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := []string{"", "\x00", "\xff\xff\xff\xff", "\x00\x00\x00\x02{}", "\x00\x00\x00\x0b{\"body\":[1]}"}
	go func() {
		for _, a := range answers {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = ReadFrame[Request](c)
			_, _ = c.Write([]byte(a))
			_ = c.(*net.UnixConn).Close()
		}
	}()
	c := &Client{cfg: Config{ID: "x", Bundle: dir}}
	for _, a := range answers {
		st, err := c.State(t.Context(), "")
		if a != "\x00\x00\x00\x02{}" && err == nil {
			t.Errorf("answer %q: %+v", a, st)
		}
	}
	if self, err := procid.Self(); err != nil || !procid.Alive(self) {
		t.Fatal(err)
	}
}
