package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/cli/command"
	"ply/internal/cli/terminal"
)

// fake is an engine that answers from a table. A key is "METHOD /path" without the version. A value is a string, which is the answer, a
// status, or a handler.
type fake struct {
	t      testing.TB
	socket string
	routes map[string]any

	mu       sync.Mutex
	requests []string // "METHOD /path?query body"
}

// status is an answer with a status and, when text is not empty, a message.
type status struct {
	code int
	text string
}

// newFake starts an engine on a socket of its own.
func newFake(t testing.TB, routes map[string]any) *fake {
	t.Helper()
	f := &fake{t: t, socket: filepath.Join(t.TempDir(), "s"), routes: maps.Clone(routes)}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(f)
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	w.Header().Set("Api-Version", "1.51")
	w.Header().Set("Ostype", "linux")
	if path == "/_ping" {
		return
	}
	if rest, ok := strings.CutPrefix(path, "/v1."); ok {
		_, path, _ = strings.Cut(rest, "/")
		path = "/" + path
	}
	body := ""
	answer, ok := f.routes[r.Method+" "+path]
	if _, streams := answer.(http.HandlerFunc); !streams {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			f.t.Error(err)
		}
		body = string(b)
	}
	f.note(strings.TrimSpace(r.Method + " " + path + "?" + r.URL.RawQuery + " " + body))
	w.Header().Set("Content-Type", "application/json")
	switch a := answer.(type) {
	case string:
		io.WriteString(w, a)
	case status:
		w.WriteHeader(a.code)
		if a.text != "" {
			json.NewEncoder(w).Encode(map[string]string{"message": a.text})
		}
	case http.HandlerFunc:
		a(w, r)
	default:
		if ok {
			f.t.Errorf("route %s %s: bad answer %T", r.Method, path, answer)
		}
		w.WriteHeader(http.StatusNotFound)
		what := strings.Split(path, "/")
		kind, name := "container", ""
		if len(what) > 2 {
			kind, name = strings.TrimSuffix(what[1], "s"), what[2]
		}
		json.NewEncoder(w).Encode(map[string]string{"message": "No such " + kind + ": " + name})
	}
}

// note records a request.
func (f *fake) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, s)
}

// seen returns the first request that begins with prefix, or "".
func (f *fake) seen(prefix string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if strings.HasPrefix(r, prefix) {
			return r
		}
	}
	return ""
}

// result is the output and the exit code of a command line.
type result struct {
	out, err string
	code     int
}

// env sets the environment so that commands use this engine and an empty configuration.
func (f *fake) env() {
	t := f.t.(*testing.T)
	t.Setenv("DOCKER_HOST", "unix://"+f.socket)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	t.Setenv("PLY_HOST", "")
}

// run executes a command line against the fake engine.
func (f *fake) run(stdin string, args ...string) result {
	f.t.Helper()
	var out, errw bytes.Buffer
	f.env()
	inv := invocation(strings.NewReader(stdin), &out, &errw)
	code := Run(context.Background(), inv, args)
	return result{out.String(), errw.String(), code}
}

// clock is the clock of the invocations that tests make; nil means time.Now.
var clock func() time.Time

// at stops the clock at a time until the test ends.
func at(t testing.TB, when time.Time) {
	old := clock
	clock = func() time.Time { return when }
	t.Cleanup(func() { clock = old })
}

// invocation returns an invocation on streams that are not terminals.
func invocation(in io.Reader, out, errw io.Writer) *command.Invocation {
	return &command.Invocation{Streams: terminal.Streams{In: in, Out: out, Err: errw}, Clock: clock}
}

func ago(base time.Time, d time.Duration) int64 { return base.Add(-d).Unix() }

const (
	hexA = "67aedb0b3d2a1c5f67aedb0b3d2a1c5f67aedb0b3d2a1c5f67aedb0b3d2a1c5f"
	hexB = "b9554954d846aaaa1111222233334444b9554954d846aaaa1111222233334444"
	hexC = "e316b390cf2abbbb1111222233334444e316b390cf2abbbb1111222233334444"
	cid1 = "f00dfeed0001cccc1111222233334444f00dfeed0001cccc1111222233334444"
	cid2 = "f00dfeed0002cccc1111222233334444f00dfeed0002cccc1111222233334444"
	cid3 = "f00dfeed0003cccc1111222233334444f00dfeed0003cccc1111222233334444"
	diff = "1111111111111111111111111111111111111111111111111111111111111111"
)

