package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

var updateCp = flag.Bool("update-cp", false, "run the table of cp against Docker's own engine and write testdata/cp")

// cpCase is one command line of the table of cp. The word CASE in a path stands for the directory of the case.
type cpCase struct {
	name  string // direction, flags, source, destination
	in    bool   // into the container
	flags []string
	src   string
	dst   string
}

// The paths of the table. Sources are below /src, destinations below the directory of the case.
var (
	cpSources = []string{
		"f", "f/", "f/.", "d", "d/", "d/.", "emp", "emp/.", "d/..", "d/sub/..",
		"lf", "lf/", "lf/.", "ld", "ld/", "ld/.", "dang", "dang/", "none", "none/", "none/.", "f/x", "d/none",
	}
	cpDestinations = []string{
		"new", "new/", "new/.", "file", "file/", "file/.", "dir", "dir/", "dir/.", "tofile", "tofile/", "todir", "todir/", "todir/.",
		"dang", "dang/", "no/new", "no/new/", "file/x", "dir/new", "dir/in", "clash", "clash/", ".", "",
	}
	cpFollowed = []string{"f", "d", "d/.", "lf", "lf/", "ld", "ld/", "ld/.", "dang", "none", "d/l"}
)

// cpTable returns every case: each source with each destination in both directions, and the same with -L for the sources that are
// links.
func cpTable() []cpCase {
	var all []cpCase
	add := func(in bool, flags []string, src, dst string) {
		way := "out"
		if in {
			way = "in"
		}
		all = append(all, cpCase{strings.Join(slices.Concat([]string{way}, flags, []string{src, "=>", dst}), " "), in, flags, src, dst})
	}
	for _, in := range []bool{false, true} {
		for _, dst := range cpDestinations {
			for _, src := range cpSources {
				add(in, nil, src, dst)
			}
		}
		for _, dst := range []string{"new", "new/", "file", "dir", "todir", "dir/."} {
			for _, src := range cpFollowed {
				add(in, []string{"-L"}, src, dst)
			}
		}
	}
	return all
}

// cpNode is one file of a tree that the tests make.
type cpNode struct {
	name string
	kind byte
	data string // content or target of a link
	mode int64
}

// cpSrcTree is the tree of the sources.
var cpSrcTree = []cpNode{
	{"src/", tar.TypeDir, "", 0o755},
	{"src/f", tar.TypeReg, "content of f", 0o640},
	{"src/d/", tar.TypeDir, "", 0o750},
	{"src/d/f1", tar.TypeReg, "content of f1", 0o600},
	{"src/d/.hid", tar.TypeReg, "hidden", 0o644},
	{"src/d/l", tar.TypeSymlink, "f1", 0o777},
	{"src/d/sub/", tar.TypeDir, "", 0o700},
	{"src/d/sub/deep", tar.TypeReg, "deep", 0o755},
	{"src/emp/", tar.TypeDir, "", 0o711},
	{"src/lf", tar.TypeSymlink, "f", 0o777},
	{"src/ld", tar.TypeSymlink, "d", 0o777},
	{"src/dang", tar.TypeSymlink, "nowhere", 0o777},
}

// cpDstTree is the tree of the directory of one case, in which the destinations are.
var cpDstTree = []cpNode{
	{"", tar.TypeDir, "", 0o755},
	{"file", tar.TypeReg, "old", 0o604},
	{"dir/", tar.TypeDir, "", 0o705},
	{"dir/keep", tar.TypeReg, "kept", 0o604},
	{"dir/in", tar.TypeReg, "old", 0o604},
	{"tofile", tar.TypeSymlink, "file", 0o777},
	{"todir", tar.TypeSymlink, "dir", 0o777},
	{"dang", tar.TypeSymlink, "gone", 0o777},
	{"clash/", tar.TypeDir, "", 0o755}, // what has the names of the sources is of the other kind
	{"clash/f/", tar.TypeDir, "", 0o705},
	{"clash/f/keep", tar.TypeReg, "kept", 0o604},
	{"clash/d", tar.TypeReg, "old", 0o604},
	{"clash/sub", tar.TypeReg, "old", 0o604},
	{"clash/lf/", tar.TypeDir, "", 0o705},
	{"clash/ld", tar.TypeReg, "old", 0o604},
}

