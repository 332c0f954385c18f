package build

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// reference is a plain interpreter of random Dockerfiles: every stage is a directory, in which COPY is done by hand and RUN with chroot. It has no
// layers, no cache and no parallel steps.
type reference struct {
	dir     string // holds the directories of the stages
	context string
	base    string // tar of the base image
	stages  []*stage
}

type stage struct {
	root string
	env  map[string]string
	work string
}

// errFails is the error of an instruction that a builder must refuse.
var errFails = errors.New("the instruction fails")

// build executes the instructions of the last stage and of those that it needs, and returns its directory.
func (r *reference) build(list []instruction) (string, error) {
	wanted, at := needed(list), -1
	for _, in := range list {
		if _, ok := in.(from); ok {
			at++
		}
		if !wanted[at] {
			if _, ok := in.(from); ok {
				r.stages = append(r.stages, nil)
			}
			continue
		}
		if err := r.do(in); err != nil {
			return "", fmt.Errorf("%s: %w", in.text(), err)
		}
	}
	return r.stages[len(r.stages)-1].root, nil
}

// needed returns for each stage whether the last one needs it.
func needed(list []instruction) []bool {
	var needs [][]int
	for _, in := range list {
		switch in := in.(type) {
		case from:
			needs = append(needs, []int{in.stage})
		case copyFiles:
			needs[len(needs)-1] = append(needs[len(needs)-1], in.stage)
		}
	}
	wanted := make([]bool, len(needs))
	var want func(stage int)
	want = func(stage int) {
		if stage < 0 || wanted[stage] {
			return
		}
		wanted[stage] = true
		for _, n := range needs[stage] {
			want(n)
		}
	}
	want(len(needs) - 1)
	return wanted
}

func (r *reference) do(in instruction) error {
	if from, ok := in.(from); ok {
		return r.from(from)
	}
	s := r.stages[len(r.stages)-1]
	switch in := in.(type) {
	case env:
		s.env[in.name] = s.expand(in.value)
		return nil
	case workdir:
		p := s.expand(in.path)
		if !path.IsAbs(p) {
			p = path.Join(s.work, p)
		}
		s.work = path.Clean(p)
		return s.mkdirAll(s.work, 0, 0)
	case run:
		return errors.Join(s.dissolve(), s.run(in))
	case copyFiles:
		return errors.Join(s.dissolve(), r.copy(s, in))
	}
	return fmt.Errorf("unknown instruction %T", in)
}

func (r *reference) from(in from) error {
	s := &stage{root: filepath.Join(r.dir, strconv.Itoa(len(r.stages))), env: map[string]string{}, work: "/"}
	r.stages = append(r.stages, s)
	if err := os.Mkdir(s.root, 0o755); err != nil {
		return err
	}
	if in.stage < 0 {
		return errors.Join(command("tar", "-C", s.root, "--numeric-owner", "-xpf", r.base), command("mknod", "-m", "666", s.root+"/dev/null", "c", "1", "3"))
	}
	old := r.stages[in.stage]
	for k, v := range old.env {
		s.env[k] = v
	}
	s.work = old.work
	return command("cp", "-a", old.root+"/.", s.root)
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// dissolve gives every name of a file a file of its own. On an overlay a change of a file of a lower layer does not reach its other names.
func (s *stage) dissolve() error {
	return filepath.WalkDir(s.root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Nlink == 1 {
			return nil
		}
		return errors.Join(command("cp", "-a", "--no-preserve=links", p, p+".own"), os.Rename(p+".own", p))
	})
}

func (s *stage) expand(text string) string {
	return os.Expand(text, func(k string) string { return s.env[k] })
}

func (s *stage) run(in run) error {
	if err := s.mkdirAll(s.work, 0, 0); err != nil {
		return err
	}
	c := exec.Command("chroot", s.root, "/bin/sh", "-c", "cd "+s.work+" && {\n"+strings.Join(in.lines, "\n")+"\n}")
	c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	for k, v := range s.env {
		c.Env = append(c.Env, k+"="+v)
	}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %v: %s", errFails, err, out)
	}
	return nil
}

// resolve returns the path on disk that p means in the stage, without links. Missing components stay as they are.
func (s *stage) resolve(p string, last bool) (string, error) {
	at, links := "/", 0
	todo := strings.Split(p, "/")
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, name)
		to, err := os.Readlink(s.root + next)
		if err != nil || len(todo) == 0 && !last {
			at = next
			continue
		}
		if links++; links > 200 {
			return "", fmt.Errorf("%w: too many links", errFails)
		}
		if path.IsAbs(to) {
			at = "/"
		}
		todo = append(strings.Split(to, "/"), todo...)
	}
	return at, nil
}

