package dockerfile

import (
	"encoding/json"
	"net"
	"net/url"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Classic is a request of docker's classic API, POST /build.
type Classic struct {
	Request     Request
	Tags        []string
	Quiet       bool // print the ID only
	Remove      bool // remove the containers of the steps; the default
	ForceRemove bool // also those of a failed step
	Squash      bool
	Network     string // that a user created; "" = what Request says
	Remote      string // the context is there, and not in the body of the request; Request has it, too
	Session     string // of a client that sends its context by a session: remote is client-session
	BuildID     string
	Version     string // "2" asks for BuildKit's stream of progress
	Outputs     []ClassicOutput
}

// ClassicOutput says where the result goes instead of into the store.
type ClassicOutput struct {
	Type  string
	Attrs map[string]string
}

// Remotes of clients that do not send the context with the request.
const (
	ClientSession = "client-session" // by a session
	UploadRequest = "upload-request" // as the body of another request, whose build ID is "upload-request:ID"
)

// ParseClassic reads the query of POST /build. gateway is the address that the name host-gateway of an extra host means, or "" if
// there is none. A context in the body is the local directory "context", which has the Dockerfile, too. Errors: errs.Invalid, and
// errs.Unimplemented for a parameter that ply does not have.
func ParseClassic(q url.Values, gateway string) (*Classic, error) {
	p := classicQuery{q: q}
	opts := map[string]string{}
	c := &Classic{
		Tags: q["t"], Quiet: p.flag("q", false), Remove: p.flag("rm", true), ForceRemove: p.flag("forcerm", false), Squash: p.flag("squash", false),
		Remote: q.Get("remote"), Session: q.Get("session"), BuildID: q.Get("buildid"), Version: q.Get("version"),
	}
	p.json("outputs", &c.Outputs)
	set := func(key, value string) {
		if value != "" {
			opts[key] = value
		}
	}
	set("target", q.Get("target"))
	if f := q.Get("dockerfile"); f != "." {
		set("filename", f)
	}
	switch c.Remote {
	case "", UploadRequest:
		opts["dockerfilekey"] = "context"
	case ClientSession:
	default:
		opts["context"] = c.Remote
	}
	if p.flag("nocache", false) {
		opts["no-cache"] = ""
	}
	if p.flag("pull", false) {
		opts["image-resolve-mode"] = "pull"
	}
	p.platform(opts)
	p.maps(opts)
	c.Network = p.network(opts)
	p.limits(opts)
	p.hosts(opts, gateway)
	for _, key := range []string{"securityopt", "isolation"} {
		if v := q.Get(key); v != "" && v != "default" {
			p.fail(errs.New(errs.Unimplemented, "build parameter %s=%s is not supported", key, clip(v)))
		}
	}
	if p.err != nil {
		return nil, p.err
	}
	c.Request = Request{Options: opts, SessionID: c.Session}
	return c, nil
}

// classicQuery reads parameters and keeps the first error.
type classicQuery struct {
	q   url.Values
	err error
}

func (p *classicQuery) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// flag reads a boolean as docker does: everything is true but "", 0, no, false and none.
func (p *classicQuery) flag(key string, byDefault bool) bool {
	if !p.q.Has(key) {
		return byDefault
	}
	switch strings.ToLower(strings.TrimSpace(p.q.Get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

func (p *classicQuery) json(key string, into any) {
	text := p.q.Get(key)
	if text == "" {
		return
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		p.fail(errs.New(errs.Invalid, "build parameter %s: %w", key, err))
	}
}

func (p *classicQuery) platform(opts map[string]string) {
	text := p.q.Get("platform")
	if text == "" {
		return
	}
	for name := range strings.SplitSeq(text, ",") {
		if _, err := oci.ParsePlatform(name); err != nil {
			p.fail(err)
			return
		}
	}
	opts["platform"] = text
}

func (p *classicQuery) maps(opts map[string]string) {
	var args map[string]*string
	p.json("buildargs", &args)
	for k, v := range args {
		if v != nil { // the client names an argument that its environment does not have
			opts["build-arg:"+k] = *v
		}
	}
	var labels map[string]string
	p.json("labels", &labels)
	for k, v := range labels {
		opts["label:"+k] = v
	}
	var cache []string
	p.json("cachefrom", &cache)
	if len(cache) > 0 {
		opts["cache-from"] = strings.Join(cache, ",")
	}
}

// network returns the network that a user created, if the build is in one.
func (p *classicQuery) network(opts map[string]string) string {
	n := p.q.Get("networkmode")
	switch n {
	case "", "default", "bridge":
		return ""
	case "host", "none":
		opts["force-network-mode"] = n
		return ""
	}
	p.fail(CheckNetwork(n))
	return n
}

// CheckNetwork checks the name or the ID of a network for the steps of a build. The error's class is errs.Unimplemented for the network of a container.
func CheckNetwork(name string) error {
	if strings.HasPrefix(name, "container:") {
		return errs.New(errs.Unimplemented, "a build in the network of a container is not supported: %s", clip(name)).
			WithHint("Put the container on a network of your own, and build with --network NAME.")
	}
	return nil
}

func (p *classicQuery) limits(opts map[string]string) {
	for key, option := range map[string]string{
		"memory": "memory", "memswap": "memswap", "cpushares": "cpushares", "cpuperiod": "cpuperiod", "cpuquota": "cpuquota", "shmsize": "shm-size",
	} {
		text := p.q.Get(key)
		if text == "" || text == "0" {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < -1 || n == -1 && key != "memswap" {
			p.fail(errs.New(errs.Invalid, "build parameter %s=%s is not a number of its range", key, clip(text)))
			continue
		}
		opts[option] = text
	}
	for key, option := range map[string]string{"cpusetcpus": "cpusetcpus", "cpusetmems": "cpusetmems", "cgroupparent": "cgroup-parent"} {
		if text := p.q.Get(key); text != "" {
			opts[option] = text
		}
	}
	var limits []struct {
		Name       string
		Soft, Hard int64
	}
	p.json("ulimits", &limits)
	var list []string
	for _, l := range limits {
		if l.Name == "" || strings.ContainsAny(l.Name, "=,:") {
			p.fail(errs.New(errs.Invalid, "ulimit %q is not a name", clip(l.Name)))
		}
		list = append(list, l.Name+"="+strconv.FormatInt(l.Soft, 10)+":"+strconv.FormatInt(l.Hard, 10))
	}
	if len(list) > 0 {
		opts["ulimit"] = strings.Join(list, ",")
	}
}

// hosts reads extra hosts, "name:address" or "name=address", each in a parameter of its own or all in a JSON list.
func (p *classicQuery) hosts(opts map[string]string, gateway string) {
	all := p.q["extrahosts"]
	if len(all) == 1 && strings.HasPrefix(all[0], "[") {
		var list []string
		p.json("extrahosts", &list)
		all = list
	}
	var out []string
	for _, h := range all {
		name, address, ok := strings.Cut(h, "=")
		if !ok {
			name, address, ok = strings.Cut(h, ":")
		}
		if address == "host-gateway" {
			address = gateway
		}
		address = strings.Trim(address, "[]")
		if !ok || name == "" || strings.ContainsAny(name, "=,\" ") || net.ParseIP(address) == nil {
			p.fail(errs.New(errs.Invalid, "extra host %q is not a name and an address", clip(h)))
			continue
		}
		out = append(out, name+"="+address)
	}
	if len(out) > 0 {
		opts["add-hosts"] = strings.Join(out, ",")
	}
}
