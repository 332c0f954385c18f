// Command mutate checks that the tests notice when a safeguard is taken out of the code.
//
// Each file of test/mutate/patches is one mutation: a patch of one or two lines that skips an fsync, a digest check, a lease, a
// lock, a bound, and so on. Above the patch stand lines of the form "KEY: VALUE":
//
//	Why:   what the mutated code no longer guarantees
//	Test:  arguments of go test that must fail, and pass without the mutation; may stand several times
//
// mutate copies the tree, runs all named tests once on the unchanged copy, applies one patch at a time and runs its tests. A
// mutation whose tests still pass has survived: mutate names it and exits with status 1. So does a patch that no longer applies
// or does not compile, because it proves nothing. Tests of some mutations need root.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// mutation is one file of patches.
type mutation struct {
	name  string // file name without .patch
	why   string
	tests [][]string // arguments of go test, each at least one package
	patch []byte
}

func main() {
	sample := flag.Int("sample", 0, "run only this many mutations, chosen by -seed; 0 runs all")
	seed := flag.String("seed", "", "choose another sample; the default is the commit")
	run := flag.String("run", "", "run only mutations whose name matches this regular expression")
	verbose := flag.Bool("v", false, "print what the tests print")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := mutate(ctx, *sample, *seed, *run, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func mutate(ctx context.Context, sample int, seed, run string, verbose bool) error {
	all, err := load(filepath.Join("test", "mutate", "patches"))
	if err != nil {
		return err
	}
	match, err := regexp.Compile(run)
	if err != nil {
		return err
	}
	chosen := slices.DeleteFunc(all, func(m mutation) bool { return !match.MatchString(m.name) })
	if sample > 0 && sample < len(chosen) {
		if seed == "" {
			seed = commit(ctx)
		}
		fmt.Printf("%d of %d mutations, -seed %s\n", sample, len(chosen), seed)
		chosen = choose(chosen, sample, seed)
	}
	dir, err := os.MkdirTemp("", "ply-mutate.")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // a temporary copy
	if err := copyTree(".", dir); err != nil {
		return err
	}
	t := tree{dir: dir, verbose: verbose}
	if err := t.baseline(ctx, chosen); err != nil {
		return err
	}
	var failed []string
	for _, m := range chosen {
		began := time.Now()
		by, err := t.try(ctx, m)
		took := time.Since(began).Round(100 * time.Millisecond)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			fmt.Printf("FAIL  %-36s %6s  %v\n", m.name, took, err)
			failed = append(failed, m.name)
			continue
		}
		fmt.Printf("ok    %-36s %6s  caught by %s\n", m.name, took, by)
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d mutations were not caught: %s", len(failed), len(chosen), strings.Join(failed, ", "))
	}
	fmt.Printf("all %d mutations were caught\n", len(chosen))
	return nil
}

// load reads every patch; a file that says nothing of its tests is an error.
func load(dir string) ([]mutation, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: no patches; run mutate in the root of the tree", dir)
	}
	var all []mutation
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m, err := parse(strings.TrimSuffix(filepath.Base(file), ".patch"), data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, m)
	}
	return all, nil
}

func parse(name string, data []byte) (mutation, error) {
	m := mutation{name: name}
	header, patch, ok := bytes.Cut(data, []byte("\n--- "))
	if !ok {
		return m, errors.New("no patch: want a line that begins with ---")
	}
	m.patch = append([]byte("--- "), patch...)
	for s := bufio.NewScanner(bytes.NewReader(header)); s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Why":
			m.why = value
		case "Test":
			m.tests = append(m.tests, strings.Fields(value))
		case "":
		default:
			return m, fmt.Errorf("unknown line %q", s.Text())
		}
	}
	if m.why == "" || len(m.tests) == 0 {
		return m, errors.New("want a line Why: and at least one line Test:")
	}
	return m, nil
}

