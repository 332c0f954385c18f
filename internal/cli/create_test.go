package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// createLines are invocations of create whose request bodies are golden.
var createLines = []string{
	`img`,
	`img /bin/sh -c "echo -x"`,
	`-it --name n -h host --domainname dom -u 5:6 -w /w --entrypoint /e -e A=1 -e B= --label a=b -l c --stop-signal TERM --stop-timeout 3 img`,
	`--entrypoint "" img x`,
	`-i -a stdin -a stdout img`,
	`-p 80 -p 127.0.0.1:8080:80/tcp -p 53:53/udp -p 7000-7001:7000-7001 -P --expose 9 --expose 100-101/udp img`,
	`-v /a:/b:ro -v vol:/c -v /anon --tmpfs /t:size=1m --mount type=bind,src=/s,dst=/d,readonly --volumes-from u1 --volume-driver local img`,
	`--privileged=true --cap-add NET_ADMIN --cap-drop ALL --security-opt no-new-privileges --read-only --init --userns host --ipc host --pid host --uts host --cgroupns private --group-add 7 img`,
	`-m 64m --memory-reservation 32m --memory-swap -1 --memory-swappiness 10 --cpus 1.5 -c 512 --cpu-period 1000 --cpu-quota 2000 --cpuset-cpus 0 --cpuset-mems 0 --pids-limit 9 --ulimit nofile=10:20 --shm-size 1m --oom-score-adj 5 --oom-kill-disable --blkio-weight 100 img`,
	`--device /dev/null --device /dev/zero:/dev/z:r --device-cgroup-rule "c 1:3 r" --device-read-bps /dev/sda:1mb --device-write-iops /dev/sda:10 --blkio-weight-device /dev/sda:200 --gpus all img`,
	`--network net1 --network-alias x --ip 10.0.0.5 --mac-address 02:42:ac:11:00:06 --link o:alias img`,
	`--network name=net1,alias=a,ip=10.0.0.9,driver-opt=k=v --network net2 img`,
	`--network host img`,
	`--dns 1.1.1.1 --dns-search x --dns-option ndots:1 --add-host h:1.2.3.4 --link o:alias img`,
	`--restart on-failure:3 --log-driver json-file --log-opt max-size=1m --storage-opt size=1g --runtime r --sysctl net.a=1 --annotation a=b img`,
	`--health-cmd "true x" --health-interval 2s --health-retries 3 --health-timeout 1s --health-start-period 4s --health-start-interval 1s img`,
	`--no-healthcheck img`,
	`--umask 0027 img`,
	`--rm --platform linux/amd64 img`,
	`--security-opt systempaths=unconfined --security-opt seccomp=unconfined img`,
}

// createBody returns the request that create sends for a line, without its empty values. docker is the docker client to run; empty means
// ply.
func createBody(t *testing.T, docker, line string) string {
	t.Helper()
	f := newFake(t, map[string]any{"POST /containers/create": `{"Id":"x"}`})
	args := append([]string{"create"}, words(strings.ReplaceAll(line, `""`, "\x00"))...)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "\x00", "")
	}
	if docker == "" {
		if r := f.run("", args...); r.code != 0 {
			t.Fatalf("create %s: %+v", line, r)
		}
	} else {
		f.env()
		if out, err := exec.Command(docker, args...).CombinedOutput(); err != nil {
			return fmt.Sprintf("%v: %s", err, out)
		}
	}
	req := f.seen("POST /containers/create")
	query, body, _ := strings.Cut(strings.TrimPrefix(req, "POST /containers/create?"), " ")
	var m map[string]any
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatalf("%s: %v", req, err)
	}
	b, err := json.MarshalIndent(dropEmpty(m), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return "?" + query + "\n" + string(b) + "\n"
}

// dropEmpty removes empty values: to engines, an absent field, null, "" and [] mean the same. They do not in the fields of keep.
func dropEmpty(v any) any {
	keep := map[string]bool{"MaskedPaths": true, "ReadonlyPaths": true, "Entrypoint": true, "Init": true, "Test": true}
	m, ok := v.(map[string]any)
	if !ok {
		return v
	}
	for k, e := range m {
		e = dropEmpty(e)
		m[k] = e
		empty := e == nil || e == "" || e == false || e == 0.0
		switch x := e.(type) {
		case []any:
			empty = len(x) == 0 && !keep[k]
			if k == "ConsoleSize" {
				empty = true
			}
		case map[string]any:
			empty = len(x) == 0 && k != "" && !strings.Contains(k, "/") && k != "net1" && k != "net2"
		}
		if empty {
			delete(m, k)
		}
	}
	return m
}

// The requests of create are those of the golden file.
func TestCreateBody(t *testing.T) {
	file := filepath.Join("testdata", "create.golden")
	var got bytes.Buffer
	for _, line := range createLines {
		got.WriteString("$ ply create " + line + "\n" + createBody(t, "", line) + "\n")
	}
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("requests differ (-want +got); after a wanted change run with -update:\n%s", d)
	}
}

// The same requests from a docker client, but for those that testdata/create-differences-VERSION.txt explains.
func TestCreateBodyAgainstDocker(t *testing.T) {
	docker, major := dockerClient(t)
	known := differences(t, filepath.Join("testdata", "create-differences-"+major+".txt"))
	for _, line := range createLines {
		d := cmp.Diff(sortedLists(createBody(t, docker, line)), sortedLists(createBody(t, "", line)))
		explained := known[line]
		delete(known, line)
		switch {
		case d != "" && !explained:
			t.Errorf("create %s (-docker +ply):\n%s", line, d)
		case d == "" && explained:
			t.Errorf("create %s: recorded as a difference, but there is none", line)
		}
	}
	for line := range known {
		t.Errorf("create %s: recorded as a difference, but not compared", line)
	}
}

// sortedLists sorts the lists of a request that docker fills from maps.
func sortedLists(body string) string {
	return regexp.MustCompile(`(?s)"(Binds|Env)": \[.*?\]`).ReplaceAllStringFunc(body, func(list string) string {
		lines := strings.Split(strings.ReplaceAll(list, ",", ""), "\n")
		slices.Sort(lines[1 : len(lines)-1])
		return strings.Join(lines, "\n")
	})
}
