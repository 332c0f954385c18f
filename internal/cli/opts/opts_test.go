package opts

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"ply/internal/wire"
)

func TestPorts(t *testing.T) {
	pb := func(ip, p string) []wire.PortBinding { return []wire.PortBinding{{HostIP: ip, HostPort: p}} }
	for _, c := range []struct {
		publish, expose string
		bound           map[string][]wire.PortBinding
		err             string
	}{
		{"80", "", map[string][]wire.PortBinding{"80/tcp": pb("", "")}, ""},
		{"5000:5000", "", map[string][]wire.PortBinding{"5000/tcp": pb("", "5000")}, ""},
		{"127.0.0.1:53:53/udp", "", map[string][]wire.PortBinding{"53/udp": pb("127.0.0.1", "53")}, ""},
		{"127.0.0.1::80", "", map[string][]wire.PortBinding{"80/tcp": pb("127.0.0.1", "")}, ""},
		{"[::1]:1:2", "", map[string][]wire.PortBinding{"2/tcp": pb("::1", "1")}, ""},
		{"::1:1:2", "", map[string][]wire.PortBinding{"2/tcp": pb("::1", "1")}, ""},
		{"8000-8001:80-81", "", map[string][]wire.PortBinding{"80/tcp": pb("", "8000"), "81/tcp": pb("", "8001")}, ""},
		{"8000-8009:80", "", map[string][]wire.PortBinding{"80/tcp": pb("", "8000-8009")}, ""},
		{"80-81", "", map[string][]wire.PortBinding{"80/tcp": pb("", ""), "81/tcp": pb("", "")}, ""},
		{"target=80,published=8080,protocol=udp", "", map[string][]wire.PortBinding{"80/udp": pb("", "8080")}, ""},
		{"", "7-8/sctp", map[string][]wire.PortBinding{}, ""},
		{"8000-8001:80-83", "", nil, "invalid ranges"},
		{"x:80", "", nil, "invalid hostPort: x"},
		{"80:", "", nil, "no port specified"},
		{"1:70000", "", nil, "invalid containerPort"},
		{"80/icmp", "", nil, "invalid proto"},
		{"1.2.3:1:2", "", nil, "invalid IP address"},
		{"9-8", "", nil, "invalid containerPort"},
		{"target=,published=1", "", nil, "invalid field"},
		{"", "1:2", nil, "invalid port format for --expose"},
	} {
		var p, e []string
		if c.publish != "" {
			p = []string{c.publish}
		}
		if c.expose != "" {
			e = []string{c.expose}
		}
		_, got, err := Ports(p, e)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("Ports(%q): %v, want %s", c.publish+c.expose, err, c.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.bound) {
			t.Errorf("Ports(%q) = %v, %v, want %v", c.publish, got, err, c.bound)
		}
	}
	exposed, _, err := Ports(nil, []string{"7-8/sctp"})
	if _, ok := exposed["8/sctp"]; err != nil || !ok || len(exposed) != 2 {
		t.Errorf("expose: %v %v", exposed, err)
	}
}

func TestEnvFile(t *testing.T) {
	t.Setenv("FROM_HERE", "here")
	os.Unsetenv("NOT_SET_ANYWHERE")
	name := filepath.Join(t.TempDir(), "env")
	for text, want := range map[string]any{
		"\xef\xbb\xbfA=1\n# no\n\n  B = x # kept \nFROM_HERE\nNOT_SET_ANYWHERE\nC=\nD=a=b": "variable 'B ' contains whitespaces",
		"\xef\xbb\xbfA=1\n# no\n\n  B= x # kept \nFROM_HERE\nNOT_SET_ANYWHERE\nC=\nD=a=b":  []string{"A=1", "B= x # kept ", "FROM_HERE=here", "C=", "D=a=b"},
		"=x":      "no variable name on line '=x'",
		"A=\xff":  "invalid utf8 bytes at line 1",
		"A B=1":   "contains whitespaces",
		"A=1\r\n": []string{"A=1"},
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := EnvFiles([]string{name})
		switch w := want.(type) {
		case string:
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%q: %v, want %s", text, err, w)
			}
		case []string:
			if err != nil || !reflect.DeepEqual(got, w) {
				t.Errorf("%q: %q %v, want %q", text, got, err, w)
			}
		}
	}
	if got, err := Env("FROM_HERE"); got != "FROM_HERE=here" || err != nil {
		t.Errorf("Env: %q %v", got, err)
	}
	if got, err := Env("NOT_SET_ANYWHERE"); got != "NOT_SET_ANYWHERE" || err != nil {
		t.Errorf("Env: %q %v", got, err)
	}
	if _, err := Env("=x"); err == nil {
		t.Error("Env took an empty name")
	}
}

