package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"ply/internal/compress"
)

// turns runs a measurement of each engine in turn, rounds times. It syncs before each, so that no engine waits for the writes of the
// other.
func (w *world) turns(rounds int, f func(e engine, round int) (float64, error)) (ply, docker []float64, err error) {
	for r := range rounds {
		for i, e := range w.both() {
			if err := exec.Command("sync").Run(); err != nil {
				return nil, nil, err
			}
			v, err := f(e, r)
			if err != nil {
				return nil, nil, err
			}
			if i == 0 {
				ply = append(ply, v)
			} else {
				docker = append(docker, v)
			}
		}
	}
	return ply, docker, nil
}

func against(what string, ply, docker []float64, share float64) row {
	p, d := median(ply), median(docker)
	return row{what: what, ply: p, docker: d, unit: "s", budget: fmt.Sprintf("<= %.2g of docker", share), met: p <= d*share}
}

// pull measures pulling the image until it can run, and removing it.
func (w *world) pull() ([]row, error) {
	name := w.registry + "/" + bigName
	var rmi, rmiDocker []float64
	ply, docker, err := w.turns(w.rounds, func(e engine, _ int) (float64, error) {
		took, _, err := e.cmd("pull", name)
		if err != nil {
			return 0, err
		}
		before, err := dirSize(e.root)
		if err != nil {
			return 0, err
		}
		gone, _, err := e.cmd("rmi", name)
		if err != nil {
			return 0, err
		}
		after, err := dirSize(e.root)
		if e.name != "ply" {
			rmiDocker = append(rmiDocker, gone)
		} else {
			rmi = append(rmi, gone)
			if err == nil && before-after < 1<<30 {
				err = fmt.Errorf("rmi freed %d bytes only", before-after)
			}
		}
		return took, err
	})
	if err != nil {
		return nil, err
	}
	var bare []float64
	for range w.rounds {
		v, err := w.barePass(name)
		if err != nil {
			return nil, err
		}
		bare = append(bare, v)
	}
	packed, plain := totals(w.cache)
	what := fmt.Sprintf("pull %.2f GB/%d layers (%.0f MB packed)", float64(plain)/1e9, len(layersOf)+1, float64(packed)/1e6)
	b := median(bare)
	return []row{
		against(what, ply, docker, 0.25),
		{what: fmt.Sprintf("the same against a bare pass of %.3g s (%s)", b, compress.GzipEngine), ply: median(ply), unit: "s", budget: "<= 1.5 of the bare pass", met: median(ply) <= 1.5*b},
		{what: "rmi of that image on this file system (see the journaled one below)", ply: median(rmi), docker: median(rmiDocker), unit: "s", budget: "<= docker", met: median(rmi) <= median(rmiDocker)},
	}, nil
}

// rmiJournaled measures removal on an ext4 with a journal, on a loop device. Without a journal and with the mount option discard, the
// kernel discards every freed block before unlink returns, and the measurement would show only that.
func (w *world) rmiJournaled() (rows []row, err error) {
	disk, at := filepath.Join(w.dir, "ext4.img"), filepath.Join(w.dir, "ext4")
	if err := sh(w.dir, `truncate -s 12G "$1" && mkfs.ext4 -q "$1" && mkdir "$2" && mount -o loop "$1" "$2"`, disk, at); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sh(w.dir, `umount "$2" && rm "$1"`, disk, at)) }()
	sock := filepath.Join(w.dir, "rmi.sock")
	p, err := w.spawn("plyd-rmi.log", filepath.Join(w.bin, "plyd"), "--data-root", filepath.Join(at, "ply"), "--exec-root", filepath.Join(w.dir, "rmi-run"),
		"-H", "unix://"+sock, "--pidfile", filepath.Join(w.dir, "rmi.pid"), "--bridge", "plybench1")
	if err != nil {
		return nil, err
	}
	defer func() { w.procs = w.procs[:len(w.procs)-1]; stopProcess(p) }()
	e := engine{name: "ply", cli: []string{filepath.Join(w.bin, "ply"), "-H", "unix://" + sock}}
	if err := waitFor(20*time.Second, func() error { _, _, err := e.cmd("version"); return err }); err != nil {
		return nil, err
	}
	name := w.registry + "/" + bigName
	var took []float64
	for range w.rounds {
		if _, _, err := e.cmd("pull", "-q", name); err != nil {
			return nil, err
		}
		var before, after syscall.Statfs_t
		if err := errors.Join(exec.Command("sync").Run(), syscall.Statfs(at, &before)); err != nil {
			return nil, err
		}
		v, _, err := e.cmd("rmi", name)
		if err = errors.Join(err, syscall.Statfs(at, &after)); err != nil {
			return nil, err
		}
		if freed := int64(after.Bfree-before.Bfree) * after.Bsize; freed < 1<<30 {
			return nil, fmt.Errorf("rmi returned with %d bytes freed", freed)
		}
		took = append(took, v)
	}
	m := median(took)
	return []row{{what: "rmi of that image on a journaled ext4, space free on return", ply: m, unit: "s", budget: "<= 0.05 s", met: m <= 0.05}}, nil
}

