package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
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
	if len(docker) == 0 {
		return row{what: what, ply: p, unit: "s", budget: "–", met: true, took: [][]float64{ply}}
	}
	return row{what: what, ply: p, docker: d, unit: "s", budget: fmt.Sprintf("<= %.2g of docker", share), met: p <= d*share, took: [][]float64{ply, docker}}
}

// rmiJournaled measures removal on an ext4 with a journal, on a loop device. Without a journal and with the mount option discard, the
// kernel discards every freed block before unlink returns, and the measurement would show only that.
func (w *world) rmiJournaled() (rows []row, err error) {
	disk, at := filepath.Join(w.dir, "ext4.img"), filepath.Join(w.dir, "ext4")
	if err := sh(w.dir, `truncate -s 12G "$1" && mkfs.ext4 -q "$1" && mkdir "$2" && mount -o loop "$1" "$2"`, disk, at); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sh(w.dir, `umount "$2" && rm "$1"`, disk, at)) }()
	e, stop, err := w.another("rmi", w.bin, filepath.Join(at, "ply"))
	if err != nil {
		return nil, err
	}
	defer stop()
	name := w.registry + "/" + six.ref()
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
	from := w.registry + "/" + six.ref()
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
		to := addr + "/" + six.ref()
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

// coldPush measures a push of an image that was made here, so that every layer has to be compressed.
func (w *world) coldPush() ([]row, error) {
	var sent [2]float64
	ply, docker, err := w.turns(w.rounds, func(e engine, r int) (took float64, err error) {
		name := fmt.Sprintf("cold-%s-%d", e.name, r)
		addr, err := w.startRegistry(name)
		if err != nil {
			return 0, err
		}
		root := filepath.Join(w.dir, "registry-"+name)
		defer os.RemoveAll(root)
		defer w.stopLast()
		to := addr + "/made:1"
		// It is made anew in each round, because an engine remembers what it has compressed.
		for _, c := range [][]string{
			{"import", filepath.Join(w.cache, "layers", "0.tar"), "made:0"},
			{"run", "--name", "made", "made:0", "cp", "-r", "/usr", "/opt/usr"},
			{"commit", "made", to}, {"rm", "made"}, {"rmi", "made:0"},
		} {
			if _, _, err := e.cmd(c...); err != nil {
				return 0, err
			}
		}
		if err := exec.Command("sync").Run(); err != nil {
			return 0, err
		}
		if took, _, err = e.cmd("push", to); err != nil {
			return 0, err
		}
		size, err := dirSize(root)
		if e.name == "ply" {
			sent[0] = float64(size) / 1e6
		} else {
			sent[1] = float64(size) / 1e6
		}
		if err == nil {
			_, _, err = e.cmd("rmi", to)
		}
		return took, err
	})
	if err != nil {
		return nil, err
	}
	return []row{
		against("push of an image made here, 2 layers", ply, docker, 0.25),
		{what: "the same, bytes sent", ply: sent[0], docker: sent[1], unit: "MB", budget: "<= 1.15 of docker", met: sent[0] <= 1.15*sent[1]},
	}, nil
}

// disk measures the space that ten images on one base take.
func (w *world) disk() ([]row, error) {
	from := w.registry + "/" + six.ref()
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
	pss, err := pssOf("ply-shim", filepath.Join(w.execRoots(), "ply"))
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
	var docker float64
	if !w.alone {
		if docker, err = status(w.docker.pid, "VmRSS"); err != nil {
			return nil, err
		}
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
