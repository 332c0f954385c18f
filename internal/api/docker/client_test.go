package docker

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"ply/internal/api/listen"
	"ply/internal/events"
)

// serve serves a world on a unix socket and returns the path of the socket.
func (w *world) serve(t *testing.T) string {
	t.Helper()
	return w.serveWith(t, slog.New(slog.DiscardHandler))
}

// serveWith is serve with a log.
func (w *world) serveWith(t *testing.T, log *slog.Logger) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // t.TempDir's paths can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	listeners, err := listen.Open("unix://"+sock, listen.Options{})
	if err != nil {
		t.Fatal(err)
	}
	srv := listen.NewServer(w.api, log)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(listeners[0]) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return sock
}

// dockers returns the docker clients of this machine: the one in PATH and that of Debian.
func dockers(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	version := regexp.MustCompile(`version ([0-9]+\.[0-9]+)`)
	for _, path := range []string{"/usr/local/bin/docker", "/usr/bin/docker"} {
		out, err := exec.CommandContext(t.Context(), path, "--version").Output()
		if m := version.FindSubmatch(out); err == nil && m != nil {
			found[string(m[1])] = path
		}
	}
	if len(found) == 0 {
		t.Fatal("no docker client on this machine: apt-get install docker.io")
	}
	return found
}

// run runs a client, checks its exit status, and returns both of its outputs together.
func run(t *testing.T, sock, stdin string, status int, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+sock, "DOCKER_CONFIG="+t.TempDir(), "HOME="+t.TempDir())
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != status {
		t.Errorf("%s %s: status %d, want %d (%v)\n%s", filepath.Base(name), strings.Join(args, " "), got, status, err, out.String())
	}
	return out.String()
}