func TestVolumes(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("HOME", "/home/me")
	dir, _ = os.Getwd()
	binds, anon, err := Volumes([]string{"/a:/b", "v:/c:ro", "/only", "./x:/y", "~/z:/z", ".:/dot"})
	want := []string{"/a:/b", "v:/c:ro", dir + "/x:/y", "/home/me/z:/z", dir + ":/dot"}
	if err != nil || !reflect.DeepEqual(binds, want) || !reflect.DeepEqual(anon, map[string]struct{}{"/only": {}}) {
		t.Errorf("got %q %v %v", binds, anon, err)
	}
	for _, bad := range []string{"", "/", ":/a", "/a:"} {
		if _, _, err := Volumes([]string{bad}); err == nil {
			t.Errorf("Volumes(%q) was accepted", bad)
		}
	}
}

func TestMounts(t *testing.T) {
	for in, want := range map[string]any{
		"type=bind,src=/a,dst=/b,ro,bind-propagation=rslave": wire.Mount{Type: "bind", Source: "/a", Target: "/b", ReadOnly: true, BindOptions: &wire.BindOptions{Propagation: "rslave"}},
		"target=/d,volume-label=a=b,volume-opt=type=nfs":     wire.Mount{Type: "volume", Target: "/d", VolumeOptions: &wire.VolumeOptions{Labels: map[string]string{"a": "b"}, DriverConfig: &wire.VolumeDriver{Options: map[string]string{"type": "nfs"}}}},
		"type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770":    wire.Mount{Type: "tmpfs", Target: "/t", TmpfsOptions: &wire.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o1770}},
		`type=bind,"src=/a,b",dst=/b,readonly=false`:         wire.Mount{Type: "bind", Source: "/a,b", Target: "/b"},
		"type=image,src=busybox,dst=/i,image-subpath=bin":    wire.Mount{Type: "image", Source: "busybox", Target: "/i", ImageOptions: &wire.ImageOptions{Subpath: "bin"}},
		"type=bind,src=/a":                            "target is required",
		"type=bind,dst=/a,volume-nocopy":              "cannot mix 'volume-*' options with mount type 'bind'",
		"type=bind,dst=/a,foo=1":                      "unexpected key 'foo' in 'foo=1'",
		"type=bind,dst=/a,foo":                        "invalid field 'foo' must be a key=value pair",
		"type=bind,dst=/a,ro=maybe":                   "invalid value for ro: maybe",
		"type=bind,dst=/a,bind-recursive=writable":    "requires 'readonly'",
		"type=tmpfs,dst=/a,tmpfs-size=big":            "invalid value for tmpfs-size",
		"type=bind,src=/a,dst=/b,bind-nonrecursive=1": "bind-recursive=disabled",
	} {
		var m Mounts
		err := m.Set(in)
		if text, bad := want.(string); bad {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, want %s", in, err, text)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(m.List[0], want) {
			t.Errorf("%s: %+v %v, want %+v", in, m.List, err, want)
		}
	}
}