var cpOld = time.Unix(1_500_000_000, 0)

// cpTar returns the trees of all cases as a tar stream; a case's directory is cases/<its number>.
func cpTar(t testing.TB, cases int) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	put := func(prefix string, nodes []cpNode, uid, gid int) {
		for _, n := range nodes {
			h := &tar.Header{Name: prefix + n.name, Typeflag: n.kind, Mode: n.mode, Uid: uid, Gid: gid, ModTime: cpOld, Format: tar.FormatPAX}
			if n.kind == tar.TypeSymlink {
				h.Linkname = n.data
			} else {
				h.Size = int64(len(n.data))
			}
			if err := tw.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				if _, err := io.WriteString(tw, n.data); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	put("", cpSrcTree, 1234, 5678)
	put("", []cpNode{{"cases/", tar.TypeDir, "", 0o755}}, 0, 0)
	for i := range cases {
		put(fmt.Sprintf("cases/%04d/", i), cpDstTree, 0, 0)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// cpClient is a docker command line and the engine that it talks to.
type cpClient struct {
	program string
	sock    string
	dir     string // scratch
}

func (c *cpClient) run(stdin io.Reader, dir string, args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(c.program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+c.sock, "DOCKER_CONFIG="+filepath.Join(c.dir, "config"), "DOCKER_CLI_HINTS=false")
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &o, &e
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return "", err.Error(), -1
		}
		code = exit.ExitCode()
	}
	return o.String(), e.String(), code
}

func (c *cpClient) must(t testing.TB, stdin io.Reader, args ...string) string {
	t.Helper()
	o, e, code := c.run(stdin, "", args...)
	if code != 0 {
		t.Fatalf("%s %s: exit code %d: %s%s", c.program, strings.Join(args, " "), code, o, e)
	}
	return o
}

// cpState maps the names of a tree to what is there.
type cpState map[string]string

// cpFromTar returns the state of a tar stream without the first element of the names.
func cpFromTar(t testing.TB, r io.Reader) cpState {
	t.Helper()
	s := cpState{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return s
		}
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(strings.TrimSuffix(h.Name, "/"), "/")
		text := fmt.Sprintf("%04o", h.Mode&0o7777)
		switch h.Typeflag {
		case tar.TypeDir:
			text = "dir " + text
		case tar.TypeSymlink:
			text = "link " + h.Linkname
		default:
			b, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			text = fmt.Sprintf("file %s %q", text, b)
			if h.ModTime.Unix() != cpOld.Unix() {
				text += " new time"
			}
		}
		s[name] = fmt.Sprintf("%s %d:%d", text, h.Uid, h.Gid)
	}
}

// cpWorld is one client with a container and a local directory that hold the same trees.
type cpWorld struct {
	cpClient
	cases  []cpCase
	before cpState
	id     string
	local  string
}

// newCpWorld makes the trees of the cases, locally and in a container that was never started.
func newCpWorld(t testing.TB, c cpClient, cases []cpCase) *cpWorld {
	t.Helper()
	w := &cpWorld{cpClient: c, cases: cases}
	w.local = filepath.Join(c.dir, "local")
	if err := os.MkdirAll(w.local, 0o755); err != nil {
		t.Fatal(err)
	}
	all := cpTar(t, len(cases))
	cmd := exec.Command("tar", "-C", w.local, "-xpf", "-")
	cmd.Stdin = bytes.NewReader(all)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	w.id = strings.TrimSpace(w.must(t, nil, "create", "busybox", "sh"))
	t.Cleanup(func() { w.must(t, nil, "rm", w.id) })
	w.must(t, bytes.NewReader(all), "cp", "-a", "-", w.id+":/")
	w.before = cpFromTar(t, bytes.NewReader(all))
	return w
}

