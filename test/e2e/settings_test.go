package e2e

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"ply/internal/config"
	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// setting shows the effect of one key of daemon.json to a user of docker's command line. $NAME in its texts is a fixture of
// settingsWorld.
type setting struct {
	value string   // in daemon.json; "" for a flag without a key
	flags []string // values of the flag; nil = the value
	// see returns what a user sees. with and without are regular expressions for all of it, with the setting and without it.
	see           func(w *settingsWorld) string
	with, without string
	group         string // settings of a group are in force together; "" is a group too
}

// settings has a row for each key of daemon.json that has an effect, and one for each flag of plyd without a key. Keys without
// an effect, and keys that are refused, are known by their tags and need no row.
var settings = map[string]setting{
	"data-root":                {value: `"$DIR/elsewhere"`, see: infoOf("{{.DockerRootDir}}"), with: `.*/elsewhere`, without: `.*/data`},
	"exec-root":                {value: `"$DIR/runs"`, see: bundles, with: `runs`, without: `run`},
	"pidfile":                  {value: `"$DIR/number"`, see: pidOf("number"), with: `plyd`, without: ``},
	"hosts":                    {value: `["unix://$DIR/s", "unix://$DIR/second"]`, flags: []string{"unix://$DIR/s", "unix://$DIR/second"}, see: secondHost, with: `\d+\.\d+\.\d+`, without: `.*Cannot connect.*`},
	"group":                    {value: `"games"`, see: socketGroup, with: `games`, without: `(docker|root)`},
	"storage-driver":           {value: `"vfs"`, see: infoOf("{{.Driver}}"), with: `vfs`, without: `erofs|overlay2`},
	"storage-opts":             {value: `["overlay2.size=0"]`, flags: []string{"overlay2.size=0"}, see: story("storage_size.txtar", `{"storage-opts": ["overlay2.size=10m"]}`), with: `shown`, without: `shown`},
	"image-format":             {value: `"docker"`, see: pushedFormat, with: `application/vnd.docker.distribution.manifest.v2\+json`, without: `application/vnd.oci.image.manifest.v1\+json`},
	"retain-blobs":             {value: `"never"`, see: keptBlobs, with: `0 of 1`, without: `1 of 1`},
	"min-api-version":          {value: `"1.22"`, see: oldClient, with: `200`, without: `400`},
	"experimental":             {value: `true`, see: infoOf("{{.ExperimentalBuild}}"), with: `true`, without: `false`},
	"debug":                    {value: `true`, see: infoOf("{{.Debug}}"), with: `true`, without: `false`},
	"log-level":                {value: `"error"`, see: reloadLogged, with: `quiet`, without: `told`, group: "other"},
	"log-format":               {value: `"json"`, see: logFormat, with: `json`, without: `text`},
	"labels":                   {value: `["disk=fast"]`, flags: []string{"disk=fast"}, see: infoOf("{{.Labels}}"), with: `\[disk=fast\]`, without: `\[\]`},
	"log-driver":               {value: `"local"`, see: created("{{.HostConfig.LogConfig.Type}}"), with: `local`, without: `json-file`},
	"log-opts":                 {value: `{"max-size": "7m"}`, flags: []string{"max-size=7m"}, see: created("{{.HostConfig.LogConfig.Config}}"), with: `map\[max-size:7m\]`, without: `map\[\]`},
	"registry-mirrors":         {value: `["http://$FAKE"]`, flags: []string{"http://$FAKE"}, see: mirrored, with: `mirrors \[http://.*/\]: Downloaded`, without: `mirrors \[\]`},
	"insecure-registries":      {value: `["192.0.2.0/24"]`, flags: []string{"192.0.2.0/24"}, see: infoOf("{{.RegistryConfig.InsecureRegistryCIDRs}}"), with: `\[.*192\.0\.2\.0/24.*\]`, without: `\[.*127\.0\.0\.0/8.*\]`},
	"auth-realms":              {value: `["127.0.0.2"]`, flags: []string{"127.0.0.2"}, see: foreignRealm, with: `Downloaded`, without: `.*belongs to another domain.*`},
	"max-concurrent-downloads": {value: `2`, see: atOnce("pull"), with: `2`, without: `3`},
	"max-concurrent-uploads":   {value: `2`, see: atOnce("push"), with: `2`, without: `5`},
	"max-download-attempts":    {value: `1`, see: attempts, with: `1 attempt`, without: `tried again`},
	"proxies":                  {value: `{"http-proxy": "http://$PROXY1", "https-proxy": "http://$PROXY2", "no-proxy": "192.0.2.9"}`, see: proxied, with: proxiedAll, without: `\[\] \[\]`},
	"http-proxy":               {flags: []string{"http://$PROXY1"}, see: proxied, with: proxiedAll, without: `\[\] \[\]`, group: "flags"},
	"https-proxy":              {flags: []string{"http://$PROXY2"}, see: proxied, with: proxiedAll, without: `\[\] \[\]`, group: "flags"},
	"no-proxy":                 {flags: []string{"192.0.2.9"}, see: infoOf("{{.NoProxy}}"), with: `192\.0\.2\.9`, without: ``, group: "flags"},
	"default-ulimits":          {value: `{"nofile": {"Name": "nofile", "Soft": 321, "Hard": 654}}`, flags: []string{"nofile=321:654"}, see: inside("ulimit -n; ulimit -Hn"), with: `321 654`, without: `\d{4,} \d{4,}|unlimited unlimited`},
	"default-shm-size":         {value: `"3m"`, flags: []string{"3m"}, see: inside(`df -k /dev/shm | tail -1 | awk '{print $2}'`), with: `3072`, without: `65536`},
	"cgroup-parent":            {value: `"/ply-settings"`, see: cgroupOf, with: `(?s).*/ply-settings/.*`, without: `(?s).*/ply/.*`},
	"default-cgroupns-mode":    {value: `"$CGROUPNS"`, see: cgroupNamespace, with: `$CGROUPNS`, without: `$OTHERNS`},
	"default-ipc-mode":         {value: `"shareable"`, see: created("{{.HostConfig.IpcMode}}"), with: `shareable`, without: `private`},
	"default-runtime":          {value: `"mine"`, see: usedRuntime, with: `mine: used`, without: `ply|runc`, group: "runtime"},
	"runtimes":                 {value: `{"mine": {"path": "$DIR/runtime"}}`, flags: []string{"mine=$DIR/runtime"}, see: ran("--runtime", "mine", "busybox", "echo", "it runs"), with: `it runs`, without: `.*invalid runtime name: mine.*`, group: "runtime"},
	"init":                     {value: `true`, see: inside("cat /proc/1/cmdline | tr '\\0' ' '"), with: `/sbin/docker-init -- sh .*`, without: `sh -c .*`, group: "other"},
	"init-path":                {value: `"$DIR/init"`, see: ran("--init", "busybox", "true"), with: `my init`, without: ``},
	"exec-opts":                {value: `["native.cgroupdriver=systemd"]`, flags: []string{"native.cgroupdriver=systemd"}, see: warned("exec-opts: native.cgroupdriver=systemd: cgroups are made directly"), with: `warned`, without: `not warned`},
	"no-new-privileges":        {value: `true`, see: inside("grep NoNewPrivs /proc/self/status | cut -f 2"), with: `1`, without: `0`},
	"seccomp-profile":          {value: `"unconfined"`, see: inside("grep Seccomp: /proc/self/status | cut -f 2"), with: `0`, without: `2`},
	"live-restore":             {value: `false`, see: infoOf("{{.LiveRestoreEnabled}}"), with: `false`, without: `true`},
	"shutdown-timeout":         {value: `6`, see: story("live_restore.txtar", `"shutdown-timeout": 6`), with: `shown`, without: `shown`},
	"builder":                  {value: `{"gc": {"policy": [{"all": true, "maxUsedSpace": 1}]}, "entitlements": {"network-host": false}}`, see: buildPolicy, with: `refused, pruned`, without: `allowed, kept`},
	"cdi-spec-dirs":            {value: `["$DIR/cdi"]`, flags: []string{"$DIR/cdi"}, see: infoOf("{{.CDISpecDirs}}"), with: `\[.*/cdi\]`, without: `\[/etc/cdi /var/run/cdi\]`},
	"features":                 {value: `{"cdi": false}`, see: infoOf("{{.CDISpecDirs}}"), with: `\[\]`, without: `\[/etc/cdi /var/run/cdi\]`, group: "features"},
	"default-pids-limit":       {value: `77`, see: created("{{.HostConfig.PidsLimit}}"), with: `77`, without: `4096`},

	"bridge":                {value: `"$BRIDGE"`, see: bridgeThere, with: `there`, without: `not there`},
	"bridge-names":          {value: `true`, see: namedNeighbour, with: `found`, without: `not found`, group: "names"},
	"bip":                   {value: `"10.77.5.1/24"`, see: networkOf("{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}"), with: `10\.77\.5\.0/24 10\.77\.5\.1`, without: `172\..*`, group: "other"},
	"fixed-cidr":            {value: `"10.77.5.128/25"`, see: addressOf, with: `10\.77\.5\.(1[2-9]\d|2\d\d)`, without: `172\..*`, group: "other"},
	"default-address-pools": {value: `[{"base": "10.78.0.0/16", "size": 24}]`, flags: []string{"base=10.78.0.0/16,size=24"}, see: networkOf("{{range .IPAM.Config}}{{.Subnet}}{{end}}"), with: `10\.78\.\d+\.0/24`, without: `172\..*`},
	"default-network-opts":  {value: `{"bridge": {"com.docker.network.driver.mtu": "1357"}}`, flags: []string{"bridge=com.docker.network.driver.mtu=1357"}, see: mtuOfNew, with: `1357`, without: `1500`},
	"mtu":                   {value: `1234`, see: inside("cat /sys/class/net/eth0/mtu"), with: `1234`, without: `1500`},
	"dns":                   {value: `["192.0.2.53"]`, flags: []string{"192.0.2.53"}, see: inside("cat /etc/resolv.conf"), with: `nameserver 192\.0\.2\.53 .*`, without: notMatching},
	"dns-opts":              {value: `["ndots:9"]`, flags: []string{"ndots:9"}, see: inside("cat /etc/resolv.conf"), with: `.* options ndots:9`, without: notMatching},
	"dns-search":            {value: `["my.test"]`, flags: []string{"my.test"}, see: inside("cat /etc/resolv.conf"), with: `.* search my\.test .*`, without: notMatching},
	"resolv-conf":           {value: `"$DIR/resolv.conf"`, see: inside("cat /etc/resolv.conf"), with: `nameserver 192\.0\.2\.54`, without: notMatching, group: "other"},
	"host-gateway-ip":       {value: `"192.0.2.7"`, see: ran("--add-host", "gw:host-gateway", "busybox", "grep", "gw", "/etc/hosts"), with: `192\.0\.2\.7\tgw`, without: `172\..*\tgw`, group: "other"},
	"host-gateway-ips":      {value: `["192.0.2.7", "2001:db8::7"]`, flags: []string{"192.0.2.7", "2001:db8::7"}, see: ran("--add-host", "gw:host-gateway", "busybox", "grep", "gw", "/etc/hosts"), with: `192\.0\.2\.7\tgw 2001:db8::7\tgw`, without: `172\..*\tgw`},
	"ip":                    {value: `"127.0.0.1"`, see: publishedAt, with: `127\.0\.0\.1:\d+`, without: `0\.0\.0\.0:\d+.*`},
	"ip-forward":            {value: `false`, see: forwarding, with: `forwards 0, .*`, without: `forwards 1, restricted`, group: "forward"},
	"ip-forward-no-drop":    {value: `true`, see: forwarding, with: `forwards 1, open`, without: `forwards 1, restricted`, group: "open"},
	"ip-masq":               {value: `false`, see: masquerades, with: `no`, without: `yes`},
	"iptables":              {value: `false`, see: rules, with: `no table, warned`, without: `table, not warned`, group: "rules"},
	"userland-proxy":        {value: `false`, see: reachedOverIPv6Loopback, with: `not reached`, without: `reached`, group: "other"},
	"icc":                   {value: `false`, see: neighbours, with: `not reached`, without: `reached`},

	"tls":       {value: `true`, see: overTLS, with: `with a certificate: ok, without: refused`, without: `with a certificate: refused, without: refused`, group: "tls"},
	"tlsverify": {value: `true`, see: overTLS, with: `with a certificate: ok, without: refused`, without: `with a certificate: refused, without: refused`, group: "tlsverify"},
	"tlscacert": {value: `"$DIR/ca.pem"`, see: overTLS, with: `with a certificate: ok, without: refused`, without: `with a certificate: refused, without: refused`, group: "tls"},
	"tlscert":   {value: `"$DIR/cert.pem"`, see: overTLS, with: `with a certificate: ok, without: refused`, without: `with a certificate: refused, without: refused`, group: "tls"},
	"tlskey":    {value: `"$DIR/key.pem"`, see: overTLS, with: `with a certificate: ok, without: refused`, without: `with a certificate: refused, without: refused`, group: "tls"},
}

