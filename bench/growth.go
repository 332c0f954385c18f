package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// What an engine holds when growth is measured.
const (
	grownContainers = 500
	grownImages     = 1000
	grownNetworks   = 200
)

// client returns an HTTP client of the engine's API. It is what the measurements are prepared with, at less cost than a command line each.
func (e engine) client() *http.Client {
	sock := strings.TrimPrefix(e.cli[slices.Index(e.cli, "-H")+1], "unix://")
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", sock)
		},
	}}
}

// post sends a request of the engine's API and decodes the answer into out, which may be nil.
func post(c *http.Client, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := c.Post("http://engine"+path, "application/json", bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err = io.ReadAll(r.Body)
	if err == nil && r.StatusCode >= 300 {
		err = fmt.Errorf("POST %s: %s: %s", path, r.Status, b)
	}
	if err == nil && out != nil {
		err = json.Unmarshal(b, out)
	}
	return err
}

// create makes a container that sleeps, on a network, and returns its ID.
func create(c *http.Client, name, network string) (string, error) {
	var out struct{ ID string }
	err := post(c, "/containers/create?name="+name, map[string]any{
		"Image": "busybox", "Cmd": []string{"sleep", "3600"}, "HostConfig": map[string]any{"NetworkMode": network},
	}, &out)
	return out.ID, err
}

// commandsOf measures commands that list what an engine holds: the median of a few calls of each.
func commandsOf(e engine, rounds int, commands ...[]string) (took [][]float64, err error) {
	for _, c := range commands {
		var v []float64
		for range rounds {
			t, _, err := e.cmd(c...)
			if err != nil {
				return nil, err
			}
			v = append(v, t)
		}
		fmt.Fprintf(os.Stderr, "bench:   %s %s: %.3g s\n", e.name, strings.Join(c, " "), median(v))
		took = append(took, v)
	}
	return took, nil
}

// listed makes the row of a list.
func listed(what string, ply, docker []float64, limit float64) row {
	r := row{what: what, ply: median(ply) * 1000, docker: median(docker) * 1000, unit: "ms", budget: fmt.Sprintf("<= %.0f ms", limit*1000), met: median(ply) <= limit, took: [][]float64{ply}}
	if len(docker) > 0 {
		r.took = append(r.took, docker)
	}
	return r
}

// beside makes a row that has no budget against Docker.
func beside(what string, ply, docker []float64) row {
	r := against(what, ply, docker, 1)
	r.budget, r.met = "–", true
	return r
}

// lists measures what it takes to list containers, images, networks and the use of the disk while an engine fills.
func (w *world) lists() (rows []row, err error) {
	archive := filepath.Join(w.dir, "images.tar")
	if err := writeImages(archive, filepath.Join(w.cache, "small.tar"), grownImages); err != nil {
		return nil, err
	}
	defer os.Remove(archive)
	var full [][][]float64
	commands := [][]string{{"ps", "-a"}, {"images"}, {"network", "ls"}, {"system", "df"}}
	for i, e := range w.both() {
		began := time.Now()
		if _, _, err := e.cmd("load", "-q", "-i", archive); err != nil {
			return nil, err
		}
		c := e.client()
		for n := range grownNetworks {
			subnet := fmt.Sprintf("10.%d.%d.0/24", 100+n/200, n%200)
			if n == 0 {
				subnet = "10.99.0.0/20" // for the containers of a later measurement
			}
			if err := post(c, "/networks/create", map[string]any{
				"Name": "n" + strconv.Itoa(n), "CheckDuplicate": true, "IPAM": map[string]any{"Config": []any{map[string]any{"Subnet": subnet}}},
			}, nil); err != nil {
				return nil, err
			}
		}
		fmt.Fprintf(os.Stderr, "bench:   %s: %d images, %d networks after %s\n", e.name, grownImages, grownNetworks, time.Since(began).Round(time.Second))
		for n := range grownContainers {
			if _, err := create(c, "c"+strconv.Itoa(n), "n0"); err != nil {
				return nil, err
			}
		}
		fmt.Fprintf(os.Stderr, "bench:   %s: full after %s\n", e.name, time.Since(began).Round(time.Second))
		rounds := max(10, w.rounds)
		if i > 0 {
			rounds = 3 // some take Docker long
		}
		took, err := commandsOf(e, rounds, commands...)
		if err != nil {
			return nil, err
		}
		full = append(full, took)
	}
	for i, c := range commands {
		var docker []float64
		if len(full) > 1 {
			docker = full[1][i]
		}
		rows = append(rows, listed(strings.Join(c, " ")+" with 500 containers, 1,000 images, 200 networks", full[0][i], docker, 0.05))
	}
	tree, err := commandsOf(w.ply, max(10, w.rounds), []string{"images", "--tree"})
	if err != nil {
		return nil, err
	}
	return append(rows, listed("images --tree of 1,000 images", tree[0], nil, 0.1)), nil
}

// writeImages writes an archive of n images, as docker save does. Each has three layers: one that all have, one of ten, and its own.
func writeImages(name, base string, n int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	out := tar.NewWriter(f)
	put := func(name string, b []byte) error {
		if err := out.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(b))}); err != nil {
			return err
		}
		_, err := out.Write(b)
		return err
	}
	layer := func(name string, content []byte) (diffID string, err error) {
		sum := sha256.Sum256(content)
		return "sha256:" + hex.EncodeToString(sum[:]), put(name, content)
	}
	file := func(name string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		text := "content of " + name
		_ = w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))})
		_, _ = w.Write([]byte(text))
		_ = w.Close() // a buffer takes everything
		return b.Bytes()
	}
	content, err := os.ReadFile(base)
	if err != nil {
		return err
	}
	lowest, err := layer("base/layer.tar", content)
	if err != nil {
		return err
	}
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var manifest []entry
	mids := make([]string, 10)
	for i := range n {
		mid, own := fmt.Sprintf("mid%d/layer.tar", i%10), fmt.Sprintf("own%d/layer.tar", i)
		if i < len(mids) {
			if mids[i], err = layer(mid, file("mid"+strconv.Itoa(i))); err != nil {
				return err
			}
		}
		top, err := layer(own, file("own"+strconv.Itoa(i)))
		if err != nil {
			return err
		}
		config, err := json.Marshal(map[string]any{
			"architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": map[string]any{"Cmd": []string{"sh"}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{lowest, mids[i%10], top}},
		})
		if err != nil {
			return err
		}
		sum := sha256.Sum256(config)
		id := hex.EncodeToString(sum[:]) + ".json"
		if err := put(id, config); err != nil {
			return err
		}
		manifest = append(manifest, entry{id, []string{fmt.Sprintf("grown/image%d:1", i)}, []string{"base/layer.tar", mid, own}})
	}
	b, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	return errors.Join(put("manifest.json", b), out.Close())
}

