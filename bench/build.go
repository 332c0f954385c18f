package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// builder is a way to build an image: ply, docker's classic builder, or the BuildKit in dockerd.
type builder struct {
	engine
	env []string
}

func (b builder) build(tag, dir string, flags ...string) (float64, error) {
	args := slices.Concat(b.cli[1:], []string{"build", "-q", "-t", tag}, flags, []string{dir})
	c := exec.Command(b.cli[0], args...)
	c.Env = append(os.Environ(), b.env...)
	began := time.Now()
	out, err := c.CombinedOutput()
	took := time.Since(began).Seconds()
	if err != nil {
		return 0, fmt.Errorf("%s: build of %s: %w: %s", b.name, dir, err, out)
	}
	return took, nil
}

// slowRounds is how often Docker's builders take part where they take long.
func (w *world) slowRounds() int {
	if w.dockerRounds == 0 {
		return w.rounds
	}
	return min(w.rounds, w.dockerRounds)
}

func (w *world) builders() []builder {
	list := []builder{{engine: w.ply}}
	if !w.alone {
		classic, buildkit := w.docker, w.docker
		classic.name, buildkit.name = "docker's classic builder", "docker's BuildKit"
		list = append(list, builder{classic, []string{"DOCKER_BUILDKIT=0"}}, builder{buildkit, []string{"DOCKER_BUILDKIT=1"}})
	}
	return list
}