// notMatching stands for: anything but what with matches.
const notMatching = "(not with)"

// proxiedAll is what the proxies for http and for https see.
const proxiedAll = `\[GET http://192\.0\.2\.8:\d+\] \[CONNECT 192\.0\.2\.8:\d+\]`

// beside are settings that a group needs besides those that it shows, in the form of daemon.json.
var beside = map[string]map[string]string{
	"flags":     {"insecure-registries": `["192.0.2.0/24"]`},
	"tls":       {"hosts": `["unix://$DIR/s", "tcp://$TCP"]`},
	"tlsverify": {"hosts": `["unix://$DIR/s", "tcp://$TCP"]`, "tlscacert": `"$DIR/ca.pem"`, "tlscert": `"$DIR/cert.pem"`, "tlskey": `"$DIR/key.pem"`},
}

// liveInDocker are the keys that dockerd 28 puts in force at a reload and that have an effect here.
var liveInDocker = []string{
	"debug", "labels", "live-restore", "max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts", "default-runtime", "runtimes",
	"insecure-registries", "registry-mirrors", "shutdown-timeout", "features", "default-shm-size", "default-ipc-mode", "default-cgroupns-mode",
}

// key is a field of config.Config.
type key struct {
	name, flag       string // name is "" for a flag without a key
	ignored, refused string
	live             bool
	of               reflect.Type
}

