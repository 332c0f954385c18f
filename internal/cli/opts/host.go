package opts

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"ply/internal/errs"
	"ply/internal/wire"
)

// ExtraHost checks a value of --add-host, NAME:IP or NAME=IP, and returns it as NAME:IP.
func ExtraHost(s string) (string, error) {
	name, ip, ok := strings.Cut(s, "=")
	if !ok {
		name, ip, ok = strings.Cut(s, ":")
	}
	if !ok || name == "" {
		return "", errs.New(errs.Invalid, "bad format for add-host: %q", s)
	}
	if len(ip) > 2 && ip[0] == '[' && ip[len(ip)-1] == ']' {
		ip = ip[1 : len(ip)-1]
	}
	if ip != "host-gateway" && net.ParseIP(ip) == nil {
		return "", errs.New(errs.Invalid, "invalid IP address in add-host: %q", ip)
	}
	return name + ":" + ip, nil
}

// IP checks an address.
func IP(s string) (string, error) {
	ip := net.ParseIP(strings.TrimSpace(s))
	if ip == nil {
		return "", errs.New(errs.Invalid, "IP address is not correctly formatted: %s", s)
	}
	return ip.String(), nil
}

// Capabilities returns names in the form of the API: with the prefix CAP_, sorted, each once. If one is ALL, ALL alone is returned.
func Capabilities(list []string) []string {
	var out []string
	for _, c := range list {
		c = strings.ToUpper(strings.TrimSpace(c))
		if c == "ALL" {
			return []string{"ALL"}
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		out = append(out, c)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Link checks --link: NAME[:ALIAS].
func Link(s string) (string, error) {
	if s == "" {
		return "", errs.New(errs.Invalid, "empty string specified for links")
	}
	if strings.Count(s, ":") > 1 {
		return "", errs.New(errs.Invalid, "bad format for links: %s", s)
	}
	return s, nil
}

// Attach checks -a.
func Attach(s string) (string, error) {
	v := strings.ToLower(s)
	if slices.Contains([]string{"stdin", "stdout", "stderr"}, v) {
		return v, nil
	}
	return "", errs.New(errs.Invalid, "valid streams are STDIN, STDOUT and STDERR")
}

// Device parses a value of --device: a path on the host, optionally followed by one in the container and by permissions.
func Device(s string) (wire.DeviceMapping, error) {
	d := wire.DeviceMapping{CgroupPermissions: "rwm"}
	parts := strings.Split(s, ":")
	switch len(parts) {
	case 3:
		d.CgroupPermissions = parts[2]
		d.PathInContainer = parts[1]
	case 2:
		if deviceMode(parts[1]) {
			d.CgroupPermissions = parts[1]
		} else {
			d.PathInContainer = parts[1]
		}
	case 1:
	default:
		return d, errs.New(errs.Invalid, "invalid device specification: %s", s)
	}
	d.PathOnHost = parts[0]
	if d.PathInContainer == "" {
		d.PathInContainer = d.PathOnHost
	}
	if !path.IsAbs(d.PathOnHost) || !path.IsAbs(d.PathInContainer) {
		return d, errs.New(errs.Invalid, "%s is not an absolute path", s)
	}
	if !deviceMode(d.CgroupPermissions) {
		return d, errs.New(errs.Invalid, "bad mode specified: %s", d.CgroupPermissions)
	}
	return d, nil
}

func deviceMode(s string) bool {
	if s == "" || len(s) > 3 {
		return false
	}
	for i := range len(s) {
		if !strings.ContainsRune("rwm", rune(s[i])) || strings.Count(s, s[i:i+1]) > 1 {
			return false
		}
	}
	return true
}

// CDI reports whether a --device value is the qualified name of a CDI device, vendor/class=name.
func CDI(s string) bool {
	kind, name, ok := strings.Cut(s, "=")
	return ok && name != "" && strings.Contains(kind, "/") && !strings.HasPrefix(kind, "/")
}

// DeviceRule checks --device-cgroup-rule.
func DeviceRule(s string) (string, error) {
	f := strings.Split(s, " ")
	if len(f) == 3 && len(f[0]) == 1 && strings.Contains("abc", f[0]) && deviceMode(f[2]) {
		if major, minor, ok := strings.Cut(f[1], ":"); ok && deviceNumber(major) && deviceNumber(minor) {
			return s, nil
		}
	}
	return "", errs.New(errs.Invalid, "invalid device cgroup format '%s'", s)
}

func deviceNumber(s string) bool {
	if s == "*" {
		return true
	}
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// Weight parses --blkio-weight-device PATH:WEIGHT.
func Weight(s string) (wire.WeightDevice, error) {
	dev, val, ok := strings.Cut(s, ":")
	if !ok || !strings.HasPrefix(dev, "/dev/") {
		return wire.WeightDevice{}, errs.New(errs.Invalid, "bad format for device path: %s", s)
	}
	n, err := strconv.ParseUint(val, 10, 16)
	if err != nil || n > 0 && (n < 10 || n > 1000) {
		return wire.WeightDevice{}, errs.New(errs.Invalid, "invalid weight for device: %s", s)
	}
	return wire.WeightDevice{Path: dev, Weight: uint16(n)}, nil
}

// Throttle parses --device-{read,write}-{bps,iops}.
func Throttle(s string, bytes bool) (wire.ThrottleDevice, error) {
	dev, val, ok := strings.Cut(s, ":")
	if !ok || !strings.HasPrefix(dev, "/dev/") {
		return wire.ThrottleDevice{}, errs.New(errs.Invalid, "bad format for device path: %s", s)
	}
	if bytes {
		n, err := units.RAMInBytes(val)
		if err != nil || n < 0 {
			return wire.ThrottleDevice{}, errs.New(errs.Invalid, "invalid rate for device: %s. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb", s)
		}
		return wire.ThrottleDevice{Path: dev, Rate: uint64(n)}, nil
	}
	n, err := strconv.ParseUint(val, 10, 64)
	if err != nil {
		return wire.ThrottleDevice{}, errs.New(errs.Invalid, "invalid rate for device: %s. The correct format is <device-path>:<number>. Number must be a positive integer", s)
	}
	return wire.ThrottleDevice{Path: dev, Rate: n}, nil
}

// Restart parses --restart.
func Restart(s string) (wire.RestartPolicy, error) {
	p := wire.RestartPolicy{}
	if s == "" {
		return p, nil
	}
	name, count, has := strings.Cut(s, ":")
	if name == "" {
		return p, errs.New(errs.Invalid, "invalid restart policy format: no policy provided before colon")
	}
	if has && count != "" {
		n, err := strconv.Atoi(count)
		if err != nil {
			return p, errs.New(errs.Invalid, "invalid restart policy format: maximum retry count must be an integer")
		}
		p.MaximumRetryCount = n
	}
	p.Name = name
	return p, nil
}

// Security returns the values of --security-opt in the form of the API, which takes the content of a seccomp profile instead of its path.
// unconfined reports that no system path is to be masked or read-only.
func Security(list []string) (out []string, unconfined bool, err error) {
	for _, s := range list {
		if s == "systempaths=unconfined" {
			unconfined = true
			continue
		}
		k, v, ok := strings.Cut(s, "=")
		if !ok && s != "no-new-privileges" {
			if k, v, ok = strings.Cut(s, ":"); !ok {
				return nil, false, errs.New(errs.Invalid, "invalid --security-opt: %q", s)
			}
			s = k + "=" + v
		}
		if k == "seccomp" && v != "unconfined" && v != "builtin" {
			b, err := os.ReadFile(v)
			if err != nil {
				return nil, false, errs.New(errs.Invalid, "opening seccomp profile (%s) failed: %w", v, err)
			}
			var c bytes.Buffer
			if err := json.Compact(&c, b); err != nil {
				return nil, false, errs.New(errs.Invalid, "compacting json for seccomp profile (%s) failed: %w", v, err)
			}
			s = "seccomp=" + c.String()
		}
		out = append(out, s)
	}
	return out, unconfined, nil
}

// GPUs is the flag --gpus.
type GPUs struct{ List []wire.DeviceRequest }

// String returns the number of requests.
func (g *GPUs) String() string {
	if len(g.List) == 0 {
		return ""
	}
	return strconv.Itoa(len(g.List))
}

// Type is the word in the help.
func (*GPUs) Type() string { return "gpu-request" }

// Set parses one request.
func (g *GPUs) Set(s string) error {
	fields, err := Fields(s)
	if err != nil {
		return err
	}
	r := wire.DeviceRequest{Options: map[string]string{}}
	seen := map[string]bool{}
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			k, v = "count", f
		}
		if seen[k] {
			return errs.New(errs.Invalid, "gpu request key '%s' can be specified only once", k)
		}
		seen[k] = true
		switch k {
		case "driver":
			r.Driver = v
		case "count":
			if v == "all" {
				r.Count = -1
			} else if r.Count, err = strconv.Atoi(v); err != nil {
				return errs.New(errs.Invalid, "invalid count (%s): value must be either \"all\" or an integer", v)
			}
		case "device":
			r.DeviceIDs = strings.Split(v, ",")
		case "capabilities":
			r.Capabilities = [][]string{append(strings.Split(v, ","), "gpu")}
		case "options":
			o, err := Fields(v)
			if err != nil {
				return err
			}
			r.Options = KeyValues(o)
		default:
			return errs.New(errs.Invalid, "unexpected key '%s' in '%s'", k, f)
		}
	}
	if !seen["count"] && r.DeviceIDs == nil {
		r.Count = 1
	}
	if r.Capabilities == nil {
		r.Capabilities = [][]string{{"gpu"}}
	}
	g.List = append(g.List, r)
	return nil
}

// Networks is the flag --network.
type Networks struct{ List []Network }

// Network is one network that the container joins.
type Network struct {
	Name         string
	Aliases      []string
	DriverOpts   map[string]string
	IPv4, IPv6   string
	LinkLocalIPs []string
	MAC          string
	GwPriority   int
}

// String returns "", so that the help shows no default.
func (n *Networks) String() string { return "" }

// Type is the word in the help.
func (*Networks) Type() string { return "network" }

// Set parses NAME or name=NAME,alias=A,ip=I,….
func (n *Networks) Set(s string) error {
	if !strings.Contains(s, "=") {
		n.List = append(n.List, Network{Name: s})
		return nil
	}
	fields, err := Fields(s)
	if err != nil {
		return err
	}
	var o Network
	for _, f := range fields {
		k, v, ok := strings.Cut(strings.TrimSpace(f), "=")
		if !ok || v == "" {
			return errs.New(errs.Invalid, "invalid field: %s", f)
		}
		switch strings.ToLower(strings.TrimSpace(k)) {
		case "name":
			o.Name = v
		case "alias":
			o.Aliases = append(o.Aliases, v)
		case "ip":
			o.IPv4 = v
		case "ip6":
			o.IPv6 = v
		case "mac-address":
			if _, err := net.ParseMAC(v); err != nil {
				return errs.New(errs.Invalid, "%s is not a valid mac address", v)
			}
			o.MAC = v
		case "link-local-ip":
			o.LinkLocalIPs = append(o.LinkLocalIPs, v)
		case "driver-opt":
			dk, dv, ok := strings.Cut(v, "=")
			if !ok {
				return errs.New(errs.Invalid, "invalid key value pair format in driver options")
			}
			if o.DriverOpts == nil {
				o.DriverOpts = map[string]string{}
			}
			o.DriverOpts[dk] = dv
		case "gw-priority":
			if o.GwPriority, err = strconv.Atoi(v); err != nil {
				return errs.New(errs.Invalid, "invalid gw-priority (%s): value must be an integer", v)
			}
		default:
			return errs.New(errs.Invalid, "invalid field key %s", k)
		}
	}
	if o.Name == "" {
		return errs.New(errs.Invalid, "network name/id is not specified")
	}
	n.List = append(n.List, o)
	return nil
}