// startsAtOnce measures fifty containers that start one after the other, and at once.
func (w *world) startsAtOnce() ([]row, error) {
	const n = 50
	var alone, once, idle [2][]float64
	for r := range max(1, min(w.rounds, 3)) {
		for i, e := range w.both() {
			if i > 0 && r >= w.slowRounds() {
				continue
			}
			c := e.client()
			for _, together := range []bool{false, true} {
				var ids []string
				for k := range n {
					id, err := create(c, fmt.Sprintf("s%d", k), "bridge")
					if err != nil {
						return nil, err
					}
					ids = append(ids, id)
				}
				if err := exec.Command("sync").Run(); err != nil {
					return nil, err
				}
				var g errgroup.Group
				if !together {
					g.SetLimit(1)
				}
				before, err := processors()
				if err != nil {
					return nil, err
				}
				began := time.Now()
				for _, id := range ids {
					g.Go(func() error { return post(c, "/containers/"+id+"/start", nil, nil) })
				}
				if err := g.Wait(); err != nil {
					return nil, err
				}
				took := time.Since(began).Seconds()
				after, err := processors()
				if err != nil {
					return nil, err
				}
				if together {
					once[i], idle[i] = append(once[i], took), append(idle[i], (after.idle-before.idle)/(after.all-before.all))
				} else {
					alone[i] = append(alone[i], took)
				}
				if _, _, err := e.cmd(append([]string{"rm", "-f"}, ids...)...); err != nil {
					return nil, err
				}
			}
		}
	}
	p, share := median(once[0]), median(idle[0])
	return []row{
		beside("50 containers started one after the other", alone[0], alone[1]),
		beside("50 containers started at once", once[0], once[1]),
		{
			what: fmt.Sprintf("the same, against one after the other; processors idle meanwhile %.0f %%", 100*share),
			ply:  p, unit: "s", budget: fmt.Sprintf("<= %.3g s, or idle <= 10 %%", median(alone[0])/float64(runtime.NumCPU())),
			met: share <= 0.1 || p <= median(alone[0])/float64(runtime.NumCPU()), took: idle[:1],
		},
	}, nil
}

