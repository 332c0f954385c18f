package container_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ply/internal/container"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/volume"
)

func TestListFilters(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	mk := func(name string, edit func(*spec.Spec)) string {
		s := sh("exit 2")
		s.Name = name
		if edit != nil {
			edit(&s)
		}
		return w.create(s)
	}
	a := mk("aa", func(s *spec.Spec) { s.Labels = map[string]string{"k": "v"}; s.ExposedPorts = []string{"80/tcp"} })
	exit := w.wait(a, container.WaitNextExit)
	w.start(a)
	recv(t, exit)
	mk("bb", func(s *spec.Spec) { s.Binds = []string{"vol:/vol"} })
	w.up(func(s *spec.Spec) {
		s.Name = "cc"
		s.PublishAll = true
		s.ExposedPorts = []string{"90/udp"}
		s.NetworkMode = "bridge"
	})
	if got := w.get("cc").Ports; len(got) != 1 || got[0].ContainerPort != 90 || got[0].Proto != "udp" || got[0].HostPort == 0 {
		t.Fatalf("ports %+v", got)
	}
	published := strconv.Itoa(int(w.get("cc").Ports[0].HostPort))
	for _, c := range []struct {
		opts container.ListOptions
		want string
	}{
		{container.ListOptions{}, "cc"},
		{container.ListOptions{All: true}, "cc bb aa"},
		{container.ListOptions{Limit: 2}, "cc bb"},
		{container.ListOptions{Filters: map[string][]string{"status": {"exited"}}}, "aa"},
		{container.ListOptions{Filters: map[string][]string{"status": {"exited", "created"}}}, "bb aa"},
		{container.ListOptions{Filters: map[string][]string{"exited": {"2"}}}, ""},
		{container.ListOptions{All: true, Filters: map[string][]string{"exited": {"2"}}}, "aa"},
		{container.ListOptions{Limit: 9, Filters: map[string][]string{"exited": {"2"}}}, "aa"},
		{container.ListOptions{All: true, Filters: map[string][]string{"name": {"^/a"}}}, "aa"},
		{container.ListOptions{All: true, Filters: map[string][]string{"id": {a[:6]}}}, "aa"},
		{container.ListOptions{All: true, Filters: map[string][]string{"label": {"k=v", "of"}}}, "aa"},
		{container.ListOptions{All: true, Filters: map[string][]string{"ancestor": {"box"}}}, "cc bb aa"},
		{container.ListOptions{All: true, Filters: map[string][]string{"ancestor": {"other"}}}, ""},
		{container.ListOptions{All: true, Filters: map[string][]string{"volume": {"/vol"}}}, "bb"},
		{container.ListOptions{All: true, Filters: map[string][]string{"network": {"bridge"}}}, "cc"},
		{container.ListOptions{All: true, Filters: map[string][]string{"expose": {"70-85"}}}, "aa"},
		{container.ListOptions{All: true, Filters: map[string][]string{"publish": {published + "/udp"}}}, "cc"},
		{container.ListOptions{All: true, Filters: map[string][]string{"publish": {published + "/tcp"}}}, ""},
		{container.ListOptions{All: true, Filters: map[string][]string{"publish": {"90/udp"}}}, ""},
		{container.ListOptions{All: true, Filters: map[string][]string{"before": {"bb"}}}, "aa"},
		{container.ListOptions{All: true, Filters: map[string][]string{"since": {"bb"}}}, "cc"},
		{container.ListOptions{Filters: map[string][]string{"before": {"cc"}}}, ""},
		{container.ListOptions{Filters: map[string][]string{"since": {"aa"}}}, "cc"},
		{container.ListOptions{All: true, Filters: map[string][]string{"health": {"none"}, "is-task": {"false"}}}, "cc bb aa"},
		{container.ListOptions{All: true, Filters: map[string][]string{"is-task": {"true"}}}, ""},
	} {
		got, err := w.s.List(ctx, c.opts)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, v := range got {
			names = append(names, v.Name)
		}
		if s := strings.Join(names, " "); s != c.want {
			t.Errorf("%+v: %q, want %q", c.opts, s, c.want)
		}
	}
	for k, v := range map[string]string{"colour": "red", "exited": "x", "status": "asleep", "health": "good", "publish": "x", "is-task": "x"} {
		_, err := w.s.List(ctx, container.ListOptions{Filters: map[string][]string{k: {v}}})
		wantErr(t, err, errs.Invalid, "")
	}
	sized, err := w.s.Get(ctx, a, true)
	if err != nil || sized.SizeRootFs < 1<<20 || sized.SizeRw < 0 {
		t.Errorf("sizes %d %d %v", sized.SizeRw, sized.SizeRootFs, err)
	}
	ids, _, err := w.s.Prune(ctx, map[string][]string{"label": {"k"}})
	if err != nil || !slices.Equal(ids, []oci.ContainerID{oci.ContainerID(a)}) {
		t.Errorf("pruned %v %v", ids, err)
	}
	if ids, _, err = w.s.Prune(ctx, nil); err != nil || len(ids) != 1 {
		t.Errorf("pruned %v %v", ids, err)
	}
	if !w.s.Running(string(w.get("cc").ID)) || len(w.s.InUse(w.get("cc").Image)) != 1 {
		t.Error("InUse or Running is wrong")
	}
}