// mkdirAll makes the missing directories of p.
func (s *stage) mkdirAll(p string, uid, gid int) error {
	real, err := s.resolve(p, true)
	if err != nil || real == "/" {
		return err
	}
	if st, err := os.Lstat(s.root + real); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%w: %s is no directory", errFails, real)
		}
		return nil
	}
	if err := s.mkdirAll(path.Dir(real), uid, gid); err != nil {
		return err
	}
	return errors.Join(os.Mkdir(s.root+real, 0o755), os.Chmod(s.root+real, 0o755), os.Chown(s.root+real, uid, gid))
}

func (r *reference) copy(s *stage, in copyFiles) error {
	source := &stage{root: r.context}
	if in.stage >= 0 {
		source = r.stages[in.stage]
	}
	dest := s.expand(in.dest)
	slash := strings.HasSuffix(dest, "/")
	if !path.IsAbs(dest) {
		dest = path.Join(s.work, dest)
		if slash {
			dest += "/"
		}
	}
	for _, src := range in.sources {
		if err := r.copyOne(s, source, src, dest, in); err != nil {
			return err
		}
	}
	return nil
}

func (r *reference) copyOne(s, source *stage, src, dest string, in copyFiles) error {
	real, err := source.resolve(src, in.stage < 0 || in.stage >= 0)
	if err != nil {
		return err
	}
	info, err := os.Lstat(source.root + real)
	if err != nil {
		return fmt.Errorf("%w: %v", errFails, err)
	}
	parents := path.Dir(path.Clean(dest))
	if strings.HasSuffix(dest, "/") || info.IsDir() {
		parents = dest
	}
	if info.IsDir() {
		// The directory is made with the attributes of the source when the destination is new.
		parents = path.Dir(path.Clean(dest))
	}
	if err := s.mkdirAll(parents, in.uid, in.gid); err != nil {
		return err
	}
	to, err := s.resolve(dest, true)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		if st, err := os.Lstat(s.root + to); err == nil && st.IsDir() {
			to = path.Join(to, path.Base(src))
		}
	} else if err := s.mkdirAll(path.Dir(to), in.uid, in.gid); err != nil {
		return err
	}
	links := map[uint64]string{}
	return r.copyTree(s, source.root+real, to, in, links, true)
}

// copyTree copies a file, or a directory with all that is in it, to a path of the stage.
func (r *reference) copyTree(s *stage, from, to string, in copyFiles, links map[uint64]string, top bool) error {
	if in.stage < 0 && (from == r.context+"/Dockerfile" || from == r.context+"/.dockerignore") {
		return nil
	}
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	uid, gid := int(st.Uid), int(st.Gid)
	if in.stage < 0 || in.chown {
		uid, gid = in.uid, in.gid
	}
	old, oldErr := os.Lstat(s.root + to)
	target := s.root + to
	if info.IsDir() {
		if oldErr == nil && !old.IsDir() {
			return fmt.Errorf("%w: %s is no directory", errFails, to)
		}
		if oldErr != nil {
			if err := os.Mkdir(target, 0o755); err != nil {
				return err
			}
		}
		entries, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := r.copyTree(s, filepath.Join(from, e.Name()), path.Join(to, e.Name()), in, links, false); err != nil {
				return err
			}
		}
		if top && oldErr == nil {
			return nil // an existing destination keeps its attributes
		}
		return errors.Join(os.Chown(target, uid, gid), syscall.Chmod(target, st.Mode&0o7777))
	}
	if oldErr == nil && old.IsDir() {
		return fmt.Errorf("%w: %s is a directory", errFails, to)
	}
	if oldErr == nil {
		if err := os.Remove(target); err != nil {
			return err
		}
	}
	if first, ok := links[st.Ino]; ok && st.Nlink > 1 {
		if os.Link(first, target) == nil {
			return nil
		}
	}
	links[st.Ino] = target
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		l, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return errors.Join(os.Symlink(l, target), os.Lchown(target, uid, gid), touch(target, st))
	case info.Mode()&fs.ModeNamedPipe != 0:
		if err := syscall.Mkfifo(target, 0o600); err != nil {
			return err
		}
	default:
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(target, data, 0o600); err != nil {
			return err
		}
	}
	return errors.Join(os.Chown(target, uid, gid), syscall.Chmod(target, st.Mode&0o7777), touch(target, st))
}

func touch(name string, st *syscall.Stat_t) error {
	return command("touch", "-h", "-d", fmt.Sprintf("@%d.%09d", st.Mtim.Sec, st.Mtim.Nsec), name)
}

// treeOf reads a directory as a tree.
func treeOf(dir string) (tree, error) {
	var out bytes.Buffer
	c := exec.Command("tar", "-C", dir, "--numeric-owner", "--format=posix", "-c", ".")
	var stderr bytes.Buffer
	c.Stdout, c.Stderr = &out, &stderr
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	t := tree{}
	return t, t.apply(&out)
}
