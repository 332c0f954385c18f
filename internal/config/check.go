package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/profiles/seccomp"

	"ply/internal/container/logfile"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/store/layer/drivers"
)

// check checks the meaning of every setting, and normalises values as Docker does. path is the file, for messages.
func (c *Config) check(path string) ([]Warning, error) {
	from := ""
	if path != "" {
		from = path + ": "
	}
	var warnings []Warning
	warn := func(key, format string, args ...any) {
		warnings = append(warnings, Warning{key, from + key + ": " + fmt.Sprintf(format, args...)})
	}
	for _, check := range []func(warn func(key, format string, args ...any)) error{c.checkChoices, c.checkPaths, c.checkNumbers, c.checkRegistries, c.checkNetwork, c.checkContainers} {
		if err := check(warn); err != nil {
			return nil, invalid("%s%w", from, err)
		}
	}
	return warnings, nil
}

func (c *Config) checkChoices(warn func(string, string, ...any)) error {
	for _, name := range slices.Sorted(maps.Keys(c.Features)) {
		if name != "cdi" {
			warn("features", "%s has no effect: there is only cdi", name)
		}
	}
	if err := drivers.Check(c.StorageDriver); err != nil {
		return fmt.Errorf("storage-driver: %w", err)
	}
	for _, o := range c.StorageOpts {
		value, ok := strings.CutPrefix(o, sizeOption)
		if !ok {
			warn("storage-opts", "%s has no effect: there is only overlay2.size", o)
		} else if size, err := units.RAMInBytes(value); err != nil || size < 0 {
			return fmt.Errorf("storage-opts: %q: want %sBYTES", o, sizeOption)
		}
	}
	for _, k := range []struct {
		key, value string
		choices    []string
	}{
		{"log-level", c.LogLevel, []string{"debug", "info", "warn", "error", "fatal"}},
		{"log-format", c.LogFormat, []string{"text", "json"}},
		{"log-driver", c.LogDriver, logfile.Drivers()},
		{"image-format", c.ImageFormat, []string{"oci", "docker"}},
		{"retain-blobs", c.RetainBlobs, []string{"auto", "always", "never"}},
		{"default-cgroupns-mode", c.DefaultCgroupnsMode, []string{"", "host", "private"}},
		{"default-ipc-mode", c.DefaultIpcMode, []string{"shareable", "private"}},
	} {
		if !slices.Contains(k.choices, k.value) {
			return fmt.Errorf("%s: %q is none of %s", k.key, k.value, strings.TrimPrefix(strings.Join(k.choices, ", "), ", "))
		}
	}
	for _, l := range c.Labels {
		if key, _, ok := strings.Cut(l, "="); !ok || key == "" {
			return fmt.Errorf("labels: %q: want KEY=VALUE", l)
		}
	}
	for _, o := range c.ExecOpts {
		key, value, ok := strings.Cut(o, "=")
		if !ok || key != "native.cgroupdriver" || value != "cgroupfs" && value != "systemd" {
			return fmt.Errorf("exec-opts: %q: want native.cgroupdriver=cgroupfs or native.cgroupdriver=systemd", o)
		}
	}
	return nil
}

func (c *Config) checkPaths(func(string, string, ...any)) error {
	for _, p := range []struct {
		key   string
		value *string
	}{{"data-root", &c.DataRoot}, {"exec-root", &c.ExecRoot}, {"pidfile", &c.Pidfile}} {
		if *p.value == "" {
			return fmt.Errorf("%s: empty", p.key)
		}
		abs, err := filepath.Abs(*p.value)
		if err != nil {
			return fmt.Errorf("%s: %w", p.key, err)
		}
		*p.value = abs
	}
	if c.DataRoot == "/" || c.ExecRoot == "/" {
		return fmt.Errorf("data-root and exec-root: / is not a directory of the engine's own")
	}
	for _, p := range []struct{ key, value string }{{"init-path", c.InitPath}, {"resolv-conf", c.ResolvConf}} {
		if p.value != "" && !filepath.IsAbs(p.value) {
			return fmt.Errorf("%s: %q is not an absolute path", p.key, p.value)
		}
	}
	for _, dir := range c.CDIDirs() {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("cdi-spec-dirs: %q is not an absolute path", dir)
		}
	}
	if err := checkFile(c.InitPath); err != nil {
		return fmt.Errorf("init-path: %w", err)
	}
	if err := checkSeccomp(c.SeccompProfile); err != nil {
		return fmt.Errorf("seccomp-profile: %w", err)
	}
	for _, p := range []struct{ key, value string }{{"tlscacert", c.TLSCACert}, {"tlscert", c.TLSCert}, {"tlskey", c.TLSKey}, {"resolv-conf", c.ResolvConf}} {
		if err := checkFile(p.value); err != nil {
			return fmt.Errorf("%s: %w", p.key, err)
		}
	}
	if len(c.Hosts) == 0 {
		c.Hosts = Default().Hosts
	}
	for i, h := range c.Hosts {
		host, err := parseHost(h)
		if err != nil {
			return err
		}
		c.Hosts[i] = host
	}
	if c.TLS { // unlike Docker, never without verifying clients
		c.TLSVerify = true
	}
	return nil
}

