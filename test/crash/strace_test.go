package crash

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/durable/crashstate"
)

// recorded are the system calls that change a file system, and those that the meaning of the others depends on.
const recorded = "openat,openat2,open,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,lseek," +
	"mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,symlink,symlinkat,mknod,mknodat," +
	"fsync,fdatasync,sync,syncfs,sync_file_range,clone,clone3,fork,vfork"

// bypasses are the system calls by which the kernel copies data that a trace does not have. They fail, and Go reads and writes.
const bypasses = "copy_file_range,sendfile,splice"

// recording is what a program and its children did to a directory.
type recording struct {
	log   *crashstate.Log
	marks map[string]int // text that the program wrote to the file of marks → length of the log
}

// record runs a program and records what it does to the directory root. The program writes marks to the file named marks.
func record(root, marks string, cmd *exec.Cmd) (*recording, error) {
	log, err := crashstate.Scan(root)
	if err != nil {
		return nil, err
	}
	r := &tracer{recording: recording{log, map[string]int{}}, root: root, marks: marks, pending: map[string]call{}, begun: map[string]int{}, group: map[string]string{}, offsets: map[string]int64{}, appends: map[string]bool{}}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer pr.Close()
	args := append([]string{"-f", "-qq", "-y", "-xx", "--seccomp-bpf", "-s", strconv.Itoa(8 << 20), "-o", "/dev/fd/3", "-e", "signal=none",
		"-e", "trace=" + recorded + "," + bypasses, "-e", "inject=" + bypasses + ":error=ENOSYS"}, cmd.Args...)
	traced := exec.Command("strace", args...)
	traced.Env, traced.Dir, traced.ExtraFiles = cmd.Env, cmd.Dir, []*os.File{pw}
	var out strings.Builder
	traced.Stdout, traced.Stderr = &out, &out
	if err := traced.Start(); err != nil {
		return nil, errors.Join(err, pw.Close())
	}
	if err := pw.Close(); err != nil {
		return nil, err
	}
	readErr := r.read(pr)
	if readErr != nil {
		_, _ = io.Copy(io.Discard, pr) // so that the program ends
	}
	if err := traced.Wait(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out.String())
	}
	return &r.recording, readErr
}

// call is one system call.
type call struct {
	name, args, result string
	began              int // length of the log when it began
}

// tracer turns lines of strace into operations.
type tracer struct {
	recording
	root, marks string
	pending     map[string]call // by thread
	begun       map[string]int
	group       map[string]string // thread → its process
	offsets     map[string]int64  // process and descriptor → position in the file
	appends     map[string]bool   // the same → whether it was opened for appending
}

var (
	lineRE     = regexp.MustCompile(`^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)$`)
	iovRE      = regexp.MustCompile(`iov_base="([^"]*)"`)
	unfinished = " <unfinished ...>"
)

func (r *tracer) read(from io.Reader) error {
	in := bufio.NewReaderSize(from, 1<<20)
	for {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := r.line(strings.TrimSuffix(line, "\n")); err != nil {
			return fmt.Errorf("%w\nin %.400s", err, line)
		}
	}
}

func (r *tracer) line(line string) error {
	m := lineRE.FindStringSubmatch(line)
	if m == nil {
		return nil // the end of a process
	}
	thread, rest := m[1], m[4]
	c := call{name: m[3], began: r.log.Len()}
	if m[2] != "" {
		c = r.pending[thread]
		delete(r.pending, thread)
		rest = c.args + rest
	}
	if cut, ok := strings.CutSuffix(rest, unfinished); ok {
		c.args = cut
		r.pending[thread] = c
		return nil
	}
	i := strings.LastIndex(rest, " = ")
	if i < 0 {
		return nil // it never returned
	}
	c.args, c.result = strings.TrimSuffix(strings.TrimRight(rest[:i], " "), ")"), rest[i+3:]
	if strings.HasPrefix(c.result, "-1") || strings.HasPrefix(c.result, "?") {
		return nil
	}
	return r.done(thread, c)
}

// descriptor splits a descriptor as strace prints it.
func descriptor(s string) (fd, path string) {
	fd, path, _ = strings.Cut(s, "<")
	path, _, _ = strings.Cut(path, ">")
	if strings.HasSuffix(s, "(deleted)") {
		return fd, ""
	}
	return fd, unhex(path)
}

func unhex(s string) string {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Trim(s, `"`), `\x`, ""))
	if err != nil {
		return ""
	}
	return string(b)
}

// inside returns a path relative to the root, and false when it is elsewhere.
func (r *tracer) inside(path string) (string, bool) {
	if path == r.root {
		return ".", true
	}
	return strings.CutPrefix(path, r.root+"/")
}

// at resolves a path relative to a descriptor.
func (r *tracer) at(dirfd, name string) (string, bool) {
	path := unhex(name)
	if !filepath.IsAbs(path) {
		_, dir := descriptor(dirfd)
		path = filepath.Join(dir, path)
	}
	return r.inside(filepath.Clean(path))
}

// process returns the process of a thread. A thread that no clone announced is the first of its process.
func (r *tracer) process(thread string) string {
	if g := r.group[thread]; g != "" {
		return g
	}
	return thread
}

