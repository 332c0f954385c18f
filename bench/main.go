// Command bench prints the table of ply's budgets. It times whole commands of ply and of Debian's docker.io in the same run and
// prints medians of several rounds, in which the two take turns.
//
// It runs in a network and mount namespace of its own, on loopback, with both engines on empty data roots below one directory. It
// needs root, docker.io, docker-registry, skopeo and mmdebstrap. The image consists of real Debian packages and is kept between runs
// in -cache.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	rounds       int
	dockerRounds int
	cache        string
	only         string
	bin          string
	alone        bool
	driver       string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each measurement")
	flag.IntVar(&o.dockerRounds, "docker-rounds", 0, "rounds of Docker's side of the slow measurements (0: as many as -rounds)")
	flag.StringVar(&o.cache, "cache", "/var/tmp/ply-bench", "where the image is kept between runs")
	flag.StringVar(&o.only, "only", "", "comma-separated measurements: pull,upper,rmi,run,commit,push,coldpush,disk,idle, build (or of it cached,stages,steps,large,packages,memory), curves (files,depth; writes docs/build-*.svg), growth (lists,starts,names,followers), growthcurves (containercurve,imagecurve,namecurve; writes docs/growth-*.svg), registry (reads,others,writes,catalogue,manifests; the last writes docs/registry-manifests.svg) (default all)")
	flag.BoolVar(&o.alone, "alone", false, "measure ply only, without Docker beside it")
	flag.StringVar(&o.bin, "bin", "bin", "where ply, plyd and ply-shim are")
	flag.StringVar(&o.driver, "driver", "", "ply's storage driver (default: the one that plyd chooses here)")
	flag.Parse()
	if os.Getenv("PLY_BENCH_INSIDE") == "" {
		os.Exit(enterNamespaces())
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// enterNamespaces runs this program again in new network and mount namespaces.
func enterNamespaces() int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	// The image needs the network, which the new namespace lacks.
	cache := flag.Lookup("cache").Value.String()
	err = makeSmall(cache)
	if err == nil && !onlySmall(flag.Lookup("only").Value.String()) {
		err = errors.Join(makeImage(cache), makeShapes(cache), makeMirror(cache))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: make the image:", err)
		return 1
	}
	cmd := exec.Command("unshare", append([]string{"--net", "--mount", "--", self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), "PLY_BENCH_INSIDE=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// onlySmall reports whether the measurements need no image but the small one. The others take minutes to make.
func onlySmall(only string) bool {
	for name := range strings.SplitSeq(only, ",") {
		if !slices.Contains([]string{"run", "commit", "idle", "growth", "lists", "starts", "names", "followers", "growthcurves", "containercurve", "imagecurve", "namecurve"}, name) {
			return false
		}
	}
	return true
}

// row is one line of the table; values are in unit.
type row struct {
	what   string
	ply    float64
	docker float64
	unit   string
	budget string
	met    bool
	took   [][]float64 // what the medians are of, of ply first; may be nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
}

func run(o options) error {
	for _, c := range [][]string{{"ip", "link", "set", "lo", "up"}, {"mount", "--make-rprivate", "/"}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, out)
		}
	}
	dir, err := os.MkdirTemp("/var/tmp", "ply-bench-run.")
	if err != nil {
		return err
	}
	w := &world{options: o, dir: dir}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() { <-stop; w.close(); os.Exit(130) }()
	defer w.close()
	if err := w.start(); err != nil {
		return err
	}
	fmt.Printf("| what | ply | docker | ratio | budget | |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, m := range w.measures() {
		only := strings.Split(o.only, ",")
		if o.only != "" && !slices.Contains(only, m.group) && !slices.Contains(only, m.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s, load average %s …\n", m.name, loadAverage())
		if m.images {
			if err := w.fillRegistry(); err != nil {
				return err
			}
		}
		began := time.Now()
		rows, err := m.f()
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Fprintf(os.Stderr, "bench: %s took %s, load average %s\n", m.name, time.Since(began).Round(time.Second), loadAverage())
		for _, r := range rows {
			r.print()
		}
	}
	return nil
}

// measurement makes rows of the table. It is asked for by its name or that of its group.
type measurement struct {
	group, name string
	images      bool // it needs the images in the registry
	f           func() ([]row, error)
}

func (w *world) measures() []measurement {
	return []measurement{
		{"", "pull", true, w.pull},
		{"", "upper", true, w.upper},
		{"", "rmi", true, w.rmiJournaled},
		{"", "run", false, w.run},
		{"", "commit", false, w.commit},
		{"", "push", true, w.push},
		{"", "coldpush", false, w.coldPush},
		{"", "disk", true, w.disk},
		{"build", "cached", false, w.buildCached},
		{"build", "stages", false, w.buildStages},
		{"build", "steps", false, w.buildSteps},
		{"build", "large", false, w.buildLarge},
		{"build", "packages", false, w.buildPackages},
		{"build", "memory", false, w.buildMemory},
		{"curves", "files", false, w.buildFiles},
		{"curves", "depth", false, w.buildDepth},
		{"", "idle", false, w.idle},
		{"growth", "lists", false, w.lists},
		{"growth", "starts", false, w.startsAtOnce},
		{"growth", "names", false, w.lookups},
		{"growth", "followers", false, w.followers},
		{"growthcurves", "containercurve", false, w.containerCurve},
		{"growthcurves", "imagecurve", false, w.imageCurve},
		{"growthcurves", "namecurve", false, w.nameCurve},
		{"registry", "reads", false, w.registryReads},
		{"registry", "others", false, w.registryOthers},
		{"registry", "writes", false, w.registryWrites},
		{"registry", "catalogue", false, w.registryLists},
		{"registry", "manifests", false, w.registryManifests},
	}
}

// print writes the row to the standard output, and what its medians are of to the standard error.
func (r row) print() {
	verdict := "met"
	if !r.met {
		verdict = "**not met**"
	}
	fmt.Printf("| %s | %.3g %s | %s | %s | %s | %s |\n", r.what, r.ply, r.unit, peer(r), ratio(r), r.budget, verdict)
	for _, v := range r.took {
		fmt.Fprintf(os.Stderr, "bench:   %.3g\n", v)
	}
}

// loadAverage returns the load averages of the last 1, 5 and 15 minutes.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

func peer(r row) string {
	if r.docker == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3g %s", r.docker, r.unit)
}

func ratio(r row) string {
	if r.docker == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", r.ply/r.docker)
}

func dirSize(dir string) (int64, error) {
	var total int64
	err := filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error {
		if err != nil {
			if os.IsNotExist(err) { //nolint:forbidigo // a file that goes while we look
				return nil
			}
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			total += st.Blocks * 512
		}
		return nil
	})
	return total, err
}