func TestUpdate(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.up(func(s *spec.Spec) { s.Resources.Memory = 64 << 20 })
	n := int64(40)
	if _, err := w.s.Update(ctx, id, container.Settings{Resources: spec.Resources{Memory: 96 << 20, PidsLimit: &n}, RestartPolicy: &spec.RestartPolicy{Name: "on-failure", MaxRetries: 3}}); err != nil {
		t.Fatal(err)
	}
	c := w.get(id)
	if c.Spec.Resources.Memory != 96<<20 || c.Spec.RestartPolicy.MaxRetries != 3 {
		t.Errorf("spec %+v %+v", c.Spec.Resources, c.Spec.RestartPolicy)
	}
	var st container.Stats
	if err := w.s.Stats(ctx, id, false, func(s container.Stats) error { st = s; return nil }); err != nil {
		t.Fatal(err)
	}
	if st.Cgroup.MemoryLimit != 96<<20 || st.Cgroup.PidsLimit != 40 {
		t.Errorf("limits in force %d %d", st.Cgroup.MemoryLimit, st.Cgroup.PidsLimit)
	}
	_, err := w.s.Update(ctx, id, container.Settings{Resources: spec.Resources{Memory: 1 << 20}})
	wantErr(t, err, errs.Invalid, "Minimum memory limit allowed is 6MB")
	_, err = w.s.Update(ctx, id, container.Settings{RestartPolicy: &spec.RestartPolicy{Name: "sometimes"}})
	wantErr(t, err, errs.Invalid, "invalid restart policy")
}

func TestHostsAndResolver(t *testing.T) {
	w := newWorldWith(t, func(o *container.Options) { o.DNS = []string{"192.0.2.53"} })
	spec := sh("cat /etc/hosts /etc/resolv.conf /etc/hostname")
	spec.NetworkMode, spec.Hostname, spec.Domainname = "bridge", "me", "example.test"
	spec.ExtraHosts, spec.DNSSearch = []string{"other:192.0.2.7", "gw:host-gateway", "six=[2001:db8::1]"}, []string{"example.test"}
	spec.Ports = []network.PortBinding{{Proto: "tcp", ContainerPort: 80, HostPort: 8080, HostIP: netip.MustParseAddr("127.0.0.1")}}
	code, out, errOut := w.run(spec)
	if code != 0 {
		t.Fatal(errOut)
	}
	for _, l := range []string{"127.0.0.1\tlocalhost\n", "192.0.2.7\tother\n", "172.17.0.1\tgw\n", "2001:db8::1\tsix\n", "172.17.0.2\tme.example.test me\n", "nameserver 192.0.2.53\n", "search example.test\n", "me.example.test\n"} {
		if !strings.Contains(out, l) {
			t.Errorf("no %q in\n%s", l, out)
		}
	}
	if len(w.net.last.Ports) != 1 || !slices.Contains(w.net.last.Endpoints[0].Names, "me") {
		t.Errorf("network was asked for %+v", w.net.last)
	}
	spec = sh("hostname")
	spec.NetworkMode = "host"
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if _, out, _ := w.run(spec); out != host+"\n" {
		t.Errorf("host name with the host's network %q", out)
	}
}

