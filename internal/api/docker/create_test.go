package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	apicontainer "github.com/moby/moby/api/types/container"

	"ply/internal/container"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/volume"
	"ply/internal/wire"
)

func ptr[T any](v T) *T { return &v }

// fullRequest sets every option that this engine has.
const fullRequest = `{
 "Hostname":"h","Domainname":"d","User":"u:g","AttachStdin":true,"AttachStdout":true,"AttachStderr":true,"Tty":true,"OpenStdin":true,"StdinOnce":true,
 "ExposedPorts":{"443":{},"3000-3001/udp":{},"80/tcp":{}},"Env":["A=1","B"],"Cmd":"one word","Entrypoint":["/e"],"Image":"busybox","Volumes":{"/v2":{},"/v1":{}},
 "WorkingDir":"/w","Labels":{"l":"1"},"StopSignal":"SIGINT","StopTimeout":7,"Shell":["/bin/sh","-c"],"MacAddress":"02:42:ac:11:00:09","NetworkDisabled":false,
 "Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":1000000000,"Timeout":2000000000,"Retries":3,"StartPeriod":4000000000,"StartInterval":5000000000},
 "SomethingNew":{"x":1},
 "HostConfig":{
  "Binds":["/a:/b:ro","vol:/c"],"ContainerIDFile":"/cid","LogConfig":{"Type":"local","Config":{"max-size":"1m"}},"NetworkMode":"mine",
  "PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080"},{"HostIp":"","HostPort":"9000-9005"}],"443/tcp":[],"53/udp":[{"HostIp":"::1","HostPort":""}]},
  "RestartPolicy":{"Name":"on-failure","MaximumRetryCount":4},"VolumesFrom":["other:ro"],"ConsoleSize":[24,80],"Annotations":{"an":"no"},
  "CapAdd":["NET_ADMIN"],"CapDrop":"ALL","CgroupnsMode":"private","Dns":["10.0.0.1"],"DnsOptions":["ndots:1"],"DnsSearch":["x.example"],"ExtraHosts":["a:1.2.3.4"],
  "GroupAdd":["audio"],"IpcMode":"host","Links":["x:y"],"OomScoreAdj":5,"PidMode":"host","Privileged":true,"PublishAllPorts":true,"ReadonlyRootfs":true,
  "SecurityOpt":["no-new-privileges"],"Tmpfs":{"/t":"size=1m"},"UTSMode":"host","UsernsMode":"host","ShmSize":1048576,"Sysctls":{"net.x":"1"},"Runtime":"crun","Isolation":"default",
  "CpuShares":10,"Memory":10000000,"NanoCpus":500000000,"CgroupParent":"/cg","BlkioWeight":300,
  "BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":1048576}],"BlkioDeviceWriteBps":[{"Path":"/dev/sda","Rate":2},{"Path":"/dev/sdb","Rate":3}],
  "BlkioDeviceReadIOps":[{"Path":"/dev/sda","Rate":4}],"BlkioDeviceWriteIOps":[{"Path":"/dev/sda","Rate":5}],"BlkioWeightDevice":[{"Path":"/dev/sda","Weight":10}],"CpuRealtimePeriod":1,"CpuRealtimeRuntime":2,"CpusetCpus":"0","CpusetMems":"0",
  "Devices":[{"PathOnHost":"/dev/null","PathInContainer":"/dev/n","CgroupPermissions":"r"}],"DeviceCgroupRules":["c 1:3 r"],"StorageOpt":{"size":"1g"},"DeviceRequests":[{"Driver":"cdi","Count":-1,"DeviceIDs":["a/b=c"],"Capabilities":[["gpu"]],"Options":{"o":"v"}}],"KernelMemory":9000000,"MemoryReservation":8000000,"MemorySwap":-1,
  "MemorySwappiness":60,"OomKillDisable":true,"PidsLimit":100,"Ulimits":[{"Name":"nofile","Hard":20,"Soft":10}],
  "Mounts":[{"Type":"bind","Source":"/s","Target":"/t1","ReadOnly":true,"Consistency":"cached","BindOptions":{"Propagation":"rslave","NonRecursive":true,"CreateMountpoint":true,"ReadOnlyNonRecursive":true,"ReadOnlyForceRecursive":true}},
   {"Type":"volume","Source":"vv","Target":"/t2","VolumeOptions":{"NoCopy":true,"Labels":{"k":"v"},"Subpath":"sub","DriverConfig":{"Name":"local","Options":{"o":"p"}}}},
   {"Type":"tmpfs","Target":"/t3","TmpfsOptions":{"SizeBytes":4096,"Mode":448}}],
  "MaskedPaths":[],"ReadonlyPaths":["/proc/x"],"Init":true,"Umask":23},
 "NetworkingConfig":{"EndpointsConfig":{"mine":{"IPAMConfig":{"IPv4Address":"10.9.0.5","IPv6Address":"fd00::5"},"Aliases":["al"],"Links":["p:q"],"MacAddress":"02:42:AC:11:00:09"},"second":{}}}
}`