func TestSmallValues(t *testing.T) {
	type try struct {
		what string
		f    func(string) (string, error)
		in   string
		want string // "" means refused
	}
	for _, c := range []try{
		{"add-host", ExtraHost, "a:1.2.3.4", "a:1.2.3.4"},
		{"add-host", ExtraHost, "a=::1", "a:::1"},
		{"add-host", ExtraHost, "a:[::1]", "a:::1"},
		{"add-host", ExtraHost, "a:host-gateway", "a:host-gateway"},
		{"add-host", ExtraHost, "a:nope", ""},
		{"add-host", ExtraHost, "a", ""},
		{"dns", IP, " 1.1.1.1", "1.1.1.1"},
		{"dns", IP, "x", ""},
		{"link", Link, "a:b", "a:b"},
		{"link", Link, "a:b:c", ""},
		{"attach", Attach, "STDIN", "stdin"},
		{"attach", Attach, "x", ""},
		{"rule", DeviceRule, "c 1:* rwm", "c 1:* rwm"},
		{"rule", DeviceRule, "d 1:* rwm", ""},
		{"rule", DeviceRule, "c 1 rwm", ""},
		{"label", Label, "a", "a"},
		{"label", Label, "=a", ""},
	} {
		got, err := c.f(c.in)
		if (err != nil) != (c.want == "") || err == nil && got != c.want {
			t.Errorf("%s %q: %q %v, want %q", c.what, c.in, got, err, c.want)
		}
	}
	for in, want := range map[string]wire.DeviceMapping{
		"/dev/a":         {PathOnHost: "/dev/a", PathInContainer: "/dev/a", CgroupPermissions: "rwm"},
		"/dev/a:r":       {PathOnHost: "/dev/a", PathInContainer: "/dev/a", CgroupPermissions: "r"},
		"/dev/a:/dev/b:": {},
		"/dev/a:/b:rw":   {PathOnHost: "/dev/a", PathInContainer: "/b", CgroupPermissions: "rw"},
		"dev":            {},
		"/dev/a:/b:rr":   {},
	} {
		got, err := Device(in)
		if (err != nil) != (want == wire.DeviceMapping{}) || err == nil && got != want {
			t.Errorf("Device(%q) = %+v, %v", in, got, err)
		}
	}
	var c CPUs
	if c.Set("1.5") != nil || c != 1500000000 || c.Set("0.0000000001") == nil || c.Set("x") == nil {
		t.Errorf("cpus: %v", c)
	}
	b := Bytes{Signed: true}
	if b.Set("64m") != nil || b.N != 64<<20 || b.Set("-1") != nil || b.N != -1 || b.Set("big") == nil {
		t.Errorf("bytes: %+v", b)
	}
	if p, err := Restart("on-failure:3"); err != nil || p.MaximumRetryCount != 3 {
		t.Errorf("restart: %+v %v", p, err)
	}
	if _, err := Restart("on-failure:x"); err == nil {
		t.Error("restart took a word for a count")
	}
	for in, want := range map[string]string{"": "\x10\x11", "ctrl-a,b": "\x01b", "ctrl-@,ctrl-_": "\x00\x1f", "ctrl-": "!", "ctrl-1": "!", "ab": "!"} {
		got, err := DetachKeys(in)
		if want == "!" && err == nil || want != "!" && (err != nil || string(got) != want) {
			t.Errorf("DetachKeys(%q) = %q, %v", in, got, err)
		}
	}
	now := time.Date(2026, 11, 21, 12, 0, 0, 5, time.UTC)
	for in, want := range map[string]string{
		"10s": "1795262390.000000005", "2026-11-21": "1795219200.000000000", "2026-11-21T12:00:00Z": "1795262400.000000000",
		"2026-11-21T12:00:00.5+01:00": "1795258800.500000000", "123.456": "123.456", "123": "123", "0": "0", "0s": "1795262400.000000005", "yesterday": "",
	} {
		got, err := Timestamp(in, now)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("Timestamp(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	var n Networks
	if err := n.Set("name=x,alias=a,alias=b,ip=1.2.3.4,driver-opt=k=v"); err != nil || len(n.List[0].Aliases) != 2 || n.List[0].DriverOpts["k"] != "v" {
		t.Errorf("network: %+v %v", n, err)
	}
	for _, bad := range []string{"alias=a", "name=x,foo=1", "name=x,mac-address=zz"} {
		if n.Set(bad) == nil {
			t.Errorf("network %q was accepted", bad)
		}
	}
	sec := filepath.Join(t.TempDir(), "p.json")
	os.WriteFile(sec, []byte("{ \"a\": 1 }\n"), 0o600)
	out, un, err := Security([]string{"no-new-privileges", "label:disable", "seccomp=" + sec, "systempaths=unconfined"})
	if err != nil || !un || !reflect.DeepEqual(out, []string{"no-new-privileges", "label=disable", `seccomp={"a":1}`}) {
		t.Errorf("security: %q %v %v", out, un, err)
	}
	if _, _, err := Security([]string{"nonsense"}); err == nil {
		t.Error("security took nonsense")
	}
}
