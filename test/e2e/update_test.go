package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ply/internal/wire"
)

var updateLimits = flag.Bool("update-limits", false, "run the table of update against Docker's own engine and write testdata/update.txt")

// limitBases are the options of the containers that are updated.
var limitBases = map[string]string{
	"empty": `{}`,
	"full": `{"Memory":67108864,"MemoryReservation":33554432,"MemorySwap":134217728,"CpuShares":512,"CpuPeriod":50000,"CpuQuota":25000,
		"CpusetCpus":"0","CpusetMems":"0","PidsLimit":50}`,
	"nano": `{"NanoCpus":500000000,"Memory":67108864}`,
}

// limitUpdates returns the table: each field of an update with values that mean something, nothing, and no limit.
func limitUpdates() (cases []limitCase) {
	add := func(base string, updates ...string) {
		for _, u := range updates {
			cases = append(cases, limitCase{base, u})
		}
	}
	for _, base := range []string{"empty", "full", "nano"} {
		add(base, `{}`, `{"PidsLimit":null}`, `{"PidsLimit":0}`, `{"PidsLimit":-1}`, `{"PidsLimit":-5}`, `{"PidsLimit":7}`)
		add(base, `{"Memory":0}`, `{"Memory":-1}`, `{"Memory":1048576}`, `{"Memory":83886080,"MemorySwap":-1}`, `{"Memory":209715200,"MemorySwap":419430400}`)
	}
	add("full", `{"Memory":16777216}`, `{"Memory":83886080}`, `{"Memory":209715200}`, `{"Memory":-1,"MemorySwap":-1}`, `{"Memory":83886080,"MemorySwap":10485760}`)
	add("empty", `{"Memory":67108864}`, `{"Memory":67108864,"MemorySwap":67108864}`)
	add("full", `{"MemorySwap":0}`, `{"MemorySwap":-1}`, `{"MemorySwap":-2}`, `{"MemorySwap":33554432}`, `{"MemorySwap":104857600}`)
	add("nano", `{"Memory":83886080}`, `{"Memory":209715200}`)
	add("empty", `{"MemorySwap":104857600}`, `{"MemorySwap":-1}`)
	add("full", `{"MemoryReservation":0}`, `{"MemoryReservation":-1}`, `{"MemoryReservation":1048576}`, `{"MemoryReservation":16777216}`,
		`{"MemoryReservation":104857600}`, `{"Memory":67108864,"MemoryReservation":104857600}`)
	add("full", `{"MemorySwappiness":-1}`, `{"MemorySwappiness":50}`, `{"MemorySwappiness":101}`)
	add("full", `{"KernelMemory":0}`, `{"KernelMemory":16777216}`)
	add("full", `{"NanoCpus":0}`, `{"NanoCpus":-1}`, `{"NanoCpus":1000000000}`, `{"NanoCpus":9000000000000}`)
	add("nano", `{"NanoCpus":0}`, `{"NanoCpus":1000000000}`, `{"CpuPeriod":20000}`, `{"CpuQuota":20000}`, `{"CpuQuota":-1}`)
	add("empty", `{"NanoCpus":1000000000}`, `{"NanoCpus":1000000000,"CpuQuota":5000}`, `{"NanoCpus":1000000000,"CpuPeriod":5000}`)
	add("full", `{"CpuShares":0}`, `{"CpuShares":-1}`, `{"CpuShares":1024}`)
	add("full", `{"CpuPeriod":0}`, `{"CpuPeriod":-1}`, `{"CpuPeriod":10}`, `{"CpuPeriod":100000}`)
	add("full", `{"CpuQuota":0}`, `{"CpuQuota":-1}`, `{"CpuQuota":100}`, `{"CpuQuota":50000}`)
	add("empty", `{"CpuRealtimePeriod":0}`, `{"CpuRealtimeRuntime":0}`)
	add("full", `{"CpusetCpus":""}`, `{"CpusetCpus":"9000"}`, `{"CpusetCpus":"x"}`, `{"CpusetMems":""}`, `{"CpusetMems":"0"}`, `{"CpusetMems":"900"}`)
	add("full", `{"BlkioWeight":0}`, `{"BlkioWeightDevice":[]}`, `{"BlkioDeviceReadBps":[]}`, `{"BlkioDeviceWriteBps":[]}`, `{"BlkioDeviceReadIOps":[]}`, `{"BlkioDeviceWriteIOps":[]}`)
	add("full", `{"RestartPolicy":{"Name":""}}`, `{"RestartPolicy":{"Name":"always"}}`, `{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3}}`,
		`{"RestartPolicy":{"Name":"always","MaximumRetryCount":3}}`, `{"RestartPolicy":{"Name":"bogus"}}`)
	return cases
}

