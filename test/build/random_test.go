package build

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	randomCount = flag.Int("build.random", 4, "random Dockerfiles that TestRandom builds")
	randomSeed  = flag.Uint64("build.seed", 0, "seed of the first random Dockerfile; 0 = the time")
)

// instruction is a line of a random Dockerfile.
type instruction interface{ text() string }

type from struct {
	stage int // -1 = the base image
	name  int
}

type env struct{ name, value string }

type workdir struct{ path string }

type run struct{ lines []string }

type copyFiles struct {
	stage    int // -1 = the context
	sources  []string
	dest     string
	chown    bool
	uid, gid int
}

func (f from) text() string {
	if f.stage < 0 {
		return fmt.Sprintf("FROM base AS s%d", f.name)
	}
	return fmt.Sprintf("FROM s%d AS s%d", f.stage, f.name)
}

func (e env) text() string     { return fmt.Sprintf("ENV %s=%s", e.name, e.value) }
func (w workdir) text() string { return "WORKDIR " + w.path }
func (r run) text() string     { return "RUN " + strings.Join(r.lines, "; ") }

func (c copyFiles) text() string {
	s := "COPY "
	if c.stage >= 0 {
		s += fmt.Sprintf("--from=s%d ", c.stage)
	}
	if c.chown {
		s += fmt.Sprintf("--chown=%d:%d ", c.uid, c.gid)
	}
	return s + strings.Join(c.sources, " ") + " " + c.dest
}

// generator makes random Dockerfiles. All paths are of few names, so that instructions meet in the same places.
type generator struct{ *rand.Rand }

func pick[T any](g generator, of ...T) T { return of[g.IntN(len(of))] }

func (g generator) path() string {
	p := pick(g, "", "", "", "/srv", "/srv/link", "/w", "/var/data")
	for range 1 + g.IntN(3) {
		p += "/" + pick(g, "a", "b", "c", "real")
	}
	return p
}

func (g generator) operation() string {
	p := pick(g, g.path(), g.path(), g.path(), pick(g, "a", "b", "$V"))
	q := g.path()
	return pick(g,
		"mkdir -p "+p,
		fmt.Sprintf("echo %d > %s", g.IntN(100), p),
		fmt.Sprintf("echo %d >> %s", g.IntN(100), p),
		"rm -rf "+p,
		fmt.Sprintf("mv -f %s %s", p, q),
		fmt.Sprintf("ln -s %s %s", pick(g, q, "a", "../b"), p),
		fmt.Sprintf("ln %s %s", q, p),
		fmt.Sprintf("cp -a %s %s", q, p),
		fmt.Sprintf("chmod %s %s", pick(g, "600", "755", "4711", "1777", "700"), p),
		fmt.Sprintf("chown %d:%d %s", g.IntN(3), g.IntN(3), p),
		"mkfifo "+p,
		fmt.Sprintf("rm -rf %s && mkdir %s && echo new > %s/x", p, p, p),
		"touch -d '2019-03-04 05:06:07' "+p,
	)
}

func (g generator) dockerfile() (list []instruction) {
	stages := 1 + g.IntN(3)
	for s := range stages {
		of := -1
		if s > 0 && g.IntN(2) == 0 {
			of = g.IntN(s)
		}
		list = append(list, from{of, s})
		for range 2 + g.IntN(4) {
			switch g.IntN(10) {
			case 0:
				list = append(list, env{"V", pick(g, "a", "b", "/w/c", "x${V}")})
			case 1:
				list = append(list, workdir{pick(g, g.path(), "a", "../b", "$V/w")})
			case 2, 3, 4, 5:
				r := run{}
				for range 1 + g.IntN(5) {
					r.lines = append(r.lines, "{ "+g.operation()+"; } >/dev/null 2>&1 || true")
				}
				list = append(list, r)
			default:
				c := copyFiles{stage: -1, sources: []string{pick(g, ".", "d", "d/", "d/a", "one", "two", "d/link", "deep/er", "deep")}}
				if s > 0 && g.IntN(2) == 0 {
					c.stage, c.sources = g.IntN(s), []string{pick(g, "/srv", "/srv/link", "/var/data/", "/srv/real/deep/file", g.path(), "/w")}
				} else if g.IntN(3) == 0 {
					c.sources = append(c.sources, pick(g, "one", "two"))
				}
				c.dest = pick(g, g.path(), g.path()+"/", "./", "$V/", "/")
				if len(c.sources) > 1 && !strings.HasSuffix(c.dest, "/") {
					c.dest += "/"
				}
				if g.IntN(4) == 0 {
					c.chown, c.uid, c.gid = true, g.IntN(3), g.IntN(3)
				}
				list = append(list, c)
			}
		}
	}
	return list
}

