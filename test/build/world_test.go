package build

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ply/test/private"
)

var (
	update        = flag.Bool("update", false, "write the files want")
	updateDocker  = flag.Bool("update-docker", false, "record what docker's builders make of the cases")
	updateBuildah = flag.Bool("update-buildah", false, "record what buildah makes of the cases")
)

// bin is the directory of the programs; scratch is on a disk and removed at the end; baseArchive is the base image as docker save writes it.
var bin, scratch, baseArchive string

func TestMain(m *testing.M) {
	private.Main(m, func(dir string) (err error) {
		if bin, err = private.Binaries(); err != nil {
			return err
		}
		scratch = dir
		baseArchive, err = makeBase(dir)
		return err
	})
}

// makeBase writes the archive of the image base.
func makeBase(dir string) (string, error) {
	root := filepath.Join(dir, "base")
	script := `set -eu
mkdir -p "$1"/bin "$1"/etc "$1"/tmp "$1"/root "$1"/home/joe "$1"/var/data "$1"/srv/real/deep "$1"/proc "$1"/sys "$1"/dev
cp /bin/busybox "$1"/bin/busybox
for a in sh ls cat echo touch mkdir rm rmdir mv cp ln chmod chown mkfifo mknod stat id pwd env printf test find sort head tail wc seq sleep true false dd sed grep tr readlink tar sha256sum hostname ip ps kill umask date truncate expr cut uname; do ln -s busybox "$1/bin/$a"; done
chmod 1777 "$1"/tmp
printf 'root:x:0:0:root:/root:/bin/sh\njoe:x:1000:1000:joe:/home/joe:/bin/sh\n' >"$1"/etc/passwd
printf 'root:x:0:\njoe:x:1000:\nwheel:x:10:joe\n' >"$1"/etc/group
printf 'seed\n' >"$1"/var/data/seed
printf 'deep\n' >"$1"/srv/real/deep/file
ln -s real "$1"/srv/link
ln -s /srv/real/deep "$1"/srv/absolute
ln -s nothing "$1"/srv/dangling
chown 1000:1000 "$1"/home/joe
touch "$1"/etc/hosts "$1"/etc/hostname "$1"/etc/resolv.conf
tar --sort=name --numeric-owner --owner=0 --group=0 --mtime=@1577934245 -C "$1" -cf "$1".tar .
`
	if out, err := exec.Command("sh", "-c", script, "sh", root).CombinedOutput(); err != nil {
		return "", fmt.Errorf("make the base image: %w: %s", err, out)
	}
	return root + ".image.tar", packImage(root+".tar", root+".image.tar", "base:latest")
}

// packImage writes an image of one layer as an archive.
func packImage(layer, archive, tag string) error {
	data, err := os.ReadFile(layer)
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","created":"2020-01-01T00:00:00Z",`+
		`"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"]},`+
		`"rootfs":{"type":"layers","diff_ids":["sha256:%x"]},"history":[{"created":"2020-01-01T00:00:00Z","created_by":"base"}]}`, sum(data))
	manifest := fmt.Sprintf(`[{"Config":"config.json","RepoTags":[%q],"Layers":["layer.tar"]}]`, tag)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		data []byte
	}{{"config.json", []byte(config)}, {"layer.tar", data}, {"manifest.json", []byte(manifest)}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data))}); err != nil {
			return err
		}
		if _, err := w.Write(f.data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(archive, b.Bytes(), 0o644)
}

// engine is a plyd, a dockerd or buildah with the base image.
type engine struct {
	name    string
	dir     string
	sock    string
	cli     []string // words before the command
	flags   []string // words after the command build
	env     []string
	cmd     *exec.Cmd
	http    *http.Client
	archive func(image string) (io.ReadCloser, error) // an image as docker save writes it
	base    tree
}

// startPly starts a plyd. It ends with the test, which fails if a mount or a process is left.
func startPly(t *testing.T, driver string) *engine {
	t.Helper()
	e := newEngine(t, driver)
	config := filepath.Join(e.dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.cli = []string{filepath.Join(bin, "ply")}
	e.start(t, exec.Command(filepath.Join(bin, "plyd"), "--data-root", filepath.Join(e.dir, "data"), "--exec-root", filepath.Join(e.dir, "run"), "-H", "unix://"+e.sock,
		"--pidfile", filepath.Join(e.dir, "pid"), "--bridge", "plyb"+driver[:min(4, len(driver))], "--config-file", config, "--storage-driver", driver))
	return e
}

func newEngine(t *testing.T, name string) *engine {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, name+".")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{name: name, dir: dir, sock: filepath.Join(dir, "s")}
	e.env = append(os.Environ(), "DOCKER_HOST=unix://"+e.sock, "DOCKER_CONFIG="+filepath.Join(dir, "config"), "DOCKER_CLI_HINTS=false", "TERM=dumb")
	e.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.sock)
	}}}
	e.archive = func(image string) (io.ReadCloser, error) {
		r, err := e.get("GET", "/images/"+image+"/get", nil)
		if err != nil {
			return nil, err
		}
		return r.Body, nil
	}
	return e
}