func TestNetworkFailureUndoesStart(t *testing.T) {
	w := newWorld(t)
	w.net.fail = errs.New(errs.Conflict, "Bind for 0.0.0.0:80 failed: port is already allocated")
	spec := sh("true")
	spec.NetworkMode = "bridge"
	id := w.create(spec)
	wantErr(t, w.s.Start(context.Background(), id), errs.Conflict, "port is already allocated")
	if st := w.get(id).State; st.Status != container.StatusCreated || st.ExitCode != 128 {
		t.Errorf("state %+v", st)
	}
	w.net.fail = nil
	w.start(id)
}

func TestCreateRefusals(t *testing.T) {
	w := newWorld(t)
	for text, edit := range map[string]func(*spec.Spec){
		"Minimum memory limit allowed is 6MB":                            func(s *spec.Spec) { s.Resources.Memory = 1 << 20 },
		"You should always set the Memory limit when using Memoryswap":   func(s *spec.Spec) { s.Resources.MemorySwap = 1 << 30 },
		"range for oom score adj is [-1000, 1000]":                       func(s *spec.Spec) { s.OomScoreAdj = 2000 },
		"can't create 'AutoRemove' container with restart policy":        func(s *spec.Spec) { s.AutoRemove = true; s.RestartPolicy.Name = "always" },
		"maximum retry count can only be used with 'on-failure'":         func(s *spec.Spec) { s.RestartPolicy = spec.RestartPolicy{Name: "always", MaxRetries: 1} },
		"invalid signal: SIGNOPE":                                        func(s *spec.Spec) { s.StopSignal = "SIGNOPE" },
		"it needs to be an absolute path":                                func(s *spec.Spec) { s.WorkingDir = "rel" },
		"it names a process of the runtime":                              func(s *spec.Spec) { s.WorkingDir = "/proc/self/fd/7" },
		"invalid environment variable: =x":                               func(s *spec.Spec) { s.Env = []string{"=x"} },
		"unknown or invalid runtime name: kata":                          func(s *spec.Spec) { s.Runtime = "kata" },
		"could not get container for absent: No such container: absent":  func(s *spec.Spec) { s.Links = []string{"absent:b"} },
		"--userns=keep-id":                                               func(s *spec.Spec) { s.UsernsMode = "keep-id" },
		`bad format for add-host: "nope"`:                                func(s *spec.Spec) { s.ExtraHosts = []string{"nope"} },
		"invalid PID mode: other":                                        func(s *spec.Spec) { s.PidMode = "other" },
		"No such container: nobody":                                      func(s *spec.Spec) { s.PidMode = "container:nobody" },
		"conflicting options: hostname and the network mode":             func(s *spec.Spec) { s.NetworkMode = "container:x"; s.Hostname = "y" },
		"unknown log opt":                                                func(s *spec.Spec) { s.LogOpts = map[string]string{"colour": "red"} },
		"invalid ulimit type: bogus":                                     func(s *spec.Spec) { s.Ulimits = []spec.Ulimit{{Name: "bogus"}} },
		"Interval in Healthcheck cannot be less than 1ms":                func(s *spec.Spec) { s.Healthcheck = &oci.Healthcheck{Interval: 1} },
		"the specified platform: wanted linux/s390x":                     func(s *spec.Spec) { s.Platform = "linux/s390x" },
		"invalid port specification":                                     func(s *spec.Spec) { s.ExposedPorts = []string{"99999"} },
		"Requested CPUs are not available - requested 900, available: 0": func(s *spec.Spec) { s.Resources.CpusetCpus = "900" },
	} {
		s := sh("true")
		edit(&s)
		_, _, err := w.s.Create(context.Background(), s)
		wantErr(t, err, nil, text)
	}
	for text, edit := range map[string]func(*spec.Spec){ // clients take NotFound for a missing image, which they pull
		"No such container: nobody": func(s *spec.Spec) { s.PidMode = "container:nobody" },
		"No such container: no-one": func(s *spec.Spec) { s.IpcMode = "container:no-one" },
		"No such container: none":   func(s *spec.Spec) { s.VolumesFrom = []string{"none:ro"} },
		"error looking up volume plugin nosuch": func(s *spec.Spec) {
			s.Mounts = []volume.MountSpec{{Type: "volume", Source: "v", Target: "/x", Driver: "nosuch"}}
		},
		"bind source path does not exist: /no/such/at": func(s *spec.Spec) { s.Mounts = []volume.MountSpec{{Type: "bind", Source: "/no/such/at", Target: "/x"}} },
	} {
		s := sh("true")
		edit(&s)
		_, _, err := w.s.Create(context.Background(), s)
		wantErr(t, err, errs.Invalid, text)
		if errors.Is(err, errs.NotFound) {
			t.Errorf("%s: the error is NotFound: %v", text, err)
		}
	}
	s := sh("true")
	s.Image = "nosuchimage"
	_, _, err := w.s.Create(context.Background(), s)
	wantErr(t, err, errs.NotFound, "No such image")
	w.makeImage("nocmd", func(c *oci.Config, _ *[]file) { c.Config.Cmd = nil })
	_, _, err = w.s.Create(context.Background(), spec.Spec{Image: "nocmd"})
	wantErr(t, err, errs.Invalid, "no command specified")
}

