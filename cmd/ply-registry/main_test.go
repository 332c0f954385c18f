package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/registry/server"
)

func command(args ...string) (string, error) {
	var out, stderr bytes.Buffer
	err := run(args, strings.NewReader(""), &out, &stderr)
	return out.String() + stderr.String(), err
}

// The commands beside the registry work on the registry that the settings name, and refuse what is not one.
func TestMaintenance(t *testing.T) {
	root, backup, copied := t.TempDir(), filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "copied")
	s, err := server.Open(server.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	// While it is served, too.
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"check", "--root", root}, "0 findings"},
		{[]string{"backup", backup, "--root", root}, "copied to " + backup},
		{[]string{"migrate", "--from", root, "--root", copied}, "0 repositories"},
	} {
		if out, err := command(c.args...); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%q: %v\n%s", c.args, err, out)
		}
	}
	if _, err := command("check", "--repair", "--root", root); !errors.Is(err, errs.Precondition) {
		t.Errorf("a repair while it is served: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root, backup, copied} {
		if out, err := command("check", "--repair", "--quick", "--root", dir); err != nil || !strings.Contains(out, "0 removed") {
			t.Errorf("%s: %v\n%s", dir, err, out)
		}
	}
	for _, args := range [][]string{
		{"check", "--root", filepath.Join(root, "none")},
		{"check", "--nothing"},
		{"backup", "--root", root},
		{"backup", backup, "--root", filepath.Join(root, "none")},
		{"backup", backup, "--root", root, "--s3-bucket", "b", "--s3-region", "r"},
		{"migrate", "--root", copied},
		{"migrate", "--from", root, "--from-docker-registry", root, "--root", copied},
		{"migrate", "--from-docker-registry", root, "--root", copied},
		{"migrate", "--from", filepath.Join(root, "none"), "--root", copied},
		{"migrate", "--from", root, "--root", root},
	} {
		if out, err := command(args...); err == nil {
			t.Errorf("%q: no error\n%s", args, out)
		}
	}
}

// Users of a root are managed where the settings say.
func TestUser(t *testing.T) {
	root := t.TempDir()
	t.Setenv("PLY_REGISTRY_ROOT", root)
	var out bytes.Buffer
	if err := run([]string{"user", "add", "alice", "--password-stdin"}, strings.NewReader("secret\n"), &out, &out); err != nil || !strings.Contains(out.String(), "closed now") {
		t.Errorf("%v: %s", err, out.String())
	}
	if list, err := command("user", "ls", "--root", root); err != nil || !strings.Contains(list, "alice") {
		t.Errorf("%v: %s", err, list)
	}
	copied := t.TempDir()
	if _, err := server.Open(server.Options{Root: root, Database: "none"}); err == nil {
		t.Error("a database without an address")
	}
	s, err := server.Open(server.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if text, err := command("migrate", "--from", root, "--root", copied); err != nil || !strings.Contains(text, "1 users copied") {
		t.Errorf("%v: %s", err, text)
	}
}

// Groups, namespaces and tokens are managed while the registry serves, and while it does not.
func TestPeople(t *testing.T) {
	root := t.TempDir()
	t.Setenv("PLY_REGISTRY_ROOT", root)
	want := func(text string, args ...string) string {
		t.Helper()
		out, err := command(args...)
		if err != nil || !strings.Contains(out, text) {
			t.Errorf("%q: %v\n%s\nwant %q", args, err, out, text)
		}
		return out
	}
	people := func() {
		t.Helper()
		want("", "group", "add", "devs", "--role", "writer=team/**")
		want("", "group", "join", "devs", "alice")
		want("", "group", "claims", "devs", "/engineering")
		want("", "group", "grant", "devs", "reader=lib/*")
		want("devs    alice     /engineering   writer=team/** reader=lib/*", "group", "ls")
		want("devs", "user", "ls")
		want("", "group", "revoke", "devs", "lib/*")
		want("", "group", "leave", "devs", "alice")
		want("", "group", "rm", "devs")
		want("", "namespace", "set", "team", "internal")
		want("internal", "namespace", "ls")
		want("", "namespace", "rm", "team")
		text := strings.TrimSpace(want("plyr_", "token", "add", "alice", "CI of team", "--scope", "team/**=pull,push", "--scope", "lib/*", "--expires", "30"))
		list := want("CI of team   team/**=pull,push lib/*=pull", "token", "ls")
		if strings.Contains(list, text) {
			t.Error("the list has the text of the token")
		}
		id := text[len("plyr_"):][:10]
		want(id, "token", "ls", "alice")
		want("", "token", "rm", "alice", id)
		if out := want("", "token", "ls"); strings.Contains(out, id) {
			t.Errorf("after its revocation: %s", out)
		}
	}
	var out bytes.Buffer
	if err := run([]string{"user", "add", "alice", "--password-stdin"}, strings.NewReader("secret\n"), &out, &out); err != nil {
		t.Fatal(err)
	}
	people()
	s, err := server.Open(server.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	people()
	for _, args := range [][]string{
		{"group"}, {"group", "add"}, {"group", "add", "A"}, {"group", "add", "x", "--role", "king=x"}, {"group", "nothing"}, {"group", "rm", "x"}, {"group", "join", "x", "alice"},
		{"namespace", "set", "a", "open"}, {"namespace", "set", "a"}, {"namespace", "rm", "a"}, {"namespace", "ls", "a"},
		{"token", "add", "alice", "x"}, {"token", "add", "bob", "x", "--scope", "a"}, {"token", "add", "alice", "x", "--scope", "a=own"}, {"token", "add", "alice", "x", "--scope", "a", "--expires", "-1"},
		{"token", "rm", "alice", "ABCDEFGHIJ"}, {"token", "rm", "alice", "../x"}, {"token", "ls", "a", "b"}, {"token", "add", "alice", "x", "y", "--scope", "a"},
	} {
		if out, err := command(args...); err == nil {
			t.Errorf("%q: no error\n%s", args, out)
		}
	}
}
