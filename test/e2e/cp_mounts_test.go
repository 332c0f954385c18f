package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// cpStory is what a client did with owners, volumes and running containers, as text.
type cpStory struct {
	*cpClient
	t    testing.TB
	text strings.Builder
	dir  string // the local directory; LOCAL in the text
	ids  []string
}

// title begins a part of the story.
func (s *cpStory) title(text string) { fmt.Fprintf(&s.text, "# %s\n", text) }

// do runs a client and writes down what it printed.
func (s *cpStory) do(stdin string, args ...string) {
	o, e, code := s.run(strings.NewReader(stdin), s.dir, args...)
	fmt.Fprintf(&s.text, "$ %s\n", strings.ReplaceAll(strings.Join(args, " "), s.dir, "LOCAL"))
	for line := range strings.Lines(o + e) {
		if line = strings.TrimSpace(s.plain(line)); line != "" {
			fmt.Fprintf(&s.text, "%s\n", line)
		}
	}
	if code != 0 {
		fmt.Fprintf(&s.text, "exit %d\n", code)
	}
}

// plain returns a line without what differs from run to run.
func (s *cpStory) plain(line string) string {
	line = noSuchPath.ReplaceAllString(strings.TrimSpace(line), "Error response from daemon: Could not find the file $2 in container $1")
	line = cpNoise.ReplaceAllString(line, "")
	for i, id := range s.ids {
		line = strings.ReplaceAll(line, id, fmt.Sprintf("CONTAINER%d", i))
	}
	return strings.ReplaceAll(line, s.dir, "LOCAL")
}