func TestDockerClients(t *testing.T) {
	t.Parallel()
	for version, path := range dockers(t) {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			sock := w.serve(t)
			for _, tc := range []struct {
				args, stdin string
				status      int
				want        []string
			}{
				{"version", "", 0, []string{"API version:", "0.1.0", "(minimum version 1.24)"}},
				{"info", "", 0, []string{"Storage Driver: erofs", "Backing Filesystem: extfs", "Swarm: inactive", "https://mirror.example/"}},
				{"ps", "", 0, []string{`"/entrypoint.sh /etc…"`, "Up 36 seconds (healthy)", "0.0.0.0:5000->5000/tcp", "web"}},
				{"ps -a --no-trunc", "", 0, []string{"Exited (0) About an hour ago", "old_one"}},
				{"images", "", 0, []string{"REPOSITORY", "busybox", "registry.example:5000/a/b", "4MB", "<none>"}},
				{"images busybox", "", 0, []string{"busybox"}},
				{"inspect web", "", 0, []string{`"Source": "/etc/myHostData"`, `"Propagation": "rprivate"`, `"MacAddress": "02:42:ac:11:00:06"`}},
				{"inspect busybox", "", 0, []string{`"Author": "mhk"`, `"busybox:latest"`}},
				{"history busybox", "", 0, []string{"RUN y", "add vim", "<missing>"}},
				{"pull busybox", "", 0, []string{"Using default tag: latest", "latest: Pulling from library/busybox", "0123456789ab: Pull complete", "Digest: sha256:", "Status: Downloaded newer image for busybox:latest"}},
				{"pull absent", "", 1, []string{"pull access denied for absent"}},
				{"pull broken", "", 1, []string{"the registry closed the connection"}},
				{"push r.example:5000/mhk/ubuntu:1.3", "", 0, []string{"The push refers to repository [r.example:5000/mhk/ubuntu]", "0123456789ab: Pushed", "1.3: digest: sha256:", "size: 741"}},
				{"tag busybox x/y:1", "", 0, nil},
				{"rmi busybox", "", 0, []string{"Untagged: busybox:latest", "Deleted: sha256:"}},
				{"rmi used", "", 1, []string{"conflict: unable to remove", "is using its referenced image"}},
				{"load", "an archive", 0, []string{"Loaded image: busybox:latest"}},
				{"save busybox", "", 0, []string{"tar of busybox"}},
				{"import - imported:1", "a tar", 0, []string{"sha256:"}},
				{"search tree", "", 0, []string{"tree", "one"}},
				{"commit -m hi -a mhk web mhk/ubuntu:1.3", "", 0, []string{"sha256:" + idBare.Hex()}},
				{"login -u u -p right r.example", "", 0, []string{"Login Succeeded"}},
				{"login -u u -p wrong r.example", "", 1, []string{"401 Unauthorized"}},
				{"run -i --name one busybox cat", "echoed\n", 3, []string{"echoed", "bye"}},
				{"run --name two busybox true", "", 3, []string{"hello", "bye"}},
				{"run -d busybox", "", 0, []string{string(ctrWeb)}},
				{"run absent:1", "", 125, []string{"pull access denied for absent"}},
				{"start old_one", "", 0, []string{"old_one"}},
				{"stop -t 1 web", "", 0, []string{"web"}},
				{"kill old_one", "", 1, []string{"is not running"}},
				{"wait web", "", 0, []string{"3"}},
				{"logs web", "", 0, []string{"to stdout", "to stderr"}},
				{"top web", "", 0, []string{"PID", "sh"}},
				{"diff web", "", 0, []string{"A /a", "D /b", "C /c"}},
				{"port web", "", 0, []string{"5000/tcp -> 0.0.0.0:5000"}},
				{"stats --no-stream web", "", 0, []string{"web", "5B / 50B"}},
				{"exec -i web cat", "through exec\n", 0, []string{"through exec", "bye"}},
				{"exec web nosuch", "", 127, []string{"executable file not found"}},
				{"exec -d web sh", "", 0, nil},
				{"rename web y", "", 0, nil},
				{"update -m 100m --memory-swap 200m web", "", 0, []string{"web"}},
				{"rm web", "", 1, []string{"container is running"}},
				{"rm -f web", "", 0, []string{"web"}},
				{"volume ls", "", 0, []string{"local", "data"}},
				{"volume create data", "", 0, []string{"data"}},
				{"volume inspect data", "", 0, []string{"/v/data/_data"}},
				{"network ls", "", 0, []string{"bridge"}},
				{"network inspect bridge", "", 0, []string{"172.17.0.0/16", `"Name": "web"`}},
				{"network create taken", "", 1, []string{"network with name taken already exists"}},
				{"network create --subnet 10.1.0.0/16 --gateway 10.1.0.1 --ip-range 10.1.2.0/24 --aux-address r=10.1.0.2 --label a=b --opt o=p --internal x", "", 0, []string{"c3c3c3"}},
				{"network connect --ip 10.1.0.9 --alias db x web", "", 0, nil},
				{"network disconnect -f x web", "", 0, nil},
				{"network prune -f", "", 0, []string{"old"}},
				{"system df", "", 0, []string{"Images", "4MB", "Local Volumes"}},
				{"system prune -f", "", 0, []string{"Total reclaimed space"}},
				{"node ls", "", 1, []string{"This node is not a swarm manager"}},
				{"plugin ls", "", 0, nil},
				{"export web", "", 0, []string{"tar"}},
				{"events --until 1s --since 1m", "", 0, nil},
			} {
				out := run(t, sock, tc.stdin, tc.status, path, strings.Fields(tc.args)...)
				for _, want := range tc.want {
					if !strings.Contains(out, want) {
						t.Errorf("docker %s: %q is missing in\n%s", tc.args, want, out)
					}
				}
			}
			if w.containers.commit.Message != "hi" || w.containers.commit.Author != "mhk" || w.containers.commit.Config != nil || !w.containers.commit.Pause {
				t.Errorf("commit options = %+v", w.containers.commit)
			}
		})
	}
}

func TestDockerClientEvents(t *testing.T) {
	for version, path := range dockers(t) {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			w.bus.Publish(events.Event{Type: "container", Action: "start", ID: string(ctrWeb), Attributes: map[string]string{"image": "busybox", "name": "web"}, Time: time.Now().Add(-time.Second)})
			w.bus.Publish(events.Event{Type: "image", Action: "pull", ID: "busybox:latest", Attributes: map[string]string{"name": "busybox"}, Time: time.Now().Add(-time.Second)})
			out := run(t, w.serve(t), "", 0, path, "events", "--since", "1m", "--until", "0s", "--filter", "type=container")
			if !strings.Contains(out, "container start "+string(ctrWeb)+" (image=busybox, name=web)") || strings.Contains(out, "pull") {
				t.Errorf("events = %s", out)
			}
		})
	}
}

