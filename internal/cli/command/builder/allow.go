package builder

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ply/internal/cli/bakefile"
	"ply/internal/errs"
)

// granted returns the entitlements of --allow that the engine knows; the others are about what bake reads and writes on this machine.
func granted(allow []string) (out []string) {
	for _, a := range allow {
		if a == "network.host" || a == "security.insecure" {
			out = append(out, a)
		}
	}
	return out
}

// access is what a caller allows targets to do.
type access struct {
	entitlements []string
	read, write  []string // paths
	agent        bool     // the ssh agent of the environment
	any          bool     // all files and agents
}

// needs are what a target or a plan does outside of the engine.
type needs struct {
	read, write []string // paths
	agent       bool     // the ssh agent of the environment
}

// access reads the flags that allow something: --allow, and --set for what it names.
func (f *bakeFlags) access() (*access, error) {
	here, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	a := &access{entitlements: f.allow, read: []string{here}, write: []string{here}}
	for _, v := range f.allow {
		key, value, _ := strings.Cut(v, "=")
		switch key {
		case "fs.read":
			a.read = append(a.read, value)
		case "fs.write":
			a.write = append(a.write, value)
		case "fs":
			a.read, a.write = append(a.read, value), append(a.write, value)
		case "ssh":
			a.agent = true
		case "network.host", "security.insecure", "image", "image.push", "image.load":
		case "device":
			return nil, errs.New(errs.Unimplemented, "--allow device: a build gets no devices")
		default:
			return nil, errs.New(errs.Invalid, "unknown entitlement key %q", key)
		}
	}
	if on, err := strconv.ParseBool(os.Getenv("BUILDX_BAKE_ENTITLEMENTS_FS")); err == nil && !on {
		a.any = true
	}
	f.named(a)
	return a, nil
}

// named allows what --set names.
func (f *bakeFlags) named(a *access) {
	for _, s := range f.set {
		name, value, _ := strings.Cut(s, "=")
		parts := strings.Split(strings.TrimSuffix(name, "+"), ".")
		if len(parts) < 2 {
			continue
		}
		e, err := fields(value)
		switch parts[1] {
		case "output":
			if err != nil || e["type"] == "" {
				e = map[string]string{"dest": value}
			}
			a.write = append(a.write, e["dest"])
		case "cache-to":
			a.write = append(a.write, e["dest"])
		case "cache-from":
			a.read = append(a.read, e["src"])
		case "secrets":
			a.read = append(a.read, cmp.Or(e["src"], e["source"], e["id"]))
		case "ssh":
			_, paths, _ := strings.Cut(value, "=")
			a.read = append(a.read, strings.Split(paths, ",")...)
		}
	}
	empty := func(s string) bool { return s == "" }
	a.read, a.write = slices.DeleteFunc(a.read, empty), slices.DeleteFunc(a.write, empty)
}

// targets reports what targets ask for without the caller having allowed it: entitlements, and files outside of the working directory.
func (a *access) targets(b *bakefile.Bake) error {
	missing, err := a.missing(needs{read: b.EnvFiles})
	if err != nil {
		return err
	}
	for _, t := range b.Targets {
		for _, e := range t.Entitlements {
			if !slices.Contains(a.entitlements, e) {
				missing = append(missing, e)
			}
		}
		more, err := a.missing(needsOf(t))
		if err != nil {
			return err
		}
		missing = append(missing, more...)
	}
	return refusal(missing)
}

// plan reports what a build does that the caller has not allowed. It sees the paths as they are used, and the links that earlier builds have made.
func (a *access) plan(p *plan) error {
	missing, err := a.missing(p.needs())
	if err != nil {
		return err
	}
	return refusal(missing)
}

// opened reports whether a build may use a file that it has opened. The outputs of targets that are built at the same time may have made links since the plan was checked.
func (a *access) opened(p *plan, f *os.File, write bool) error {
	if a.any {
		return nil
	}
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err
	}
	key, have := "fs.read", slices.Concat(a.read, p.remove)
	if write {
		key, have = "fs.write", a.write
	}
	ok, err := within(real, have)
	if err != nil || ok {
		return err
	}
	return refusal([]string{key + "=" + real})
}

func refusal(missing []string) error {
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	var flags []string
	for _, m := range slices.Compact(missing) {
		flags = append(flags, "--allow "+m)
	}
	return errs.New(errs.Forbidden, "additional privileges requested: allow them with %s", strings.Join(flags, " "))
}