// limitCase is one update of a container.
type limitCase struct{ base, update string }

func (c limitCase) String() string { return c.base + " " + c.update }

// limitDifferences are the cases in which plyd does something else than Docker's engine of the golden file, with what it does and why.
var limitDifferences = map[string]struct{ outcome, why string }{
	`full {"Memory":83886080,"MemorySwap":-1}`:                       {"200 \nshows Memory=83886080 MemorySwap=-1\nsets memory.limit_in_bytes=83886080 memory.memsw.limit_in_bytes=9223372036854771712\n", swapAtOnce},
	`nano {"Memory":83886080,"MemorySwap":-1}`:                       {"200 \nshows Memory=83886080 MemorySwap=-1\nsets memory.limit_in_bytes=83886080 memory.memsw.limit_in_bytes=9223372036854771712\n", swapAtOnce},
	`full {"MemorySwap":-1}`:                                         {"200 \nshows MemorySwap=-1\nsets memory.memsw.limit_in_bytes=9223372036854771712\n", swapAtOnce},
	`full {"MemorySwap":-2}`:                                         {"400 MemorySwap: -2 is neither bytes nor -1, which means no limit\nshows \nsets \n", "a number without a meaning is refused"},
	`full {"MemorySwap":33554432}`:                                   {"400 Cannot update container N: Minimum memoryswap limit should be larger than memory limit, see usage\nshows \nsets \n", kernelRefuses},
	`empty {"MemorySwap":104857600}`:                                 {"400 Cannot update container N: You should always set the Memory limit when using Memoryswap limit, see usage\nshows \nsets \n", kernelRefuses},
	`full {"CpuShares":-1}`:                                          {"400 invalid CPU shares (-1): value must be a positive integer\nshows \nsets \n", kernelRefuses},
	`empty {"Memory":67108864}`:                                      {"200 \nshows Memory=67108864 MemorySwap=134217728\nsets memory.limit_in_bytes=67108864 memory.memsw.limit_in_bytes=134217728\n", "there is no limit of swap that it contradicts"},
	`full {"MemorySwappiness":50}`:                                   {"200 \nshows MemorySwappiness=50\nsets memory.swappiness=50\n", "Docker ignores it"},
	`full {"KernelMemory":16777216}`:                                 {"200 \nshows \nsets \n", "the kernel no longer has it, and Docker 28 ignores it"},
	`full {"NanoCpus":-1}`:                                           {"400 NanoCpus: -1 is negative\nshows \nsets \n", "words"},
	`nano {"CpuQuota":-1}`:                                           {"200 \nshows CpuQuota=-1 NanoCpus=0\nsets cpu.cfs_quota_us=-1\n", "inspect shows what is in force"},
	`full {"RestartPolicy":{"Name":"always","MaximumRetryCount":3}}`: {"400 invalid restart policy: maximum retry count can only be used with 'on-failure'\nshows \nsets \n", "words of Docker 28"},
	`full {"RestartPolicy":{"Name":"bogus"}}`:                        {"400 invalid restart policy: unknown policy 'bogus'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'\nshows \nsets \n", "words of Docker 28"},
}

const (
	swapAtOnce    = "Docker sets it at the next start of the container"
	kernelRefuses = "Docker's answer is the refusal of the kernel, 500"
)