// use is the time of all processors since the machine started, in ticks.
type use struct{ all, idle float64 }

func processors() (u use, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:9] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return u, err
		}
		u.all += n
		if i == 3 || i == 4 { // idle and waiting for a disk
			u.idle += n
		}
	}
	return u, nil
}

// lookups measures look-ups of names in a network with many containers.
func (w *world) lookups() ([]row, error) {
	var p99 [2]float64
	var count [2]int
	for i, e := range w.both() {
		c := e.client()
		count[i] = grownContainers
		if i > 0 {
			count[i] = 50 // it would need minutes to start more
		}
		if err := post(c, "/networks/create", map[string]any{
			"Name": "names", "IPAM": map[string]any{"Config": []any{map[string]any{"Subnet": "10.98.0.0/20"}}},
		}, nil); err != nil {
			return nil, err
		}
		ids := make([]string, count[i])
		var g errgroup.Group
		g.SetLimit(8)
		began := time.Now()
		for k := range ids {
			g.Go(func() (err error) {
				if ids[k], err = create(c, fmt.Sprintf("name%d", k), "names"); err == nil {
					err = post(c, "/containers/"+ids[k]+"/start", nil, nil)
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "bench:   %s: %d containers started in %s\n", e.name, count[i], time.Since(began).Round(time.Second))
		_, pid, err := e.cmd("inspect", "-f", "{{.State.Pid}}", ids[0])
		if err != nil {
			return nil, err
		}
		took, err := resolve(pid, count[i], 10_000)
		if err != nil {
			return nil, err
		}
		slices.Sort(took)
		p99[i] = took[len(took)*99/100] * 1000
		fmt.Fprintf(os.Stderr, "bench:   %s: look-up %.3g ms at the median, %.3g ms p99, %.3g ms at most\n", e.name, took[len(took)/2]*1000, p99[i], took[len(took)-1]*1000)
		if _, err := commandsOf(e, 5, []string{"ps"}); err != nil {
			return nil, err
		}
		if _, _, err := e.cmd(append([]string{"rm", "-f"}, ids...)...); err != nil {
			return nil, err
		}
		if err := waitFor(10*time.Second, func() error { _, _, err := e.cmd("network", "rm", "names"); return err }); err != nil {
			return nil, err
		}
	}
	return []row{{
		what: fmt.Sprintf("look-up of a name, p99, %d containers on the network (Docker: %d)", count[0], count[1]),
		ply:  p99[0], docker: p99[1], unit: "ms", budget: "<= 1 ms", met: p99[0] <= 1,
	}}, nil
}

// resolve asks the server at 127.0.0.11 in the namespace of a process for random names, n times, and returns the times in seconds.
func resolve(pid string, names, n int) ([]float64, error) {
	conn, err := dialInside(pid, "127.0.0.11:53")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	took := make([]float64, 0, n)
	answer := make([]byte, 1500)
	for i := range n {
		q := dnsmessage.Message{
			Header: dnsmessage.Header{ID: uint16(i), RecursionDesired: true},
			Questions: []dnsmessage.Question{{
				Name: dnsmessage.MustNewName(fmt.Sprintf("name%d.", rand.IntN(names))), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
			}},
		}
		b, err := q.Pack()
		if err != nil {
			return nil, err
		}
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return nil, err
		}
		began := time.Now()
		if _, err := conn.Write(b); err != nil {
			return nil, err
		}
		size, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(began).Seconds())
		var m dnsmessage.Message
		if err := m.Unpack(answer[:size]); err != nil {
			return nil, err
		}
		if m.ID != uint16(i) || len(m.Answers) != 1 {
			return nil, fmt.Errorf("look-up of %s: %d answers, %s", q.Questions[0].Name, len(m.Answers), m.RCode)
		}
	}
	return took, nil
}

// dialInside makes a UDP socket in the network namespace of a process.
func dialInside(pid, addr string) (conn net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine, because it stays in the namespace
		var ns *os.File
		if ns, err = os.Open("/proc/" + pid + "/ns/net"); err != nil {
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			conn, err = net.Dial("udp", addr)
		}
	}()
	<-done
	return conn, err
}