func configKeys() (list []key) {
	t := reflect.TypeFor[config.Config]()
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		flag, _, _ := strings.Cut(tag.Get("flag"), ",")
		k := key{name: tag.Get("json"), flag: flag, ignored: tag.Get("ignored"), refused: tag.Get("refused"), live: tag.Get("live") != "", of: t.Field(i).Type}
		if k.name != "" || k.flag != "" {
			list = append(list, k)
		}
	}
	return list
}

// row returns the name of the key's row.
func (k key) row() string {
	if k.name != "" {
		return k.name
	}
	return k.flag
}

// sample returns a value of the key's type that is not empty, in JSON.
func (k key) sample(t *testing.T) string {
	switch k.of.Kind() {
	case reflect.Bool:
		return "true"
	case reflect.String:
		return `"1"`
	case reflect.Int, reflect.Int64:
		return "1"
	case reflect.Slice:
		return `["1"]`
	case reflect.Map, reflect.Struct:
		return "{}"
	}
	t.Fatalf("%s: no value of type %s", k.name, k.of)
	return ""
}

func TestEveryKeyHasARow(t *testing.T) {
	rows := map[string]bool{}
	for _, k := range configKeys() {
		_, has := settings[k.row()]
		switch {
		case k.ignored != "" || k.refused != "":
			if has {
				t.Errorf("%s has a row and no effect", k.row())
			}
		case !has:
			t.Errorf("%s has no row that shows its effect", k.row())
		case slices.Contains(liveInDocker, k.name) && !k.live:
			t.Errorf("a reload puts %s in force in dockerd, and not here", k.name)
		}
		rows[k.row()] = true
	}
	for name := range settings {
		if !rows[name] {
			t.Errorf("%s is no key", name)
		}
	}
}

