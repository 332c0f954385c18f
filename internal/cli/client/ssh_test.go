package client

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The parts of an address become arguments of ssh, and nothing in it becomes an option or a word of the other side's shell.
func TestSSHArgs(t *testing.T) {
	for host, want := range map[string][]string{
		"ssh://host":             {"--", "host"},
		"ssh://me@host:22":       {"-l", "me", "-p", "22", "--", "host"},
		"ssh://[::1]:22/":        {"-p", "22", "--", "::1"},
		"ssh://me@host/run/a'$x": {"-l", "me", "--", "host"},
	} {
		args, err := sshArgs(host)
		if err != nil || !slices.Equal(args[3:len(args)-1], want) {
			t.Errorf("%s: %q, %v; want %q", host, args, err, want)
		}
	}
	for _, host := range []string{"ssh://", "ssh://-oProxyCommand=x", "ssh://-x@host", "ssh://me:secret@host", "ssh://host?x", "ssh://host#x"} {
		if args, err := sshArgs(host); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %q, %v", host, args, err)
		}
	}
	// What the shell of the other side makes of the line.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ply"), []byte("#!/bin/sh\nprintf '<%s>' \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	args, err := sshArgs("ssh://host/run/a'$x b")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", args[len(args)-1])
	cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
	if out, err := cmd.Output(); err != nil || string(out) != "<--host><unix:///run/a'$x b><system><dial-stdio>" {
		t.Errorf("%s, %v", out, err)
	}
}

// A request goes through the program; what that says when it fails is in the error, and it ends with the connection.
func TestSSHFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte("#!/bin/sh\necho 'me@host: Permission denied (publickey).' >&2\nexit 255\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	c, err := New(Options{Host: "ssh://me@host"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "ssh: me@host: Permission denied (publickey).") {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte("#!/bin/sh\necho $$ >"+dir+"/pid\nexec cat\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	conn, err := dialSSH("ssh://host")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("echo")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "echo" {
		t.Errorf("%q, %v", b[:n], err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	pid, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat("/proc/" + strings.TrimSpace(string(pid))); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("ssh runs on after the connection was closed")
		}
	}
}

// What the engine sent before it ended is read, also when a write has failed meanwhile because ssh is gone.
func TestSSHWriteFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte("#!/bin/sh\nprintf answer\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	conn, err := dialSSH("ssh://host")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := conn.Write([]byte("input")); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no write fails")
		}
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "answer" {
		t.Errorf("%q, %v", b, err)
	}
}
