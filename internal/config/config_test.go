package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ply/internal/errs"
)

// load writes text as daemon.json and loads it.
func load(t *testing.T, text string, flags map[string][]string) (*Config, []Warning, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path, flags)
}

func TestMirrorAndInsecureRegistry(t *testing.T) {
	c, warnings, err := load(t, `{
  "registry-mirrors": ["https://3ghuubp0.mirror.example"],
  "insecure-registries": ["172.28.109.11:5000"]
}`, nil)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("Load = %v, warnings %v; want neither", err, warnings)
	}
	if diff := cmp.Diff([]string{"https://3ghuubp0.mirror.example/"}, c.RegistryMirrors); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"172.28.109.11:5000"}, c.InsecureRegistries); diff != "" {
		t.Error(diff)
	}
}

// A file as users copy it from the web, with a misspelt key and a placeholder: the engine starts, warns of both, and uses the mirror.
func TestMisspeltMirrorsAndAPlaceholder(t *testing.T) {
	c, warnings, err := load(t, `{
    "registry-mirros":["https://registry.example-cn.com"],
    "insecure-registries":["ip:port"]
}`, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"https://registry.example-cn.com/"}, c.RegistryMirrors); diff != "" {
		t.Error(diff)
	}
	if len(c.InsecureRegistries) != 0 {
		t.Errorf("InsecureRegistries = %q, want none: a placeholder must not open anything", c.InsecureRegistries)
	}
	all := text(warnings)
	for _, want := range []string{`"registry-mirros": did you mean registry-mirrors?`, `"ip:port" is neither HOST[:PORT] nor an address range, ignored`, "daemon.json"} {
		if !strings.Contains(all, want) {
			t.Errorf("warnings = %s\nwant %s among them", all, want)
		}
	}
}

func text(ws []Warning) string {
	var b strings.Builder
	for _, w := range ws {
		b.WriteString(w.String() + "\n")
	}
	return b.String()
}

func TestLoopbackRegistry(t *testing.T) {
	c, warnings, err := load(t, `{"insecure-registries": ["127.0.0.1:5000"]}`, nil)
	if err != nil || len(warnings) != 0 || len(c.InsecureRegistries) != 1 {
		t.Fatalf("Load = %v, %v, %v", c, warnings, err)
	}
}

func TestRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		file  string
		flags map[string][]string
		want  []string // parts of the error
	}{
		"wrong type":          {`{"registry-mirrors": "https://a.example"}`, nil, []string{"daemon.json: registry-mirrors: want a list of strings, got a string"}},
		"wrong element":       {`{"dns": ["10.0.0.1", 5]}`, nil, []string{"dns: want a list of strings"}},
		"wrong bool":          {`{"debug": "true"}`, nil, []string{"debug: want true or false, got a string"}},
		"wrong number":        {`{"mtu": 1.5}`, nil, []string{"mtu: want a whole number"}},
		"wrong object":        {`{"log-opts": ["a"]}`, nil, []string{"log-opts: want an object, got a list"}},
		"unknown inside":      {`{"proxies": {"http": "x"}}`, nil, []string{"proxies: unknown field"}},
		"flag and file":       {`{"registry-mirrors": ["https://a.example"]}`, map[string][]string{"registry-mirror": {"https://b.example"}}, []string{"registry-mirrors", "--registry-mirror=https://b.example", `["https://a.example"]`, "keep one"}},
		"short flag and file": {`{"hosts": ["unix:///a"]}`, map[string][]string{"H": {"unix:///b"}}, []string{"hosts", "keep one"}},
		"misspelt and flag":   {`{"registry-mirros": ["https://a.example"]}`, map[string][]string{"registry-mirror": {"https://b.example"}}, []string{"registry-mirrors", "keep one"}},
		"twice":               {`{"debug": true, "debug": false}`, nil, []string{`"debug": set twice`}},
		"no object":           {`["debug"]`, nil, []string{"want a JSON object"}},
		"broken":              {"{\n\"debug\": true,\n\"mtu\": }", nil, []string{"line 3"}},
		"comment":             {"{ // no\n}", nil, []string{"line 1"}},
		"cut off":             {`{"debug": true`, nil, []string{"line 1", "unexpected EOF"}},
		"two objects":         {`{} {}`, nil, []string{"something follows"}},
		"mirror without http": {`{"registry-mirrors": ["a.example"]}`, nil, []string{"registry-mirrors: invalid mirror"}},
		"mirror with secret":  {`{"registry-mirrors": ["https://u:p4ss@a.example"]}`, nil, []string{"username/password not allowed"}},
		"bad level":           {`{"log-level": "loud"}`, nil, []string{`log-level: "loud" is none of debug, info`}},
		"bad label":           {`{"labels": ["x"]}`, nil, []string{"labels"}},
		"bad dns":             {`{"dns": ["nameserver"]}`, nil, []string{"dns"}},
		"bad pool":            {`{"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}`, nil, []string{"default-address-pools"}},
		"bad bip":             {`{"bip": "10.0.0.1"}`, nil, []string{"bip"}},
		"fixed outside bip":   {`{"bip": "10.0.0.1/24", "fixed-cidr": "10.1.0.0/25"}`, nil, []string{"not within"}},
		"network driver":      {`{"default-network-opts": {"brigde": {"a": "b"}}}`, nil, []string{"default-network-opts: ", "brigde"}},
		"network option":      {``, map[string][]string{"default-network-opt": {"bridge=mtu"}}, []string{"--default-network-opt", "want DRIVER=OPTION=VALUE"}},
		"bad host":            {`{"hosts": ["npipe:////./pipe"]}`, nil, []string{"hosts"}},
		"root":                {`{"data-root": "/"}`, nil, []string{"data-root"}},
		"authorization":       {`{"authorization-plugins": ["x"]}`, nil, []string{"authorization-plugins: not supported"}},
		"userns":              {`{"userns-remap": "default"}`, nil, []string{"userns-remap: not supported"}},
		"ulimit":              {`{"default-ulimits": {"nofile": {"Name": "nofile", "Hard": 1, "Soft": 2}}}`, nil, []string{"default-ulimits: nofile: soft 2"}},
		"runtime args":        {`{"runtimes": {"crun": {"path": "/usr/bin/crun", "runtimeArgs": ["--debug"]}}}`, nil, []string{"runtimes: crun: runtimeArgs"}},
		"runtime":             {`{"default-runtime": "kata"}`, nil, []string{"default-runtime"}},
		"size":                {`{"default-shm-size": "lots"}`, nil, []string{"default-shm-size", "lots"}},
		"downloads":           {`{"max-concurrent-downloads": 0}`, nil, []string{"max-concurrent-downloads: 0"}},
		"unknown flag":        {``, map[string][]string{"nonsense": {"1"}}, []string{"--nonsense"}},
		"bad flag":            {``, map[string][]string{"mtu": {"x"}}, []string{"--mtu", `"x"`}},
		"two names":           {`{"host-gateway-ip": "192.0.2.1", "host-gateway-ips": ["192.0.2.2"]}`, nil, []string{"host-gateway-ip and host-gateway-ips"}},
		"two gateways":        {`{"host-gateway-ips": ["192.0.2.1", "192.0.2.2"]}`, nil, []string{"host-gateway-ips", "one address of each IP version"}},
		"no gateway":          {`{"host-gateway-ip": "gateway"}`, nil, []string{"host-gateway-ip", `"gateway"`}},
		"log option":          {`{"log-opts": {"max-size": "much"}}`, nil, []string{"log-opts: ", "much"}},
		"log option's name":   {``, map[string][]string{"log-opt": {"sise=1m"}}, []string{"log-opts: ", "sise"}},
		"ulimit's name":       {`{"default-ulimits": {"files": {"Name": "files", "Hard": 2, "Soft": 1}}}`, nil, []string{"default-ulimits: ", "files"}},
		"absent profile":      {`{"seccomp-profile": "/nonexistent.json"}`, nil, []string{"seccomp-profile: ", "/nonexistent.json"}},
		"broken profile":      {`{"seccomp-profile": "/etc/passwd"}`, nil, []string{"seccomp-profile: ", "/etc/passwd"}},
		"absent init":         {`{"init-path": "/nonexistent"}`, nil, []string{"init-path: ", "/nonexistent"}},
		"absent certificate":  {`{"tls": true, "tlscert": "/nonexistent"}`, nil, []string{"tlscert: ", "/nonexistent"}},
		"absent resolver":     {`{"resolv-conf": "/nonexistent"}`, nil, []string{"resolv-conf: ", "/nonexistent"}},
		"relative runtime":    {`{"runtimes": {"crun": {"path": "crun"}}}`, nil, []string{"runtimes: crun: "}},
		"selinux":             {`{"selinux-enabled": true}`, nil, []string{"selinux-enabled: not supported"}},
		"rootless":            {`{"rootless": true}`, nil, []string{"rootless: not supported"}},
		"cors":                {`{"api-cors-header": "*"}`, nil, []string{"api-cors-header: not supported"}},
		"graph":               {`{"graph": "/srv"}`, nil, []string{"graph: not supported: its name is data-root"}},
		"storage size":        {`{"storage-opts": ["overlay2.size=big"]}`, nil, []string{`storage-opts: "overlay2.size=big"`}},
		"relative CDI":        {`{"cdi-spec-dirs": ["/etc/cdi", "cdi"]}`, nil, []string{`cdi-spec-dirs: "cdi" is not an absolute path`}},
		"pids":                {`{"default-pids-limit": -2}`, nil, []string{"default-pids-limit: -2"}},
		"proxy twice":         {`{"proxies": {"http-proxy": "http://a"}}`, map[string][]string{"http-proxy": {"http://b"}}, []string{"proxies", "keep one"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := load(t, tc.file, tc.flags)
			if !errors.Is(err, errs.Invalid) {
				t.Fatalf("Load = %v, want an error of class Invalid", err)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "p4ss") {
				t.Errorf("error %q shows a password", err)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for name, tc := range map[string]struct{ file, want string }{
		"docker's, not acted on": {`{"ipv6": true}`, "ipv6: has no effect"},
		"other driver's option":  {`{"storage-opts": ["dm.fs=xfs", "overlay2.size=1G"]}`, "storage-opts: dm.fs=xfs has no effect: there is only overlay2.size"},
		"unknown feature":        {`{"features": {"cdi": true, "buildkit": true}}`, "features: buildkit has no effect: there is only cdi"},
		"far from everything":    {`{"quux": 1}`, `"quux": unknown key, ignored`},
		"case":                   {`{"Debug": true}`, `"Debug": did you mean debug?`},
		"with an s too few":      {`{"label": ["a=b"]}`, `"label": did you mean labels?`},
		"another IP version":     {`{"ipv4": true}`, `"ipv4": unknown key, ignored: did you mean ipv6?`},
		"underscore":             {`{"data_root": "/srv/ply"}`, `"data_root": did you mean data-root?`},
		"right one set too":      {`{"debug": true, "debgu": false}`, `"debgu": unknown key, ignored: debug is set too`},
		"scheme in registry":     {`{"insecure-registries": ["http://10.0.0.1:5000/"]}`, "the scheme is dropped"},
	} {
		t.Run(name, func(t *testing.T) {
			_, warnings, err := load(t, tc.file, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := text(warnings); !strings.Contains(got, tc.want) {
				t.Errorf("warnings = %q, want %q among them", got, tc.want)
			}
		})
	}
}

// dockerKeys are the keys of daemon.json that dockerd 20.10 or 28 knows on Linux.
const dockerKeys = `allow-direct-routing allow-nondistributable-artifacts api-cors-header authorization-plugins bip bip6 bridge
bridge-accept-fwmark builder cdi-spec-dirs cgroup-parent cluster-advertise cluster-store cluster-store-opts containerd containerd-namespace
containerd-plugin-namespace cpu-rt-period cpu-rt-runtime cri-containerd data-root debug default-address-pools default-cgroupns-mode
default-gateway default-gateway-v6 default-init default-ipc-mode default-network-opts default-runtime default-shm-size default-ulimits
deprecated-key-path dns dns-opts dns-search exec-opts exec-root experimental features firewall-backend fixed-cidr fixed-cidr-v6 graph group
host-gateway-ip host-gateway-ips hosts icc init init-path insecure-registries ip ip-forward ip-forward-no-drop ip-masq ip6tables iptables ipv6
labels live-restore log-driver log-format log-level log-opts max-concurrent-downloads max-concurrent-uploads max-download-attempts metrics-addr
mtu network-control-plane-mtu network-diagnostic-port no-new-privileges node-generic-resources oom-score-adjust pidfile proxies raw-logs
registry-mirrors resolv-conf rootless runtimes seccomp-profile selinux-enabled shutdown-timeout storage-driver storage-opts
swarm-default-advertise-addr swarm-raft-election-tick swarm-raft-heartbeat-tick tls tlscacert tlscert tlskey tlsverify userland-proxy
userland-proxy-path userns-remap`

// A key of Docker that is not declared would be unknown or, worse, taken for a similar one.
func TestEveryKeyOfDockerIsDeclared(t *testing.T) {
	l := loader{fields: fields()}
	for _, key := range strings.Fields(dockerKeys) {
		if l.byKey(key) == nil {
			near, _ := l.nearest(key)
			t.Errorf("%s is not declared; the nearest key is %v", key, near)
		}
	}
}

func TestAnAddressOfTheOtherIPVersionIsNotTaken(t *testing.T) {
	c, warnings, err := load(t, `{"bip6": "fd00::1/64", "fixed-cidr6": "fd00::/80", "ip6": "::1"}`, nil)
	if err != nil || c.BIP != "" || c.FixedCIDR != "" || c.IP != "" || len(warnings) != 3 {
		t.Errorf("Load = bip %q, fixed-cidr %q, ip %q, %v, warnings %v", c.BIP, c.FixedCIDR, c.IP, err, warnings)
	}
}

func TestHostGateways(t *testing.T) {
	for _, text := range []string{`{"host-gateway-ip": "192.0.2.1"}`, `{"host-gateway-ips": ["192.0.2.1"]}`} {
		c, _, err := load(t, text, nil)
		if err != nil || len(c.HostGatewayIPs) != 1 || c.HostGatewayIPs[0] != "192.0.2.1" {
			t.Errorf("%s: %v, %v", text, c, err)
		}
	}
	c, _, err := load(t, "", map[string][]string{"host-gateway-ip": {"192.0.2.1", "2001:db8::1"}})
	if err != nil || len(c.HostGatewayIPs) != 2 {
		t.Errorf("flags: %v, %v", c, err)
	}
}

func TestMisspeltKeyOfWrongTypeIsAnError(t *testing.T) {
	_, _, err := load(t, `{"registry-mirros": 5}`, nil)
	if err == nil || !strings.Contains(err.Error(), "registry-mirros: want a list of strings") {
		t.Errorf("Load = %v", err)
	}
}

func TestEverythingFromTheFile(t *testing.T) {
	c, warnings, err := load(t, "\xef\xbb\xbf"+`{
	"data-root": "/srv/ply", "exec-root": "/run/x", "hosts": ["/run/y.sock", "fd://"], "storage-driver": "vfs", "debug": true,
	"log-opts": {"max-size": "10m"}, "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 64000, "Soft": 32000}}, "default-shm-size": "128M",
	"runtimes": {"crun": {"path": "/usr/bin/crun"}}, "default-runtime": "crun", "dns": ["10.0.0.53"],
	"default-address-pools": [{"base": "10.10.0.0/16", "size": 24}], "userland-proxy": false, "proxies": {"http-proxy": "http://p:1", "no-proxy": "x"},
	"image-format": "docker", "retain-blobs": "never", "max-concurrent-downloads": 9, "tls": true, "live-restore": null
}`, map[string][]string{"label": {"a=b", "c=d"}, "l": {"warn"}})
	if err != nil || len(warnings) != 0 {
		t.Fatalf("Load = %v, %v", err, warnings)
	}
	want := Default()
	want.DataRoot, want.ExecRoot, want.Hosts, want.StorageDriver, want.Debug = "/srv/ply", "/run/x", []string{"unix:///run/y.sock", "fd://"}, "vfs", true
	want.LogOpts = map[string]string{"max-size": "10m"}
	want.DefaultUlimits = map[string]Ulimit{"nofile": {"nofile", 64000, 32000}}
	want.DefaultShmSize = 128 << 20
	want.Runtimes, want.DefaultRuntime = map[string]Runtime{"crun": {Path: "/usr/bin/crun"}}, "crun"
	want.DNS, want.DefaultAddressPools, want.UserlandProxy = []string{"10.0.0.53"}, []Pool{{"10.10.0.0/16", 24}}, false
	want.Proxies = Proxies{HTTP: "http://p:1", No: "x"}
	want.ImageFormat, want.RetainBlobs, want.MaxConcurrentDownloads, want.TLS, want.TLSVerify = "docker", "never", 9, true, true
	want.Labels, want.LogLevel = []string{"a=b", "c=d"}, "warn"
	if diff := cmp.Diff(&want, c); diff != "" {
		t.Error(diff)
	}
}

// The settings of builds, in both forms that a filter may have.
func TestBuilder(t *testing.T) {
	c, _, err := load(t, `{"builder": {
	"gc": {"enabled": true, "defaultKeepStorage": "10GB", "policy": [
		{"keepStorage": "1GB", "filter": ["unused-for=2200h", "type=regular"], "keepDuration": "48h"},
		{"reservedSpace": 5, "maxUsedSpace": "2k", "minFreeSpace": "3m", "filter": {"until": {"24h": true}, "shared": ["false"]}, "all": true, "keepDuration": 60}]},
	"entitlements": {"network-host": false}}}`, nil)
	if err != nil {
		t.Fatal(err)
	}
	yes, no := true, false
	want := Builder{
		GC: BuilderGC{Enabled: &yes, DefaultKeepStorage: 10 << 30, Policy: []BuilderRule{
			{KeepStorage: 1 << 30, Filter: RuleFilter{"unused-for": {"2200h"}, "type": {"regular"}}, KeepDuration: Duration(48 * time.Hour)},
			{ReservedSpace: 5, MaxUsedSpace: 2 << 10, MinFreeSpace: 3 << 20, Filter: RuleFilter{"until": {"24h"}, "shared": {"false"}}, All: true, KeepDuration: Duration(time.Minute)},
		}},
		Entitlements: Entitlements{NetworkHost: &no},
	}
	if diff := cmp.Diff(want, c.Builder); diff != "" {
		t.Error(diff)
	}
	for text, word := range map[string]string{
		`{"gc": {"policy": [{"filter": ["all"]}]}}`:      "want KEY=VALUE",
		`{"gc": {"policy": [{"filter": 7}]}}`:            "want a list of KEY=VALUE",
		`{"gc": {"policy": [{"keepDuration": "two"}]}}`:  "is not a duration",
		`{"gc": {"policy": [{"keepDuration": -1}]}}`:     "is not a duration",
		`{"gc": {"policy": [{"maxUsedSpace": "much"}]}}`: "is not a size",
		`{"gc": {"policy": [{"maxUsed": "1k"}]}}`:        "unknown field",
		`{"entitlements": {"network-host": "yes"}}`:      "true or false",
		`{"gc": {"enabled": 1}}`:                         "true or false",
	} {
		if _, _, err := load(t, `{"builder": `+text+`}`, nil); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent.json")
	if _, _, err := Load(path, nil); err != nil {
		t.Errorf("Load of a file that is not there = %v, want the defaults", err)
	}
	if _, _, err := Load(path, map[string][]string{ConfigFlag: {path}}); err == nil {
		t.Error("Load of a file that was named and is not there = nil, want an error")
	}
	if _, _, err := load(t, " \n", nil); err != nil {
		t.Errorf("Load of an empty file = %v", err)
	}
}

// Every flag can be set, and none of them is a setting without an effect.
func TestEveryFlagWorks(t *testing.T) {
	values := map[string]string{"default-ulimit": "nofile=1:2", "log-opt": "max-size=1m", "label": "a=b", "add-runtime": "x=/bin/x", "host": "unix:///x", "dns": "10.0.0.1", "ip": "127.0.0.1",
		"default-address-pool": "base=10.0.0.0/8,size=24", "default-network-opt": "bridge=com.docker.network.driver.mtu=1400", "registry-mirror": "http://a.example", "insecure-registry": "a.example", "exec-opt": "native.cgroupdriver=systemd",
		"storage-driver": "vfs", "image-format": "docker", "retain-blobs": "never", "log-level": "warn", "log-format": "json", "log-driver": "local", "bip": "10.0.0.1/24",
		"fixed-cidr": "10.0.0.0/25", "default-cgroupns-mode": "host", "default-ipc-mode": "shareable", "default-shm-size": "1g", "host-gateway-ip": "192.0.2.1", "seccomp-profile": "unconfined", "default-runtime": "runc",
		"init-path": "/bin/sh", "tlscacert": "/etc/passwd", "tlscert": "/etc/passwd", "tlskey": "/etc/passwd", "data-root": "/d", "exec-root": "/e", "pidfile": "/p", "cdi-spec-dir": "/c"}
	for _, f := range Flags() {
		value, ok := values[f.Name]
		switch {
		case ok:
		case f.Bool:
			value = "true"
		default:
			value = "7"
		}
		if _, _, err := Load("", map[string][]string{f.Name: {value}}); err != nil {
			t.Errorf("--%s=%s: %v", f.Name, value, err)
		}
		if f.Usage == "" {
			t.Errorf("--%s has no usage", f.Name)
		}
	}
	for _, f := range fields() {
		if f.ignored != "" && f.flag != "" {
			t.Errorf("--%s is offered and ignored", f.flag)
		}
	}
}

func TestWritableSize(t *testing.T) {
	for file, want := range map[string]int64{`{}`: 0, `{"storage-opts": ["overlay2.size=3g", "x.y=1"]}`: 3 << 30, `{"storage-opts": ["overlay2.size=0"]}`: 0} {
		c, _, err := load(t, file, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.WritableSize(); got != want {
			t.Errorf("%s: %d, want %d", file, got, want)
		}
	}
}

func TestCDIDirs(t *testing.T) {
	for file, want := range map[string][]string{
		`{}`:                          {"/etc/cdi", "/var/run/cdi"},
		`{"cdi-spec-dirs": ["/x"]}`:   {"/x"},
		`{"cdi-spec-dirs": []}`:       {},
		`{"cdi-spec-dirs": [""]}`:     nil,
		`{"features": {"cdi": true}}`: {"/etc/cdi", "/var/run/cdi"},
		`{"features": {"cdi": false}, "cdi-spec-dirs": ["/x"]}`: nil,
	} {
		c, _, err := load(t, file, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, c.CDIDirs()); diff != "" {
			t.Errorf("%s: %s", file, diff)
		}
	}
}

func TestReloadable(t *testing.T) {
	a, b := Default(), Default()
	b.Debug, b.RegistryMirrors, b.DataRoot, b.IPv6 = true, []string{"http://x/"}, "/elsewhere", true
	live, restart := Reloadable(&a, &b)
	if diff := cmp.Diff([]string{"debug", "registry-mirrors"}, live); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"data-root"}, restart); diff != "" {
		t.Error(diff)
	}
	next := a.Take(&b)
	if !next.Debug || next.DataRoot != a.DataRoot || len(next.RegistryMirrors) != 1 {
		t.Errorf("Take = %+v", next)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(`{"registry-mirros":["https://a.example"],"debug":true}`)
	f.Add(`{"default-shm-size":"1e9","proxies":{},"runtimes":{"a":{"path":"/x"}}}`)
	path := filepath.Join(f.TempDir(), "daemon.json")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, _, err := Load(path, nil)
		if err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("Load = %v, want class Invalid", err)
		}
		if err == nil {
			if _, err := c.check(""); err != nil {
				t.Errorf("a loaded config does not pass its own check: %v", err)
			}
		}
	})
}

// An error in a flag does not name the file, which may not even exist; one in the file does, whatever the flags are.
func TestErrorsNameTheirSource(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.json"), filepath.Join(dir, "bad.json")
	for path, text := range map[string]string{good: `{"debug": true}`, bad: `{"log-format": "xml"}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{good, filepath.Join(dir, "none.json")} {
		_, _, err := Load(path, map[string][]string{"log-level": {"loud"}})
		if err == nil || strings.Contains(err.Error(), path) || !strings.HasPrefix(err.Error(), "command line: log-level: ") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, _, err := Load(bad, map[string][]string{"debug": {"true"}}); err == nil || !strings.HasPrefix(err.Error(), bad+": log-format: ") {
		t.Errorf("%v", err)
	}
}
