package opts

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/wire"
)

// Ports returns the exposed ports and the bindings of the values of -p and --expose.
func Ports(publish, expose []string) (map[string]struct{}, map[string][]wire.PortBinding, error) {
	exposed := map[string]struct{}{}
	bound := map[string][]wire.PortBinding{}
	for _, p := range publish {
		if strings.Contains(p, "=") {
			var err error
			if p, err = longPort(p); err != nil {
				return nil, nil, err
			}
		}
		if err := publishPort(p, exposed, bound); err != nil {
			return nil, nil, err
		}
	}
	for _, e := range expose {
		if strings.Contains(e, ":") {
			return nil, nil, errs.New(errs.Invalid, "invalid port format for --expose: %s", e)
		}
		rng, proto := splitProto(e)
		if err := checkProto(proto); err != nil {
			return nil, nil, err
		}
		lo, hi, err := portRange(rng)
		if err != nil {
			return nil, nil, errs.New(errs.Invalid, "invalid range format for --expose: %w", err)
		}
		for n := lo; n <= hi; n++ {
			exposed[fmt.Sprintf("%d/%s", n, proto)] = struct{}{}
		}
	}
	return exposed, bound, nil
}

func splitProto(s string) (port, proto string) {
	port, proto, ok := strings.Cut(s, "/")
	if !ok || proto == "" {
		proto = "tcp"
	}
	return port, strings.ToLower(proto)
}

func checkProto(proto string) error {
	switch proto {
	case "tcp", "udp", "sctp":
		return nil
	}
	return errs.New(errs.Invalid, "invalid proto: %s", proto)
}

func portRange(s string) (lo, hi int, err error) {
	if s == "" {
		return 0, 0, errs.New(errs.Invalid, "empty string specified for ports")
	}
	a, b, isRange := strings.Cut(s, "-")
	if lo, err = portNumber(a); err != nil {
		return 0, 0, err
	}
	if !isRange {
		return lo, lo, nil
	}
	if hi, err = portNumber(b); err != nil {
		return 0, 0, err
	}
	if hi < lo {
		return 0, 0, errs.New(errs.Invalid, "invalid port range: %s", s)
	}
	return lo, hi, nil
}

func portNumber(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, err
	}
	return int(n), nil
}

// splitPort splits ip:host:container from the right. An IPv6 address may be in brackets.
func splitPort(s string) (ip, host, container string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", s
	}
	container, s = s[i+1:], s[:i]
	i = strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		if strings.HasPrefix(s, "[") {
			return s, "", container
		}
		return "", s, container
	}
	return s[:i], s[i+1:], container
}

func publishPort(raw string, exposed map[string]struct{}, bound map[string][]wire.PortBinding) error {
	spec, proto := splitProto(raw)
	ip, host, container := splitPort(spec)
	if container == "" {
		return errs.New(errs.Invalid, "no port specified: %s<empty>", raw)
	}
	if ip != "" {
		ip = strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
		if net.ParseIP(ip) == nil {
			return errs.New(errs.Invalid, "invalid IP address: %s", ip)
		}
	}
	lo, hi, err := portRange(container)
	if err != nil {
		return errs.New(errs.Invalid, "invalid containerPort: %s", container)
	}
	hlo, hhi := 0, 0
	if host != "" {
		if hlo, hhi, err = portRange(host); err != nil {
			return errs.New(errs.Invalid, "invalid hostPort: %s", host)
		}
	}
	if host != "" && hi-lo != hhi-hlo && hi != lo {
		return errs.New(errs.Invalid, "invalid ranges specified for container and host Ports: %s and %s", container, host)
	}
	if err := checkProto(proto); err != nil {
		return err
	}
	for n := lo; n <= hi; n++ {
		key := fmt.Sprintf("%d/%s", n, proto)
		hp := ""
		switch {
		case host == "":
		case lo == hi && hlo != hhi:
			hp = host // a range for one port: the engine picks a free one of it
		default:
			hp = strconv.Itoa(hlo + n - lo)
		}
		exposed[key] = struct{}{}
		bound[key] = append(bound[key], wire.PortBinding{HostIP: ip, HostPort: hp})
	}
	return nil
}

// longPort returns the short form of a value such as target=80,published=8080,protocol=tcp.
func longPort(s string) (string, error) {
	fields, err := Fields(s)
	if err != nil {
		return "", err
	}
	var target, published string
	proto := "tcp"
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok || v == "" {
			return "", errs.New(errs.Invalid, "invalid field: %s", f)
		}
		switch strings.ToLower(k) {
		case "target":
			target = v
		case "published":
			published = v
		case "protocol":
			proto = v
		case "mode":
			if v != "ingress" && v != "host" {
				return "", errs.New(errs.Invalid, "invalid publish mode value (%s): must be either 'ingress' or 'host'", v)
			}
		default:
			return "", errs.New(errs.Invalid, "invalid field key: %s", k)
		}
	}
	if target == "" {
		return "", errs.New(errs.Invalid, "missing mandatory field 'target'")
	}
	if published != "" {
		target = published + ":" + target
	}
	return target + "/" + proto, nil
}