// followers measures a container that writes 100 MB/s, or as much of it as its engine takes, alone and while ten commands follow its log.
func (w *world) followers() (rows []row, err error) {
	const rate, seconds = 100e6, 5
	var rates [2][2]float64
	for i, e := range w.both() {
		for k, n := range []int{0, 10} {
			if rates[i][k], err = w.writeLog(e, n, rate, seconds); err != nil {
				return nil, err
			}
			fmt.Fprintf(os.Stderr, "bench:   %s: %.3g MB/s with %d followers\n", e.name, rates[i][k], n)
		}
	}
	p := rates[0]
	return []row{
		{what: "a container that writes 100 MB/s to its log", ply: p[0], docker: rates[1][0], unit: "MB/s", budget: "–", met: true},
		{what: "the same, while ten logs -f follow it", ply: p[1], docker: rates[1][1], unit: "MB/s", budget: ">= 0.95 of that", met: p[1] >= 0.95*p[0]},
	}, nil
}

// writeLog has a container write at a rate in bytes per second to its log, and returns how much it wrote, in MB/s. The container copies a pipe that is filled here.
// Each follower must get every byte.
func (w *world) writeLog(e engine, followers int, rate float64, seconds int) (_ float64, err error) {
	dir := filepath.Join(w.dir, "pipe")
	pipe := filepath.Join(dir, "in")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		return 0, err
	}
	_, id, err := e.cmd("run", "-d", "--log-opt", "max-size=8g", "-v", dir+":/pipe", "busybox", "cat", "/pipe/in")
	if err != nil {
		return 0, err
	}
	f, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	counts := make([]atomic.Int64, followers)
	var wg sync.WaitGroup
	for i := range counts {
		c := exec.Command(e.cli[0], append(slices.Clone(e.cli[1:]), "logs", "-f", id)...)
		out, err := c.StdoutPipe()
		if err != nil {
			return 0, err
		}
		if err := c.Start(); err != nil {
			return 0, err
		}
		wg.Go(func() {
			buf := make([]byte, 1<<20)
			for {
				n, err := out.Read(buf)
				counts[i].Add(int64(n))
				if err != nil {
					_ = c.Wait()
					return
				}
			}
		})
	}
	time.Sleep(time.Second) // the followers start
	chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 1000)
	var wrote int64
	began := time.Now()
	for time.Since(began) < time.Duration(seconds)*time.Second {
		if ahead := float64(wrote)/rate - time.Since(began).Seconds(); ahead > 0 {
			time.Sleep(time.Duration(ahead * float64(time.Second)))
		}
		n, err := f.Write(chunk)
		wrote += int64(n)
		if err != nil {
			return 0, err
		}
	}
	took := time.Since(began).Seconds()
	if err := f.Close(); err != nil {
		return 0, err
	}
	if _, _, err := e.cmd("wait", id); err != nil {
		return 0, err
	}
	wg.Wait()
	if followers > 0 {
		fmt.Fprintf(os.Stderr, "bench:   %s: followers had all %.1f s after the last byte\n", e.name, time.Since(began).Seconds()-took)
	}
	for i := range counts {
		if got := counts[i].Load(); got != wrote {
			return 0, fmt.Errorf("%s: a follower got %d bytes of %d", e.name, got, wrote)
		}
	}
	_, _, err = e.cmd("rm", "-f", id)
	return float64(wrote) / took / 1e6, err
}