// world is the engine of the golden transcript at the time base.
func world(base time.Time) map[string]any {
	stamp := func(d time.Duration) string { return base.Add(-d).UTC().Format(time.RFC3339Nano) }
	diff2, diff3 := strings.ReplaceAll(diff, "1", "2"), strings.ReplaceAll(diff, "1", "3")
	images := fmt.Sprintf(`[
	 {"Id":"sha256:%s","ParentId":"","RepoTags":["172.28.109.11:5000/mhk/ubuntu:1.3","mhk/ubuntu:1.3"],"RepoDigests":["172.28.109.11:5000/mhk/ubuntu@sha256:%s"],"Created":%d,"Size":187654321,"SharedSize":-1,"Containers":-1,"Labels":{"a":"b"}},
	 {"Id":"sha256:%s","ParentId":"","RepoTags":["ubuntu:latest"],"RepoDigests":[],"Created":%d,"Size":72776543,"SharedSize":-1,"Containers":-1,"Labels":null},
	 {"Id":"sha256:%s","ParentId":"","RepoTags":[],"RepoDigests":["busybox@sha256:%s"],"Created":%d,"Size":999,"SharedSize":-1,"Containers":-1,"Labels":null},
	 {"Id":"sha256:%s","ParentId":"","RepoTags":[],"RepoDigests":[],"Created":%d,"Size":1234567,"SharedSize":-1,"Containers":-1,"Labels":null}]`,
		hexA, hexB, ago(base, 25*time.Second), hexB, ago(base, 80*24*time.Hour), hexC, hexA, ago(base, 70*time.Second), cid1, ago(base, 3*365*24*time.Hour))
	containers := fmt.Sprintf(`[
	 {"Id":"%s","Names":["/myu"],"Image":"registry","ImageID":"sha256:%s","Command":"/entrypoint.sh /etc/docker/registry/config.yml","Created":%d,"Ports":[
	   {"IP":"0.0.0.0","PrivatePort":5000,"PublicPort":5000,"Type":"tcp"},{"IP":"::","PrivatePort":5000,"PublicPort":5000,"Type":"tcp"}],
	   "Labels":{"b":"2","a":"1"},"State":"running","Status":"Up 36 seconds","HostConfig":{"NetworkMode":"bridge"},"NetworkSettings":{"Networks":{"bridge":{},"abc":{}}},
	   "Mounts":[{"Type":"bind","Source":"/etc/myHostData/very/long/path","Destination":"/c","Mode":"","RW":true,"Propagation":"rprivate"},{"Type":"volume","Name":"v1","Driver":"local","Destination":"/d"}]},
	 {"Id":"%s","Names":["/myu/alias","/quirky_hopper"],"Image":"sha256:%s","ImageID":"sha256:%s","Command":"/bin/bash","Created":%d,"Ports":[
	   {"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"PrivatePort":81,"Type":"tcp"},{"PrivatePort":82,"Type":"tcp"},{"PrivatePort":84,"Type":"tcp"},{"PrivatePort":53,"Type":"udp"},
	   {"IP":"127.0.0.1","PrivatePort":90,"PublicPort":90,"Type":"tcp"},{"IP":"127.0.0.1","PrivatePort":91,"PublicPort":91,"Type":"tcp"}],
	   "Labels":{},"State":"running","Status":"Up About an hour","NetworkSettings":{"Networks":{"bridge":{}}},"Mounts":[]},
	 {"Id":"%s","Names":["/old"],"Image":"","ImageID":"","Command":"sh -c \"echo 'ü'\"","Created":%d,"Ports":[],"Labels":null,"State":"exited","Status":"Exited (137) 2 weeks ago","SizeRw":1234,"SizeRootFs":5678901,"NetworkSettings":{"Networks":{}},"Mounts":[]}]`,
		cid1, hexC, ago(base, 37*time.Second), cid2, hexA, hexA, ago(base, 90*time.Minute), cid3, ago(base, 15*24*time.Hour))
	history := fmt.Sprintf(`[{"Id":"sha256:%s","Created":%d,"CreatedBy":"/bin/bash","Tags":["mhk/ubuntu:1.3"],"Size":114877778,"Comment":"add vim"},
	 {"Id":"<missing>","Created":%d,"CreatedBy":"/bin/sh -c #(nop)  CMD [\"bash\"]","Tags":null,"Size":0,"Comment":""},
	 {"Id":"<missing>","Created":%d,"CreatedBy":"/bin/sh -c #(nop) ADD file:d65dc2a67a5e1ecf6ed5b8d4b9b5a9a4 in / ","Tags":null,"Size":72776543,"Comment":""}]`,
		hexA, ago(base, 25*time.Second), ago(base, 80*24*time.Hour), ago(base, 81*24*time.Hour))
	inspectA := fmt.Sprintf(`{"Id":"sha256:%s","RepoTags":["mhk/ubuntu:1.3"],"Author":"mhk","Config":{"Cmd":["bash"],"Env":null,"Labels":{"a":"b"}},"Size":187654321,"Html":"\u003ca\u003e","RootFS":{"Type":"layers","Layers":["sha256:%s","sha256:%s"]}}`, hexA, diff, diff2)
	inspectB := fmt.Sprintf(`{"Id":"sha256:%s","RepoTags":["ubuntu:latest"],"Config":{},"Size":72776543,"RootFS":{"Type":"layers","Layers":["sha256:%s"]}}`, hexB, diff)
	inspectC := fmt.Sprintf(`{"Id":"sha256:%s","RepoTags":[],"Config":{},"Size":999,"RootFS":{"Type":"layers","Layers":["sha256:%s"]}}`, hexC, diff3)
	historyB := fmt.Sprintf(`[{"Id":"sha256:%s","Created":1,"CreatedBy":"/bin/sh -c #(nop)  CMD [\"bash\"]","Size":0},{"Id":"<missing>","Created":1,"CreatedBy":"/bin/sh -c #(nop) ADD file:d65dc2a in / ","Size":72776543}]`, hexB)
	container := fmt.Sprintf(`{"Id":"%s","Name":"/myu","State":{"Status":"running","Running":true,"ExitCode":0,"Pid":42},"Config":{"Image":"registry","Cmd":null,"Labels":{"a":"1"},"Tty":false},
	 "HostConfig":{"Memory":67108864},"Mounts":[{"Type":"bind","Source":"/etc/myHostData","Destination":"/etc/myDockerData","Mode":"","RW":true,"Propagation":"rprivate"}],
	 "NetworkSettings":{"Ports":{"5000/tcp":[{"HostIp":"0.0.0.0","HostPort":"5000"},{"HostIp":"::","HostPort":"5000"}],"53/udp":[{"HostIp":"127.0.0.1","HostPort":"10053"}],"9/tcp":null},"Networks":{"bridge":{"IPAddress":"172.17.0.6","MacAddress":"02:42:ac:11:00:06"}}}}`, cid1)
	stats := `{"name":"/myu","id":"` + cid1 + `","cpu_stats":{"cpu_usage":{"total_usage":300000000},"system_cpu_usage":2000000000,"online_cpus":2},"precpu_stats":{"cpu_usage":{"total_usage":100000000},"system_cpu_usage":1000000000,"online_cpus":2},
	 "pids_stats":{"current":7},"memory_stats":{"usage":104857600,"limit":1073741824,"stats":{"total_inactive_file":4194304}},"networks":{"eth0":{"rx_bytes":1500,"tx_bytes":2500000}},"blkio_stats":{"io_service_bytes_recursive":[{"op":"Read","value":4096},{"op":"Write","value":123456}]}}`
	return map[string]any{
		"GET /images/json":                        images,
		"GET /containers/json":                    containers,
		"GET /images/mhk/ubuntu:1.3/history":      history,
		"GET /images/sha256:" + hexA + "/history": history,
		"GET /images/sha256:" + hexB + "/history": historyB,
		"GET /images/sha256:" + hexC + "/history": `[{"Id":"x","Created":1,"CreatedBy":"COPY hello / # buildkit","Size":999}]`,
		"GET /images/mhk/ubuntu:1.3/json":         inspectA,
		"GET /images/sha256:" + hexA + "/json":    inspectA,
		"GET /images/sha256:" + hexB + "/json":    inspectB,
		"GET /images/sha256:" + hexC + "/json":    inspectC,
		"GET /images/sha256:" + cid1 + "/json":    status{404, "No such image"},
		"GET /containers/myu/json":                container,
		"GET /containers/" + cid1 + "/json":       container,
		"GET /containers/myu/changes":             `[{"Path":"/etc","Kind":0},{"Path":"/A","Kind":1},{"Path":"/old","Kind":2}]`,
		"GET /containers/myu/top":                 `{"Titles":["UID","PID","CMD"],"Processes":[["root","42","/entrypoint.sh registry"]]}`,
		"GET /containers/myu/stats":               stats,
		"GET /volumes":                            `{"Volumes":[{"Name":"v10","Driver":"local","Mountpoint":"/m/v10","Scope":"local","Labels":{"x":"y"}},{"Name":"v9","Driver":"local","Mountpoint":"/m/v9","Scope":"local","Labels":null}],"Warnings":null}`,
		"GET /volumes/v9":                         `{"Name":"v9","Driver":"local","Mountpoint":"/m/v9","Labels":null,"Options":null,"Scope":"local","CreatedAt":"2026-01-01T00:00:00Z"}`,
		"GET /networks":                           `[{"Name":"none","Id":"` + hexC + `","Created":"` + stamp(time.Hour) + `","Scope":"local","Driver":"null"},{"Name":"bridge","Id":"` + hexA + `","Created":"` + stamp(time.Hour) + `","Scope":"local","Driver":"bridge","EnableIPv4":true}]`,
		"GET /images/search":                      `[{"name":"mhk/ubuntu","description":"a long description that goes on\nand on and on until it is cut","star_count":3,"is_official":false},{"name":"ubuntu","description":"base","star_count":17000,"is_official":true}]`,
		"GET /events":                             `{"Type":"container","Action":"start","Actor":{"ID":"` + cid1 + `","Attributes":{"name":"myu","image":"registry"}},"time":1700000000,"timeNano":1700000000123456789}` + "\n",
		"DELETE /images/mhk/ubuntu:1.3":           `[{"Untagged":"mhk/ubuntu:1.3"},{"Deleted":"sha256:` + hexA + `"}]`,
		"DELETE /images/used":                     status{409, `conflict: unable to remove repository reference "used" (must force) - container f00dfeed0001 is using its referenced image 67aedb0b3d2a`},
		"DELETE /containers/myu":                  status{204, ""},
		"POST /containers/myu/stop":               status{204, ""},
		"POST /containers/myu/kill":               status{204, ""},
		"POST /containers/myu/start":              status{204, ""},
		"POST /containers/myu/rename":             status{204, ""},
		"POST /images/mhk/ubuntu:1.3/tag":         status{201, ""},
		"POST /commit":                            `{"Id":"sha256:` + hexA + `","Warnings":["/etc/myDockerData is a mount: what it holds is not in the image"]}`,
		"POST /containers/create":                 status{404, "No such image: nosuch:latest"},
		"POST /images/create":                     http.HandlerFunc(pullAnswer),
		"POST /images/172.28.109.11:5000/mhk/ubuntu/push": `{"status":"The push refers to repository [172.28.109.11:5000/mhk/ubuntu]"}
{"status":"Preparing","progressDetail":{},"id":"111111111111"}
{"status":"Pushing","progressDetail":{"current":512,"total":1024},"progress":"[====>  ] 512B/1.024kB","id":"111111111111"}
{"status":"Pushed","progressDetail":{},"id":"111111111111"}
{"status":"1.3: digest: sha256:` + hexB + ` size: 741"}
{"progressDetail":{},"aux":{"Tag":"1.3","Digest":"sha256:` + hexB + `","Size":741}}
`,
		"POST /system/import-docker": `{"id":"image web:1","status":"Importing","progressDetail":{}}{"id":"image web:1","status":"Imported"}{"aux":{"object":{"kind":"image","name":"web:1","id":"sha256:abababab","state":"imported"}}}{"aux":{"object":{"kind":"network","name":"net","state":"imported","as":"old-net"}}}{"aux":{"object":{"kind":"volume","name":"data","state":"conflict","note":"another volume here has the name data"}}}{"aux":{"object":{"kind":"other","name":"swarm","state":"left","note":"services of a swarm do not come over","minor":true}}}{"aux":{"summary":{"dryRun":false,"states":{"imported":2,"conflict":1},"complete":false}}}`,
		"POST /system/check":         `{"id":"layers","status":"Checking","progressDetail":{}}{"id":"layers","status":"Checked","progressDetail":{"current":2,"total":2,"units":"objects"}}{"aux":{"finding":{"kind":"layer","object":"sha256:abababab","problem":"layer.tar has 3 bytes, want 9","heal":"ply pull web"}}}{"aux":{"summary":{"full":false,"repair":false,"checked":{"layer":2,"image":1},"findings":1,"repaired":0}}}`,
		"GET /system/df":             `{"LayersSize":200000000,"Images":` + images + `,"Containers":` + containers + `,"Volumes":[{"Name":"v9","Driver":"local","UsageData":{"Size":4096,"RefCount":0}},{"Name":"v1","Driver":"local","UsageData":{"Size":1000000,"RefCount":1}}],"BuildCache":[]}`,
		"POST /containers/prune":     `{"ContainersDeleted":["` + cid3 + `"],"SpaceReclaimed":1234}`,
		"POST /images/prune":         `{"ImagesDeleted":[{"Untagged":"a:b"},{"Deleted":"sha256:` + hexC + `"}],"SpaceReclaimed":999}`,
		"POST /networks/prune":       `{"NetworksDeleted":null}`,
		"POST /build/prune":          `{"CachesDeleted":null,"SpaceReclaimed":0}`,
		"POST /auth":                 `{"Status":"Login Succeeded","IdentityToken":""}`,
		"GET /version":               `{"Platform":{"Name":"ply"},"Components":[{"Name":"Engine","Version":"9.9","Details":{"ApiVersion":"1.51","Arch":"amd64","BuildTime":"2026-05-07T21:09:36.000000000+00:00","Experimental":"false","GitCommit":"abc","GoVersion":"go1.26","KernelVersion":"6.18","MinAPIVersion":"1.24","Os":"linux"}},{"Name":"runc","Version":"1.5","Details":{"GitCommit":"def"}}],"Version":"9.9","ApiVersion":"1.51","MinAPIVersion":"1.24"}`,
		"GET /info":                  `{"ID":"X","Containers":3,"ContainersRunning":2,"ContainersPaused":0,"ContainersStopped":1,"Images":4,"Driver":"erofs","DriverStatus":[["Backing Filesystem","extfs"]],"Plugins":{"Volume":["local"],"Network":["bridge","host","null"],"Authorization":null,"Log":["json-file"]},"LoggingDriver":"json-file","CgroupDriver":"cgroupfs","CgroupVersion":"1","NCPU":2,"MemTotal":25276473344,"ServerVersion":"9.9","OSType":"linux","Architecture":"x86_64","OperatingSystem":"Debian","KernelVersion":"6.18","Name":"vm","DockerRootDir":"/var/lib/ply","Labels":["a=b"],"SecurityOptions":["name=seccomp,profile=builtin","name=cgroupns"],"Swarm":{"LocalNodeState":"inactive"},"RegistryConfig":{"InsecureRegistryCIDRs":["127.0.0.0/8"],"IndexConfigs":{"h:5000":{"Secure":false},"docker.io":{"Secure":true}},"Mirrors":["https://m/"]},"LiveRestoreEnabled":true,"DefaultRuntime":"ply","Runtimes":{"ply":{}},"Warnings":["WARNING: No swap limit support"]}`,
	}
}