// needsOf returns what a target names.
func needsOf(t *bakefile.Target) (n needs) {
	if !remoteContext(*t.Context) {
		n.read = append(n.read, *t.Context)
		if t.DockerfileInline == nil {
			file := strings.TrimPrefix(*t.Dockerfile, "cwd://")
			if file == *t.Dockerfile && !filepath.IsAbs(file) {
				file = filepath.Join(*t.Context, file)
			}
			n.read = append(n.read, file)
		}
	}
	for _, c := range t.Contexts {
		c = strings.TrimPrefix(c, "cwd://")
		if dir, ok := localContext(c); ok && !strings.HasPrefix(c, "target:") {
			n.read = append(n.read, dir)
		}
	}
	for _, s := range t.Secret {
		src := s["src"]
		if _, set := os.LookupEnv(s["id"]); src == "" && s["env"] == "" && !set {
			src = s["id"]
		}
		n.read = append(n.read, src)
	}
	for _, c := range t.CacheFrom {
		if c["type"] == "local" {
			n.read = append(n.read, c["src"])
		}
	}
	for _, s := range t.SSH {
		n.addAgent(s.Flag())
	}
	for _, c := range t.CacheTo {
		if c["type"] == "local" {
			n.write = append(n.write, c["dest"])
		}
	}
	for _, o := range t.Output {
		if o["dest"] != "-" {
			n.write = append(n.write, o["dest"])
		}
	}
	return n
}

// needs returns what a build reads and writes on this machine.
func (p *plan) needs() (n needs) {
	for name, dir := range p.resources.Dirs {
		switch {
		case slices.Contains(p.remove, dir): // the build has made it
		case name == "dockerfile":
			n.read = append(n.read, filepath.Join(dir, p.request.Options["filename"]))
		default:
			n.read = append(n.read, dir)
		}
	}
	for _, s := range p.resources.Secrets {
		n.read = append(n.read, s.File)
	}
	for _, s := range p.agents {
		n.addAgent(s)
	}
	for _, c := range p.request.CacheFrom {
		if c.Type == "local" {
			n.read = append(n.read, c.Attrs["src"], c.Attrs["dest"])
		}
	}
	for _, c := range p.request.CacheTo {
		if c.Type == "local" {
			n.write = append(n.write, c.Attrs["src"], c.Attrs["dest"])
		}
	}
	for _, e := range p.request.Exports {
		if e.Attrs["dest"] != "-" {
			n.write = append(n.write, e.Attrs["dest"])
		}
	}
	return n
}

// addAgent adds what a value of --ssh names.
func (n *needs) addAgent(flag string) {
	_, paths, _ := strings.Cut(flag, "=")
	if paths == "" {
		n.agent = true
		return
	}
	n.read = append(n.read, strings.Split(paths, ",")...)
}

// missing returns the values of --allow that something needs besides what is allowed.
func (a *access) missing(n needs) (out []string, err error) {
	if a.any {
		return nil, nil
	}
	if n.agent && !a.agent {
		out = append(out, "ssh")
	}
	for _, l := range []struct {
		key        string
		want, have []string
	}{{"fs.read", n.read, a.read}, {"fs.write", n.write, a.write}} {
		for _, p := range l.want {
			if p == "" {
				continue
			}
			// Behind a link, ".." leads elsewhere for the kernel than for who shortens the path first.
			for _, p := range []string{p, filepath.Clean(p)} {
				ok, real, err := below(p, l.have)
				if err != nil {
					return nil, err
				}
				if !ok {
					out = append(out, l.key+"="+real)
				}
			}
		}
	}
	return out, nil
}

// below reports whether a path, with its links followed as far as it exists, is one of others or below one.
func below(p string, others []string) (ok bool, real string, err error) {
	if real, err = existing(p); err != nil {
		return false, "", err
	}
	ok, err = within(real, others)
	return ok, real, err
}

// within reports the same about a path that has no links.
func within(real string, others []string) (bool, error) {
	for _, o := range others {
		if o == "*" {
			return true, nil
		}
		dir, err := existing(o)
		if err != nil {
			return false, err
		}
		if real == dir || dir == "/" || strings.HasPrefix(real, dir+"/") {
			return true, nil
		}
	}
	return false, nil
}

// maxLinks is how many links that lead to nothing are followed, one to the other; the kernel follows as many.
const maxLinks = 40

// existing returns an absolute path without links; what does not exist stays at its end, also what a link leads to.
func existing(p string) (string, error) {
	if !filepath.IsAbs(p) {
		here, err := os.Getwd()
		if err != nil {
			return "", err
		}
		p = here + "/" + p
	}
	rest := ""
	for links := 0; ; {
		real, err := filepath.EvalSymlinks(p)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		p = strings.TrimRight(p, "/")
		if p == "" {
			return "", err
		}
		at := strings.LastIndexByte(p, '/') + 1
		if to, err := os.Readlink(p); err == nil && links < maxLinks {
			links++
			if !filepath.IsAbs(to) {
				to = p[:at] + to
			}
			p = to
			continue
		}
		p, rest = p[:at], filepath.Join(p[at:], rest)
	}
}