// checkFile refuses the path of something that is not a regular file; "" is not set.
func checkFile(name string) error {
	if name == "" {
		return nil
	}
	st, err := os.Stat(name)
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%q is not a file", name)
	}
	return err
}

// checkSeccomp refuses a profile that no container could start with.
func checkSeccomp(profile string) error {
	switch profile {
	case "builtin", "unconfined", "default":
		return nil
	}
	if !filepath.IsAbs(profile) {
		return fmt.Errorf("%q: want an absolute path, builtin or unconfined", profile)
	}
	b, err := durable.ReadFile(durable.OS, profile, maxFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &seccomp.Seccomp{}); err != nil {
		return fmt.Errorf("%s: %w", profile, err)
	}
	return nil
}

// parseHost checks an address to listen on. As in Docker, a bare path is a unix socket, and a bare HOST:PORT is TCP.
func parseHost(h string) (string, error) {
	switch {
	case strings.HasPrefix(h, "/"):
		h = "unix://" + h
	case !strings.Contains(h, "://"):
		h = "tcp://" + h
	}
	scheme, rest, ok := strings.Cut(h, "://")
	switch {
	case ok && scheme == "unix" && filepath.IsAbs(rest), ok && scheme == "fd":
		return h, nil
	case ok && scheme == "tcp":
		if _, _, err := net.SplitHostPort(rest); err == nil {
			return h, nil
		}
	}
	return "", fmt.Errorf("hosts: %q: want unix://PATH, fd:// or tcp://HOST:PORT", h)
}

func (c *Config) checkNumbers(func(string, string, ...any)) error {
	for _, n := range []struct {
		key             string
		value, from, to int
	}{
		{"max-concurrent-downloads", c.MaxConcurrentDownloads, 1, 1000}, {"max-concurrent-uploads", c.MaxConcurrentUploads, 1, 1000},
		{"max-download-attempts", c.MaxDownloadAttempts, 1, 1000}, {"mtu", c.MTU, 0, 65535},
		{"shutdown-timeout", c.ShutdownTimeout, -1, 1 << 20}, {"default-pids-limit", c.DefaultPidsLimit, -1, 1 << 22},
	} {
		if n.value < n.from || n.value > n.to {
			return fmt.Errorf("%s: %d: want a number from %d to %d", n.key, n.value, n.from, n.to)
		}
	}
	return nil
}

// checkRegistries refuses a malformed mirror. It drops a malformed insecure registry with a warning, because without the entry
// the engine is stricter, not weaker.
func (c *Config) checkRegistries(warn func(string, string, ...any)) error {
	for i, m := range c.RegistryMirrors {
		u, err := url.Parse(m)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			return fmt.Errorf("registry-mirrors: invalid mirror: %q: want http:// or https:// and a host", m)
		case u.RawQuery != "" || u.Fragment != "":
			return fmt.Errorf("registry-mirrors: invalid mirror: %q: query or fragment at end of the URI", u.Redacted())
		case u.User != nil:
			return fmt.Errorf("registry-mirrors: invalid mirror: %q: username/password not allowed in URI", u.Redacted())
		}
		c.RegistryMirrors[i] = strings.TrimSuffix(m, "/") + "/"
	}
	var kept []string
	for _, r := range c.InsecureRegistries {
		name := r
		if _, rest, ok := strings.Cut(r, "://"); ok {
			warn("insecure-registries", "%q: the scheme is dropped, a registry is HOST[:PORT]", r)
			name = strings.TrimSuffix(rest, "/")
		}
		if !isRegistry(name) {
			warn("insecure-registries", "%q is neither HOST[:PORT] nor an address range, ignored", r)
			continue
		}
		kept = append(kept, name)
	}
	c.InsecureRegistries = kept
	return nil
}

func isRegistry(s string) bool {
	if _, err := netip.ParsePrefix(s); err == nil {
		return true
	}
	host, port := s, ""
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	return host != "" && !strings.ContainsFunc(host, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	})
}