// As in docker, the container whose network is joined may be made after the one that joins.
func TestNetworkOfALaterContainer(t *testing.T) {
	w := newWorld(t)
	joins := sh("true")
	joins.NetworkMode = "container:later"
	id := w.create(joins)
	wantErr(t, w.s.Start(context.Background(), id), errs.NotFound, "No such container: later")
	later := sh("sleep 100")
	later.Name, later.NetworkMode = "later", "bridge"
	w.start(w.create(later))
	exit := w.wait(id, container.WaitNextExit)
	w.start(id)
	if e := recv(t, exit); e.Code != 0 {
		t.Errorf("exit code %d", e.Code)
	}
}

func TestMergeCommand(t *testing.T) {
	w := newWorld(t)
	w.makeImage("entry", func(c *oci.Config, _ *[]file) {
		c.Config.Entrypoint, c.Config.Cmd = []string{"echo", "entry"}, []string{"cmd"}
	})
	for _, c := range []struct {
		entry, cmd []string
		want       string
	}{
		{nil, nil, "echo entry cmd"},
		{nil, []string{"mine"}, "echo entry mine"},
		{[]string{"printf"}, nil, "printf"},
		{[]string{"printf"}, []string{"x"}, "printf x"},
		{[]string{""}, []string{"true"}, "true"},
	} {
		id := w.create(spec.Spec{Image: "entry", Entrypoint: c.entry, Cmd: c.cmd, NetworkMode: "none"})
		v := w.get(id)
		if got := strings.Join(append([]string{v.Path}, v.Args...), " "); got != c.want {
			t.Errorf("%v %v: %q, want %q", c.entry, c.cmd, got, c.want)
		}
	}
	_, _, err := w.s.Create(context.Background(), spec.Spec{Image: "entry", Entrypoint: []string{""}, NetworkMode: "none"})
	wantErr(t, err, errs.Invalid, "no command specified")
}