// choose picks n mutations; the same seed picks the same ones.
func choose(all []mutation, n int, seed string) []mutation {
	rank := func(m mutation) string {
		sum := sha256.Sum256([]byte(seed + "\x00" + m.name))
		return string(sum[:])
	}
	slices.SortFunc(all, func(a, b mutation) int { return strings.Compare(rank(a), rank(b)) })
	return all[:n]
}

// commit returns the commit of the tree, or the day where git does not know one.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return time.Now().Format(time.DateOnly)
	}
	return strings.TrimSpace(string(out))
}

// copyTree copies the source files of the tree, without the history and the binaries.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, path)
		switch {
		case path == ".git" || path == "bin":
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, info.Mode().Perm())
	})
}

// tree is the copy that is mutated.
type tree struct {
	dir     string
	verbose bool
}

// baseline runs the tests of the chosen mutations on the unchanged copy. A test that fails there would catch anything.
func (t tree) baseline(ctx context.Context, chosen []mutation) error {
	done := map[string]bool{}
	for _, m := range chosen {
		for _, args := range m.tests {
			key := strings.Join(args, " ")
			if done[key] {
				continue
			}
			done[key] = true
			out, err := t.test(ctx, args)
			if err != nil {
				return fmt.Errorf("go test %s fails without a mutation: %w\n%s", key, err, tail(out))
			}
			if bytes.Contains(out, []byte("no tests to run")) || bytes.Contains(out, []byte("[no test files]")) {
				return fmt.Errorf("%s: go test %s runs no test", m.name, key)
			}
		}
	}
	return nil
}

// try applies the patch, runs its tests and takes the patch back. It returns the test that failed first.
func (t tree) try(ctx context.Context, m mutation) (by string, err error) {
	if err := t.apply(ctx, m.patch); err != nil {
		return "", fmt.Errorf("the patch does not apply: %w", err)
	}
	defer func() { err = errors.Join(err, t.apply(ctx, m.patch, "--reverse")) }()
	for _, args := range m.tests {
		// Some tests build the program that they run, which the cache of go test does not see.
		out, err := t.test(ctx, append([]string{"-count=1"}, args...))
		if bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")) {
			return "", fmt.Errorf("the mutated tree does not compile:\n%s", tail(out))
		}
		if err != nil {
			return failure(out), nil
		}
	}
	return "", fmt.Errorf("survived: %s", m.why)
}

func (t tree) apply(ctx context.Context, patch []byte, more ...string) error {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "patch", append([]string{"--strip=1", "--force", "--no-backup-if-mismatch", "--reject-file=-"}, more...)...)
	cmd.Dir = t.dir
	cmd.Stdin = bytes.NewReader(patch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// test runs go test in the copy. -vet=off: a mutation may leave a value unused in ways that vet refuses.
func (t tree) test(ctx context.Context, args []string) ([]byte, error) {
	args = append([]string{"test", "-vet=off", "-timeout=5m"}, args...)
	cmd := exec.CommandContext(ctx, "go", args...)
	if os.Geteuid() == 0 { // a test that fails may leave mounts, which end with the namespace
		cmd = exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--propagation", "private", "--", "go"}, args...)...)
	}
	cmd.Dir = t.dir
	cmd.WaitDelay = 10 * time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.CombinedOutput()
	if t.verbose {
		fmt.Printf("go test %s\n%s", strings.Join(args, " "), out)
	}
	return out, err
}

var failedTest = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// failure names the innermost test of the first failure; a panic or a time-out has none.
func failure(out []byte) string {
	if all := failedTest.FindAllSubmatch(out, -1); len(all) > 0 {
		name := string(all[0][1])
		for _, m := range all[1:] {
			if strings.HasPrefix(string(m[1]), name+"/") {
				name = string(m[1])
			}
		}
		return name
	}
	return "a crash or time-out of the test binary"
}

func tail(out []byte) []byte { return out[max(0, len(out)-4000):] }