// list copies a path out and writes down the entries of the stream.
func (s *cpStory) list(from string) {
	o, e, code := s.run(nil, "", "cp", from, "-")
	fmt.Fprintf(&s.text, "$ cp %s -\n", from)
	if code != 0 {
		fmt.Fprintf(&s.text, "%s\nexit %d\n", s.plain(e), code)
		return
	}
	tr := tar.NewReader(strings.NewReader(o))
	for {
		h, err := tr.Next()
		if err != nil {
			break
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(tr); err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintf(&s.text, "%s %c %04o %d:%d %q%s\n", h.Name, h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid, s.plain(b.String()), h.Linkname)
	}
}

// container creates a container and starts it if it has a command.
func (s *cpStory) container(name string, args ...string) {
	id := s.must(s.t, nil, append([]string{"create", "--name", name, "--network", "none"}, args...)...)
	s.ids = append(s.ids, strings.TrimSpace(id))
	s.t.Cleanup(func() { s.run(nil, "", "rm", "-f", "-v", name) })
}

// tell runs the story.
func (s *cpStory) tell() string {
	stream := string(cpTar(s.t, 0))
	write := func(name, data string) string {
		p := filepath.Join(s.dir, name)
		if err := os.WriteFile(p, []byte(data), 0o640); err != nil {
			s.t.Fatal(err)
		}
		return p
	}
	file := write("owned", "owned")
	if err := os.Chown(file, 1234, 5678); err != nil {
		s.t.Fatal(err)
	}
	for _, user := range []string{"", "root"} {
		s.title("owners in a container with the user " + fmt.Sprintf("%q", user))
		name := "own" + user
		s.container(name, "-u", user, "busybox", "sh")
		s.do("", "cp", file, name+":/plain")
		s.do("", "cp", "-a", file, name+":/archive")
		s.do(stream, "cp", "-", name+":/tmp")
		s.do(stream, "cp", "-a", "-", name+":/home")
		for _, p := range []string{"/plain", "/archive", "/tmp/src/f", "/home/src/d"} {
			s.list(name + ":" + p)
		}
	}

	s.title("the working directory of a container that was never started")
	s.container("workdir", "-w", "/a/b", "-u", "joe", "busybox", "sh")
	s.list("workdir:/a")
	s.do("", "cp", file, "workdir:/a/b")
	s.list("workdir:/a/b/owned")
	s.do("", "diff", "workdir")
	s.do("", "create", "-w", "/etc/passwd", "busybox", "sh")
	s.container("linked", "-w", "/bin/../var/data/new", "busybox", "sh")
	s.list("linked:/var/data")

	s.title("hosts, hostname and resolv.conf")
	etc := filepath.Join(s.dir, "etc")
	if err := os.Mkdir(etc, 0o755); err != nil {
		s.t.Fatal(err)
	}
	write("etc/mine", "mine")
	for _, mount := range []string{"none", "/etc", "cpvol:/etc", etc + ":/etc"} {
		s.title("with " + strings.ReplaceAll(mount, s.dir, "LOCAL") + " as volume")
		args := []string{"-h", "box", "--add-host", "x:192.0.2.7", "--dns", "192.0.2.8"}
		if mount != "none" {
			args = append(args, "-v", mount)
		}
		s.container("etc", append(args, "busybox", "sleep", "1000")...)
		files := []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
		show := func() {
			for _, f := range files {
				s.list("etc:" + f)
			}
		}
		s.do("", "start", "etc")
		show()
		s.do("", "exec", "etc", "sh", "-c", "cat "+strings.Join(files, " "))
		s.do("", "exec", "etc", "sh", "-c", "echo changed >>/etc/hosts; ls /etc")
		s.list("etc:/etc/hosts")
		s.do("", "kill", "etc")
		s.do("", "wait", "etc")
		show()
		s.do("", "rm", "etc")
		s.ids = s.ids[:len(s.ids)-1]
	}

	s.title("volumes, binds and memory")
	s.container("mnt", "-v", "cpdata:/data", "-v", "cpro:/ro:ro", "-v", s.dir+":/bind", "--tmpfs", "/mem", "-v", "/var/data", "busybox", "sleep", "1000")
	inOut := func() {
		for _, dir := range []string{"/data", "/bind", "/mem", "/var/data", "/ro", "/tmp"} {
			s.do("", "cp", file, "mnt:"+dir+"/copied")
			s.list("mnt:" + dir + "/copied")
		}
	}
	s.list("mnt:/var/data")
	inOut()
	s.do("", "start", "mnt")
	inOut()
	s.do("", "exec", "mnt", "sh", "-c", "cat /data/copied /bind/copied /var/data/copied /tmp/copied; ls /mem; echo in >/data/in; echo in >/bind/in; echo in >/tmp/in; echo in >/mem/in")
	for _, p := range []string{"/data/in", "/bind/in", "/tmp/in", "/mem/in", "/proc/self/status", "/sys/kernel"} {
		s.list("mnt:" + p)
	}
	s.do("", "kill", "mnt")
	s.do("", "wait", "mnt")
	inOut()
	for _, p := range []string{"/data/in", "/bind/in", "/tmp/in", "/mem"} {
		s.list("mnt:" + p)
	}

	s.title("a read-only root")
	s.container("fixed", "--read-only", "-v", "cpfixed:/data", "busybox", "sleep", "1000")
	for range 2 {
		s.do("", "cp", file, "fixed:/tmp")
		s.do("", "cp", file, "fixed:/data")
		s.list("fixed:/data/owned")
		s.list("fixed:/tmp/owned")
		s.do("", "start", "fixed")
	}
	return s.text.String()
}

// TestCpMounts compares what copies do with owners, working directories, volumes and running containers with what they do with Docker's
// own engine. With PLY_NIGHTLY that engine runs beside.
func TestCpMounts(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	tell := func(t *testing.T, program, sock string) string {
		c := &cpClient{program: w.program(program), sock: sock, dir: t.TempDir()}
		s := &cpStory{cpClient: c, t: t, dir: filepath.Join(c.dir, "local")}
		if err := os.Mkdir(s.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.run(nil, "", "volume", "rm", "-f", "cpvol", "cpdata", "cpro", "cpfixed") })
		return s.tell()
	}
	golden := filepath.Join("testdata", "cp", "mounts.txt")
	if *updateCp || os.Getenv("PLY_NIGHTLY") != "" {
		t.Run("dockerd", func(t *testing.T) {
			sock := startDockerd(t)
			c := cpClient{program: w.program("docker20"), sock: sock, dir: t.TempDir()}
			c.must(t, nil, "import", filepath.Join(images, "busybox.tar"), "busybox")
			got := tell(t, "docker20", sock)
			if *updateCp {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			sameStory(t, golden, got)
		})
	}
	for _, name := range []string{"ply", "docker", "docker20"} {
		t.Run(name, func(t *testing.T) { sameStory(t, golden, tell(t, name, w.sock)) })
	}
}

// sameStory compares a story with a golden file.
func sameStory(t *testing.T, golden, got string) {
	t.Helper()
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	split := func(text string) []string { return strings.Split(strings.ReplaceAll(text, "\n# ", "\n$ # "), "\n$ ") }
	w, g := split(string(want)), split(got)
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			t.Errorf("got:\n%s\nwant:\n%s", g[i], w[i])
		}
	}
	if len(w) != len(g) {
		t.Errorf("%d commands, want %d", len(g), len(w))
	}
}

// With -a ply's cp gives local files the owners that they have in the container; without it they belong to the user who runs ply.
// Docker's documentation says so; docker's own clients ignore -a in this direction.
func TestCpArchiveOut(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	c := &cpClient{program: w.program("ply"), sock: w.sock, dir: t.TempDir()}
	id := strings.TrimSpace(c.must(t, nil, "create", "busybox", "sh"))
	c.must(t, bytes.NewReader(cpTar(t, 0)), "cp", "-", id+":/")
	for flag, want := range map[string]uint32{"-a": 1234, "-q": 0} {
		to := filepath.Join(c.dir, "to"+flag)
		c.must(t, nil, "cp", flag, id+":/src", to)
		for _, name := range []string{"", "f", "d", "d/sub/deep", "lf"} {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(to, name), &st); err != nil || st.Uid != want {
				t.Errorf("cp %s: owner of %q is %d, want %d: %v", flag, name, st.Uid, want, err)
			}
		}
	}
}
