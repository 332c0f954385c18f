package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ply/internal/dockerroot/dockerroottest"
	"ply/internal/oci"
)

// source is Docker's own engine, whose data root is imported.
type source struct {
	*cpClient
	t    *testing.T
	root string
	log  string
	d    *exec.Cmd
}

// sourceCgroup is the cgroup of its containers.
const sourceCgroup = "/import-docker-e2e"

// startSource starts a dockerd that makes bridges and changes nothing else in the network.
func startSource(t *testing.T) *source {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "dockerd-import.")
	if err != nil {
		t.Fatal(err)
	}
	s := &source{cpClient: &cpClient{program: "/usr/bin/docker", sock: filepath.Join(dir, "s"), dir: dir}, t: t, root: filepath.Join(dir, "data"), log: filepath.Join(dir, "log")}
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.d = exec.Command("dockerd", "--data-root", s.root, "--exec-root", filepath.Join(dir, "run"), "-H", "unix://"+s.sock, "--pidfile", filepath.Join(dir, "pid"),
		"--storage-driver", "overlay2", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--cgroup-parent", sourceCgroup, "--config-file", filepath.Join(dir, "daemon.json"))
	s.d.Stdout, s.d.Stderr = log, log
	if err := s.d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	until(t, func() bool { _, _, code := s.run(nil, "", "version"); return code == 0 }, s.tail)
	return s
}

func (s *source) tail() string {
	b, _ := os.ReadFile(s.log)
	return "dockerd:\n" + string(b[max(0, len(b)-1000):])
}

// stop ends dockerd and removes the bridges that it leaves.
func (s *source) stop() {
	if s.d == nil {
		return
	}
	bridges := []string{"docker0"}
	if ids, _, code := s.run(nil, "", "network", "ls", "-q", "-f", "driver=bridge"); code == 0 {
		for _, id := range strings.Fields(ids) {
			bridges = append(bridges, "br-"+id)
		}
	}
	_ = s.d.Process.Signal(syscall.SIGTERM)
	_ = s.d.Wait()
	s.d = nil
	for _, name := range bridges {
		_ = exec.Command("ip", "link", "del", name).Run() // the default network has the bridge docker0
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		dirs, _ := filepath.Glob(pattern + sourceCgroup) // the pattern is good
		for _, d := range dirs {
			_ = syscall.Rmdir(d)
		}
	}
	var left []string
	for m := range mounts(s.t) {
		if strings.HasPrefix(m, s.dir+"/") {
			left = append(left, m)
		}
	}
	slices.Sort(left)
	for _, m := range slices.Backward(left) {
		_ = syscall.Unmount(m, syscall.MNT_DETACH)
	}
}

// docker runs docker, which must succeed, and returns the trimmed output.
func (s *source) docker(args ...string) string {
	s.t.Helper()
	o, e, code := s.run(nil, "", args...)
	if code != 0 {
		s.t.Fatalf("docker %s: exit code %d\n%s%s\n%s", strings.Join(args, " "), code, o, e, s.tail())
	}
	return strings.TrimSpace(o)
}

// importedDockerfile makes layers with whiteouts, an opaque directory, hard and symbolic links, and odd modes, owners and names.
const importedDockerfile = `FROM busybox
RUN mkdir -p /a/b /o && echo one >/a/one && ln /a/one /a/two && ln -s /a/one /a/b/l && chown 7:8 /a/b && chmod 4755 /a/one && echo gone >/a/gone && echo 1 >/o/1 && mkfifo /a/fifo
RUN rm /a/gone && rm -rf /o && mkdir /o && echo 2 >"$(printf '/o/new\012line \303\274')"
VOLUME /vol
EXPOSE 80
ENV X=y
CMD ["sleep","1000"]
`