// limitsRefused are the fields of an update that plyd refuses, because it cannot change them. Docker ignores them.
var limitsRefused = map[string]string{
	"CgroupParent": `"x"`, "Devices": `[{"PathOnHost":"/dev/null","PathInContainer":"/dev/x","CgroupPermissions":"r"}]`, "DeviceCgroupRules": `["c 1:3 r"]`,
	"DeviceRequests": `[{"Count":1}]`, "KernelMemoryTCP": "1048576", "OomKillDisable": "true", "Ulimits": `[{"Name":"nofile","Soft":5,"Hard":5}]`,
	"CpuCount": "1", "CpuPercent": "1", "IOMaximumIOps": "1", "IOMaximumBandwidth": "1",
}

// apiClient sends requests to the API on a socket.
type apiClient struct {
	http.Client
}

func newAPIClient(sock string) *apiClient {
	return &apiClient{http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}}}
}

// call sends a request with a JSON body and decodes the answer into answer, unless that is nil.
func (c *apiClient) call(t testing.TB, method, path, body string, answer any) (status int, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://engine/v1.41"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer != nil {
		if err := json.Unmarshal(b, answer); err != nil {
			t.Fatalf("%s %s: %v: %s", method, path, err, b)
		}
	}
	var failure wire.Error
	if json.Unmarshal(b, &failure) == nil && failure.Message != "" {
		return resp.StatusCode, failure.Message
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

// must is call for a request that has to succeed.
func (c *apiClient) must(t testing.TB, method, path, body string, answer any) {
	t.Helper()
	if status, text := c.call(t, method, path, body, answer); status >= 300 {
		t.Fatalf("%s %s = %d: %s", method, path, status, text)
	}
}

// limitFiles are the files of cgroup v1 that hold limits, by controller.
var limitFiles = map[string][]string{
	"memory": {"memory.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.swappiness"},
	"cpu":    {"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"},
	"cpuset": {"cpuset.cpus", "cpuset.mems"},
	"pids":   {"pids.max"},
	"blkio":  {"blkio.bfq.weight"},
}

// limitFilesV2 are the same of cgroup v2.
var limitFilesV2 = []string{"memory.max", "memory.low", "memory.swap.max", "cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems", "pids.max", "io.bfq.weight"}

func cgroupV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// limitsInForce returns what the cgroup files of a process hold.
func limitsInForce(t testing.TB, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	read := func(dir string, files []string) {
		for _, name := range files {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				out[name] = strings.TrimSpace(string(b))
			}
		}
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[1] == "" {
			read(filepath.Join("/sys/fs/cgroup", f[2]), limitFilesV2)
		}
		for controller := range strings.SplitSeq(f[1], ",") {
			read(filepath.Join("/sys/fs/cgroup", controller, f[2]), limitFiles[controller])
		}
	}
	return out
}

// limitsShown returns the fields of an update as inspect shows them.
func limitsShown(t testing.TB, c *apiClient, id string) (shown map[string]string, pid int) {
	t.Helper()
	var answer struct {
		State      struct{ Pid int }
		HostConfig map[string]any
	}
	c.must(t, "GET", "/containers/"+id+"/json", "", &answer)
	shown = map[string]string{}
	for _, name := range updateFields() {
		v := answer.HostConfig[name]
		if l, ok := v.([]any); ok && len(l) == 0 {
			v = nil
		}
		if n, ok := v.(float64); ok {
			v = int64(n)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		shown[name] = string(b)
	}
	return shown, answer.State.Pid
}

// updateFields returns the names of all fields of an update.
func updateFields() (names []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[wire.UpdateBody]()) {
		if f.Anonymous {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		names = append(names, name)
	}
	return names
}

// difference lists the keys whose values changed, with the new values.
func difference(before, after map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if before[k] != after[k] {
			out = append(out, k+"="+after[k])
		}
	}
	return strings.Join(out, " ")
}

var unstable = regexp.MustCompile(`[0-9a-f]{64}|(to|only|available:) [0-9.-]+`)

