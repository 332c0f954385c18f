package volume

import (
	"path"
	"slices"
	"strings"

	"ply/internal/errs"
)

// bindMode is what is written after the second colon of -v, parsed.
type bindMode struct {
	ReadOnly    bool
	Propagation string
	NoCopy      bool
}

var (
	propagations = []string{"private", "rprivate", "slave", "rslave", "shared", "rshared"}
	consistency  = []string{"consistent", "cached", "delegated", "default"}
)

// Bind is one -v, parsed.
type Bind struct {
	Source string // host path or volume name
	Target string
	Mode   string // as written
	Named  bool   // Source is the name of a volume
	bindMode
}

// ParseBind parses a -v of two or three parts. The error's class is errs.Invalid, its text Docker's.
func ParseBind(raw string) (Bind, error) {
	bad := func(why string) error {
		if why == "" {
			return errs.New(errs.Invalid, "invalid volume specification: '%s'", raw)
		}
		return errs.New(errs.Invalid, "invalid volume specification: '%s': %s", raw, why)
	}
	if len(raw) > 3*4096 || strings.IndexByte(raw, 0) >= 0 {
		return Bind{}, errs.New(errs.Invalid, "invalid volume specification: '%.60s…'", raw)
	}
	parts := strings.Split(raw, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return Bind{}, bad("")
	}
	b := Bind{Source: parts[0], Target: parts[1]}
	if len(parts) == 3 {
		b.Mode = parts[2]
	} else if !path.IsAbs(b.Target) {
		if _, err := parseMode(b.Target, true); err == nil {
			return Bind{}, bad("volumes cannot include a mode without a source")
		}
	}
	b.Named = !path.IsAbs(b.Source)
	kind := "bind"
	if b.Named {
		kind = "volume"
	}
	var err error
	if b.bindMode, err = parseMode(b.Mode, b.Named); err != nil {
		return Bind{}, err
	}
	if b.Target, err = cleanTarget(b.Target); err != nil {
		return Bind{}, bad("invalid mount config for type \"" + kind + "\": " + err.Error())
	}
	if b.Named {
		if strings.HasPrefix(b.Source, ".") {
			return Bind{}, errs.New(errs.Invalid, "create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed", b.Source, b.Source).
				WithHint("If you intended to pass a host directory, use absolute path")
		}
		return b, checkName(b.Source)
	}
	b.Source = path.Clean(b.Source)
	return b, nil
}

// parseMode parses a comma-separated mode, in which each kind of word may occur once. Volume says that the mode is that of
// a volume, not of a bind mount.
func parseMode(mode string, volume bool) (bindMode, error) {
	var m bindMode
	if mode == "" {
		return m, nil
	}
	bad := errs.New(errs.Invalid, "invalid mode: %s", mode)
	var rw, label, cons, copies int
	for w := range strings.SplitSeq(mode, ",") {
		switch {
		case w == "ro":
			m.ReadOnly = true
			rw++
		case w == "rw":
			rw++
		case w == "z" || w == "Z": // a label for SELinux, which is not supported; docker ignores it on such hosts
			label++
		case w == "nocopy" && volume:
			m.NoCopy = true
			copies++
		case slices.Contains(consistency, w):
			cons++
		case slices.Contains(propagations, w) && !volume && m.Propagation == "":
			m.Propagation = w
		default:
			return m, bad
		}
	}
	if rw > 1 || label > 1 || cons > 1 || copies > 1 {
		return m, bad
	}
	return m, nil
}

// cleanTarget checks a path in the container and returns it cleaned.
func cleanTarget(p string) (string, error) {
	if p == "" {
		return "", errs.New(errs.Invalid, "field Target must not be empty")
	}
	if len(p) > 4096 || strings.IndexByte(p, 0) >= 0 {
		return "", errs.New(errs.Invalid, "invalid mount path: '%.60s'", p)
	}
	if !path.IsAbs(p) {
		return "", errs.New(errs.Invalid, "invalid mount path: '%s' mount path must be absolute", p)
	}
	if c := path.Clean(p); c != "/" {
		return c, nil
	}
	return "", errs.New(errs.Invalid, "invalid specification: destination can't be '/'")
}

// ParseInherit parses one --volumes-from: container[:mode].
func ParseInherit(raw string) (container string, readOnly bool, err error) {
	if raw == "" {
		return "", false, errs.New(errs.Invalid, "volumes-from specification cannot be an empty string")
	}
	container, mode, _ := strings.Cut(raw, ":")
	m, err := parseMode(mode, false)
	if err != nil || m.Propagation != "" {
		return "", false, errs.New(errs.Invalid, "invalid mode for volumes-from: %s", mode)
	}
	return container, m.ReadOnly, nil
}

// tmpfsOptions are the options that docker passes on; the value says whether the option has a value.
var tmpfsOptions = map[string]bool{
	"exec": false, "noexec": false, "nosuid": false, "suid": false, "nodev": false, "dev": false, "ro": false, "rw": false,
	"atime": false, "noatime": false, "diratime": false, "nodiratime": false, "relatime": false, "norelatime": false,
	"strictatime": false, "nostrictatime": false, "sync": false, "async": false, "dirsync": false, "mand": false, "nomand": false,
	"defaults": false, "remount": false, "bind": false, "rbind": false,
	"private": false, "rprivate": false, "slave": false, "rslave": false, "shared": false, "rshared": false, "unbindable": false, "runbindable": false,
	"size": true, "mode": true, "uid": true, "gid": true, "nr_inodes": true, "nr_blocks": true, "mpol": true,
}

// parseTmpfs parses one --tmpfs.
func parseTmpfs(target, raw string) (Mount, error) {
	clean, err := cleanTarget(target)
	if err != nil {
		return Mount{}, err
	}
	m := Mount{Type: "tmpfs", Target: clean, Mode: raw, RW: true, Options: []string{"noexec", "nosuid", "nodev"}}
	if raw == "" {
		return m, nil
	}
	for o := range strings.SplitSeq(raw, ",") {
		k, v, hasValue := strings.Cut(o, "=")
		takes, known := tmpfsOptions[k]
		if !known || takes != hasValue || (takes && v == "") || k == "bind" || k == "rbind" || k == "remount" {
			return Mount{}, errs.New(errs.Invalid, "invalid tmpfs option %q", o)
		}
		switch k {
		case "exec", "suid", "dev":
			m.Options = slices.DeleteFunc(m.Options, func(s string) bool { return s == "no"+k })
			continue
		case "noexec", "nosuid", "nodev", "defaults":
			continue
		case "ro":
			m.RW = false
		}
		m.Options = append(m.Options, o)
	}
	return m, nil
}