// Keys that mean nothing to the engine are named in a warning, with the reason, in its log and by docker info.
func TestIgnoredKeysWarn(t *testing.T) {
	file := map[string]json.RawMessage{}
	var want []string
	for _, k := range configKeys() {
		if k.ignored != "" {
			file[k.name] = json.RawMessage(k.sample(t))
			want = append(want, k.name+": has no effect: "+k.ignored)
		}
	}
	w := prepareWorld(t)
	text, err := json.Marshal(file)
	if err == nil {
		err = os.WriteFile(filepath.Join(w.dir, "daemon.json"), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.startPlyd()
	for _, program := range []string{"ply", "docker", "docker20"} {
		o, e, err := w.run(program, "info")
		log, logErr := os.ReadFile(w.log)
		if err != nil || logErr != nil {
			t.Fatal(err, logErr)
		}
		for _, line := range want {
			if !strings.Contains(o+e, "daemon.json: "+line) {
				t.Errorf("%s info does not show: %s", program, line)
			}
			if !strings.Contains(string(log), line) {
				t.Errorf("the log does not show: %s", line)
			}
		}
	}
	// A reload takes the warnings of the new file.
	if err := os.WriteFile(filepath.Join(w.dir, "daemon.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.hup()
	until(t, func() bool { return !strings.Contains(w.docker("info", "-f", "{{.Warnings}}"), "has no effect") }, func() string { return "the warnings stay" })
}

// Keys that an engine must not ignore are refused by name.
func TestRefusedKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.json")
	for _, k := range configKeys() {
		if k.refused == "" {
			continue
		}
		if err := os.WriteFile(file, fmt.Appendf(nil, `{%q: %s}`, k.name, k.sample(t)), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(filepath.Join(bin, "plyd"), "--validate", "--config-file", file).CombinedOutput()
		if err == nil || !strings.Contains(string(out), k.name+": not supported: "+k.refused) {
			t.Errorf("%s: %v: %s", k.name, err, out)
		}
	}
}

// settingsWorld is a plyd and what settings refer to.
type settingsWorld struct {
	*world
	t     *testing.T
	fakes *settingsFixtures
	vars  map[string]string
}

// settingsFixtures are servers that are shared by the worlds.
type settingsFixtures struct {
	fake, target *remotetest.Fake
	proxies      [2]*recordingProxy
	authority    *authority
	runc         string
	seed         uint64
}

// recordingProxy refuses every request and remembers its target.
type recordingProxy struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func (p *recordingProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	target := r.Host
	if r.Method != http.MethodConnect {
		target = "http://" + r.URL.Host
	}
	p.mu.Lock()
	p.seen = append(p.seen, r.Method+" "+target)
	p.mu.Unlock()
	w.WriteHeader(http.StatusBadGateway)
}

// take returns the distinct requests since the last call.
func (p *recordingProxy) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.Sort(p.seen)
	seen := slices.Compact(p.seen)
	p.seen = nil
	return seen
}

func newSettingsFixtures(t *testing.T) *settingsFixtures {
	f := &settingsFixtures{fake: remotetest.StartFake(t, false), target: remotetest.StartFake(t, false), authority: newAuthority(t), seed: 1000}
	for i := range f.proxies {
		p := &recordingProxy{}
		p.Server = httptest.NewServer(p)
		t.Cleanup(p.Close)
		f.proxies[i] = p
	}
	f.fake.Add("library/seen", "1", remotetest.Make(t, oci.FormatOCI, noise(900, 1000)))
	var err error
	if f.runc, err = exec.LookPath("runc"); err != nil {
		t.Fatal(err)
	}
	return f
}

// number returns a number that it has not returned before.
func (f *settingsFixtures) number() uint64 {
	f.seed++
	return f.seed
}

// image adds an image of n layers that no engine has seen.
func (f *settingsFixtures) image(t *testing.T, repo string, n int) *remotetest.Image {
	var layers []remotetest.LayerSpec
	for range n {
		layers = append(layers, noise(f.number(), 1000))
	}
	img := remotetest.Make(t, oci.FormatOCI, layers...)
	f.fake.Add(repo, "1", img)
	return img
}

// newSettingsWorld starts plyd with the settings of a group.
func newSettingsWorld(t *testing.T, f *settingsFixtures, group string) *settingsWorld {
	t.Helper()
	// The engine finds a host that does not forward, as after a boot.
	_ = exec.Command("nft", "delete", "table", "inet", "ply-forward").Run() // it need not exist
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	w := &settingsWorld{world: prepareWorld(t), t: t, fakes: f}
	other := map[bool]string{true: "host", false: "private"}
	w.vars = map[string]string{"DIR": w.dir, "FAKE": f.fake.Addr(), "PROXY1": f.proxies[0].Listener.Addr().String(), "PROXY2": f.proxies[1].Listener.Addr().String(),
		"BRIDGE": w.bridge + "x", "CGROUPNS": other[cgroupV2()], "OTHERNS": other[!cgroupV2()], "TCP": remotetest.FreeAddr(t)}
	w.makeFiles()
	base := map[string][]string{"data-root": {w.dir + "/data"}, "exec-root": {w.dir + "/run"}, "hosts": {"unix://" + w.sock}, "pidfile": {w.dir + "/pid"},
		"bridge": {w.bridge}}
	flagOf := map[string]string{}
	for _, k := range configKeys() {
		flagOf[k.row()] = k.flag
	}
	file, flags := map[string]json.RawMessage{}, map[string][]string{}
	set := func(name string, s setting) {
		delete(base, name)
		if s.value != "" {
			file[name] = json.RawMessage(w.expand(s.value))
			return
		}
		for _, v := range s.flags {
			flags[flagOf[name]] = append(flags[flagOf[name]], w.expand(v))
		}
	}
	for name, value := range beside[group] {
		set(name, setting{value: value})
	}
	for name, s := range settings {
		if s.group == group {
			set(name, s)
		}
	}
	if group == settings["bip"].group {
		delete(base, "bridge") // an address is for the engine's own bridge
	}
	w.flags = []string{"--config-file", filepath.Join(w.dir, "daemon.json")}
	for name, values := range base {
		flags[flagOf[name]] = append(flags[flagOf[name]], values...)
	}
	for flag, values := range flags {
		for _, v := range values {
			w.flags = append(w.flags, "--"+flag+"="+v)
		}
	}
	w.write("daemon.json", file)
	w.startPlyd()
	w.docker("import", "-c", `CMD ["sh"]`, filepath.Join(images, "busybox.tar"), "busybox")
	return w
}

func (w *settingsWorld) expand(s string) string {
	return os.Expand(s, func(name string) string {
		if v, ok := w.vars[name]; ok {
			return v
		}
		return "$" + name
	})
}

func (w *settingsWorld) write(name string, file map[string]json.RawMessage) {
	w.t.Helper()
	b, err := json.Marshal(file)
	if err == nil {
		err = os.WriteFile(filepath.Join(w.dir, name), b, 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// makeFiles writes the files that settings name.
func (w *settingsWorld) makeFiles() {
	w.t.Helper()
	a := w.fakes.authority
	cert, key := a.pair(&x509.Certificate{Subject: pkix.Name{CommonName: "plyd"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	mine, mineKey := a.pair(&x509.Certificate{Subject: pkix.Name{CommonName: "client"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	for name, text := range map[string]string{
		"init": "#!/bin/sh\necho my init\nshift\nexec \"$@\"\n", "runtime": "#!/bin/sh\n>>" + w.dir + "/used echo used\nexec " + w.fakes.runc + " \"$@\"\n",
		"resolv.conf": "nameserver 192.0.2.54\n", "ca.pem": a.pem(), "cert.pem": string(cert), "key.pem": string(key), "client.pem": string(mine), "client-key.pem": string(mineKey),
	} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
}

// check compares what a user sees of a setting with what the row expects.
func (w *settingsWorld) check(name string, with bool) {
	w.t.Helper()
	s := settings[name]
	got := s.see(w)
	want, not := s.with, s.without
	if !with {
		want, not = s.without, s.with
	}
	match := func(pattern string) bool {
		return regexp.MustCompile(`\A(?:` + w.expand(pattern) + `)\z`).MatchString(got)
	}
	switch {
	case want == notMatching && match(not), want != notMatching && !match(want):
		w.t.Errorf("%s: a user sees %q, want %q", name, got, w.expand(want))
	}
}

// Each key of daemon.json, and each flag of plyd, has an effect that a user of docker's command line sees. Without the key the effect is
// absent. A reload puts the live keys in force.
func TestSettings(t *testing.T) {
	f := newSettingsFixtures(t)
	rows := map[string][]string{} // by group
	for name, s := range settings {
		rows[s.group] = append(rows[s.group], name)
	}
	t.Run("without", func(t *testing.T) {
		w := newSettingsWorld(t, f, "none of them")
		for name := range settings {
			w.check(name, false)
		}
		file := map[string]json.RawMessage{}
		for _, k := range configKeys() {
			if k.live && k.ignored == "" {
				file[k.name] = json.RawMessage(w.expand(settings[k.name].value))
			}
		}
		w.write("daemon.json", file)
		w.hup()
		until(t, func() bool { return strings.Contains(w.docker("info", "-f", "{{.Labels}}"), "disk=fast") }, w.tail)
		for _, k := range configKeys() {
			if k.live && k.ignored == "" && k.name != "log-level" { // debug goes before it
				w.check(k.name, true)
			}
		}
		delete(file, "debug")
		w.write("daemon.json", file)
		w.hup()
		until(t, func() bool { return w.docker("info", "-f", "{{.Debug}}") == "false" }, w.tail)
		w.check("log-level", true)
	})
	for group, names := range rows {
		t.Run(cmp.Or(group, "with"), func(t *testing.T) {
			w := newSettingsWorld(t, f, group)
			for _, name := range names {
				w.check(name, true)
			}
		})
	}
}

// A flag is the same setting as its key.
func TestFlagsAreKeys(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"init", "ca.pem", "cert.pem", "key.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	vars := map[string]string{"DIR": dir, "FAKE": "127.0.0.1:1", "TCP": "127.0.0.1:2", "CGROUPNS": "private", "BRIDGE": "mine"}
	expand := func(s string) string { return os.Expand(s, func(name string) string { return vars[name] }) }
	file := filepath.Join(dir, "daemon.json")
	for _, k := range configKeys() {
		s, ok := settings[k.name]
		if !ok || k.flag == "" {
			continue
		}
		value := expand(s.value)
		flags := map[string][]string{k.flag: {strings.Trim(value, `"`)}}
		if s.flags != nil {
			flags[k.flag] = nil
			for _, v := range s.flags {
				flags[k.flag] = append(flags[k.flag], expand(v))
			}
		}
		if k.name == "default-runtime" { // it has to be among the runtimes
			value, flags["add-runtime"] = value+`, "runtimes": {"mine": {"path": "/mine"}}`, []string{"mine=/mine"}
		}
		if err := os.WriteFile(file, fmt.Appendf(nil, `{%q: %s}`, k.name, value), 0o644); err != nil {
			t.Fatal(err)
		}
		byKey, _, err := config.Load(file, nil)
		if err != nil {
			t.Errorf("%s: %v", k.name, err)
			continue
		}
		byFlag, _, err := config.Load("", flags)
		if err != nil {
			t.Errorf("--%s: %v", k.flag, err)
			continue
		}
		byKey.Warnings, byFlag.Warnings = nil, nil // those of the file name it
		if diff := gocmp.Diff(byKey, byFlag); diff != "" {
			t.Errorf("--%s differs from %s (-key +flag):\n%s", k.flag, k.name, diff)
		}
	}
}

// hup makes plyd read its configuration again.
func (w *world) hup() {
	w.t.Helper()
	if err := w.plyd.Process.Signal(syscall.SIGHUP); err != nil {
		w.t.Fatal(err)
	}
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// What a user sees.

// said runs docker and returns what it printed, in one line.
func (w *settingsWorld) said(args ...string) string {
	o, e, err := w.run("docker", args...)
	if err != nil {
		return strings.Join(strings.Fields(e), " ")
	}
	lines := strings.Split(strings.TrimSpace(o), "\n")
	return strings.Join(lines, " ")
}

func infoOf(format string) func(*settingsWorld) string {
	return func(w *settingsWorld) string { return w.said("info", "-f", format) }
}

// networkOf shows the default network while a container uses it.
func networkOf(format string) func(*settingsWorld) string {
	return func(w *settingsWorld) string {
		return w.sleeper(func(string) string { return w.said("network", "inspect", "-f", format, "bridge") })
	}
}

// mtuOfNew returns the MTU in a container on a network that was made just now.
func mtuOfNew(w *settingsWorld) string {
	w.said("network", "create", "fresh")
	defer w.said("network", "rm", "fresh")
	return w.said("run", "--rm", "--network", "fresh", "busybox", "cat", "/sys/class/net/eth0/mtu")
}

func bridgeThere(w *settingsWorld) string {
	return w.sleeper(func(string) string {
		if exec.Command("ip", "link", "show", w.vars["BRIDGE"]).Run() != nil {
			return "not there"
		}
		return "there"
	})
}

// ran shows the output of a container.
func ran(args ...string) func(*settingsWorld) string {
	return func(w *settingsWorld) string {
		line := []string{"run", "--rm"}
		for _, a := range args {
			line = append(line, w.expand(a))
		}
		return w.said(line...)
	}
}

// buildPolicy shows whether a build may use the network of the host, and whether the cache keeps a step without an image after the next build.
func buildPolicy(w *settingsWorld) string {
	w.t.Setenv("DOCKER_BUILDKIT", "0")
	build := func(run string, args ...string) string {
		dir := w.t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM busybox\nRUN "+run+"\n"), 0o644); err != nil {
			w.t.Fatal(err)
		}
		return w.said(append(append([]string{"build", "-t", "mine"}, args...), dir)...)
	}
	network := "allowed"
	if strings.Contains(build("true", "--network", "host"), "network.host is not allowed by build daemon configuration") {
		network = "refused"
	}
	build("head -c 123000 /dev/zero >/zeros")
	w.docker("rmi", "mine")
	build("echo two >/two")
	w.docker("rmi", "mine")
	kept := func() bool { return strings.Contains(w.docker("system", "df", "-v"), "123kB") }
	if network == "refused" { // the builds are pruned behind
		until(w.t, func() bool { return !kept() }, w.tail)
	}
	if kept() {
		return network + ", kept"
	}
	return network + ", pruned"
}

func inside(script string) func(*settingsWorld) string { return ran("busybox", "sh", "-c", script) }

// created shows a field of a new container.
func created(format string) func(*settingsWorld) string {
	return func(w *settingsWorld) string {
		id := w.docker("create", "busybox", "true")
		defer w.docker("rm", id)
		return w.said("inspect", "-f", format, id)
	}
}

// container runs one in the background until the end of the test's look at it.
func (w *settingsWorld) container(look func(id string) string, args ...string) string {
	id := w.docker(append([]string{"run", "-d", "--stop-signal", "KILL"}, args...)...)
	defer w.docker("rm", "-f", id)
	return look(id)
}

func (w *settingsWorld) sleeper(look func(id string) string) string {
	return w.container(look, "busybox", "sleep", "600")
}

// story refers to a story that shows the effect.
func story(file, text string) func(*settingsWorld) string {
	return func(w *settingsWorld) string {
		b, err := os.ReadFile(filepath.Join("testdata", "script", file))
		if err != nil || !strings.Contains(string(b), text) {
			return fmt.Sprintf("%s does not show %s: %v", file, text, err)
		}
		return "shown"
	}
}

func warned(text string) func(*settingsWorld) string {
	return func(w *settingsWorld) string {
		if strings.Contains(w.said("info", "-f", "{{json .Warnings}}"), text) {
			return "warned"
		}
		return "not warned"
	}
}

func bundles(w *settingsWorld) string {
	return w.sleeper(func(id string) string {
		for _, root := range []string{"run", "runs"} {
			if _, err := os.Stat(filepath.Join(w.dir, root, "containers", id)); err == nil {
				return root
			}
		}
		return "neither"
	})
}

func pidOf(file string) func(*settingsWorld) string {
	return func(w *settingsWorld) string {
		b, err := os.ReadFile(filepath.Join(w.dir, file))
		if err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(w.plyd.Process.Pid) {
			return "plyd"
		}
		return string(b)
	}
}

func secondHost(w *settingsWorld) string {
	return w.said("-H", "unix://"+w.dir+"/second", "version", "-f", "{{.Server.Version}}")
}

// oldClient shows the status that a client of before 1.24 gets.
func oldClient(w *settingsWorld) string {
	r, err := w.client().Get("http://ply/v1.22/containers/json")
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	return strconv.Itoa(r.StatusCode)
}

func socketGroup(w *settingsWorld) string {
	out, err := exec.Command("stat", "-c", "%G", w.sock).Output()
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

func pushedFormat(w *settingsWorld) string {
	name := w.fakes.target.Addr() + "/made/here:1"
	w.docker("tag", "busybox", name)
	defer w.docker("rmi", name)
	w.docker("push", "-q", name)
	mediaType, _ := w.fakes.target.Manifest("made/here", "1")
	return mediaType
}

func keptBlobs(w *settingsWorld) string {
	img := w.fakes.image(w.t, "kept", 1)
	w.docker("pull", "-q", w.fakes.fake.Addr()+"/kept:1")
	n := 0
	_ = filepath.WalkDir(filepath.Join(w.docker("info", "-f", "{{.DockerRootDir}}"), "blobs"), func(_ string, d os.DirEntry, err error) error { // a file that vanishes is not there
		if err == nil && d.Name() == strings.TrimPrefix(string(img.Layers[0].Digest), "sha256:") {
			n++
		}
		return nil
	})
	return fmt.Sprintf("%d of 1", min(n, 1))
}

// reloadLogged reloads the configuration and reports whether the log told it.
func reloadLogged(w *settingsWorld) string {
	count := func() int {
		b, err := os.ReadFile(w.log)
		if err != nil {
			w.t.Fatal(err)
		}
		return bytes.Count(b, []byte("configuration reloaded"))
	}
	before, since := count(), time.Now()
	w.hup()
	until(w.t, func() bool {
		return strings.Contains(w.docker("events", "--since", fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond()), "--until", "0s", "-f", "type=daemon"), "reload")
	}, w.tail)
	if count() > before {
		return "told"
	}
	return "quiet"
}

func logFormat(w *settingsWorld) string {
	b, err := os.ReadFile(w.log)
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "plyd is up") {
			if json.Valid([]byte(line)) {
				return "json"
			}
			return "text"
		}
	}
	return "nothing logged"
}

func mirrored(w *settingsWorld) string {
	mirrors := "mirrors " + w.said("info", "-f", "{{.RegistryConfig.Mirrors}}")
	if strings.HasSuffix(mirrors, "[]") {
		return mirrors
	}
	return mirrors + ": " + w.pulled("seen:1")
}

// pulled pulls an image and returns Downloaded or the error.
func (w *settingsWorld) pulled(name string) string {
	o, e, err := w.run("docker", "pull", name)
	if err != nil {
		return strings.Join(strings.Fields(e), " ")
	}
	if !strings.Contains(o, "Downloaded newer image") {
		return o
	}
	return "Downloaded"
}

// foreignRealm pulls from a registry that names a token server in another domain.
func foreignRealm(w *settingsWorld) string {
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		w.t.Fatal(err)
	}
	tokens := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		fmt.Fprint(rw, `{"token": "let-me-in"}`)
	})}}
	tokens.Start()
	defer tokens.Close()
	f := w.fakes.fake
	w.fakes.image(w.t, "private", 1)
	f.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer let-me-in" {
			return false
		}
		rw.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL+`/token",service="registry"`)
		remotetest.Refuse(rw, http.StatusUnauthorized, "UNAUTHORIZED", "a token is needed")
		return true
	}
	defer func() { f.Hook = nil }()
	return w.pulled(f.Addr() + "/private:1")
}

// atOnce returns how many layers are transferred at the same time. Under load fewer than allowed may be, so it tries again with
// more patience.
func atOnce(verb string) func(*settingsWorld) string {
	return func(w *settingsWorld) string {
		var now, most atomic.Int32
		var last atomic.Pointer[time.Time] // when a request arrived
		for _, pause := range []time.Duration{150 * time.Millisecond, 400 * time.Millisecond} {
			f := w.fakes
			f.image(w.t, "many", 7)
			count := func(rw http.ResponseWriter, r *http.Request, from *remotetest.Fake, counted bool) bool {
				if !counted {
					return false
				}
				n := now.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				arrived := time.Now()
				last.Store(&arrived)
				for time.Since(*last.Load()) < pause { // long enough for the next one to arrive
					time.Sleep(10 * time.Millisecond)
				}
				from.Answer(rw, r)
				now.Add(-1)
				return true
			}
			name := f.fake.Addr() + "/many:1"
			if verb == "pull" {
				f.fake.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
					config := strings.HasSuffix(r.URL.Path, string(f.configOf("many")))
					return count(rw, r, f.fake, r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && !config)
				}
			}
			w.docker("pull", "-q", name)
			f.fake.Hook = nil
			if verb == "push" {
				f.target.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
					return count(rw, r, f.target, r.Method == http.MethodPost && strings.Contains(r.URL.Path, "/blobs/uploads"))
				}
				copied := fmt.Sprintf("%s/many%d:1", f.target.Addr(), f.number())
				w.docker("tag", name, copied)
				w.docker("push", "-q", copied)
				f.target.Hook = nil
				w.docker("rmi", copied)
			}
			w.docker("rmi", name)
		}
		return strconv.Itoa(int(most.Load()))
	}
}

