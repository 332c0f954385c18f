package main

import (
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

// pull measures, for each shape, pulling the image until it can run. It compares it with Docker and with a bare pass. For six it
// also measures removing the image.
func (w *world) pull() ([]row, error) {
	var rows []row
	for _, s := range shapes {
		got, err := w.pullShape(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.what, err)
		}
		rows = append(rows, got...)
	}
	return rows, nil
}

func (w *world) pullShape(s shape) ([]row, error) {
	name := w.registry + "/" + s.ref()
	var rmi, rmiDocker, bare, used, usedBare []float64
	ply, docker, err := w.turns(w.rounds, func(e engine, _ int) (float64, error) {
		if e.name == "ply" {
			v, cpu, err := w.barePass(s)
			if err = errors.Join(err, exec.Command("sync").Run()); err != nil {
				return 0, err
			}
			bare, usedBare = append(bare, v), append(usedBare, cpu)
		}
		took, cpu, err := e.pull(name)
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
			rmi, used = append(rmi, gone), append(used, cpu)
			if err == nil && before-after < 100<<20 {
				err = fmt.Errorf("rmi freed %d bytes only", before-after)
			}
		}
		return took, err
	})
	if err != nil {
		return nil, err
	}
	m, err := w.manifest(s)
	if err != nil {
		return nil, err
	}
	var packed int64
	for _, l := range m {
		packed += l.Size
	}
	p, b := median(ply), median(bare)
	rows := []row{
		against(fmt.Sprintf("pull of %s (%.0f MB packed)", s.what, float64(packed)/1e6), ply, docker, 0.25),
		{
			what: fmt.Sprintf("the same against a bare pass of %.3g s (%s): %.2f of it; processor time %.3g s, bare %.3g s", b, compress.GzipEngine, p/b, median(used), median(usedBare)),
			ply:  p, unit: "s", budget: "<= 1.3 of the bare pass", met: p <= 1.3*b,
		},
	}
	if s == six {
		rows = append(rows, row{
			what: "rmi of that image on this file system (see the journaled one below)",
			ply:  median(rmi), docker: median(rmiDocker), unit: "s", budget: "<= docker", met: w.alone || median(rmi) <= median(rmiDocker),
		})
	}
	return rows, nil
}

// pull pulls an image and returns the wall time and the engine's processor time in seconds.
func (e engine) pull(name string) (took, cpu float64, err error) {
	before, err := e.cpu()
	if err != nil {
		return 0, 0, err
	}
	if took, _, err = e.cmd("pull", name); err != nil {
		return 0, 0, err
	}
	after, err := e.cpu()
	return took, after - before, err
}

// upper measures a pull by a plyd that leaves the vector registers as ISA-L's inflate does. The code after it that has legacy SSE
// instructions, above all Go's sha256, is then several times slower on many processors.
func (w *world) upper() ([]row, error) {
	bin := filepath.Join(w.dir, "dirty")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "isal isal_dirty", "-o", filepath.Join(bin, "plyd"), "./cmd/plyd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build plyd: %w: %s", err, out)
	}
	if err := sh(w.bin, `cp ply-shim "$1"`, bin); err != nil {
		return nil, err
	}
	dirty, stop, err := w.another("dirty", bin, filepath.Join(w.dir, "dirty-root"))
	if err != nil {
		return nil, err
	}
	defer stop()
	name := w.registry + "/" + six.ref()
	var took, used [2][]float64
	for range w.rounds {
		for i, e := range []engine{w.ply, dirty} {
			if err := exec.Command("sync").Run(); err != nil {
				return nil, err
			}
			v, cpu, err := e.pull(name)
			if err != nil {
				return nil, err
			}
			took[i], used[i] = append(took[i], v), append(used[i], cpu)
			if _, _, err := e.cmd("rmi", name); err != nil {
				return nil, err
			}
		}
	}
	return []row{{
		what: fmt.Sprintf("pull of %s; %.3g s and processor time %.3g s, not %.3g s, when inflate leaves the vector registers in use",
			six.what, median(took[1]), median(used[1]), median(used[0])),
		ply: median(took[0]), unit: "s", budget: "–", met: true,
	}}, nil
}

// manifest returns the layers of a shape, as the registry lists them.
func (w *world) manifest(s shape) ([]descriptor, error) {
	repository, tag, _ := strings.Cut(s.ref(), ":")
	req, err := http.NewRequest(http.MethodGet, "http://"+w.registry+"/v2/"+repository+"/manifests/"+tag, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	var m struct{ Layers []descriptor }
	err = json.NewDecoder(r.Body).Decode(&m)
	return m.Layers, err
}

// barePass fetches every layer, hashes, decompresses, hashes and writes it, two at a time. It returns the wall time and the processor
// time in seconds.
func (w *world) barePass(s shape) (took, cpu float64, err error) {
	dir, err := os.MkdirTemp(w.dir, "bare")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	var before, after syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	layers, err := w.manifest(s)
	if err != nil {
		return 0, 0, err
	}
	repository, _, _ := strings.Cut(s.ref(), ":")
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2)
	failed := make(chan error, len(layers))
	for i, l := range layers {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := bareLayer("http://"+w.registry+"/v2/"+repository+"/blobs/"+l.Digest, filepath.Join(dir, strconv.Itoa(i))); err != nil {
				failed <- err
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return 0, 0, err
	default:
	}
	took = time.Since(began).Seconds()
	err = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	seconds := func(r syscall.Rusage) float64 { return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9 }
	return took, seconds(after) - seconds(before), err
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
