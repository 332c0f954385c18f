package upgrade

import (
	"bytes"
	"flag"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var writeRoots = flag.Bool("write-roots", false, "write testdata/roots.tar.zst again with the previous build")

// drivers are the storage drivers of which the archive holds a data root.
var drivers = []string{"erofs", "overlay2"}

const rootsArchive = "testdata/roots.tar.zst"

// TestDataRootOfThePreviousBuild opens data roots that the previous build wrote and uses everything in them.
func TestDataRootOfThePreviousBuild(t *testing.T) {
	if *writeRoots {
		writeArchive(t)
	}
	roots := unpackRoots(t)
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			m := newMachine(t, filepath.Join(roots, driver), driver)
			m.start(bin)
			m.check("as the previous build left it")
			m.stop(syscall.SIGTERM)
			m.start(bin)
			m.check("after a second start")
			m.use()
			m.stop(syscall.SIGTERM)
			m.start(bin)
			m.checkUsed()
		})
	}
}

// unpackRoots unpacks the archive and returns a directory with one data root per driver.
func unpackRoots(t *testing.T) string {
	t.Helper()
	dir := mustMkdirTemp(t)
	if out, err := exec.Command("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", rootsArchive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", rootsArchive, err, out)
	}
	return dir
}

// writeArchive fills data roots with the previous build and archives them.
func writeArchive(t *testing.T) {
	t.Helper()
	old := previousBinaries(t)
	image := makeImage(t)
	dir := t.TempDir()
	for _, driver := range drivers {
		ok := t.Run("write "+driver, func(t *testing.T) {
			m := newMachine(t, filepath.Join(mustMkdirTemp(t), "data"), driver)
			m.flags = []string{"--retain-blobs", "always"}
			m.start(old)
			m.fill(image)
			m.stop(syscall.SIGTERM)
			if err := os.Mkdir(filepath.Join(dir, driver), 0o700); err != nil {
				t.Fatal(err)
			}
			copyTree(t, m.dir, filepath.Join(dir, driver))
		})
		if !ok {
			t.FailNow()
		}
	}
	args := append([]string{"--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name", "-I", "zstd -19", "-cf", rootsArchive, "-C", dir}, drivers...)
	if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
}

// makeImage writes the root file system of the fixture's first layer to a tar file.
func makeImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := `mkdir -p r/etc r/data r/tmp r/old
gcc -static -nostdlib -Os -s -fno-stack-protector -fno-asynchronous-unwind-tables -Wl,--build-id=none -o r/box "$1"
echo base >r/etc/release
echo removed >r/etc/removed
chown 7:8 r/etc/release
chmod 1777 r/tmp
tar --sort=name --numeric-owner --mtime=@1700000000 -C r -cf image.tar .`
	source, err := filepath.Abs("testdata/box.c")
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sh", "-euc", script, "sh", source)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("image: %v: %s", err, out)
	}
	return filepath.Join(dir, "image.tar")
}

// fill makes what check expects: the image app:1 of two layers, which was pulled from a registry; the container ended,
// which has changed and removed files; the container made, which was never started; and the volume kept.
func (m *machine) fill(image string) {
	m.t.Helper()
	m.ply("import", "-c", `CMD ["/box", "say:default"]`, "-c", "ENV FROM=fixture", "-c", "LABEL layer=base", image, "base:1")
	m.ply("run", "--network", "none", "--name", "change", "base:1", "/box", "put:/etc/second=layer", "rm:/etc/removed", "rm:/old", "mkdir:/old", "put:/old/new=inside")
	m.ply("commit", "-c", `CMD ["/box", "say:default"]`, "-c", "LABEL layer=second", "-c", "EXPOSE 80/tcp", "-m", "a second layer", "change", "app:1")
	m.ply("rm", "change")
	m.pullAgain("app:1")
	m.ply("rmi", "base:1")

	m.ply("volume", "create", "--label", "of=fixture", "kept")
	m.ply("run", "--rm", "--network", "none", "-v", "kept:/data", "app:1", "/box", "put:/data/file=precious")
	m.fails(7, "run", "--name", "ended", "--label", "which=first", "--env", "MORE=1", "app:1", "/box", "say:to stdout", "err:to stderr", "put:/etc/release=changed", "rm:/etc/second", "exit:7")
	m.ply("create", "--name", "made", "--label", "which=second", "-v", "kept:/data", "-p", "127.0.0.1:18080:80", "--restart", "on-failure:3", "--memory", "64m",
		"--health-cmd", "unused", "--health-interval", "1h", "--health-retries", "4", "--stop-signal", "SIGINT", "app:1", "/box", "cat:/data/file", "say:started", "sleep:600")
}

// pullAgain pushes an image to a registry, removes it and pulls it, so that its compressed layers and manifest are known.
func (m *machine) pullAgain(name string) {
	m.t.Helper()
	const at = "127.0.0.1:5000"
	config := filepath.Join(m.t.TempDir(), "registry.yml")
	text := "version: 0.1\nlog: {level: error}\nstorage: {inmemory: {}}\nhttp: {addr: " + at + "}\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
	c := exec.Command("docker-registry", "serve", config)
	if err := c.Start(); err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	m.eventually("registry", func() bool {
		r, err := http.Get("http://" + at + "/v2/")
		if err == nil {
			r.Body.Close()
		}
		return err == nil
	})
	remote := at + "/" + name
	m.ply("tag", name, remote)
	m.ply("push", remote)
	m.ply("rmi", remote, name)
	m.ply("pull", remote)
	m.ply("tag", remote, name)
}