// outcome runs one case: the answer, what inspect shows and the cgroup holds now, and what the cgroup holds after a restart.
func (c limitCase) outcome(t testing.TB, client *apiClient) string {
	t.Helper()
	var made wire.Created
	client.must(t, "POST", "/containers/create", `{"Image":"busybox","Cmd":["sleep","1000"],"HostConfig":`+limitBases[c.base]+`}`, &made)
	id := made.ID
	defer client.must(t, "DELETE", "/containers/"+id+"?force=1", "", nil)
	client.must(t, "POST", "/containers/"+id+"/start", "", nil)
	shown, pid := limitsShown(t, client, id)
	force := limitsInForce(t, pid)
	status, text := client.call(t, "POST", "/containers/"+id+"/update", c.update, nil)
	if status == http.StatusOK {
		text = ""
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d %s\n", status, unstable.ReplaceAllString(text, "N"))
	now, pid := limitsShown(t, client, id)
	fmt.Fprintf(&b, "shows %s\n", difference(shown, now))
	changed := difference(force, limitsInForce(t, pid))
	fmt.Fprintf(&b, "sets %s\n", changed)
	client.must(t, "POST", "/containers/"+id+"/restart?t=0", "", nil)
	_, pid = limitsShown(t, client, id)
	if again := difference(force, limitsInForce(t, pid)); again != changed {
		fmt.Fprintf(&b, "after a restart %s\n", again)
	}
	return b.String()
}

// onThisHost returns the part of an outcome that does not depend on the version of the cgroups. The golden file is of version 1.
func onThisHost(outcome string) string {
	if !cgroupV2() {
		return outcome
	}
	shows, _, _ := strings.Cut(outcome, "\nsets ")
	return shows
}

// Every field of an update has the effect on the cgroup and in inspect that Docker's engine gives it, and keeps it over a restart of the
// container.
func TestUpdateOfLimits(t *testing.T) {
	cases := limitUpdates()
	golden := filepath.Join("testdata", "update.txt")
	if *updateLimits {
		sock := startDockerd(t)
		w := prepareWorld(t)
		w.sock = sock
		if o, e, err := w.run("docker20", "import", filepath.Join(images, "busybox.tar"), "busybox"); err != nil {
			t.Fatal(o, e, err)
		}
		var b bytes.Buffer
		client := newAPIClient(sock)
		for _, c := range cases {
			fmt.Fprintf(&b, "# %s\n%s", c, c.outcome(t, client))
		}
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := readOutcomes(t, golden)
	w := newWorld(t, "--default-pids-limit=-1") // docker has none
	w.busybox()
	client := newAPIClient(w.sock)
	covered := map[string]bool{"PortBindings": true} // docker has no such update; the story update_ports has it
	for _, c := range cases {
		for _, name := range updateFields() {
			covered[name] = covered[name] || strings.Contains(c.update, strconv.Quote(name))
		}
		expected := want[c.String()]
		if d, ok := limitDifferences[c.String()]; ok && !(cgroupV2() && strings.Contains(c.update, "MemorySwappiness")) {
			expected = d.outcome
		}
		if got := c.outcome(t, client); onThisHost(got) != onThisHost(expected) {
			t.Errorf("%s\n got:\n%s want:\n%s", c, got, expected)
		}
	}
	var made wire.Created
	client.must(t, "POST", "/containers/create", `{"Image":"busybox"}`, &made)
	for _, name := range updateFields() {
		value, refused := limitsRefused[name]
		if status, text := client.call(t, "POST", "/containers/"+made.ID+"/update", fmt.Sprintf("{%q:%s}", name, value), nil); refused &&
			(status != http.StatusBadRequest || !strings.Contains(text, name)) {
			t.Errorf("update of %s = %d %s, want a refusal that names it", name, status, text)
		}
		if !refused && !covered[name] {
			t.Errorf("no case updates %s", name)
		}
	}
	for name := range limitDifferences {
		if want[name] == "" {
			t.Errorf("%s is not in the table", name)
		}
	}
}