// contextOf makes a build context of n files of one kilobyte in directories of a hundred.
func (w *world) contextOf(name string, n int, dockerfile string) (string, error) {
	dir := filepath.Join(w.dir, "context-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := addFiles(dir, 0, n); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644)
}

// addFiles adds the files from one number up to another to a build context.
func addFiles(dir string, from, to int) error {
	body := strings.Repeat("x", 1000)
	for i := from; i < to; i++ {
		sub := filepath.Join(dir, "src", fmt.Sprint(i/100))
		if i%100 == 0 || i == from {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), fmt.Appendf(nil, "%d %s", i, body), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// each measures builds with all builders in turn. Docker's builders take part in dockerRounds of the rounds, spread over them. Results are per builder.
func (w *world) each(rounds, dockerRounds int, f func(b builder, round int) (float64, error)) ([][]float64, error) {
	list := w.builders()
	out := make([][]float64, len(list))
	for r := range rounds {
		for i, b := range list {
			if i > 0 && r*dockerRounds/rounds == (r+1)*dockerRounds/rounds {
				continue
			}
			if err := exec.Command("sync").Run(); err != nil {
				return nil, err
			}
			v, err := f(b, r)
			if err != nil {
				return nil, err
			}
			out[i] = append(out[i], v)
		}
	}
	return out, nil
}

// compared makes a row for each of docker's builders; shares are the budgets against them, 0 for none.
func compared(what string, took [][]float64, shares ...float64) (rows []row) {
	p := median(took[0])
	if len(took) == 1 {
		return []row{{what: what, ply: p, unit: "s", budget: "–", met: true, took: took}}
	}
	for i, name := range []string{"classic", "BuildKit"} {
		d := median(took[i+1])
		r := row{what: what + ", against " + name, ply: p, docker: d, unit: "s", budget: "–", met: true, took: [][]float64{took[i+1]}}
		if i == 0 {
			r.took = took[:2]
		}
		if shares[i] > 0 {
			r.budget, r.met = fmt.Sprintf("<= %.2g of it", shares[i]), p <= d*shares[i]
		}
		rows = append(rows, r)
	}
	return rows
}

// buildCached measures a rebuild with 3,000 files, first with nothing changed and then with one file changed.
func (w *world) buildCached() ([]row, error) {
	const text = "FROM busybox\nWORKDIR /app\nCOPY src/0 /app/first\nRUN echo prepared > /prepared\nCOPY . /app\nRUN echo done > /done\n"
	dir, err := w.contextOf("cached", 3000, text)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	time.Sleep(3 * time.Second) // files that were just written are read again
	for _, b := range w.builders() {
		if _, err := b.build("cached", dir); err != nil {
			return nil, err
		}
	}
	same, err := w.each(max(w.rounds, 20), min(max(w.slowRounds(), 3), 20), func(b builder, _ int) (float64, error) { return b.build("cached", dir) })
	if err != nil {
		return nil, err
	}
	rows := compared("rebuild of 3,000 files, nothing changed", same, 1.0/20, 1.0/4)
	p := median(same[0])
	rows = append(rows, row{what: "the same, in all", ply: p, unit: "s", budget: "<= 0.06 s", met: p <= 0.06})
	n := 0
	changed, err := w.each(max(w.rounds, 5), w.slowRounds(), func(b builder, _ int) (float64, error) {
		n++
		if err := os.WriteFile(filepath.Join(dir, "src", "7", "777"), fmt.Appendf(nil, "change %d", n), 0o644); err != nil {
			return 0, err
		}
		return b.build("cached", dir)
	})
	if err != nil {
		return nil, err
	}
	return append(rows, compared("rebuild of 3,000 files, one changed, COPY and one RUN after it", changed, 0, 0)...), nil
}

// buildStages measures six stages, of which four do not need each other.
func (w *world) buildStages() ([]row, error) {
	const loop = "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done; echo $i"
	text := "FROM busybox AS base\nARG ROUND\n"
	for i := range 4 {
		text += fmt.Sprintf("FROM base AS s%d\nARG ROUND\nENV S=%d$ROUND\nRUN %s > /made\n", i, i, loop)
	}
	text += "FROM busybox\n"
	for i := range 4 {
		text += fmt.Sprintf("COPY --from=s%d /made /made%d\n", i, i)
	}
	dir, err := w.contextOf("stages", 0, text)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var bare []float64
	took, err := w.each(w.rounds, w.slowRounds(), func(b builder, r int) (float64, error) {
		if b.name == w.ply.name {
			began := time.Now()
			if err := sh(dir, `for n in 1 2 3 4; do busybox sh -c "$1" >/dev/null & done; wait`, loop); err != nil {
				return 0, err
			}
			bare = append(bare, time.Since(began).Seconds())
		}
		return b.build("stages", dir, "--build-arg", fmt.Sprintf("ROUND=%s%d", strings.Fields(b.name)[len(strings.Fields(b.name))-1], r))
	})
	if err != nil {
		return nil, err
	}
	p, c := median(took[0]), median(bare)
	return append(compared("six stages, four of them independent", took, 0, 0),
		row{what: fmt.Sprintf("the same, against the four commands as processes at once, %.3g s", c), ply: p, unit: "s", budget: fmt.Sprintf("<= %.3g s", 1.3*c), met: p <= 1.3*c, took: [][]float64{bare}}), nil
}

// buildSteps measures thirty small commands.
func (w *world) buildSteps() ([]row, error) {
	dir, err := w.contextOf("steps", 0, steps(30))
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	took, err := w.each(w.rounds, w.slowRounds(), func(b builder, r int) (float64, error) { return b.build("steps", dir, "--no-cache") })
	if err != nil {
		return nil, err
	}
	return compared("30 small RUN", took, 0, 1.0/3), nil
}

func steps(n int) string {
	var b strings.Builder
	b.WriteString("FROM busybox\n")
	for i := range n {
		fmt.Fprintf(&b, "RUN echo %d > /f%d\n", i, i)
	}
	return b.String()
}

// buildLarge measures a COPY of 500 MB beside cp and sha256sum of the same file.
func (w *world) buildLarge() ([]row, error) {
	dir, err := w.contextOf("large", 0, "FROM scratch\nCOPY large /\n")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	write := func() error {
		return sh(dir, `head -c 500000000 /dev/urandom > large; sync`)
	}
	var bare []float64
	took, err := w.each(w.rounds, w.slowRounds(), func(b builder, _ int) (float64, error) {
		if err := write(); err != nil {
			return 0, err
		}
		if b.name == "ply" {
			began := time.Now()
			if err := sh(dir, `cp large ../large.copy && sync ../large.copy && sha256sum ../large.copy >/dev/null`); err != nil {
				return 0, err
			}
			bare = append(bare, time.Since(began).Seconds())
			if err := os.Remove(filepath.Join(w.dir, "large.copy")); err != nil {
				return 0, err
			}
		}
		v, err := b.build("large", dir, "--no-cache")
		if err == nil {
			_, _, err = b.cmd("rmi", "large")
		}
		return v, err
	})
	if err != nil {
		return nil, err
	}
	rows := compared("COPY of 500 MB", took, 0, 0)
	p, c := median(took[0]), median(bare)
	return append(rows, row{what: fmt.Sprintf("the same, against cp, sync and sha256sum of %.3g s", c), ply: p, unit: "s", budget: fmt.Sprintf("<= %.3g s", 1.3*c), met: p <= 1.3*c, took: [][]float64{bare}}), nil
}

// mirrorAddress is an address of a documentation network that containers reach through their bridge.
const mirrorAddress = "198.51.100.7"

// mirror serves what makeMirror made, and returns its URL.
func (w *world) mirror() (url string, stop func(), err error) {
	if out, err := exec.Command("ip", "addr", "add", mirrorAddress+"/32", "dev", "lo").CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("address of the mirror: %w: %s", err, out)
	}
	l, err := net.Listen("tcp", mirrorAddress+":0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: http.FileServer(http.Dir(filepath.Join(w.cache, "mirror")))}
	go func() { _ = srv.Serve(l) }()
	return "http://" + l.Addr().String(), func() { _ = srv.Close() }, nil
}

// buildPackages measures the installation of vim by a build beside the same in a running container.
func (w *world) buildPackages() ([]row, error) {
	url, stop, err := w.mirror()
	if err != nil {
		return nil, err
	}
	defer stop()
	install := `echo "deb [trusted=yes] ` + url + ` ./" > /etc/apt/sources.list && apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends vim && rm -rf /var/lib/apt/lists/*`
	dir, err := w.contextOf("packages", 0, "FROM debian\nRUN "+install+"\n")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, e := range w.both() {
		if _, _, err := e.cmd("import", filepath.Join(w.cache, "layers", "0.tar"), "debian"); err != nil {
			return nil, err
		}
	}
	var inContainer []float64
	took, err := w.each(w.rounds, w.slowRounds(), func(b builder, _ int) (float64, error) {
		if b.name == w.ply.name {
			if _, _, err := b.cmd("run", "-d", "--name", "apt", "debian", "sleep", "1000"); err != nil {
				return 0, err
			}
			v, _, err := b.cmd("exec", "apt", "sh", "-c", install)
			if err != nil {
				return 0, err
			}
			if _, _, err := b.cmd("rm", "-f", "apt"); err != nil {
				return 0, err
			}
			inContainer = append(inContainer, v)
		}
		return b.build("packages", dir, "--no-cache")
	})
	if err != nil {
		return nil, err
	}
	rows := compared("vim from a local mirror", took, 0, 0)
	p, c := median(took[0]), median(inContainer)
	return append(rows, row{what: fmt.Sprintf("the same, against apt in a running container, %.3g s", c), ply: p, unit: "s", budget: fmt.Sprintf("<= %.3g s", 1.1*c), met: p <= 1.1*c, took: [][]float64{inContainer}}), nil
}

// buildMemory measures the most memory that a plyd had in use after it built contexts of many and of large files.
func (w *world) buildMemory() (_ []row, err error) {
	root := filepath.Join(w.dir, "memory")
	e, stop, err := w.another("memory", w.bin, root)
	if err != nil {
		return nil, err
	}
	defer stop()
	b := builder{engine: e}
	many, err := w.contextOf("many", 100_000, "FROM scratch\nCOPY . /\n")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(many)
	large, err := w.contextOf("one", 0, "FROM scratch\nCOPY . /\n")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(large)
	if err := sh(large, `head -c 1000000000 /dev/urandom > large`); err != nil {
		return nil, err
	}
	for _, dir := range []string{large, many, many} {
		if _, err := b.build("m", dir); err != nil {
			return nil, err
		}
	}
	peak, err := status(e.pid, "VmHWM")
	return []row{{what: "plyd at its largest while it built contexts of 1 GB and of 100,000 files", ply: peak, unit: "MB", budget: "<= 150 MB", met: peak <= 150}}, err
}