func (r *tracer) done(thread string, c call) error {
	a := strings.Split(c.args, ", ")
	arg := func(i int) string {
		if i < len(a) {
			return a[i]
		}
		return ""
	}
	number := func(s string) int64 {
		n, _ := strconv.ParseInt(strings.Fields(s + " 0")[0], 0, 64)
		return n
	}
	const cwd = "AT_FDCWD"
	switch c.name {
	case "clone", "clone3", "fork", "vfork":
		if strings.Contains(c.args, "CLONE_THREAD") {
			r.group[strings.Fields(c.result)[0]] = r.process(thread)
		}
	case "openat", "openat2", "open", "creat":
		return r.opened(thread, c)
	case "lseek":
		fd, _ := descriptor(arg(0))
		r.offsets[r.process(thread)+" "+fd] = number(c.result)
	case "write", "writev", "pwrite64", "pwritev", "pwritev2":
		return r.written(thread, c, a)
	case "ftruncate", "truncate":
		path, ok := r.inside(unhex(arg(0)))
		if c.name == "ftruncate" {
			_, at := descriptor(arg(0))
			path, ok = r.inside(at)
		}
		if ok {
			return r.log.Truncate(path, number(arg(1)))
		}
	case "fallocate":
		_, at := descriptor(arg(0))
		path, ok := r.inside(at)
		if end := number(arg(2)) + number(arg(3)); ok && arg(1) == "0" && end > r.log.Size(path) {
			return r.log.Truncate(path, end)
		}
	case "mkdir", "mkdirat", "symlink", "symlinkat", "mknod", "mknodat":
		return r.made(c.name, a, number)
	case "rename", "link":
		a = []string{cwd, arg(0), cwd, arg(1)}
		fallthrough
	case "renameat", "renameat2", "linkat":
		return r.moved(c, a)
	case "unlink", "rmdir":
		a = []string{cwd, arg(0)}
		fallthrough
	case "unlinkat":
		if path, ok := r.at(arg(0), arg(1)); ok {
			return r.log.Remove(path)
		}
	case "fsync", "fdatasync":
		_, at := descriptor(arg(0))
		if path, ok := r.inside(at); ok {
			r.log.Sync(path, c.began)
		}
	case "syncfs", "sync":
		_, at := descriptor(arg(0))
		if _, ok := r.inside(at); ok || c.name == "sync" {
			r.log.SyncAll(c.began)
		}
	}
	return nil
}

func (r *tracer) opened(thread string, c call) error {
	fd, at := descriptor(c.result)
	r.offsets[r.process(thread)+" "+fd] = 0
	r.appends[r.process(thread)+" "+fd] = strings.Contains(c.args, "O_APPEND")
	path, ok := r.inside(at)
	if !ok {
		return nil
	}
	if !r.log.Has(path) {
		if !strings.Contains(c.args, "O_CREAT") && c.name != "creat" {
			return nil // below a mount, or O_TMPFILE
		}
		return r.log.Make(path, unix.S_IFREG|0o600, 0, "")
	}
	if (strings.Contains(c.args, "O_TRUNC") || c.name == "creat") && r.log.Size(path) > 0 {
		return r.log.Truncate(path, 0)
	}
	return nil
}

func (r *tracer) written(thread string, c call, a []string) error {
	fd, at := descriptor(a[0])
	n, err := strconv.Atoi(strings.Fields(c.result)[0])
	if err != nil {
		return err
	}
	var data string
	if strings.HasSuffix(c.name, "v") || c.name == "pwritev2" {
		for _, m := range iovRE.FindAllStringSubmatch(c.args, -1) {
			data += unhex(m[1])
		}
	} else {
		data = unhex(a[1])
	}
	if at == r.marks {
		r.recording.marks[strings.TrimSpace(data)] = r.log.Len()
		return nil
	}
	path, ok := r.inside(at)
	if !ok || !r.log.Has(path) {
		return nil
	}
	if len(data) < n {
		return errors.New("the trace has not all of the data")
	}
	key := r.process(thread) + " " + fd
	off := r.offsets[key]
	switch {
	case strings.HasPrefix(c.name, "pw"):
		if off, err = strconv.ParseInt(a[len(a)-1], 10, 64); err != nil {
			return err
		}
	case r.appends[key]:
		off = r.log.Size(path)
	default:
		r.offsets[key] = off + int64(n)
	}
	return r.log.Write(path, off, []byte(data[:n]))
}

func (r *tracer) made(name string, a []string, number func(string) int64) error {
	target := ""
	if strings.HasPrefix(name, "symlink") {
		target, a = unhex(a[0]), a[1:]
	}
	if !strings.HasSuffix(name, "at") {
		a = append([]string{"AT_FDCWD"}, a...)
	}
	path, ok := r.at(a[0], a[1])
	if !ok {
		return nil
	}
	mode := uint32(unix.S_IFDIR | 0o700)
	switch {
	case target != "":
		mode = unix.S_IFLNK | 0o777
	case strings.HasPrefix(name, "mknod"):
		mode = map[string]uint32{"S_IFCHR": unix.S_IFCHR, "S_IFBLK": unix.S_IFBLK, "S_IFIFO": unix.S_IFIFO, "S_IFSOCK": unix.S_IFSOCK, "S_IFREG": unix.S_IFREG}[strings.Split(a[2], "|")[0]]
	}
	return r.log.Make(path, mode, 0, target) // Adopt reads the number of a device
}

func (r *tracer) moved(c call, a []string) error {
	from, ok1 := r.at(a[0], a[1])
	to, ok2 := r.at(a[2], a[3])
	switch {
	case !ok1 && !ok2:
		return nil
	case ok1 != ok2:
		return fmt.Errorf("%s between the directory and another one", c.name)
	case c.name == "link" || c.name == "linkat":
		return r.log.Link(from, to)
	}
	return r.log.Rename(from, to, strings.Contains(c.args, "RENAME_EXCHANGE"))
}