// pullAnswer answers a pull with a stream of progress messages.
func pullAnswer(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	w.Header().Set("Content-Type", "application/json")
	if q.Get("fromImage") == "nosuch" {
		w.WriteHeader(404)
		io.WriteString(w, `{"message":"pull access denied for nosuch, repository does not exist or may require 'ply login'"}`)
		return
	}
	say := func(f string, a ...any) { fmt.Fprintf(w, f+"\n", a...) }
	if q.Get("fromImage") == "broken" {
		say(`{"status":"Pulling from library/broken","id":"latest"}`)
		say(`{"errorDetail":{"message":"layer 111111111111: connection reset"},"error":"layer 111111111111: connection reset"}`)
		return
	}
	say(`{"status":"Pulling from library/%s","id":"%s"}`, q.Get("fromImage"), q.Get("tag"))
	say(`{"status":"Already exists","progressDetail":{},"id":"111111111111"}`)
	say(`{"status":"Pulling fs layer","progressDetail":{},"id":"222222222222"}`)
	say(`{"status":"Downloading","progressDetail":{"current":50,"total":100},"progress":"[=>]","id":"222222222222"}`)
	say(`{"status":"Download complete","progressDetail":{},"id":"222222222222"}`)
	say(`{"status":"Pull complete","progressDetail":{},"id":"222222222222"}`)
	say(`{"status":"Digest: sha256:%s"}`, hexB)
	say(`{"status":"Status: Downloaded newer image for %s:%s"}`, q.Get("fromImage"), q.Get("tag"))
}

// order checks that requests with these parts came in this order.
func (f *fake) order(t *testing.T, parts ...string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	i := 0
	for _, r := range f.requests {
		if i < len(parts) && strings.Contains(r, parts[i]) {
			i++
		}
	}
	if i != len(parts) {
		t.Errorf("requests %q: want %q in order", f.requests, parts)
	}
}

// eventually waits until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}