// cpNoise is what an error has that says nothing about the rules: paths below the engine's own directories, the log lines of a client
// whose stream was refused, the words around an error of the program that unpacks in Docker's engine, and the entry that ply names.
var cpNoise = regexp.MustCompile(`^archive entry "[^"]*": |^time="[^"]*" level=.*|^Successfully copied .*|/\S*/overlay2/[0-9a-f]+/merged|Error processing tar file\(exit status 1\): `)

// noSuchPath is what the 20.10 client prints for an answer 404.
var noSuchPath = regexp.MustCompile(`^Error: No such container:path: ([^:]*):(.*)`)

// outcomes runs every case and returns what each did.
func (w *cpWorld) outcomes(t testing.TB) map[string]string {
	t.Helper()
	type result struct {
		code   int
		stderr string
	}
	results := make([]result, len(w.cases))
	var g errgroup.Group
	g.SetLimit(4)
	for i, c := range w.cases {
		g.Go(func() error {
			here, there := filepath.Join(w.local, "cases", fmt.Sprintf("%04d", i)), fmt.Sprintf("%s:/cases/%04d", w.id, i)
			src, dst := w.id+":/src/"+c.src, c.dst
			if dst == "" {
				dst = here
			}
			if c.in {
				src, dst = filepath.Join("..", "..", "src")+"/"+c.src, there
				if c.dst != "" {
					dst += "/" + c.dst
				}
			}
			_, stderr, code := w.run(nil, here, slices.Concat([]string{"cp"}, c.flags, []string{src, dst})...)
			results[i] = result{code, strings.NewReplacer(w.id, "CONTAINER", fmt.Sprintf("/cases/%04d", i), "/CASE", w.local, "/LOCAL", "lstat /src/lf/", "lstat /src/f/").Replace(stderr)}
			return nil
		})
	}
	_ = g.Wait() // no case returns an error
	pack := exec.Command("tar", "-C", w.local, "--numeric-owner", "-cf", "-", "cases")
	out, err := pack.Output()
	if err != nil {
		t.Fatal(err)
	}
	trees := map[bool]cpState{false: cpFromTar(t, bytes.NewReader(out)), true: cpFromTar(t, strings.NewReader(w.must(t, nil, "cp", w.id+":/cases", "-")))}
	outcomes := map[string]string{}
	for i, c := range w.cases {
		var b strings.Builder
		fmt.Fprintf(&b, "exit %d\n", results[i].code)
		for line := range strings.Lines(results[i].stderr) {
			if line = cpNoise.ReplaceAllString(noSuchPath.ReplaceAllString(strings.TrimSpace(line), "Error response from daemon: Could not find the file $2 in container $1"), ""); line != "" {
				fmt.Fprintf(&b, "! %s\n", line)
			}
		}
		b.WriteString(changes(w.before, trees[c.in], fmt.Sprintf("%04d", i)))
		outcomes[c.name] = b.String()
	}
	return outcomes
}

// changes lists the files below dir that differ between two states.
func changes(before, after cpState, dir string) string {
	names := map[string]bool{}
	for _, s := range []cpState{before, after} {
		for name := range s {
			if before[name] != after[name] && (name == dir || strings.HasPrefix(name, dir+"/")) {
				names[name] = true
			}
		}
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(names)) {
		text := after[name]
		if text == "" {
			text = "removed"
		}
		fmt.Fprintf(&b, "%s: %s\n", "."+strings.TrimPrefix(name, dir), text)
	}
	return b.String()
}