// barePass fetches every layer, hashes, decompresses, hashes and writes it, two at a time. No pull can be faster.
func (w *world) barePass(name string) (float64, error) {
	base := "http://" + w.registry + "/v2/" + strings.TrimSuffix(bigName, ":1")
	req, err := http.NewRequest(http.MethodGet, base+"/manifests/1", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	dir, err := os.MkdirTemp(w.dir, "bare")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	var m struct{ Layers []descriptor }
	if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
		return 0, err
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2)
	failed := make(chan error, len(m.Layers))
	for i, l := range m.Layers {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := bareLayer(base+"/blobs/"+l.Digest, filepath.Join(dir, strconv.Itoa(i))); err != nil {
				failed <- err
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
	}
	return time.Since(began).Seconds(), nil
}

func bareLayer(url, name string) error {
	r, err := http.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	packed, plain := sha256.New(), sha256.New()
	z, _, err := compress.NewReader(context.Background(), io.TeeReader(r.Body, packed))
	if err != nil {
		return err
	}
	defer z.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, plain)}, z, make([]byte, 1<<20)); err != nil {
		return err
	}
	return f.Sync()
}

// run measures a container that starts and ends at once.
func (w *world) run() ([]row, error) {
	ply, docker, err := w.turns(max(w.rounds, 10), func(e engine, _ int) (float64, error) {
		took, _, err := e.cmd("run", "--rm", "busybox", "true")
		return took, err
	})
	if err != nil {
		return nil, err
	}
	return []row{against("run --rm busybox true", ply, docker, 0.25)}, nil
}

// commit measures a commit of 220 MB of changes in 2,200 files.
func (w *world) commit() ([]row, error) {
	for _, e := range w.both() {
		_, _, err := e.cmd("run", "--name", "change", "busybox", "sh", "-c",
			`i=0; while [ $i -lt 2200 ]; do dd if=/dev/urandom of=/f$i bs=100k count=1 2>/dev/null; i=$((i+1)); done`)
		if err != nil {
			return nil, err
		}
	}
	ply, docker, err := w.turns(w.rounds, func(e engine, r int) (float64, error) {
		took, _, err := e.cmd("commit", "change", fmt.Sprintf("changed:%d", r))
		if err == nil {
			_, _, err = e.cmd("rmi", fmt.Sprintf("changed:%d", r))
		}
		return took, err
	})
	if err != nil {
		return nil, err
	}
	for _, e := range w.both() {
		if _, _, err := e.cmd("rm", "change"); err != nil {
			return nil, err
		}
	}
	return []row{against("commit of a 220 MB change", ply, docker, 0.25)}, nil
}

// push measures a push to an empty registry.
func (w *world) push() ([]row, error) {
	from := w.registry + "/" + bigName
	for _, e := range w.both() {
		if _, _, err := e.cmd("pull", from); err != nil {
			return nil, err
		}
	}
	ply, docker, err := w.turns(w.rounds, func(e engine, r int) (float64, error) {
		name := fmt.Sprintf("empty-%s-%d", e.name, r)
		addr, err := w.startRegistry(name)
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(filepath.Join(w.dir, "registry-"+name))
		defer w.stopLast()
		to := addr + "/" + bigName
		if _, _, err := e.cmd("tag", from, to); err != nil {
			return 0, err
		}
		took, _, err := e.cmd("push", to)
		if err == nil {
			_, _, err = e.cmd("rmi", to)
		}
		return took, err
	})
	if err != nil {
		return nil, err
	}
	for _, e := range w.both() {
		if _, _, err := e.cmd("rmi", from); err != nil {
			return nil, err
		}
	}
	return []row{against("push of that image to an empty registry", ply, docker, 0.25)}, nil
}