// The flags of the docker client arrive in the spec.
func TestDockerClientFlags(t *testing.T) {
	t.Parallel()
	for version, path := range dockers(t) {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			cid := filepath.Join(t.TempDir(), "cid")
			run(t, w.serve(t), "", 0, path, "create", "--name", "n", "-it", "-h", "host", "-u", "1:2", "-w", "/w", "-e", "A=1", "-l", "k=v", "--entrypoint", "/e", "-p", "127.0.0.1:8000-8001:80-81", "-p", "53/udp",
				"--expose", "3000-3001", "-P", "-v", "/a:/b:ro", "-v", "/anon", "--mount", "type=bind,src=/s,dst=/d,readonly", "--mount", "type=tmpfs,dst=/t,tmpfs-size=4096", "--tmpfs", "/t2:size=1m",
				"--volumes-from", "o:ro", "--restart", "on-failure:3", "--ulimit", "nofile=10:20", "--device", "/dev/null:/dev/n:r", "--cap-add", "NET_ADMIN", "--cap-drop", "ALL", "--dns", "10.0.0.1",
				"--add-host", "a:1.2.3.4", "-m", "64m", "--memory-swap", "-1", "--cpus", "0.5", "--cpuset-cpus", "0", "--pids-limit", "9", "--shm-size", "1m", "--sysctl", "net.x=1",
				"--security-opt", "no-new-privileges", "--read-only", "--init", "--stop-signal", "INT", "--stop-timeout", "4", "--log-driver", "local", "--log-opt", "max-size=1m", "--group-add", "5", "--pid", "host",
				"--ipc", "host", "--uts", "host", "--privileged=true", "--oom-score-adj", "7", "--health-cmd", "true", "--health-interval", "2s", "--mac-address", "02:42:ac:11:00:09", "--cidfile", cid,
				"--cgroup-parent", "/cg", "--blkio-weight", "20", "--platform", "linux/amd64", "busybox", "one", "two words")
			if len(w.containers.specs) != 1 {
				t.Fatal("no create")
			}
			s := w.containers.specs[0]
			got := fmt.Sprintln(s.Name, s.Tty, s.OpenStdin, s.Hostname, s.User, s.WorkingDir, s.Env, s.Labels, s.Entrypoint, len(s.Cmd), s.ExposedPorts, s.PublishAll, s.Binds, s.Volumes, len(s.Mounts), s.Tmpfs,
				s.VolumesFrom, s.RestartPolicy, s.Ulimits, s.Devices, s.CapAdd, s.CapDrop, s.DNS, s.ExtraHosts, s.Resources.Memory, s.Resources.MemorySwap, s.Resources.NanoCPUs, s.Resources.CpusetCpus,
				*s.Resources.PidsLimit, s.ShmSize, s.Sysctls, s.SecurityOpt, s.ReadonlyRootfs, *s.Init, s.StopSignal, *s.StopTimeout, s.LogDriver, s.LogOpts, s.GroupAdd, s.PidMode, s.IpcMode, s.UTSMode, s.Privileged,
				s.OomScoreAdj, s.Healthcheck.Test, s.Healthcheck.Interval, s.CgroupParent, s.Resources.BlkioWeight, s.Platform)
			want := "n true true host 1:2 /w [A=1] map[k:v] [/e] 2 [53/udp 80/tcp 81/tcp 3000/tcp 3001/tcp] true [/a:/b:ro] [/anon] 2 map[/t2:size=1m] [o:ro] {on-failure 3} [{nofile 10 20}] [{/dev/null /dev/n r}] [NET_ADMIN] [ALL] [10.0.0.1] [a:1.2.3.4] 67108864 -1 500000000 0 9 1048576 map[net.x:1] [no-new-privileges] true true INT 4 local map[max-size:1m] [5] host host host true 7 [CMD-SHELL true] 2s /cg 20 linux/amd64"
			got = strings.TrimSpace(strings.ReplaceAll(got, "CAP_", "")) // new clients write it, old ones do not
			if got != want {
				t.Errorf("spec = %s\nwant   %s", got, want)
			}
			if len(s.Ports) != 3 || s.Ports[1].HostPort != 8000 || s.Ports[2].HostPort != 8001 || s.Ports[0].Proto != "udp" {
				t.Errorf("ports = %v", s.Ports)
			}
			if s.MacAddress != "02:42:ac:11:00:09" && s.Endpoints["bridge"].MAC != "02:42:ac:11:00:09" {
				t.Errorf("MAC address lost: %q %v", s.MacAddress, s.Endpoints)
			}
		})
	}
}