// startDockerd starts Docker's own engine and returns the path of its socket.
func startDockerd(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "dockerd-e2e.")
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	d := exec.Command("dockerd", "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"), "-H", "unix://"+sock,
		"--pidfile", filepath.Join(dir, "pid"), "--storage-driver", "overlay2", "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false")
	d.Stdout, d.Stderr = log, log
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.Process.Signal(syscall.SIGTERM)
		_ = d.Wait()
		log.Close()
		for m := range mounts(t) { // its data root may be one
			if strings.HasPrefix(m, dir+"/") {
				_ = syscall.Unmount(m, syscall.MNT_DETACH)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	until(t, func() bool {
		_, _, code := (&cpClient{program: "/usr/bin/docker", sock: sock, dir: dir}).run(nil, "", "version")
		return code == 0
	}, func() string { b, _ := os.ReadFile(log.Name()); return "dockerd does not answer:\n" + string(b) })
	return sock
}

// writeOutcomes writes a golden file; readOutcomes reads it.
func writeOutcomes(t testing.TB, file string, cases []cpCase, outcomes map[string]string) {
	t.Helper()
	var b strings.Builder
	for _, c := range cases {
		fmt.Fprintf(&b, "# %s\n%s", c.name, outcomes[c.name])
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readOutcomes(t testing.TB, file string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	outcomes := map[string]string{}
	for block := range strings.SplitSeq(strings.TrimPrefix("\n"+string(data), "\n# "), "\n# ") {
		name, text, _ := strings.Cut(block, "\n")
		outcomes[name] = strings.TrimSuffix(text, "\n") + "\n"
	}
	return outcomes
}

// followedByPly are the cases in which ply does what docker's documentation says and docker does not: the contents of a directory
// are copied to a link that leads to a directory and ends in "/".
func followedByPly(c cpCase) bool {
	return !c.in && (c.dst == "todir/" || c.dst == "todir/.") && slices.Contains([]string{"d/.", "ld/.", "emp/."}, c.src)
}

// TestCpRules runs the table of docker's rules for paths with ply and with docker's clients against plyd, and compares what they do
// with what docker's clients did with Docker's own engine. With PLY_NIGHTLY the clients run every case, and Docker's engine runs beside.
func TestCpRules(t *testing.T) {
	cases := cpTable()
	dir := t.TempDir()
	w := newWorld(t)
	w.busybox()
	golden := filepath.Join("testdata", "cp", "rules.txt")
	nightly := os.Getenv("PLY_NIGHTLY") != ""
	if *updateCp || nightly {
		sock := startDockerd(t)
		for _, name := range []string{"docker20", "docker"} {
			c := cpClient{program: w.program(name), sock: sock, dir: filepath.Join(dir, "ref-"+name)}
			c.must(t, nil, "import", filepath.Join(images, "busybox.tar"), "busybox")
			got := newCpWorld(t, c, cases).outcomes(t)
			if *updateCp {
				writeOutcomes(t, golden, cases, got)
			}
			compareOutcomes(t, cases, got, readOutcomes(t, golden))
		}
	}
	want := readOutcomes(t, golden)
	for _, name := range []string{"ply", "docker", "docker20"} {
		t.Run(name, func(t *testing.T) {
			var mine []cpCase
			for i, c := range cases {
				if name == "ply" && !followedByPly(c) || name != "ply" && (nightly || i%6 == 0) {
					mine = append(mine, c)
				}
			}
			c := cpClient{program: w.program(name), sock: w.sock, dir: filepath.Join(dir, name)}
			compareOutcomes(t, mine, newCpWorld(t, c, mine).outcomes(t), want)
		})
	}
}

// compareOutcomes fails the test for each case with another outcome.
func compareOutcomes(t *testing.T, cases []cpCase, got, want map[string]string) {
	t.Helper()
	for _, c := range cases {
		if got[c.name] != want[c.name] {
			t.Errorf("%s\n got:\n%s want:\n%s", c.name, got[c.name], want[c.name])
		}
	}
}