// disk measures the space that ten images on one base take.
func (w *world) disk() ([]row, error) {
	from := w.registry + "/" + bigName
	var used [2]float64
	for i, e := range w.both() {
		before, err := dirSize(e.root)
		if err != nil {
			return nil, err
		}
		if _, _, err := e.cmd("pull", from); err != nil {
			return nil, err
		}
		for n := range 10 {
			name := fmt.Sprintf("on%d", n)
			if _, _, err := e.cmd("run", "--name", name, from, "sh", "-c", fmt.Sprintf("cp -r /usr/share/vim /opt/%d; head -c 5000000 /dev/urandom >/opt/r", n)); err != nil {
				return nil, err
			}
			if _, _, err := e.cmd("commit", name, "on:"+strconv.Itoa(n)); err != nil {
				return nil, err
			}
			if _, _, err := e.cmd("rm", name); err != nil {
				return nil, err
			}
		}
		if err := exec.Command("sync").Run(); err != nil {
			return nil, err
		}
		after, err := dirSize(e.root)
		if err != nil {
			return nil, err
		}
		used[i] = float64(after-before) / 1e6
		for n := range 10 {
			if _, _, err := e.cmd("rmi", "on:"+strconv.Itoa(n)); err != nil {
				return nil, err
			}
		}
		if _, _, err := e.cmd("rmi", from); err != nil {
			return nil, err
		}
	}
	return []row{{what: "disk for 10 images on one base", ply: used[0], docker: used[1], unit: "MB", budget: "<= docker's overlay2", met: used[0] <= used[1]}}, nil
}

// idle measures the memory of an engine with 100 images and 20 stopped containers, and that of a shim.
func (w *world) idle() ([]row, error) {
	for _, e := range w.both() {
		for n := range 100 {
			if _, _, err := e.cmd("import", "-m", strconv.Itoa(n), filepath.Join(w.cache, "small.tar"), fmt.Sprintf("many:%d", n)); err != nil {
				return nil, err
			}
		}
		for range 20 {
			if _, _, err := e.cmd("run", "busybox", "true"); err != nil {
				return nil, err
			}
		}
	}
	const shims = 10
	for range shims {
		if _, _, err := w.ply.cmd("run", "-d", "busybox", "sleep", "600"); err != nil {
			return nil, err
		}
	}
	time.Sleep(10 * time.Second)
	pss, err := pssOf("ply-shim", filepath.Join(w.dir, "ply-run"))
	if err != nil {
		return nil, err
	}
	_, ids, err := w.ply.cmd("ps", "-q")
	if err == nil {
		_, _, err = w.ply.cmd(append([]string{"rm", "-f"}, strings.Fields(ids)...)...)
	}
	if err != nil {
		return nil, err
	}
	time.Sleep(5 * time.Second)
	ply, err := status(w.ply.pid, "VmRSS")
	if err != nil {
		return nil, err
	}
	docker, err := status(w.docker.pid, "VmRSS")
	if err != nil {
		return nil, err
	}
	return []row{
		{what: "plyd idle, 100 images, 20 stopped containers (dockerd alone beside it)", ply: ply, docker: docker, unit: "MB", budget: "<= 30 MB", met: ply <= 30},
		{what: fmt.Sprintf("one ply-shim, PSS, mean of %d", shims), ply: pss, unit: "MB", budget: "<= 8 MB", met: pss <= 8},
	}, nil
}

func status(pid int, key string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return kilobytes(b, key+":")
}

func kilobytes(b []byte, key string) (float64, error) {
	for line := range bytes.Lines(b) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == key {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s", key)
}

// pssOf returns the mean proportional set size of the processes of a program whose command line contains mark.
func pssOf(program, mark string) (float64, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	var sum float64
	n := 0
	for _, d := range dirs {
		cmdline, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		if !bytes.Contains(cmdline, []byte(program)) || !bytes.Contains(cmdline, []byte(mark)) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d, "smaps_rollup"))
		if err != nil {
			continue
		}
		mb, err := kilobytes(b, "Pss:")
		if err != nil {
			return 0, err
		}
		sum += mb
		n++
	}
	if n == 0 {
		return 0, fmt.Errorf("no process of %s", program)
	}
	return sum / float64(n), nil
}