func (e *engine) log() string {
	b, _ := os.ReadFile(filepath.Join(e.dir, "log"))
	return string(b[max(0, len(b)-6000):])
}

func (e *engine) start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	t.Cleanup(func() { e.stop(t) })
	e.launch(t, cmd)
	e.run(t, e.cli[0], append(slices.Clone(e.cli[1:]), "load", "-q", "-i", baseArchive)...)
	var err error
	if e.base, err = e.saved("base"); err != nil {
		t.Fatal(err)
	}
}

// launch starts the engine's program and waits until it answers.
func (e *engine) launch(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e.cmd = cmd
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		r, err := e.http.Get("http://e/_ping")
		if err == nil {
			r.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v\n%s", e.name, err, e.log())
		}
	}
}

func (e *engine) stop(t *testing.T) {
	t.Helper()
	if e.cmd == nil {
		return
	}
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- e.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s ended with %v\n%s", e.name, err, e.log())
		}
	case <-time.After(60 * time.Second):
		_ = e.cmd.Process.Signal(syscall.SIGABRT)
		<-done
		t.Errorf("%s does not stop\n%s", e.name, e.log())
	}
	e.http.CloseIdleConnections()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], e.dir+"/") {
			if e.name != "docker" {
				t.Errorf("mount left: %s", f[1])
			}
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
	if out, _ := exec.Command("pgrep", "-af", e.dir).Output(); len(out) > 0 {
		t.Errorf("processes left:\n%s", out)
	}
	if t.Failed() {
		t.Logf("%s:\n%s", e.name, e.log())
	}
	if err := os.RemoveAll(e.dir); err != nil {
		t.Error(err)
	}
}

// run runs a program that must succeed, and returns what it printed.
func (e *engine) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, code := e.try("", name, args...)
	if code != 0 {
		t.Fatalf("%s: %s %s: exit code %d\n%s", e.name, name, strings.Join(args, " "), code, out)
	}
	return strings.TrimSpace(out)
}

// ply runs ply, which must succeed.
func (e *engine) ply(t *testing.T, args ...string) string {
	t.Helper()
	return e.run(t, e.cli[0], args...)
}

// try runs a program in dir and returns what it printed on both streams, and its exit code.
func (e *engine) try(dir, name string, args ...string) (string, int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env, c.Dir = e.env, dir
	out, err := c.CombinedOutput()
	if err != nil && c.ProcessState == nil {
		return string(out) + err.Error(), -1
	}
	return string(out), c.ProcessState.ExitCode()
}

// get requests a path of the API.
func (e *engine) get(method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequest(method, "http://e"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	r, err := e.http.Do(req)
	if err != nil {
		return nil, err
	}
	if r.StatusCode >= 400 {
		b, _ := io.ReadAll(r.Body)
		r.Body.Close()
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, r.Status, b)
	}
	return r, nil
}

// shown returns the tree of an image as a container has it.
func (e *engine) shown(image string) (tree, error) {
	r, err := e.get("POST", "/containers/create", strings.NewReader(fmt.Sprintf(`{"Image":%q,"Cmd":["x"],"Entrypoint":[]}`, image)))
	if err != nil {
		return nil, err
	}
	var c struct{ ID string }
	err = json.NewDecoder(r.Body).Decode(&c)
	r.Body.Close()
	if err != nil {
		return nil, err
	}
	tr := tree{}
	if r, err = e.get("GET", "/containers/"+c.ID+"/export", nil); err == nil {
		err = tr.apply(r.Body)
		r.Body.Close()
	}
	if err == nil {
		r, err = e.get("DELETE", "/containers/"+c.ID, nil)
	}
	if err == nil {
		r.Body.Close()
	}
	return tr, err
}

// saved returns the tree of an image: its layers on each other, as an archive has them.
func (e *engine) saved(image string) (tree, error) {
	_, layers, err := e.save(image)
	if err != nil {
		return nil, err
	}
	return lay(layers)
}

// lay lays the tars of layers on each other.
func lay(layers [][]byte) (tree, error) {
	t := tree{}
	for _, l := range layers {
		if err := t.apply(bytes.NewReader(l)); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// save returns the config and the layers of an image.
func (e *engine) save(image string) (config []byte, layers [][]byte, err error) {
	r, err := e.archive(image)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	files := map[string][]byte{}
	links := map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		if h.Typeflag == tar.TypeSymlink {
			links[h.Name] = filepath.Join(filepath.Dir(h.Name), h.Linkname)
			continue
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			return nil, nil, err
		}
	}
	var m []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &m); err != nil {
		return nil, nil, err
	}
	for _, l := range m[0].Layers {
		if to, ok := links[l]; ok {
			l = to
		}
		layers = append(layers, files[l])
	}
	return files[m[0].Config], layers, nil
}