// check compares everything with what fill made.
func (m *machine) check(when string) {
	m.t.Helper()
	m.t.Log(m.storage + ": " + when)
	m.want("127.0.0.1:5000/app:1\napp:1", "images", "--format", "{{.Repository}}:{{.Tag}}")
	m.want(`["/box","say:default"] second fixture 2`, "inspect", "-f", `{{json .Config.Cmd}} {{.Config.Labels.layer}} {{range .Config.Env}}{{if eq . "FROM=fixture"}}fixture{{end}}{{end}} {{len .RootFS.Layers}}`, "app:1")
	m.wantPart("a second layer", "history", "app:1")
	m.wantPart("127.0.0.1:5000/app@sha256:", "inspect", "-f", "{{.RepoDigests}}", "app:1")

	m.want("made Created\nended Exited (7)", "ps", "-a", "--format", `{{.Names}} {{with $s := split .Status " "}}{{index $s 0}}{{if gt (len $s) 1}} {{index $s 1}}{{end}}{{end}}`)
	m.want("exited 7 map[layer:second which:first]", "inspect", "-f", `{{.State.Status}} {{.State.ExitCode}} {{.Config.Labels}}`, "ended")
	m.want("to stdout", "logs", "ended")
	if _, e, err := m.try("logs", "ended"); err != nil || strings.TrimSpace(e) != "to stderr" {
		m.t.Errorf("stderr of the log: %q, %v", e, err)
	}
	m.want("C /etc\nC /etc/release\nD /etc/second", "diff", "ended")
	copied := filepath.Join(m.t.TempDir(), "release")
	m.ply("cp", "ended:/etc/release", copied)
	if b, err := os.ReadFile(copied); err != nil || string(b) != "base\nchanged\n" {
		m.t.Errorf("changed file of ended: %q, %v", b, err)
	}

	m.want("created on-failure 3 67108864 SIGINT [CMD-SHELL unused] 4", "inspect", "-f",
		"{{.State.Status}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}} {{.HostConfig.Memory}} {{.Config.StopSignal}} {{.Config.Healthcheck.Test}} {{.Config.Healthcheck.Retries}}", "made")
	m.want(`{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"18080"}]}`, "inspect", "-f", "{{json .HostConfig.PortBindings}}", "made")
	m.want("volume kept /var/lib/ply/volumes/kept/_data /data", "inspect", "-f", "{{range .Mounts}}{{.Type}} {{.Name}} {{.Source}} {{.Destination}}{{end}}", "made")
	m.want("kept fixture", "volume", "inspect", "-f", "{{.Name}} {{.Labels.of}}", "kept")
	m.want("precious", "run", "--rm", "--network", "none", "-v", "kept:/data", "app:1", "/box", "cat:/data/file")
}

// use starts, commits, saves and removes what is there.
func (m *machine) use() {
	m.t.Helper()
	m.ply("start", "made")
	m.eventually("output of made", func() bool { return m.ply("logs", "made") == "precious\nstarted" })
	m.wantPart("127.0.0.1:18080", "port", "made")
	if conn, err := net.DialTimeout("tcp", "127.0.0.1:18080", time.Second); err == nil { // no one listens on port 80
		conn.Close()
	}
	m.want("layer", "exec", "made", "/box", "cat:/etc/second")
	m.want("inside", "exec", "made", "/box", "cat:/old/new")
	m.fails(1, "exec", "made", "/box", "cat:/etc/removed")
	m.wantPart("64MiB", "stats", "--no-stream", "--format", "{{.MemUsage}}", "made")
	m.ply("stop", "-t", "0", "made")
	m.want("exited 137", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "made")

	// The file that the first run removed is missing, so the second run ends where that matters.
	m.fails(1, "start", "-a", "ended")
	m.want("exited 1", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "ended")
	m.want("to stdout\nto stdout", "logs", "ended")

	m.ply("commit", "ended", "committed:1")
	m.want("base\nchanged\nchanged", "run", "--rm", "--network", "none", "committed:1", "/box", "cat:/etc/release")
	m.want("3", "inspect", "-f", "{{len .RootFS.Layers}}", "committed:1")
	saved := filepath.Join(m.t.TempDir(), "saved.tar")
	m.ply("save", "-o", saved, "app:1") // reads every byte of the layers and compares digests
	m.ply("rmi", "127.0.0.1:5000/app:1")
	m.ply("rm", "ended")
	m.ply("rm", "made")
	m.ply("rmi", "committed:1", "app:1")
	m.want("", "images", "-q")
	m.ply("load", "-i", saved)
	m.want("default", "run", "--rm", "--network", "none", "app:1")
	m.wantPart("kept", "volume", "prune", "-af")
	m.ply("system", "prune", "-af")
	m.want("", "images", "-q")
	m.want("", "volume", "ls", "-q")
}

// checkUsed checks that use has left nothing behind.
func (m *machine) checkUsed() {
	m.t.Helper()
	for _, args := range [][]string{{"ps", "-aq"}, {"images", "-aq"}, {"volume", "ls", "-q"}} {
		m.want("", args...)
	}
	m.wantPart("0B", "system", "df", "--format", "{{.Size}}")
	if bytes.Contains([]byte(m.tail()), []byte("level=ERROR")) {
		m.t.Errorf("plyd logged an error:\n%s", m.tail())
	}
}