// TestRandom builds random Dockerfiles on every driver, with what the cache has, from the cache alone, without it, and after a file of the context changed.
// The tree must be the one that a plain interpreter makes; where that fails, the build must fail.
func TestRandom(t *testing.T) {
	seed := *randomSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano() % 1_000_000)
	}
	n := *randomCount
	if os.Getenv("PLY_NIGHTLY") != "" && n < 300 {
		n = 300
	}
	var engines []*engine
	for _, driver := range append(slices.Clone(drivers), "vfs") {
		engines = append(engines, startPly(t, driver))
	}
	for i := range n {
		s := seed + uint64(i)
		ok := t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) { random(t, engines, s) })
		if !ok {
			t.Logf("run again with -run TestRandom -build.seed %d -build.random 1", s)
		}
	}
	for _, e := range engines {
		left(t, e)
	}
}

func random(t *testing.T, engines []*engine, seed uint64) {
	g := generator{rand.New(rand.NewPCG(seed, 7))}
	list := g.dockerfile()
	var lines []string
	for _, in := range list {
		lines = append(lines, in.text())
	}
	dir, err := os.MkdirTemp(scratch, "random.")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	context := filepath.Join(dir, "context")
	setup := `set -eu; umask 022; mkdir "$1"; cd "$1"; mkdir -p d/sub deep/er/still; echo one > one; echo two > two; chmod 600 two; echo a > d/a; echo s > d/sub/b
ln -s a d/link; ln d/a d/hard; echo r > d/real; echo e > deep/er/c; mkdir deep/er/a; chmod 700 deep/er/a; ln -s ../d deep/er/up
printf '%s\n' "$2" > Dockerfile; printf '*ockerfile\n.dockerignore\n' > .dockerignore
find . -exec touch -h -d '2020-01-02T03:04:05Z' {} +`
	if err := command("sh", "-c", setup, "sh", context, strings.Join(lines, "\n")); err != nil {
		t.Fatal(err)
	}
	expect := func(step string) []string {
		r := &reference{dir: filepath.Join(dir, "reference-"+step), context: context, base: filepath.Join(scratch, "base.tar")}
		if err := os.Mkdir(r.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(r.dir)
		root, err := r.build(list)
		if errors.Is(err, errFails) {
			return []string{"fails: " + err.Error()}
		}
		if err != nil {
			t.Fatal(err)
		}
		tr, err := treeOf(root)
		if err != nil {
			t.Fatal(err)
		}
		return plain(tr, engines[0].base)
	}
	check := func(step string, want []string, flags ...string) {
		for _, e := range engines {
			tag := "random-" + step
			args := slices.Concat([]string{"build", "-t", tag}, flags, []string{context})
			out, code := e.try("", e.cli[0], args...)
			var got []string
			if code != 0 {
				got = []string{"fails: " + out}
			} else {
				tr, err := e.shown(tag)
				if err != nil {
					t.Fatal(err)
				}
				got = plain(tr, e.base)
				e.ply(t, "rmi", tag)
			}
			fails := func(l []string) bool { return len(l) > 0 && strings.HasPrefix(l[0], "fails: ") }
			if fails(want) && fails(got) {
				continue
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, %s, %s: not what the plain interpreter makes:\n%s\nof\n%s", seed, e.name, step, difference(want, got), strings.Join(lines, "\n"))
			}
		}
	}
	want := expect("first")
	check("first", want)
	check("again", want)
	check("uncached", want, "--no-cache")
	if err := os.WriteFile(filepath.Join(context, pick(g, "one", "d/a", "deep/er/c")), []byte("changed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	check("changed", expect("changed"))
}

// plain returns the lines of a tree without what differs by design: times that a case does not set, those of directories, the files that engines
// make for containers, and which names belong to one file.
func plain(tr, base tree) []string {
	for p, n := range tr {
		if ofContainers(p) {
			delete(tr, p)
			continue
		}
		own := *n
		own.inode = new(int)
		tr[p] = &own
	}
	var out []string
	for _, l := range tr.lines(nil) {
		if i := strings.LastIndex(l, " "); strings.HasPrefix(strings.SplitN(l, " ", 3)[2], "dir ") || base[strings.Fields(l)[1]] != nil {
			l = l[:i]
		}
		out = append(out, l)
	}
	return out
}
