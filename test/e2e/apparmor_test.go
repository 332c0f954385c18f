package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// startWithAppArmor starts plyd in a mount namespace in which the kernel seems to have AppArmor. parser is a shell script that
// stands for apparmor_parser, "" for none; it finds the list of loaded profiles in $PROFILES. No program can be confined there.
func startWithAppArmor(t *testing.T, parser string) *world {
	t.Helper()
	w := prepareWorld(t)
	tools := filepath.Join(w.dir, "tools")
	if err := os.Mkdir(tools, 0o755); err != nil {
		t.Fatal(err)
	}
	nft, err := exec.LookPath("nft") // it may be beside the real apparmor_parser
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(nft, filepath.Join(tools, "nft")); err != nil {
		t.Fatal(err)
	}
	if parser != "" {
		if err := os.WriteFile(filepath.Join(tools, "apparmor_parser"), []byte("#!/bin/sh\n"+parser), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const fake = `set -e
mount -t tmpfs none /sys/kernel/security
mkdir /sys/kernel/security/apparmor
echo "usr.sbin.other (enforce)" >/sys/kernel/security/apparmor/profiles
mount -t tmpfs none /sys/module
mkdir -p /sys/module/apparmor/parameters
echo Y >/sys/module/apparmor/parameters/enabled
PATH=$TOOLS exec "$@"`
	w.wrap = []string{"unshare", "--mount", "--propagation", "slave", "sh", "-c", fake, "sh"}
	w.env = []string{"TOOLS=" + tools + ":/bin:/usr/bin", "PROFILES=/sys/kernel/security/apparmor/profiles", "container=", "TMPDIR=" + w.dir}
	w.startPlyd()
	return w
}

func (w *world) docker(args ...string) string {
	w.t.Helper()
	o, e, err := w.run("docker", args...)
	if err != nil {
		w.t.Fatalf("docker %s: %v\n%s%s\nplyd:\n%s", strings.Join(args, " "), err, o, e, w.tail())
	}
	return strings.TrimSpace(o)
}

func TestTheProfileOfContainersIsLoaded(t *testing.T) {
	w := startWithAppArmor(t, `[ "$1" = -Kr ] && cp "$2" "$TMPDIR/loaded" && echo "ply-default (enforce)" >>$PROFILES; echo "$@" >>"$TMPDIR/calls"`)
	text, err := os.ReadFile(filepath.Join(w.dir, "loaded"))
	if err != nil {
		t.Fatalf("plyd loaded no profile: %v\n%s", err, w.tail())
	}
	for _, want := range []string{
		"profile ply-default flags=(attach_disconnected,mediate_deleted) {", "deny mount,", "deny @{PROC}/sysrq-trigger rwklx,", "deny @{PROC}/kcore rwklx,",
		"deny /sys/firmware/** rwklx,", "deny /sys/kernel/security/** rwklx,", "signal (send,receive) peer=ply-default,", "ptrace (trace,read,tracedby,readby) peer=ply-default,",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the profile lacks %q:\n%s", want, text)
		}
	}
	if got := w.docker("info", "-f", "{{json .SecurityOptions}}"); !strings.Contains(got, `["name=apparmor","name=seccomp,`) {
		t.Errorf("security options %s", got)
	}
	w.busybox()
	for _, tc := range []struct{ flags, want string }{
		{"", "ply-default"}, {"--privileged", "unconfined"}, {"--security-opt=apparmor=unconfined", "unconfined"}, {"--security-opt=apparmor=mine", "mine"},
	} {
		args := append(append([]string{"create", "--name", "box"}, strings.Fields(tc.flags)...), "busybox", "true")
		w.docker(args...)
		if got := w.docker("inspect", "-f", "{{.AppArmorProfile}}", "box"); got != tc.want {
			t.Errorf("%s: profile %s, want %s", tc.flags, got, tc.want)
		}
		// The kernel behind the fake has no AppArmor, so a start fails where it applies the profile.
		if o, e, err := w.run("docker", "start", "-a", "box"); err == nil || !strings.Contains(o+e, "apparmor") {
			t.Errorf("%s: started without the profile: %v %s%s", tc.flags, err, o, e)
		}
		w.docker("rm", "box")
	}
	calls, err := os.ReadFile(filepath.Join(w.dir, "calls"))
	if err != nil || strings.Count(string(calls), "\n") != 1 {
		t.Errorf("the parser ran more than once: %s, %v", calls, err)
	}
}

func TestAContainerDoesNotStartWithoutItsProfile(t *testing.T) {
	for name, tc := range map[string]struct{ parser, want string }{
		"no parser":     {"", `exec: "apparmor_parser": executable file not found in $PATH`},
		"broken parser": {"echo syntax error >&2; exit 1\n", "syntax error"},
	} {
		t.Run(name, func(t *testing.T) {
			w := startWithAppArmor(t, tc.parser)
			const words = "AppArmor enabled on system but the ply-default profile could not be loaded"
			if log := w.tail(); !strings.Contains(log, words) {
				t.Errorf("plyd does not say that the profile is missing:\n%s", log)
			}
			w.busybox()
			_, e, err := w.run("docker", "run", "--rm", "busybox", "true")
			for _, want := range []string{words, tc.want} {
				if err == nil || !strings.Contains(e, want) {
					t.Errorf("docker run: %v: %s, want %s", err, e, want)
				}
			}
			// A container that is not to be confined by the profile does not ask for it.
			for _, flag := range []string{"--privileged", "--security-opt=apparmor=unconfined"} {
				if _, e, err := w.run("docker", "run", "--rm", flag, "busybox", "true"); err == nil || strings.Contains(e, words) {
					t.Errorf("%s: %v: %s", flag, err, e)
				}
			}
		})
	}
}

func TestAHostWithoutAppArmor(t *testing.T) {
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && strings.HasPrefix(string(b), "Y") {
		t.Skip("this host has AppArmor")
	}
	w := newWorld(t)
	w.busybox()
	if got := w.docker("info", "-f", "{{json .SecurityOptions}}"); strings.Contains(got, "apparmor") {
		t.Errorf("security options %s", got)
	}
	w.docker("run", "--name", "box", "--security-opt", "apparmor=unconfined", "busybox", "true")
	if got := w.docker("inspect", "-f", "{{.AppArmorProfile}}", "box"); got != "" {
		t.Errorf("profile %s", got)
	}
	if _, e, err := w.run("docker", "run", "--rm", "--security-opt", "apparmor=mine", "busybox", "true"); err == nil || !strings.Contains(e, fmt.Sprintf("%q: AppArmor is not enabled", "apparmor=mine")) {
		t.Errorf("a profile that cannot be applied: %v: %s", err, e)
	}
}