func fullSpec() spec.Spec {
	v4 := netip.MustParseAddr("10.9.0.5")
	return spec.Spec{
		Name: "named", Image: "busybox", Platform: "linux/amd64", Hostname: "h", Domainname: "d", User: "u:g", Env: []string{"A=1", "B"}, Entrypoint: []string{"/e"}, Cmd: []string{"one word"},
		WorkingDir: "/w", Labels: map[string]string{"l": "1"}, ExposedPorts: []string{"80/tcp", "443/tcp", "3000/udp", "3001/udp"}, Volumes: []string{"/v1", "/v2"}, StopSignal: "SIGINT", StopTimeout: ptr(7),
		Shell: []string{"/bin/sh", "-c"}, MacAddress: "02:42:ac:11:00:09",
		Healthcheck: &oci.Healthcheck{Test: []string{"CMD-SHELL", "true"}, Interval: time.Second, Timeout: 2 * time.Second, Retries: 3, StartPeriod: 4 * time.Second, StartInterval: 5 * time.Second},
		Tty:         true, OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true, ConsoleSize: [2]uint{24, 80},
		Binds: []string{"/a:/b:ro", "vol:/c"}, VolumesFrom: []string{"other:ro"}, Tmpfs: map[string]string{"/t": "size=1m"}, StorageOpt: map[string]string{"size": "1g"},
		Mounts: []volume.MountSpec{{Type: "bind", Source: "/s", Target: "/t1", ReadOnly: true, Propagation: "rslave", NonRecursive: true, CreateSource: true, ReadOnlyNonRecursive: true, ReadOnlyForceRecursive: true},
			{Type: "volume", Source: "vv", Target: "/t2", NoCopy: true, Labels: map[string]string{"k": "v"}, Subpath: "sub", Driver: "local", DriverOpts: map[string]string{"o": "p"}},
			{Type: "tmpfs", Target: "/t3", TmpfsSize: 4096, TmpfsMode: 0o700}},
		NetworkMode: "mine", PublishAll: true, DNS: []string{"10.0.0.1"}, DNSOptions: []string{"ndots:1"}, DNSSearch: []string{"x.example"}, ExtraHosts: []string{"a:1.2.3.4"}, Links: []string{"x:y"},
		Ports: []network.PortBinding{{Proto: "udp", ContainerPort: 53, HostIP: netip.MustParseAddr("::1")}, {Proto: "tcp", ContainerPort: 80, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8080},
			{Proto: "tcp", ContainerPort: 80, HostPort: 9000, HostPortEnd: 9005}, {Proto: "tcp", ContainerPort: 443}},
		Endpoints:  map[string]network.EndpointSpec{"mine": {Aliases: []string{"al"}, IPv4: v4, IPv6: netip.MustParseAddr("fd00::5"), MAC: "02:42:AC:11:00:09", Links: []string{"p:q"}}, "second": {}},
		Privileged: true, CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges"}, ReadonlyRootfs: true, MaskedPaths: []string{}, ReadonlyPaths: []string{"/proc/x"},
		PidMode: "host", IpcMode: "host", UTSMode: "host", UsernsMode: "host", CgroupnsMode: "private", CgroupParent: "/cg", GroupAdd: []string{"audio"},
		Devices: []spec.Device{{HostPath: "/dev/null", ContainerPath: "/dev/n", Permissions: "r"}}, DeviceRules: []string{"c 1:3 r"}, DeviceRequests: []spec.DeviceRequest{{Driver: "cdi", Count: -1, IDs: []string{"a/b=c"}, Capabilities: [][]string{{"gpu"}}, Options: map[string]string{"o": "v"}}}, Sysctls: map[string]string{"net.x": "1"},
		Ulimits: []spec.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}, ShmSize: 1 << 20, OomScoreAdj: 5, OomKillDisable: true, Init: ptr(true), Runtime: "crun", Umask: ptr(uint32(0o27)),
		Resources: spec.Resources{Memory: 10000000, MemoryReservation: 8000000, MemorySwap: -1, KernelMemory: 9000000, MemorySwappiness: ptr(int64(60)), NanoCPUs: 500000000, CPUShares: 10,
			CPURealtimePeriod: 1, CPURealtimeRuntime: 2, CpusetCpus: "0", CpusetMems: "0", PidsLimit: ptr(int64(100)), BlkioWeight: 300,
			DeviceReadBps: []spec.DeviceRate{{Path: "/dev/sda", Rate: 1 << 20}}, DeviceWriteBps: []spec.DeviceRate{{Path: "/dev/sda", Rate: 2}, {Path: "/dev/sdb", Rate: 3}},
			DeviceReadIOps: []spec.DeviceRate{{Path: "/dev/sda", Rate: 4}}, DeviceWriteIOps: []spec.DeviceRate{{Path: "/dev/sda", Rate: 5}}, DeviceWeights: []spec.DeviceWeight{{Path: "/dev/sda", Weight: 10}}},
		RestartPolicy: spec.RestartPolicy{Name: "on-failure", MaxRetries: 4}, LogDriver: "local", LogOpts: map[string]string{"max-size": "1m"}, ContainerIDFile: "/cid", Annotations: map[string]string{"an": "no"},
	}
}

var addrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestCreateMapsEverything(t *testing.T) {
	w := newWorld(t)
	rec := w.do("POST", "/v1.51/containers/create?name=/named&platform=linux/amd64", strings.NewReader(fullRequest))
	if rec.Code != 201 || len(w.containers.specs) != 1 {
		t.Fatalf("create = %d %s", rec.Code, rec.Body)
	}
	if diff := cmp.Diff(fullSpec(), w.containers.specs[0], addrs); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
}

// The answer of inspect can be sent to create, and means the same there.
func TestInspectGivesTheRequestBack(t *testing.T) {
	spec := fullSpec()
	a := inspectOf(&container.Container{ID: ctrWeb, Name: "named", Spec: spec, ImageName: "busybox"}, 43, false)
	b, err := json.Marshal(map[string]any{"HostConfig": a.HostConfig})
	if err != nil {
		t.Fatal(err)
	}
	var again wire.CreateBody
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	again.Config = &a.Config
	got, err := createSpec(&again)
	if err != nil {
		t.Fatal(err)
	}
	spec.Name, spec.Platform, spec.Endpoints = "", "", nil // not in Config and HostConfig
	if diff := cmp.Diff(spec, got, addrs, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
}

// Docker's own types can decode the answers of inspect and list.
func TestAnswersFitDockersTypes(t *testing.T) {
	w := newWorld(t)
	w.containers.specs = nil
	var inspect apicontainer.InspectResponse
	dec := json.NewDecoder(w.do("GET", "/v1.51/containers/web/json?size=1", nil).Body)
	if err := dec.Decode(&inspect); err != nil {
		t.Fatal(err)
	}
	if !inspect.State.Running || inspect.NetworkSettings.Networks["bridge"].IPAddress.String() != "172.17.0.6" || *inspect.SizeRw != 10 {
		t.Errorf("inspect = %+v", inspect)
	}
	full, err := json.Marshal(inspectOf(&container.Container{Spec: fullSpec()}, 51, false))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(full, &apicontainer.InspectResponse{}); err != nil {
		t.Error(err)
	}
	var list []apicontainer.Summary
	if err := json.NewDecoder(w.do("GET", "/v1.51/containers/json?all=1", nil).Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	if list[0].Ports[1].PublicPort != 5000 {
		t.Errorf("list = %+v", list[0])
	}
}

// No field of Docker's HostConfig is ignored: each either is refused with an error that names it, or changes the spec, or is said to have no effect.
func TestNoHostConfigFieldIsIgnored(t *testing.T) {
	samples := map[string]string{"StorageOpt": `{"size":"1g"}`,
		"NetworkMode": `"host"`, "PortBindings": `{"80/tcp":[{"HostPort":"1"}]}`, "RestartPolicy": `{"Name":"always"}`, "LogConfig": `{"Type":"none"}`, "ConsoleSize": `[1,2]`,
		"Dns": `["1.1.1.1"]`, "Devices": `[{"PathOnHost":"/dev/null"}]`, "DeviceRequests": `[{"Count":1}]`, "Ulimits": `[{"Name":"nofile","Soft":1,"Hard":2}]`, "Mounts": `[{"Type":"tmpfs","Target":"/x"}]`,
		"BlkioWeightDevice": `[{"Path":"/dev/sda","Weight":10}]`, "MemorySwappiness": `5`, "BlkioWeight": `20`, "MemorySwap": `-1`, "Memory": `10000000`, "MemoryReservation": `10000000`, "CpuPeriod": `1000`, "CpuQuota": `1000`, "CpusetCpus": `"0"`, "CpusetMems": `"0"`, "PidsLimit": `5`, "Isolation": `"hyperv"`, "MaskedPaths": `["/x"]`,
		"BlkioDeviceReadBps": `[{"Path":"/dev/sda","Rate":1}]`, "BlkioDeviceWriteBps": `[{"Path":"/dev/sda","Rate":1}]`, "BlkioDeviceReadIOps": `[{"Path":"/dev/sda","Rate":1}]`, "BlkioDeviceWriteIOps": `[{"Path":"/dev/sda","Rate":1}]`}
	empty, err := createSpec(&wire.CreateBody{Config: &wire.Config{Image: "a"}, HostConfig: &wire.HostConfig{}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(&wire.HostConfig{Annotations: map[string]string{"a": "b"}, StorageOpt: map[string]string{"a": "b"}, Tmpfs: map[string]string{"a": "b"}, Sysctls: map[string]string{"a": "b"}, Runtime: "x",
		Mounts: []wire.Mount{{}}, Init: ptr(true), Umask: ptr(uint32(1)), Resources: wire.Resources{KernelMemory: 1, KernelMemoryTCP: 1}})
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil {
		t.Fatal(err)
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		tries := []string{`"x"`, `7`, `true`, `["x"]`, `{"x":"y"}`}
		if s, ok := samples[key]; ok {
			tries = []string{s}
		}
		seen := false
		for _, value := range tries {
			var req wire.CreateBody
			if json.Unmarshal([]byte(`{"Image":"a","HostConfig":{"`+key+`":`+value+`}}`), &req) != nil {
				continue
			}
			seen = true
			spec, err := createSpec(&req)
			switch {
			case err != nil && !errors.Is(err, errs.Invalid):
				t.Errorf("%s=%s: %v: want class Invalid", key, value, err)
			case err != nil && !strings.Contains(err.Error(), key):
				t.Errorf("%s=%s: the error %q does not name the option", key, value, err)
			case err == nil && cmp.Equal(empty, spec, addrs) && len(withoutEffect(&req, &spec)) == 0:
				t.Errorf("%s=%s: read and forgotten", key, value)
			}
		}
		if !seen {
			t.Errorf("%s: no sample value fits", key)
		}
	}
}

func TestCreateRefusals(t *testing.T) {
	for name, tc := range map[string]struct{ body, want string }{
		"restart and rm":        {`"HostConfig":{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}`, "can't create 'AutoRemove' container with restart policy"},
		"restart policy":        {`"HostConfig":{"RestartPolicy":{"Name":"sometimes"}}`, "invalid restart policy: unknown policy 'sometimes'"},
		"retries":               {`"HostConfig":{"RestartPolicy":{"Name":"always","MaximumRetryCount":1}}`, "maximum retry count can only be used with 'on-failure'"},
		"port 0":                {`"ExposedPorts":{"0/tcp":{}}`, "invalid port"},
		"port 65536":            {`"ExposedPorts":{"65536":{}}`, "invalid port"},
		"port range backwards":  {`"ExposedPorts":{"20-10/tcp":{}}`, "invalid port"},
		"protocol":              {`"ExposedPorts":{"80/icmp":{}}`, "invalid port"},
		"bound range":           {`"HostConfig":{"PortBindings":{"80-81/tcp":[{}]}}`, "one container port"},
		"host IP":               {`"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"1.2.3"}]}}`, "invalid host address"},
		"host port":             {`"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"70000"}]}}`, "invalid host port"},
		"host ports":            {`"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"9-8"}]}}`, "invalid host port"},
		"mount type":            {`"HostConfig":{"Mounts":[{"Type":"npipe","Source":"x","Target":"/x"}]}`, `invalid mount config for type "npipe"`},
		"mount image source":    {`"HostConfig":{"Mounts":[{"Type":"image","Target":"/x"}]}`, `invalid mount config for type "image": field Source must not be empty`},
		"mount image options":   {`"HostConfig":{"Mounts":[{"Type":"image","Source":"x","Target":"/x","VolumeOptions":{}}]}`, "field VolumeOptions must not be specified"},
		"mount volume options":  {`"HostConfig":{"Mounts":[{"Type":"volume","Target":"/x","ImageOptions":{}}]}`, "field ImageOptions must not be specified"},
		"mount target":          {`"HostConfig":{"Mounts":[{"Type":"bind","Source":"/x"}]}`, "field Target must not be empty"},
		"mount source":          {`"HostConfig":{"Mounts":[{"Type":"bind","Target":"/x"}]}`, "field Source must not be empty"},
		"mount tmpfs source":    {`"HostConfig":{"Mounts":[{"Type":"tmpfs","Source":"/y","Target":"/x"}]}`, "field Source must not be specified"},
		"mount foreign options": {`"HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/x","BindOptions":{}}]}`, "field BindOptions must not be specified"},
		"tmpfs options":         {`"HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/x","TmpfsOptions":{"Options":[["noexec"]]}}]}`, "TmpfsOptions.Options"},
		"volume driver":         {`"HostConfig":{"VolumeDriver":"nfs","Binds":["/a:/b","x:/y"]}`, `create x: error looking up volume plugin nfs: plugin "nfs" not found`},
		"anonymous volume":      {`"Volumes":{"/v":{}},"HostConfig":{"VolumeDriver":"nfs"}`, `create /v: error looking up volume plugin nfs: plugin "nfs" not found`},
		"swappiness":            {`"HostConfig":{"MemorySwappiness":101}`, "valid memory swappiness range is 0-100"},
		"umask":                 {`"HostConfig":{"Umask":512}`, "invalid Umask 01000: must be from 0 to 0777"},
		"device weight":         {`"HostConfig":{"BlkioWeightDevice":[{"Path":"/dev/sda","Weight":5}]}`, "invalid weight for device /dev/sda: Range of blkio weight is from 10 to 1000"},
		"device rate":           {`"HostConfig":{"BlkioDeviceReadBps":[{"Path":"sda","Rate":1}]}`, `BlkioDeviceReadBps: bad format for device path: "sda"`},
		"cpus twice":            {`"HostConfig":{"NanoCpus":1,"CpuQuota":1}`, "Conflicting options: Nano CPUs and CPU Quota cannot both be set"},
		"storage option":        {`"HostConfig":{"StorageOpt":{"a":"b"}}`, "StorageOpt: unknown option a: there is only size"},
		"storage size":          {`"HostConfig":{"StorageOpt":{"size":"-1"}}`, `StorageOpt: invalid size: "-1"`},
		"shm":                   {`"HostConfig":{"ShmSize":-1}`, "SHM size can not be less than 0"},
		"dns":                   {`"HostConfig":{"Dns":["ns"]}`, "not an IP address"},
		"link local":            {`"NetworkingConfig":{"EndpointsConfig":{"x":{"IPAMConfig":{"LinkLocalIPs":["10.0.0.1"]}}}}`, "link-local address"},
		"IPv6 as IPv4":          {`"NetworkingConfig":{"EndpointsConfig":{"x":{"IPAMConfig":{"IPv4Address":"::1"}}}}`, "IPv4 address"},
		"MAC":                   {`"MacAddress":"xx"`, "not a MAC address"},
		"two MACs":              {`"MacAddress":"02:42:ac:11:00:01","HostConfig":{"NetworkMode":"x"},"NetworkingConfig":{"EndpointsConfig":{"x":{"MacAddress":"02:42:ac:11:00:02"}}}`, "must match"},
		"on build":              {`"OnBuild":["RUN x"]`, "OnBuild"},
		"stop timeout":          {`"StopTimeout":-2`, "StopTimeout"},
		"health test":           {`"Healthcheck":{"Test":["MOON"]}`, "Healthcheck"},
		"health interval":       {`"Healthcheck":{"Test":["NONE"],"Interval":-1}`, "cannot be less than 1ms"},
		"health retries":        {`"Healthcheck":{"Retries":-1}`, "cannot be negative"},
		"ulimit":                {`"HostConfig":{"Ulimits":[{"Soft":1,"Hard":2}]}`, "has no name"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			rec := w.do("POST", "/v1.51/containers/create", strings.NewReader(`{"Image":"a",`+tc.body+`}`))
			if got := message(t, rec); rec.Code != 400 || !strings.Contains(got, tc.want) {
				t.Errorf("create = %d %s, want 400 and %q", rec.Code, got, tc.want)
			}
		})
	}
}

func TestCreateDefaults(t *testing.T) {
	for name, tc := range map[string]struct {
		body  string
		check func(spec.Spec) bool
	}{
		"entrypoint none":       {`"Entrypoint":[""]`, func(s spec.Spec) bool { return slices.Equal(s.Entrypoint, []string{""}) }},
		"entrypoint empty":      {`"Entrypoint":[]`, func(s spec.Spec) bool { return s.Entrypoint != nil && len(s.Entrypoint) == 0 }},
		"entrypoint unset":      {`"Entrypoint":null`, func(s spec.Spec) bool { return s.Entrypoint == nil }},
		"swappiness -1":         {`"HostConfig":{"MemorySwappiness":-1}`, func(s spec.Spec) bool { return s.Resources.MemorySwappiness == nil }},
		"pids 0":                {`"HostConfig":{"PidsLimit":0}`, func(s spec.Spec) bool { return s.Resources.PidsLimit == nil }},
		"pids -1":               {`"HostConfig":{"PidsLimit":-1}`, func(s spec.Spec) bool { return *s.Resources.PidsLimit == -1 }},
		"default endpoint":      {`"NetworkingConfig":{"EndpointsConfig":{"default":{"IPAMConfig":null,"MacAddress":""}}}`, func(s spec.Spec) bool { return s.Endpoints == nil }},
		"bridge endpoint":       {`"HostConfig":{"NetworkMode":"bridge"},"NetworkingConfig":{"EndpointsConfig":{"bridge":null}}`, func(s spec.Spec) bool { return s.Endpoints == nil }},
		"unused volume driver":  {`"HostConfig":{"VolumeDriver":"nfs","Binds":["/a:/b"]}`, func(s spec.Spec) bool { return len(s.Binds) == 1 }},
		"endpoint option":       {`"NetworkingConfig":{"EndpointsConfig":{"x":{"DriverOpts":{"a":"b"}}}}`, func(s spec.Spec) bool { return s.Endpoints["x"].DriverOpts["a"] == "b" }},
		"local volume driver":   {`"HostConfig":{"VolumeDriver":"local"}`, func(s spec.Spec) bool { return true }},
		"empty device requests": {`"HostConfig":{"DeviceRequests":[],"StorageOpt":{},"BlkioDeviceReadBps":[]}`, func(s spec.Spec) bool { return true }},
		"bind without source":   {`"HostConfig":{"Binds":["/v","/a:/b"]}`, func(s spec.Spec) bool { return len(s.Volumes) == 1 && len(s.Binds) == 1 }},
		"chosen by engine":      {`"HostConfig":{"PortBindings":{"80":[{"HostPort":"0"}]}}`, func(s spec.Spec) bool { return s.Ports[0].HostPort == 0 && s.Ports[0].Proto == "tcp" }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			rec := w.do("POST", "/v1.51/containers/create", strings.NewReader(`{"Image":"a",`+tc.body+`}`))
			if rec.Code != 201 || !tc.check(w.containers.specs[0]) {
				t.Errorf("create = %d %s: %+v", rec.Code, rec.Body, w.containers.specs)
			}
		})
	}
}

// What docker takes although it does nothing is said to have no effect.
func TestOptionsWithoutEffect(t *testing.T) {
	w := newWorld(t)
	rec := w.do("POST", "/v1.51/containers/create", strings.NewReader(`{"Image":"a","HostConfig":{"VolumeDriver":"nfs","NetworkMode":"n"},"NetworkingConfig":{"EndpointsConfig":{"n":{"DriverOpts":{"z":"1",
		"com.docker.network.endpoint.ifname":"e","a":"b"}}}}}`))
	want := `["The volume driver nfs is not used: no volume of the request takes it.","The endpoint option \"a\" has no effect in network n.","The endpoint option \"z\" has no effect in network n."]`
	if got := rec.Body.String(); rec.Code != 201 || !strings.Contains(got, want) {
		t.Errorf("%d %s, want %s", rec.Code, got, want)
	}
}

func TestStatusText(t *testing.T) {
	now := moment.Add(2 * time.Minute)
	for want, st := range map[string]container.State{
		"Up 2 minutes":                        {Status: container.StatusRunning, Started: moment},
		"Up About a minute (unhealthy)":       {Status: container.StatusRunning, Started: moment.Add(time.Minute), Health: &container.Health{Status: "unhealthy"}},
		"Up 2 minutes (health: starting)":     {Status: container.StatusRunning, Started: moment, Health: &container.Health{Status: "starting"}},
		"Up 2 minutes (Paused)":               {Status: container.StatusPaused, Started: moment},
		"Restarting (1) 2 minutes ago":        {Status: container.StatusRestarting, ExitCode: 1, Finished: moment},
		"Exited (137) 2 minutes ago":          {Status: container.StatusExited, ExitCode: 137, Started: moment, Finished: moment},
		"Created":                             {Status: container.StatusCreated},
		"Dead":                                {Status: container.StatusDead},
		"Removal In Progress":                 {Status: container.StatusRemoving},
		"Exited (127) Less than a second ago": {Status: container.StatusExited, ExitCode: 127, Finished: now},
	} {
		if got := statusText(st, now); got != want {
			t.Errorf("statusText = %q, want %q", got, want)
		}
	}
}

// Clients of older versions of the API get the defaults of their version, and fields that it does not have have no effect.
func TestOlderClientsCreate(t *testing.T) {
	const newer = `{"Image":"busybox","Healthcheck":{"Test":["CMD","true"],"StartInterval":2000000000},
		"HostConfig":{"AutoRemove":true,"ConsoleSize":[7,8],"Annotations":{"a":"b"}}}`
	show := func(s *spec.Spec) string {
		h := time.Duration(0)
		if s.Healthcheck != nil {
			h = s.Healthcheck.StartInterval
		}
		return fmt.Sprintf("ipc=%s rm=%v size=%v annotations=%d every=%s", s.IpcMode, s.AutoRemove, s.ConsoleSize, len(s.Annotations), h)
	}
	for _, tc := range []struct{ version, body, want string }{
		{"1.24", newer, "ipc=shareable rm=false size=[0 0] annotations=0 every=0s"},
		{"1.25", newer, "ipc=shareable rm=true size=[0 0] annotations=0 every=0s"},
		{"1.39", `{"Image":"busybox"}`, "ipc=shareable rm=false size=[0 0] annotations=0 every=0s"},
		{"1.39", `{"Image":"busybox","HostConfig":{}}`, "ipc=shareable rm=false size=[0 0] annotations=0 every=0s"},
		{"1.39", `{"Image":"busybox","HostConfig":{"IpcMode":"private"}}`, "ipc=private rm=false size=[0 0] annotations=0 every=0s"},
		{"1.40", `{"Image":"busybox"}`, "ipc= rm=false size=[0 0] annotations=0 every=0s"},
		{"1.41", newer, "ipc= rm=true size=[0 0] annotations=0 every=0s"},
		{"1.42", newer, "ipc= rm=true size=[7 8] annotations=0 every=0s"},
		{"1.43", newer, "ipc= rm=true size=[7 8] annotations=1 every=0s"},
		{"1.44", newer, "ipc= rm=true size=[7 8] annotations=1 every=2s"},
	} {
		w := newWorld(t)
		if rec := w.do("POST", "/v"+tc.version+"/containers/create", strings.NewReader(tc.body)); rec.Code != 201 {
			t.Fatalf("%s: %d %s", tc.version, rec.Code, rec.Body)
		}
		if got := show(&w.containers.specs[0]); got != tc.want {
			t.Errorf("%s %s:\n%s, want\n%s", tc.version, tc.body, got, tc.want)
		}
	}
}

// An engine that is told to takes clients that are older than its API, and answers them in the oldest form that it has.
func TestOldestAPI(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		oldest int
		target string
		status int
	}{{24, "/v1.24/containers/json", 200}, {24, "/v1.22/containers/json", 400}, {22, "/v1.22/containers/json", 200}, {22, "/v1.21/containers/json", 400}, {44, "/v1.43/containers/json", 400}} {
		w.api.oldest = tc.oldest
		if rec := w.do("GET", tc.target, nil); rec.Code != tc.status {
			t.Errorf("oldest 1.%d: %s: %d %s, want %d", tc.oldest, tc.target, rec.Code, rec.Body, tc.status)
		}
	}
	w.api.oldest = 22
	old, oldest := w.do("GET", "/v1.22/containers/json", nil), w.do("GET", "/v1.24/containers/json", nil)
	if old.Body.String() != oldest.Body.String() {
		t.Errorf("1.22: %s, want what 1.24 gets: %s", old.Body, oldest.Body)
	}
	for text, want := range map[string]int{"": 24, "1.22": 22, "1.51": 51, "1.11": 0, "1.52": 0, "2.0": 0, "1.": 0, "1.-5": 0, "x": 0} {
		if got, err := ParseAPI(text); got != want || (err == nil) != (want != 0) {
			t.Errorf("ParseAPI(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
}