// configOf returns the digest of the config of an image.
func (f *settingsFixtures) configOf(repo string) oci.Digest {
	_, data := f.fake.Manifest(repo, "1")
	var m struct{ Config oci.Descriptor }
	_ = json.Unmarshal(data, &m) // made by remotetest
	return m.Config.Digest
}

// attempts shows whether a download that breaks is tried again.
func attempts(w *settingsWorld) string {
	f := w.fakes
	img := f.image(w.t, "breaking", 1)
	var asked atomic.Int32
	f.fake.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if l := remotetest.LayerOf(r, img); l == nil || r.Method != http.MethodGet {
			return false
		}
		asked.Add(1)
		f.fake.ServeSome(rw, r, remotetest.LayerOf(r, img), 100)
		remotetest.CutOff(rw, true)
		return true
	}
	defer func() { f.fake.Hook = nil }()
	c := exec.Command("docker", "pull", "-q", f.fake.Addr()+"/breaking:1")
	c.Env = append(os.Environ(), w.clientEnv()...)
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = c.Wait(); close(ended) }() // it fails
	defer func() { _ = c.Process.Kill(); <-ended }()
	for range 6000 {
		if asked.Load() > 1 {
			return "tried again"
		}
		select {
		case <-ended:
			return fmt.Sprintf("%d attempt", asked.Load())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return "nothing happens"
}

// proxied returns what the two proxies are asked for when registries without a route to them are used.
func proxied(w *settingsWorld) string {
	for _, p := range w.fakes.proxies {
		p.take()
	}
	for _, host := range []string{"192.0.2.8", "192.0.2.9"} {
		w.said("pull", "-q", fmt.Sprintf("%s:%d/app", host, 5000+w.fakes.number())) // one that the engine knows nothing of
	}
	return fmt.Sprint(w.fakes.proxies[0].take(), " ", w.fakes.proxies[1].take())
}

func cgroupOf(w *settingsWorld) string {
	return w.sleeper(func(id string) string {
		b, err := os.ReadFile("/proc/" + w.said("inspect", "-f", "{{.State.Pid}}", id) + "/cgroup")
		if err != nil {
			return err.Error()
		}
		return string(b)
	})
}

func cgroupNamespace(w *settingsWorld) string {
	return w.sleeper(func(id string) string {
		own, err := os.Readlink("/proc/self/ns/cgroup")
		its, err2 := os.Readlink("/proc/" + w.said("inspect", "-f", "{{.State.Pid}}", id) + "/ns/cgroup")
		if err != nil || err2 != nil {
			return fmt.Sprint(err, err2)
		}
		if own == its {
			return "host"
		}
		return "private"
	})
}

func usedRuntime(w *settingsWorld) string {
	_ = os.Remove(filepath.Join(w.dir, "used")) // it need not exist
	w.docker("run", "--rm", "busybox", "true")
	name := w.said("info", "-f", "{{.DefaultRuntime}}")
	if _, err := os.Stat(filepath.Join(w.dir, "used")); err == nil {
		name += ": used"
	}
	return name
}

func addressOf(w *settingsWorld) string {
	return w.sleeper(func(id string) string { return w.said("inspect", "-f", "{{.NetworkSettings.IPAddress}}", id) })
}

func publishedAt(w *settingsWorld) string {
	return w.container(func(id string) string { return w.said("port", id, "80/tcp") }, "-p", "80", "busybox", "sleep", "600")
}

func forwarding(w *settingsWorld) string {
	return w.sleeper(func(string) string {
		b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if err != nil {
			return err.Error()
		}
		how := "open"
		if exec.Command("nft", "list", "table", "inet", "ply-forward").Run() == nil {
			how = "restricted"
		}
		return fmt.Sprintf("forwards %s, %s", strings.TrimSpace(string(b)), how)
	})
}

func ruleset(w *settingsWorld) string {
	out, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		w.t.Fatal(err)
	}
	return string(out)
}

