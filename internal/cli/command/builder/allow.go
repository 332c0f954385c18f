package builder

import (
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

// access is what targets need, and what --allow names.
type access struct {
	read, write []string // paths that are allowed
	missing     []string // values of --allow that are missing
}

// allowed reports what targets ask for without the caller having allowed it: entitlements, and files outside of the working directory.
func (f *bakeFlags) allowed(b *bakefile.Bake) error {
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	a := &access{read: []string{here}, write: []string{here}}
	for _, v := range f.allow {
		key, value, _ := strings.Cut(v, "=")
		switch key {
		case "fs.read":
			a.read = append(a.read, value)
		case "fs.write":
			a.write = append(a.write, value)
		case "fs":
			a.read, a.write = append(a.read, value), append(a.write, value)
		case "network.host", "security.insecure", "ssh", "image", "image.push", "image.load":
		case "device":
			return errs.New(errs.Unimplemented, "--allow device: a build gets no devices")
		default:
			return errs.New(errs.Invalid, "unknown entitlement key %q", key)
		}
	}
	f.named(a)
	for _, t := range b.Targets {
		for _, e := range t.Entitlements {
			if !slices.Contains(f.allow, e) {
				a.missing = append(a.missing, e)
			}
		}
		if on, err := strconv.ParseBool(os.Getenv("BUILDX_BAKE_ENTITLEMENTS_FS")); err == nil && !on {
			continue
		}
		if err := a.files(t, slices.Contains(f.allow, "ssh")); err != nil {
			return err
		}
	}
	if len(a.missing) == 0 {
		return nil
	}
	slices.Sort(a.missing)
	var flags []string
	for _, m := range slices.Compact(a.missing) {
		flags = append(flags, "--allow "+m)
	}
	return errs.New(errs.Forbidden, "additional privileges requested: allow them with %s", strings.Join(flags, " "))
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
		case "cache-from", "secrets":
			a.read = append(a.read, e["src"])
		case "ssh":
			_, paths, _ := strings.Cut(value, "=")
			a.read = append(a.read, strings.Split(paths, ",")...)
		}
	}
	empty := func(s string) bool { return s == "" }
	a.read, a.write = slices.DeleteFunc(a.read, empty), slices.DeleteFunc(a.write, empty)
}

// files notes the files of a target that are not allowed.
func (a *access) files(t *bakefile.Target, agent bool) error {
	var read, write []string
	add := func(p string) {
		if p != "" && !remoteContext(p) && !strings.Contains(p, "://") && !strings.HasPrefix(p, "target:") && !strings.HasPrefix(p, "input:") {
			read = append(read, p)
		}
	}
	add(*t.Context)
	if t.DockerfileInline == nil && !remoteContext(*t.Context) {
		file := strings.TrimPrefix(*t.Dockerfile, "cwd://")
		if file == *t.Dockerfile && !filepath.IsAbs(file) {
			file = filepath.Join(*t.Context, file)
		}
		add(file)
	}
	for _, c := range t.Contexts {
		add(strings.TrimPrefix(c, "cwd://"))
	}
	for _, s := range t.Secret {
		add(s["src"])
	}
	for _, c := range t.CacheFrom {
		if c["type"] == "local" {
			add(c["src"])
		}
	}
	for _, s := range t.SSH {
		if len(s.Paths) == 0 && !agent {
			a.missing = append(a.missing, "ssh")
		}
		for _, p := range s.Paths {
			add(p)
		}
	}
	for _, list := range []bakefile.Entries{t.CacheTo, t.Output} {
		for _, e := range list {
			if d := e["dest"]; d != "" && d != "-" && (e["type"] == "local" || len(t.Output) > 0) {
				write = append(write, d)
			}
		}
	}
	for _, l := range []struct {
		key        string
		want, have []string
	}{{"fs.read", read, a.read}, {"fs.write", write, a.write}} {
		for _, p := range l.want {
			ok, real, err := below(p, l.have)
			if err != nil {
				return err
			}
			if !ok {
				a.missing = append(a.missing, l.key+"="+real)
			}
		}
	}
	return nil
}

// below reports whether a path, with its links followed as far as it exists, is one of others or below one.
func below(p string, others []string) (ok bool, real string, err error) {
	if real, err = existing(p); err != nil {
		return false, "", err
	}
	for _, o := range others {
		if o == "*" {
			return true, real, nil
		}
		dir, err := existing(o)
		if err != nil {
			return false, "", err
		}
		if real == dir || dir == "/" || strings.HasPrefix(real, dir+"/") {
			return true, real, nil
		}
	}
	return false, real, nil
}

// existing returns an absolute path without links; what does not exist stays at its end.
func existing(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	rest := ""
	for {
		real, err := filepath.EvalSymlinks(abs)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if abs == "/" {
			return "", err
		}
		rest, abs = filepath.Join(filepath.Base(abs), rest), filepath.Dir(abs)
	}
}