// pythonScript uses Docker's Python library as programs do.
const pythonScript = `
import docker, sys
c = docker.DockerClient(base_url="unix://" + sys.argv[1], version="auto")
assert c.ping()
assert c.version()["Version"] == "28.2.2"
assert c.info()["Driver"] == "erofs"
img = c.images.get("busybox")
assert "busybox:latest" in img.tags, img.tags
assert [i.tags for i in c.images.list()][0][0] == "busybox:latest"
lines = list(c.api.pull("busybox", tag="latest", stream=True, decode=True))
assert lines[-1]["status"].startswith("Status:"), lines
lines = list(c.api.push("r.example:5000/x", tag="1", stream=True, decode=True))
assert lines[-1]["aux"]["Size"] == 741, lines
web = c.containers.get("web")
assert web.status == "running" and web.attrs["NetworkSettings"]["IPAddress"] == "172.17.0.6"
assert web.ports["5000/tcp"][0]["HostPort"] == "5000"
assert len(c.containers.list(all=True)) == 2
assert web.logs() == b"to stdout\nto stderr\n", web.logs()
code, out = web.exec_run(["cat"], stdin=False)
assert code == 0 and out == b"hello\nbye\n", (code, out)
assert web.diff()[0] == {"Path": "/a", "Kind": 1}
assert web.wait()["StatusCode"] == 3
assert web.stats(stream=False)["memory_stats"]["usage"] == 5
new = c.containers.create("busybox", ["sh"], ports={"80/tcp": 8080}, volumes={"/a": {"bind": "/b", "mode": "ro"}}, mem_limit="64m", environment={"A": "1"}, labels=["x"], detach=True)
assert new.id == web.id
c.containers.get("old_one").start()
try:
    c.containers.get("absent")
    assert False
except docker.errors.NotFound:
    pass
assert c.volumes.list()[0].name == "data"
assert c.networks.list()[0].name == "bridge"
assert b"".join(img.save()) .startswith(b"tar of sha256:")
assert c.images.load(b"an archive")[0].tags
print("fine")
`

func TestPythonClients(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		out, err := exec.CommandContext(t.Context(), python, "-c", "import docker; print(docker.__version__)").Output()
		if version := strings.TrimSpace(string(out)); err == nil && !seen[version] {
			seen[version] = true
			t.Run(version, func(t *testing.T) {
				w := newWorld(t)
				sock := w.serve(t)
				if out := run(t, sock, "", 0, python, "-c", pythonScript, sock); !strings.Contains(out, "fine") {
					t.Error(out)
				}
				if len(w.containers.specs) != 1 {
					t.Fatalf("%d creates, want 1", len(w.containers.specs))
				}
				spec := w.containers.specs[0]
				if got := fmt.Sprint(spec.Binds, spec.Ports[0].HostPort, spec.Resources.Memory, spec.Env, spec.Labels); got != "[/a:/b:ro] 8080 67108864 [A=1] map[x:]" {
					t.Errorf("spec = %s", got)
				}
			})
		}
	}
	if len(seen) == 0 {
		t.Fatal("no docker module for Python on this machine: apt-get install python3-docker")
	}
}

func TestListenTwice(t *testing.T) {
	sock := newWorld(t).serve(t)
	if _, err := listen.Open("unix://"+sock, listen.Options{}); err == nil || !strings.Contains(err.Error(), "another engine answers") {
		t.Errorf("Open on a socket that answers = %v", err)
	}
	if conn, err := net.Dial("unix", sock); err != nil {
		t.Errorf("the first engine lost its socket: %v", err)
	} else if err := conn.Close(); err != nil {
		t.Error(err)
	}
}