func masquerades(w *settingsWorld) string {
	return w.sleeper(func(string) string {
		if regexp.MustCompile(`set masq4 \{[^}]*elements = \{ 1`).MatchString(ruleset(w)) {
			return "yes"
		}
		return "no"
	})
}

func rules(w *settingsWorld) string {
	return w.sleeper(func(string) string {
		table := "no table"
		if strings.Contains(ruleset(w), `"`+w.bridge+`"`) {
			table = "table"
		}
		return table + ", " + warned("packet filter rules are switched off")(w)
	})
}

func reachedOverIPv6Loopback(w *settingsWorld) string {
	return w.container(func(id string) string {
		w.docker("exec", id, "sh", "-c", "until wget -q -O /dev/null http://127.0.0.1/; do sleep 0.1; done")
		port := regexp.MustCompile(`0\.0\.0\.0:(\d+)`).FindStringSubmatch(w.said("port", id, "80/tcp"))
		if port == nil {
			return "not published"
		}
		c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := c.Get("http://[::1]:" + port[1] + "/")
		if err != nil {
			return "not reached"
		}
		r.Body.Close()
		return "reached"
	}, "-p", "80", "busybox", "sh", "-c", "echo page >/tmp/index.html; exec httpd -f -h /tmp")
}

func neighbours(w *settingsWorld) string {
	return w.sleeper(func(id string) string {
		addr := w.said("inspect", "-f", "{{.NetworkSettings.IPAddress}}", id)
		if _, _, err := w.run("docker", "run", "--rm", "busybox", "ping", "-c", "1", "-W", "2", addr); err != nil {
			return "not reached"
		}
		return "reached"
	})
}

func namedNeighbour(w *settingsWorld) string {
	return w.sleeper(func(id string) string {
		if _, _, err := w.run("docker", "run", "--rm", "busybox", "ping", "-c", "1", "-W", "2", id[:12]); err != nil {
			return "not found"
		}
		return "found"
	})
}

func overTLS(w *settingsWorld) string {
	file := func(name string) string { return filepath.Join(w.dir, name) }
	how := func(args ...string) string {
		if _, _, err := w.run("docker", append(args, "-H", "tcp://"+w.vars["TCP"], "version")...); err != nil {
			return "refused"
		}
		return "ok"
	}
	return fmt.Sprintf("with a certificate: %s, without: %s",
		how("--tlsverify", "--tlscacert", file("ca.pem"), "--tlscert", file("client.pem"), "--tlskey", file("client-key.pem")),
		how("--tlsverify", "--tlscacert", file("ca.pem"), "--tlscert", file("absent.pem"), "--tlskey", file("absent.pem")))
}