func (c *Config) checkNetwork(func(string, string, ...any)) error {
	for _, driver := range slices.Sorted(maps.Keys(c.DefaultNetworkOpts)) {
		if !slices.Contains([]string{"bridge", "macvlan", "ipvlan"}, driver) {
			return fmt.Errorf("default-network-opts: %q: there is no such driver of networks; want bridge, macvlan or ipvlan", driver)
		}
	}
	for _, d := range c.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			return fmt.Errorf("dns: %q is not an IP address", d)
		}
	}
	if c.IP != "" {
		if _, err := netip.ParseAddr(c.IP); err != nil {
			return fmt.Errorf("ip: %q is not an IP address", c.IP)
		}
	}
	if c.HostGatewayIP != "" && len(c.HostGatewayIPs) > 0 {
		return fmt.Errorf("host-gateway-ip and host-gateway-ips: two names of the same setting, keep one")
	}
	if c.HostGatewayIP != "" {
		c.HostGatewayIPs, c.HostGatewayIP = []string{c.HostGatewayIP}, ""
	}
	if err := checkGateways(c.HostGatewayIPs); err != nil {
		return fmt.Errorf("host-gateway-ips: %w", err)
	}
	for _, p := range []struct{ key, value string }{{"bip", c.BIP}, {"fixed-cidr", c.FixedCIDR}} {
		if p.value == "" {
			continue
		}
		if n, err := netip.ParsePrefix(p.value); err != nil || !n.Addr().Is4() {
			return fmt.Errorf("%s: %q: want an IPv4 ADDRESS/BITS", p.key, p.value)
		}
	}
	if c.BIP != "" && c.Bridge != "" {
		return fmt.Errorf("bip and bridge cannot both be set: an address is for the engine's own bridge")
	}
	if c.BIP != "" && c.FixedCIDR != "" {
		bip, fixed := netip.MustParsePrefix(c.BIP), netip.MustParsePrefix(c.FixedCIDR)
		if !bip.Contains(fixed.Addr()) || fixed.Bits() < bip.Bits() {
			return fmt.Errorf("fixed-cidr: %s is not within bip %s", c.FixedCIDR, c.BIP)
		}
	}
	for _, p := range c.DefaultAddressPools {
		base, err := netip.ParsePrefix(p.Base)
		if err != nil || p.Size < base.Bits() || p.Size > base.Addr().BitLen() {
			return fmt.Errorf("default-address-pools: base %q, size %d: want ADDRESS/BITS and a size that is not smaller than BITS", p.Base, p.Size)
		}
	}
	return nil
}

// checkGateways refuses anything but one address of each IP version.
func checkGateways(list []string) error {
	seen := map[bool]string{} // by whether it is IPv4
	for _, text := range list {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("%q is not an IP address", text)
		}
		if other, twice := seen[a.Is4()]; twice {
			return fmt.Errorf("%s and %s: want one address of each IP version", other, text)
		}
		seen[a.Is4()] = text
	}
	return nil
}

func (c *Config) checkContainers(warn func(string, string, ...any)) error {
	if c.LogDriver == "none" && len(c.LogOpts) > 0 {
		warn("log-opts", "has no effect: the log driver none keeps nothing")
	} else if _, err := session.LogConfig(c.LogDriver, c.LogOpts); err != nil {
		return fmt.Errorf("log-opts: %w", err)
	}
	if slices.Contains(c.ExecOpts, "native.cgroupdriver=systemd") {
		warn("exec-opts", "native.cgroupdriver=systemd: cgroups are made directly, without systemd")
	}
	for name, u := range c.DefaultUlimits {
		if u.Name == "" {
			u.Name = name
			c.DefaultUlimits[name] = u
		}
		switch {
		case u.Name != name:
			return fmt.Errorf("default-ulimits: %s: its Name is %q", name, u.Name)
		case u.Soft < -1 || u.Hard < -1 || u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1):
			return fmt.Errorf("default-ulimits: %s: soft %d is more than hard %d", name, u.Soft, u.Hard)
		}
		if err := (spec.Ulimit{Name: name, Soft: u.Soft, Hard: u.Hard}).Check(); err != nil {
			return fmt.Errorf("default-ulimits: %w", err)
		}
	}
	for name, r := range c.Runtimes {
		if name == "ply" || r.Path == "" {
			return fmt.Errorf("runtimes: %s: want a path, and a name that is not the built-in runtime's", name)
		}
		if !filepath.IsAbs(r.Path) {
			return fmt.Errorf("runtimes: %s: %q is not an absolute path", name, r.Path)
		}
		if len(r.Args) > 0 {
			return fmt.Errorf("runtimes: %s: runtimeArgs are not passed on; let path name a script that adds them", name)
		}
	}
	if _, ok := c.Runtimes[c.DefaultRuntime]; !ok && c.DefaultRuntime != "ply" && c.DefaultRuntime != "runc" {
		return fmt.Errorf("default-runtime: %q is not among runtimes", c.DefaultRuntime)
	}
	return nil
}

// Reloadable compares the settings in force with new ones. live names the changed keys that a reload puts in force, restart
// those that need a restart. Both are sorted as in Config.
func Reloadable(old, new *Config) (live, restart []string) {
	a, b := reflect.ValueOf(old).Elem(), reflect.ValueOf(new).Elem()
	for _, f := range fields() {
		if f.ignored != "" || reflect.DeepEqual(a.Field(f.index).Interface(), b.Field(f.index).Interface()) {
			continue
		}
		name := f.key
		if name == "" {
			name = f.flag
		}
		if f.live {
			live = append(live, name)
		} else {
			restart = append(restart, name)
		}
	}
	return live, restart
}

// Take returns a copy of c with the live settings of new.
func (c *Config) Take(new *Config) *Config {
	next := *c
	to, from := reflect.ValueOf(&next).Elem(), reflect.ValueOf(new).Elem()
	next.Warnings = new.Warnings
	for _, f := range fields() {
		if f.live {
			to.Field(f.index).Set(from.Field(f.index))
		}
	}
	return &next
}
