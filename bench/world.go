package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// world holds the two engines and a registry, all on loopback.
type world struct {
	options
	dir      string
	registry string // host:port with the images in it, "" until fillRegistry
	procs    []*exec.Cmd
	ply      engine
	docker   engine
	port     int
	measured []*server // nil until servers
}

// engine is one of the two engines, driven by its own command line.
type engine struct {
	name string
	cli  []string
	pid  int
	root string
}

// cmd runs a command line and returns its wall time in seconds.
func (e engine) cmd(args ...string) (float64, string, error) {
	c := exec.Command(e.cli[0], append(append([]string(nil), e.cli[1:]...), args...)...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	began := time.Now()
	err := c.Run()
	took := time.Since(began).Seconds()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", e.name, strings.Join(args, " "), err, out.String())
	}
	return took, strings.TrimSpace(out.String()), err
}

func (w *world) spawn(log string, name string, args ...string) (*exec.Cmd, error) {
	f, err := os.Create(filepath.Join(w.dir, log))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = f, f
	if err := c.Start(); err != nil {
		return nil, err
	}
	w.procs = append(w.procs, c)
	return c, nil
}

// execRoots is the directory of the engines' exec roots. It is in memory, as /run is where they are by default: a disk without a journal makes files that
// come and go there dearer with each run.
func (w *world) execRoots() string { return filepath.Join(w.dir, "run") }

// settings are the flags of every plyd.
func (w *world) settings() []string {
	if w.driver == "" {
		return nil
	}
	return []string{"--storage-driver", w.driver}
}

func (w *world) start() error {
	if err := os.Mkdir(w.execRoots(), 0o711); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", w.execRoots(), "tmpfs", 0, "mode=0711"); err != nil {
		return fmt.Errorf("mount %s: %w", w.execRoots(), err)
	}
	w.port = 5000
	p := func(s string) string { return filepath.Join(w.dir, s) }
	if !w.alone {
		d, err := w.spawn("dockerd.log", "dockerd", "--data-root", p("docker"), "--exec-root", filepath.Join(w.execRoots(), "docker"), "-H", "unix://"+p("docker.sock"),
			"--pidfile", p("docker.pid"), "--storage-driver", "overlay2")
		if err != nil {
			return err
		}
		w.docker = engine{name: "docker", cli: []string{"/usr/bin/docker", "-H", "unix://" + p("docker.sock")}, pid: d.Process.Pid, root: p("docker")}
	}
	l, err := w.spawn("plyd.log", filepath.Join(w.bin, "plyd"), append(w.settings(), "--data-root", p("ply"), "--exec-root", filepath.Join(w.execRoots(), "ply"),
		"-H", "unix://"+p("ply.sock"), "--pidfile", p("ply.pid"))...)
	if err != nil {
		return err
	}
	w.ply = engine{name: "ply", cli: []string{filepath.Join(w.bin, "ply"), "-H", "unix://" + p("ply.sock")}, pid: l.Process.Pid, root: p("ply")}
	for _, e := range w.both() {
		if err := waitFor(30*time.Second, func() error { _, _, err := e.cmd("version"); return err }); err != nil {
			return fmt.Errorf("%w; see %s", err, w.dir)
		}
		for _, c := range [][]string{{"import", "-c", `CMD ["sh"]`, filepath.Join(w.cache, "small.tar"), "busybox"}} {
			if _, _, err := e.cmd(c...); err != nil {
				return err
			}
		}
	}
	return nil
}

// fillRegistry starts the registry with the images of all shapes, unless it runs.
func (w *world) fillRegistry() error {
	if w.registry != "" {
		return nil
	}
	addr, err := w.startRegistry("main")
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "bench: filling the registry …")
	for _, s := range shapes {
		if err := sh(w.cache, `skopeo copy -q --dest-tls-verify=false "oci:oci-$2:1" "docker://$1/$3"`, addr, s.name, s.ref()); err != nil {
			return err
		}
	}
	w.registry = addr
	return nil
}

func (w *world) both() []engine {
	if w.alone {
		return []engine{w.ply}
	}
	return []engine{w.ply, w.docker}
}

// another starts a second plyd, from the programs in bin, on a data root of its own.
func (w *world) another(name, bin, root string) (e engine, stop func(), err error) {
	sock := filepath.Join(w.dir, name+".sock")
	p, err := w.spawn("plyd-"+name+".log", filepath.Join(bin, "plyd"), append(w.settings(), "--data-root", root, "--exec-root", filepath.Join(w.execRoots(), name),
		"-H", "unix://"+sock, "--pidfile", filepath.Join(w.dir, name+".pid"), "--bridge", "plybench1")...)
	if err != nil {
		return e, nil, err
	}
	e = engine{name: "ply", cli: []string{filepath.Join(w.bin, "ply"), "-H", "unix://" + sock}, pid: p.Process.Pid, root: root}
	stop = func() {
		w.procs = slices.DeleteFunc(w.procs, func(c *exec.Cmd) bool { return c == p })
		stopProcess(p)
	}
	if err := waitFor(20*time.Second, func() error { _, _, err := e.cmd("version"); return err }); err != nil {
		stop()
		return e, nil, err
	}
	return e, stop, nil
}

// cpu returns the processor time in seconds that the engine and its children that have ended have used.
func (e engine) cpu() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", e.pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := bytes.Cut(b, []byte(") "))
	f := strings.Fields(string(after))
	if len(f) < 15 {
		return 0, fmt.Errorf("%s: unknown form of its stat file", e.name)
	}
	const ticks = 100 // of the ABI, USER_HZ
	var sum float64
	for _, v := range f[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseFloat(v, 64)
		if err != nil {
			return 0, err
		}
		sum += n / ticks
	}
	return sum, nil
}

// startRegistry starts Debian's docker-registry on an empty directory.
func (w *world) startRegistry(name string) (string, error) {
	addr := fmt.Sprintf("127.0.0.1:%d", w.port)
	w.port++
	config := filepath.Join(w.dir, name+".yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", filepath.Join(w.dir, "registry-"+name), addr)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return "", err
	}
	if _, err := w.spawn("registry-"+name+".log", "docker-registry", "serve", config); err != nil {
		return "", err
	}
	return addr, waitFor(10*time.Second, func() error {
		r, err := http.Get("http://" + addr + "/v2/")
		if err != nil {
			return err
		}
		return r.Body.Close()
	})
}

// stopLast ends the process that was started last.
func (w *world) stopLast() {
	c := w.procs[len(w.procs)-1]
	w.procs = w.procs[:len(w.procs)-1]
	stopProcess(c)
}

func stopProcess(c *exec.Cmd) {
	_ = c.Process.Signal(os.Interrupt) // it may have ended by itself
	done := make(chan struct{})
	go func() { _ = c.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		_ = c.Process.Kill()
		<-done
	}
}

func waitFor(limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (w *world) close() {
	for _, e := range w.both() {
		if len(e.cli) == 0 {
			continue
		}
		if _, ids, err := e.cmd("ps", "-aq"); err == nil && ids != "" {
			_, _, _ = e.cmd(append([]string{"rm", "-f"}, strings.Fields(ids)...)...)
		}
	}
	for len(w.procs) > 0 {
		w.stopLast()
	}
	_ = exec.Command("sh", "-c", `awk -v d="$1" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n1 umount -l`, "sh", w.dir).Run()
	if err := os.RemoveAll(w.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}
