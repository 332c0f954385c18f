package house

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ply/internal/config"
)

// install runs make install into a directory, with the binaries that are already built, and returns what it says.
func install(t *testing.T, dest, prefix string) (says string) {
	t.Helper()
	return must(t, "make", "-C", root, "-o", "build", "install", "BIN="+bin, "DESTDIR="+dest, "PREFIX="+prefix)
}

// files lists the files below a directory by relative path, without the directories.
func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestInstall(t *testing.T) {
	dest := t.TempDir()
	says := install(t, dest, "/opt/ply")
	// systemd and the shell do not look there by themselves.
	for _, want := range []string{"systemctl enable --now /opt/ply/lib/systemd/system/ply.service /opt/ply/lib/systemd/system/ply.socket,", "PATH=/opt/ply/bin:$PATH; MANPATH=/opt/ply/share/man:; . /opt/ply/share/bash-completion/completions/ply\n"} {
		if !strings.Contains(says, want) {
			t.Errorf("it does not say %q:\n%s", want, says)
		}
	}
	at := filepath.Join(dest, "opt", "ply")
	got := files(t, dest)
	for _, want := range []string{"bin/ply", "bin/plyd", "bin/ply-shim", "bin/ply-log", "bin/ply-registry", "lib/systemd/system/ply.service", "lib/systemd/system/ply.socket", "lib/systemd/system/ply-registry.service", "lib/sysusers.d/ply-registry.conf",
		"share/bash-completion/completions/ply", "share/zsh/site-functions/_ply", "share/fish/vendor_completions.d/ply.fish",
		"share/man/man1/ply.1", "share/man/man1/ply-run.1", "share/man/man8/plyd.8", "share/man/man5/ply-daemon.json.5"} {
		if !slices.Contains(got, filepath.Join("opt/ply", want)) {
			t.Errorf("%s is not installed", want)
		}
	}
	for _, f := range got {
		if !strings.HasPrefix(f, "opt/ply/") {
			t.Errorf("%s lies outside the prefix", f)
		}
		st, err := os.Stat(filepath.Join(dest, f))
		if err != nil {
			t.Fatal(err)
		}
		want := fs.FileMode(0o644)
		if strings.HasPrefix(f, "opt/ply/bin/") {
			want = 0o755
		}
		if st.Mode() != want {
			t.Errorf("%s has mode %v, want %v", f, st.Mode(), want)
		}
	}
	for _, program := range []string{"ply", "plyd"} {
		if out := must(t, filepath.Join(at, "bin", program), "--version"); !strings.Contains(out, "version") {
			t.Errorf("%s --version says %q", program, out)
		}
	}
	t.Run("units", func(t *testing.T) { units(t, at, filepath.Join(dest, "opt")) })
	t.Run("bash", func(t *testing.T) { bash(t, at) })
	t.Run("zsh", func(t *testing.T) {
		script := filepath.Join(at, "share/zsh/site-functions/_ply")
		if !strings.HasPrefix(read(t, script), "#compdef ply\n") {
			t.Error("it does not begin with the command that it completes")
		}
		if zsh, err := exec.LookPath("zsh"); err == nil {
			must(t, zsh, "-n", script)
		}
	})
	t.Run("fish", func(t *testing.T) {
		script := filepath.Join(at, "share/fish/vendor_completions.d/ply.fish")
		if !strings.Contains(read(t, script), "complete -c ply ") {
			t.Error("it completes no ply")
		}
		if fish, err := exec.LookPath("fish"); err == nil {
			must(t, fish, "--no-execute", script)
		}
	})
	t.Run("manuals", func(t *testing.T) { manuals(t, at) })

	must(t, "make", "-C", root, "-o", "build", "uninstall", "DESTDIR="+dest, "PREFIX=/opt/ply")
	if left := files(t, dest); len(left) > 0 {
		t.Errorf("uninstall leaves %q", left)
	}
}

// units checks the systemd units; opt is the directory that stands for /opt of the installation.
func units(t *testing.T, at, opt string) {
	dir := filepath.Join(at, "lib/systemd/system")
	service, socket, registry := read(t, filepath.Join(dir, "ply.service")), read(t, filepath.Join(dir, "ply.socket")), read(t, filepath.Join(dir, "ply-registry.service"))
	for _, text := range []string{service, socket, registry} {
		if m := regexp.MustCompile(`@\w+@`).FindString(text); m != "" {
			t.Errorf("%s was not filled in:\n%s", m, text)
		}
	}
	if !strings.Contains(service, "\nExecStart=/opt/ply/bin/plyd -H fd://\n") {
		t.Errorf("the prefix is not in ExecStart:\n%s", service)
	}
	// Containers outlive plyd, and plyd reports when it is ready.
	for _, line := range []string{"Type=notify", "KillMode=process", "Delegate=yes", "Requires=ply.socket"} {
		if !strings.Contains(service, "\n"+line+"\n") {
			t.Errorf("ply.service does not say %s", line)
		}
	}
	if !strings.Contains(socket, "\nListenStream=/run/ply.sock\n") {
		t.Errorf("ply.socket does not listen where ply looks:\n%s", socket)
	}
	// The registry is not root, reads its settings again when systemd reloads it, and ends its requests before it is killed.
	for _, line := range []string{"ExecStart=/opt/ply/bin/ply-registry", "ExecReload=/bin/kill -s HUP $MAINPID", "User=ply-registry", "StateDirectory=ply-registry", "TimeoutStopSec=45"} {
		if !strings.Contains(registry, "\n"+line+"\n") {
			t.Errorf("ply-registry.service does not say %s", line)
		}
	}
	if users := read(t, filepath.Join(at, "lib/sysusers.d/ply-registry.conf")); !strings.HasPrefix(users, "u ply-registry - ") {
		t.Errorf("systemd-sysusers does not make the user of the registry: %s", users)
	}
	if verify, err := exec.LookPath("systemd-analyze"); err == nil {
		over(t, opt, "/opt") // the check wants ExecStart to be there
		if out := must(t, verify, "verify", "--man=no", filepath.Join(dir, "ply.service"), filepath.Join(dir, "ply.socket"), filepath.Join(dir, "ply-registry.service")); strings.Contains(out, "ply.s") || strings.Contains(out, "ply-registry.s") {
			t.Error(out)
		}
	}
}