// fillSource gives the engine images, networks, volumes and containers with awkward content, and stops the containers.
func (s *source) fill() {
	s.t.Helper()
	s.docker("import", "-c", `CMD ["sh"]`, filepath.Join(images, "busybox.tar"), "busybox")
	ctx := filepath.Join(s.dir, "ctx")
	if err := errors.Join(os.Mkdir(ctx, 0o755), os.WriteFile(filepath.Join(ctx, "Dockerfile"), []byte(importedDockerfile), 0o644)); err != nil {
		s.t.Fatal(err)
	}
	s.docker("build", "-q", "-t", "built:1", ctx)
	s.docker("tag", "built:1", "reg.example:5000/x/built:2")
	s.docker("network", "create", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.9", "--aux-address", "other=10.77.0.3", "--ip-range", "10.77.0.128/25", "--label", "a=b",
		"-o", "com.docker.network.driver.mtu=1400", "n1")
	s.docker("network", "create", "--ipv6", "--subnet", "fd77::/64", "--internal", "n2")
	s.docker("volume", "create", "--label", "l=1", "named")
	s.docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m", "tm")
	s.docker("run", "-d", "--name", "c1", "--network", "n1", "--ip", "10.77.0.130", "--network-alias", "al", "-v", "named:/data", "-v", "/etc:/hostetc:ro", "-p", "127.0.0.1::80",
		"--restart", "unless-stopped", "-l", "x=y", "-e", "A=B", "--hostname", "hh", "--cap-add", "SYS_ADMIN", "built:1")
	s.docker("exec", "c1", "sh", "-c", `echo hi >/data/f; chown 5:6 /data/f; chmod 640 /data/f; ln /data/f /data/g; ln -s f /data/s; mkfifo /data/fifo
echo v >/vol/v; rm /a/two; rm -rf /a/b; mkdir /a/b; echo opaque >/a/b/o; ln /a/b/o /a/hard; chmod 700 /a; rm /bin/yes; ln -sf /nowhere /etc/motd; rm -rf /home/joe; echo x >/home/joe
truncate -s 10M /var/sparse; echo end >>/var/sparse; chown 1:2 /var/sparse; mknod /var/null c 1 3`)
	s.docker("run", "--name", "c2", "-d", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3")
	s.docker("create", "--name", "c3", "--network", "container:c1", "busybox", "sleep", "1000")
	s.docker("create", "--name", "c4", "--tmpfs", "/t", "--log-driver", "local", "-v", "tm:/tm", "busybox", "true")
	s.docker("network", "connect", "--alias", "second", "n2", "c2")
	until(s.t, func() bool { return s.docker("inspect", "-f", "{{.State.Status}}", "c2") == "exited" }, s.tail)
	s.docker("stop", "-t", "0", "c1")
}

// treeOf describes every file below a directory: kind, mode, owner, size, times, link, extended attributes, and which names are one file.
func treeOf(t testing.TB, dir string, access bool) map[string]string {
	t.Helper()
	out := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		text := fmt.Sprintf("%o %d:%d %x", st.Mode, st.Uid, st.Gid, st.Rdev)
		if !d.IsDir() {
			text += fmt.Sprintf(" %d bytes", st.Size)
		}
		text += fmt.Sprintf(" %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		if access {
			text += fmt.Sprintf(" %d.%09d %d.%09d", st.Atim.Sec, st.Atim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
		}
		if st.Nlink > 1 && !d.IsDir() {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			text += " = " + first[st.Ino]
		}
		if l, err := os.Readlink(path); err == nil {
			text += " -> " + l
		}
		if !access && st.Mode&unix.S_IFMT == unix.S_IFREG {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %.40q", data)
			if sparse := st.Size > 1<<20 && st.Blocks*512 < st.Size/2; sparse {
				text += " sparse"
			}
		}
		buf := make([]byte, 4096)
		if n, err := unix.Llistxattr(path, buf); err == nil && n > 0 {
			for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
				value := make([]byte, 4096)
				if n, err := unix.Lgetxattr(path, name, value); err == nil {
					text += fmt.Sprintf(" %s=%x", name, value[:n])
				}
			}
		}
		out[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// initNames are what every engine puts into the root of a container.
var initNames = []string{".dockerenv", "dev", "proc", "sys", "etc", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "."}

// exported describes the entries of an export. The times of directories are left out: making a mount point changes them.
func exported(t testing.TB, stream string) map[string]string {
	t.Helper()
	out := map[string]string{}
	r := tar.NewReader(strings.NewReader(stream))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Clean(h.Name)
		if slices.Contains(initNames, name) || strings.HasPrefix(name, "dev/") {
			continue
		}
		sum := fmt.Sprintf("%c %o %d:%d %d,%d -> %s", h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid, h.Devmajor, h.Devminor, h.Linkname)
		if h.Typeflag != tar.TypeDir {
			sum += fmt.Sprintf(" %d", h.ModTime.Unix())
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = fmt.Sprintf("%s %d bytes %.30q", sum, len(data), bytes.Trim(data, "\x00"))
	}
}

// The formats of inspect with which objects are compared. Names and maps are sorted by the templates.
const (
	imageFormat     = `{{.Id}} {{.Parent}} {{.Created}} {{json .RootFS.Layers}} {{json .RepoTags}} {{json .Config.Env}} {{json .Config.Cmd}} {{json .Config.Volumes}} {{.Architecture}}`
	containerFormat = `{{.Id}} {{.Name}} {{.Image}} {{.Created}} {{.Path}} {{json .Args}} {{.State.Status}} {{.State.ExitCode}} {{.State.StartedAt}} {{.State.FinishedAt}}
{{.Config.Image}} {{.Config.Hostname}} {{.Config.User}} {{json .Config.Env}} {{json .Config.Cmd}} {{json .Config.Entrypoint}} {{json .Config.Labels}} {{json .Config.Volumes}} {{.Config.WorkingDir}}
{{.HostConfig.RestartPolicy.Name}} {{json .HostConfig.CapAdd}} {{json .HostConfig.PortBindings}} {{.HostConfig.ShmSize}} {{.HostConfig.LogConfig.Type}}
{{range .Mounts}}{{.Type}} {{.Destination}} {{.Mode}} {{.RW}} {{.Propagation}}
{{end}}{{range $n, $e := .NetworkSettings.Networks}}{{$n}} {{with $e.IPAMConfig}}{{.IPv4Address}}{{end}}
{{end}}`
	volumeFormat  = `{{.Name}} {{.Driver}} {{json .Labels}} {{json .Options}}`
	networkFormat = `{{.Id}} {{.Name}} {{.Driver}} {{.EnableIPv6}} {{.Internal}} {{json .IPAM.Config}} {{json .Labels}} {{json .Options}} {{.Created}}`
)

// known is what an engine tells of its objects.
type known struct {
	Images, Containers, Volumes, Networks, Logs, Diffs, History map[string]string
	Exports                                                     map[string]map[string]string
}

// ask asks an engine, through one client, about all objects.
func ask(t *testing.T, run func(args ...string) string, volumes []string) known {
	t.Helper()
	k := known{map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}, map[string]map[string]string{}}
	for _, id := range strings.Fields(run("images", "-aq", "--no-trunc")) {
		k.Images[id] = run("image", "inspect", "-f", imageFormat, id)
	}
	k.History["built:1"] = run("history", "--no-trunc", "-H=false", "--format", "{{.ID}} {{.CreatedAt}} {{.CreatedBy}}", "built:1")
	for _, c := range []string{"c1", "c2", "c3", "c4"} {
		lines := strings.Split(strings.ReplaceAll(run("inspect", "-f", containerFormat, c), " null ", " [] "), "\n")
		if c == "c3" { // docker shows a name of its own, which the container does not have
			words := strings.SplitN(lines[1], " ", 3)
			lines[1] = words[0] + " " + words[2]
		}
		slices.Sort(lines[3:]) // mounts are in any order
		k.Containers[c] = strings.Join(lines, "\n")
		if c != "c4" {
			k.Logs[c] = run("logs", "-t", c)
		}
		diff := strings.Split(run("diff", c), "\n")
		slices.Sort(diff)
		k.Diffs[c] = strings.Join(diff, "\n")
		k.Exports[c] = exported(t, run("export", c))
	}
	for _, v := range volumes {
		k.Volumes[v] = strings.ReplaceAll(run("volume", "inspect", "-f", volumeFormat, v), "null", "{}")
	}
	for _, n := range []string{"n1", "n2"} {
		// Docker shows a gateway of IPv6 only where a user has asked for it.
		k.Networks[n] = strings.ReplaceAll(run("network", "inspect", "-f", networkFormat, n), `"Gateway":"fd77::1",`, "")
	}
	return k
}

// Docker's own engine makes images, containers, volumes and networks; ply takes them over from its data root with all that docker told of them, and
// they run.
func TestImportDocker(t *testing.T) {
	s := startSource(t)
	s.fill()
	anonymous := s.docker("inspect", "-f", `{{range .Mounts}}{{if eq .Destination "/vol"}}{{.Name}}{{end}}{{end}}`, "c1")
	upper := s.docker("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", "c1")
	for path, name := range map[string]string{filepath.Join(upper, "a", "b", "o"): "user.in", filepath.Join(s.root, "volumes/named/_data/f"): "user.volume"} {
		if err := unix.Setxattr(path, name, []byte("value"), 0); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(s.root, "volumes/named/_data")
	sparse, err := os.Create(filepath.Join(data, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sparse.Truncate(8<<20), sparse.Close()); err != nil {
		t.Fatal(err)
	}
	want := ask(t, s.docker, []string{anonymous, "named", "tm"})

	w := newWorld(t)
	if out := w.fail(1, "import-docker", s.root); !strings.Contains(out, "dockerd runs on this data root") {
		t.Errorf("a root in use: %s", out)
	}
	s.stop()
	treeOf(t, s.root, true) // reading directories sets their times of access once
	before := treeOf(t, s.root, true)

	// A name that is taken is a conflict, which keeps what needs the object, and nothing else.
	w.ply("volume", "create", "named")
	if out := w.ply("import-docker", "--prefix", "old-", "--dry-run", s.root); !strings.Contains(out, "volume named: would be imported as old-named\n") || !strings.Contains(out, "container c1: would be imported\n") {
		t.Errorf("dry run: %s", out)
	}
	if out := w.ply("images", "-aq") + w.ply("ps", "-aq") + w.ply("volume", "ls", "-q"); out != "named" {
		t.Errorf("a dry run left %q", out)
	}
	out := w.fail(1, "import-docker", s.root)
	for _, line := range []string{"volume named: name conflict: another volume here has the name named", "container c1: failed: its volume named did not come over"} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
	if got := w.ply("ps", "-a", "--format", "{{.Names}}"); got != "c4\nc2" {
		t.Errorf("containers %q", got)
	}
	// The same command brings the rest. What is here stays as it is.
	if out := w.ply("import-docker", "--prefix", "old-", s.root); !strings.Contains(out, "volume named: imported as old-named\n") || !strings.Contains(out, "Imported: 3, is here already: ") {
		t.Errorf("%s", out)
	}
	if out := w.ply("import-docker", "--prefix", "old-", "--json", s.root); !strings.Contains(out, `"complete": true`) || strings.Contains(out, `"imported"`) {
		t.Errorf("again: %s", out)
	}
	if d := cmp.Diff(before, treeOf(t, s.root, true)); d != "" {
		t.Errorf("the source was changed:\n%s", d)
	}

	got := ask(t, func(args ...string) string {
		o, e, err := w.run("docker20", args...)
		if err != nil {
			t.Fatalf("docker %s: %v %s", strings.Join(args, " "), err, e)
		}
		return strings.TrimSpace(o)
	}, []string{anonymous, "old-named", "tm"})
	got.Volumes["named"] = strings.Replace(got.Volumes["old-named"], "old-named", "named", 1)
	delete(got.Volumes, "old-named")
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("docker said, and ply says:\n%s", d)
	}
	for name, as := range map[string]string{anonymous: anonymous, "named": "old-named"} {
		here := filepath.Join(w.dir, "data", "volumes", as, "_data")
		if d := cmp.Diff(treeOf(t, filepath.Join(s.root, "volumes", name, "_data"), false), treeOf(t, here, false)); d != "" {
			t.Errorf("volume %s:\n%s", name, d)
		}
	}
	runImported(t, w, anonymous)
}

// runImported starts what came over.
func runImported(t *testing.T, w *world, anonymous string) {
	t.Helper()
	w.ply("start", "c1", "c3")
	if out := w.ply("exec", "c1", "sh", "-c", "cat /data/f /vol/v /a/b/o; hostname; echo $A; ls /a/b"); out != "hi\nv\nopaque\nhh\nB\no" {
		t.Errorf("in c1: %q", out)
	}
	if out := w.ply("inspect", "-f", "{{.NetworkSettings.Networks.n1.IPAddress}} {{.NetworkSettings.Networks.n1.Gateway}}", "c1"); out != "10.77.0.130 10.77.0.9" {
		t.Errorf("addresses %q", out)
	}
	if out := w.ply("exec", "c3", "hostname"); out != "hh" {
		t.Errorf("c3 shares the network of c1, and its name: %q", out)
	}
	if out := w.ply("run", "--rm", "--network", "n1", "busybox", "nslookup", "al"); !strings.Contains(out, "10.77.0.130") {
		t.Errorf("the alias: %q", out)
	}
	w.ply("start", "-a", "c4")
	w.ply("rm", "-f", "-v", "c1", "c3")
	if out := w.ply("volume", "ls", "-q"); strings.Contains(out, anonymous) || !strings.Contains(out, "old-named") {
		t.Errorf("rm -v of an imported container left %q", out)
	}
	if out := w.fail(3, "start", "-a", "c2"); out != "out\nerr\n" {
		t.Errorf("c2: %q", out)
	}
	w.ply("rm", "c2", "c4")
	w.ply("network", "rm", "n1", "n2")
}

// plyd is killed again and again while it imports. Each time the same command goes on, and at the end everything is there and whole.
func TestImportDockerKilled(t *testing.T) {
	f := dockerroottest.New(t)
	var last oci.ImageID
	names := []string{}
	for i := range 6 {
		chain, _ := f.Layer(nil, fmt.Sprint("base", i), strings.Repeat(fmt.Sprint(i), 1<<20))
		chain, _ = f.Layer(chain, fmt.Sprint("top", i), strings.Repeat(fmt.Sprint(i+1), 1<<20))
		last = f.Image(chain, fmt.Sprintf("i%d:1", i))
		id := strings.Repeat(fmt.Sprint(i, "a"), 32)
		f.Container(id, last, map[string]any{"MountPoints": map[string]any{"/d": map[string]any{"Type": "volume", "Name": fmt.Sprint("vol", i), "Destination": "/d", "RW": true}}}, nil)
		for n := range 40 {
			f.Write(fmt.Sprintf("overlay2/upper-%.2s/diff/d/%d", id, n), strings.Repeat("x", 5000))
			f.Write(fmt.Sprintf("volumes/vol%d/_data/d/%d", i, n), strings.Repeat("y", 5000))
		}
		f.Network(id, fmt.Sprint("net", i), map[string]any{
			"ipamV4Config": `[{"PreferredPool":"","SubPool":"","Gateway":"","AuxAddresses":null}]`,
			"ipamV4Info":   fmt.Sprintf(`[{"IPAMData":"{\"Gateway\":\"10.78.%d.1/24\",\"Pool\":\"10.78.%d.0/24\"}","PoolID":"x"}]`, i, i),
		})
		names = append(names, fmt.Sprint("net", i))
	}
	w := newWorld(t)
	kills := 0
	for delay := 20 * time.Millisecond; ; delay += delay / 2 {
		cmd := exec.Command(w.program("ply"), "import-docker", f.Dir)
		cmd.Env = append(os.Environ(), w.clientEnv()...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay) // not for something to happen: a kill at any time must do no harm
		w.kill9()
		err := cmd.Wait()
		w.startPlyd()
		if err == nil {
			break
		}
		if strings.Contains(out.String(), "failed: ") {
			t.Fatalf("%s", out.String())
		}
		kills++
	}
	if kills == 0 {
		t.Error("plyd was never killed during the import")
	}
	if out := w.ply("import-docker", "--json", f.Dir); !strings.Contains(out, `"complete": true`) {
		t.Errorf("after %d kills: %s", kills, out)
	}
	if out := w.ply("system", "check", "--full"); !strings.Contains(out, "Everything agrees.") {
		t.Errorf("after %d kills: %s", kills, out)
	}
	for i := range 6 {
		c := "c" + fmt.Sprint(i, "a")
		if out := strings.Fields(w.ply("diff", c)); len(out) != 2*(40+2) {
			t.Errorf("container %s: %d words of changes", c, len(out))
		}
		here := filepath.Join(w.dir, "data", "volumes", fmt.Sprint("vol", i), "_data")
		if d := cmp.Diff(treeOf(t, f.Path(fmt.Sprintf("volumes/vol%d/_data", i)), false), treeOf(t, here, false)); d != "" {
			t.Errorf("volume %d:\n%s", i, d)
		}
	}
	w.ply(append([]string{"network", "rm"}, names...)...)
}

// Images and containers come over from the image store of a real containerd, in docker's namespace.
func TestImportDockerContainerd(t *testing.T) {
	from := newWorld(t)
	want := from.busybox()
	saved := filepath.Join(from.dir, "busybox.tar")
	from.ply("save", "-o", saved, "busybox")
	chain := from.ply("image", "inspect", "-f", "{{index .RootFS.Layers 0}}", "busybox")

	dir, err := os.MkdirTemp("/var/tmp", "containerd-import.")
	if err != nil {
		t.Fatal(err)
	}
	root, sock := filepath.Join(dir, "root"), filepath.Join(dir, "s")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", root, filepath.Join(dir, "state"), sock)
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	d := exec.Command("containerd", "-c", filepath.Join(dir, "config.toml"))
	d.Stdout, d.Stderr = &log, &log
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	running := true
	stop := func() {
		if running {
			_ = d.Process.Signal(syscall.SIGTERM)
			_ = d.Wait()
			running = false
		}
	}
	t.Cleanup(func() {
		stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	ctr := func(args ...string) (string, error) {
		out, err := exec.Command("ctr", append([]string{"-a", sock, "-n", "moby"}, args...)...).CombinedOutput()
		return string(out), err
	}
	until(t, func() bool { _, err := ctr("version"); return err == nil }, func() string { return "containerd does not answer" })
	id := strings.Repeat("7c", 32)
	for _, args := range [][]string{{"images", "import", saved}, {"snapshots", "--snapshotter", "overlayfs", "prepare", id, chain}} {
		if out, err := ctr(args...); err != nil {
			t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	target := ""
	if out, err := ctr("images", "ls"); err == nil {
		for line := range strings.Lines(out) {
			if words := strings.Fields(line); words[0] == "docker.io/library/busybox:latest" {
				target = words[2]
			}
		}
	}
	uppers, err := filepath.Glob(filepath.Join(root, "io.containerd.snapshotter.v1.overlayfs", "snapshots", "*", "fs"))
	if err != nil || len(uppers) != 2 {
		t.Fatalf("snapshots %q: %v", uppers, err)
	}
	slices.Sort(uppers)
	if err := errors.Join(os.WriteFile(filepath.Join(uppers[1], "mine"), []byte("text\n"), 0o600), os.Mkdir(filepath.Join(uppers[1], "bin"), 0o755), syscall.Mknod(filepath.Join(uppers[1], "bin", "yes"), syscall.S_IFCHR, 0)); err != nil {
		t.Fatal(err)
	}
	f := dockerroottest.New(t)
	f.Container(id, oci.ImageID(target), map[string]any{
		"Name": "/web", "Driver": "overlayfs", "Config": map[string]any{"Image": "busybox", "Cmd": []string{"sh", "-c", "cat /mine; ls /bin/yes"}},
	}, map[string]any{"NetworkMode": "none", "LogConfig": map[string]any{"Type": "json-file"}})

	w := newWorld(t)
	if out := w.fail(1, "import-docker", "--containerd", root, f.Dir); !strings.Contains(out, "containerd runs on this data root") {
		t.Errorf("a containerd that runs: %s", out)
	}
	stop()
	if out := w.fail(1, "import-docker", f.Dir); !strings.Contains(out, "container web: failed") && !strings.Contains(out, "--containerd") {
		t.Errorf("without the root of containerd: %s", out)
	}
	if out := w.ply("import-docker", "--containerd", root, f.Dir); out != "Imported: 2." {
		t.Errorf("%s", out)
	}
	if out := w.ply("image", "inspect", "-f", "{{.Id}}", "busybox"); out != want {
		t.Errorf("image %s, want %s", out, want)
	}
	if out := w.ply("diff", "web"); out != "C /bin\nD /bin/yes\nA /mine" {
		t.Errorf("changes %q", out)
	}
	if out := w.fail(1, "start", "-a", "web"); !strings.HasPrefix(out, "text\n") || !strings.Contains(out, "No such file") {
		t.Errorf("it prints %q", out)
	}
	if out := w.ply("import-docker", "--containerd", root, f.Dir); out != "Is here already: 2." {
		t.Errorf("again: %s", out)
	}
}