// bash completes words as the shell does, without the package bash-completion.
func bash(t *testing.T, at string) {
	script := filepath.Join(at, "share/bash-completion/completions/ply")
	must(t, "bash", "-n", script)
	const ask = `. "$1"; line=$2; shift 2
complete -p ply >/dev/null || exit 1
compopt() { :; }
COMP_WORDS=(ply "$@") COMP_CWORD=$# COMP_LINE="ply $line" COMP_TYPE=9 COMP_KEY=9
COMP_POINT=${#COMP_LINE}
__start_ply ply
printf '%s\n' "${COMPREPLY[@]}"`
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"vers"}, "version"},
		{[]string{"image", "pru"}, "prune"},
		{[]string{"run", "--netw"}, "--network"},
		{[]string{"run", "--restart", "unl"}, "unless-stopped"},
		{[]string{"run", "--restart", "=", "alw"}, "always"},
		{[]string{"create", "--pull", ""}, "never"},
		{[]string{"ps", "--filter", "sta"}, "status="},
		{[]string{"ps", "-a", "--filter", "status", "=", "exi"}, "exited"},
	} {
		line := strings.ReplaceAll(strings.Join(c.words, " "), " = ", "=")
		cmd := command(t, "bash", append([]string{"--norc", "-c", ask, "bash", script, line}, c.words...)...)
		cmd.Env = append(cmd.Env, "PATH="+filepath.Join(at, "bin")+":"+os.Getenv("PATH"), "PLY_NO_START=1")
		out, err := cmd.CombinedOutput()
		if got := strings.Fields(string(out)); err != nil || !slices.Contains(got, c.want) {
			t.Errorf("ply %s<tab> gives %q, want %q (%v)", strings.Join(c.words, " "), out, c.want, err)
		}
	}
}

// manuals checks that each command, the engine with its options, and each setting have their place in a manual page, and that groff formats all without a warning.
func manuals(t *testing.T, at string) {
	pages, err := filepath.Glob(filepath.Join(at, "share/man/man1/*.1"))
	if err != nil {
		t.Fatal(err)
	}
	help := must(t, filepath.Join(at, "bin/ply"), "--help")
	n := 0
	for _, m := range regexp.MustCompile(`(?m)^  ([a-z]+)\*?  `).FindAllStringSubmatch(help, -1) {
		n++
		if page := filepath.Join(at, "share/man/man1/ply-"+m[1]+".1"); !slices.Contains(pages, page) {
			t.Errorf("%s has no page", m[1])
		}
	}
	if n < 20 {
		t.Errorf("found %d commands in\n%s", n, help)
	}
	engine, settings := filepath.Join(at, "share/man/man8/plyd.8"), filepath.Join(at, "share/man/man5/ply-daemon.json.5")
	pages = append(pages, engine, settings)
	text := read(t, engine)
	for _, m := range regexp.MustCompile(`(?m)^ .*(--[a-z-]+)`).FindAllStringSubmatch(must(t, filepath.Join(at, "bin/plyd"), "--help"), -1) {
		if !strings.Contains(text, strings.ReplaceAll(m[1], "-", `\-`)) {
			t.Errorf("plyd(8) has no %s", m[1])
		}
	}
	for _, k := range config.Keys() {
		if !strings.Contains(read(t, settings), "\n.B "+strings.ReplaceAll(k.Name, "-", `\-`)+"\n") {
			t.Errorf("ply-daemon.json(5) has no %s", k.Name)
		}
	}
	for _, page := range pages {
		text := read(t, page)
		for _, want := range []string{"\n.TH ", "\n.SH NAME\n", "\n.SH SYNOPSIS\n"} {
			if !strings.Contains("\n"+text, want) {
				t.Errorf("%s has no %q", filepath.Base(page), want)
			}
		}
	}
	if out := must(t, "groff", append([]string{"-man", "-Tutf8", "-ww", "-z"}, pages...)...); out != "" {
		t.Errorf("groff: %s", out)
	}
}
