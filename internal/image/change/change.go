// Package change applies Dockerfile instructions that change only the run configuration of an image, for `commit --change` and
// `import --change`: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME and WORKDIR.
//
// The syntax is that of a Dockerfile. The exec form is a JSON array of strings; anything else is the shell form. Words may be
// quoted. $name, ${name}, ${name:-word}, ${name:+word} and ${name:?word} are replaced by variables that ENV has set.
package change

import (
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
)

// MaxSize is the maximum size of the text of all changes together, in bytes.
const MaxSize = 1 << 20

// Apply applies instructions to cfg, in order. Each string may have several instructions, one per line, with continuation lines and
// comments as in a Dockerfile. errs.Invalid for a malformed instruction, which is in the error; cfg is then unchanged.
func Apply(cfg *oci.RunConfig, lines []string) error {
	a := applier{cfg: clone(*cfg)}
	total := 0
	for _, l := range lines {
		if total += len(l); total > MaxSize {
			return errs.New(errs.Invalid, "changes are longer than %d bytes", MaxSize)
		}
		for _, instruction := range split(l) {
			if err := a.apply(instruction); err != nil {
				return errs.New(errs.Invalid, "change %q: %w", clip(instruction), err)
			}
		}
	}
	*cfg = a.cfg
	return nil
}

// clone copies the parts of a config that instructions change in place.
func clone(c oci.RunConfig) oci.RunConfig {
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Volumes = maps.Clone(c.Volumes)
	c.Labels = maps.Clone(c.Labels)
	c.Env = slices.Clone(c.Env)
	c.OnBuild = slices.Clone(c.OnBuild)
	return c
}

// split splits text into instructions. It joins continuation lines and removes comments and blank lines.
func split(text string) []string {
	var out []string
	var open strings.Builder
	joined := false
	flush := func() {
		if s := strings.TrimSpace(open.String()); s != "" {
			out = append(out, s)
		}
		open.Reset()
		joined = false
	}
	for line := range strings.SplitSeq(text, "\n") {
		trimmed := strings.TrimRight(line, " \t\r")
		if start := strings.TrimLeft(trimmed, " \t"); start == "" || start[0] == '#' {
			if !joined {
				flush()
			}
			continue
		}
		if body, more := strings.CutSuffix(trimmed, `\`); more {
			open.WriteString(body)
			joined = true
			continue
		}
		open.WriteString(trimmed)
		flush()
	}
	flush()
	return out
}

type applier struct {
	cfg    oci.RunConfig
	cmdSet bool // a CMD was applied, so that ENTRYPOINT does not reset it
}

func (a *applier) apply(line string) error {
	word, rest := line, ""
	if i := strings.IndexAny(line, " \t"); i >= 0 {
		word, rest = line[:i], strings.TrimSpace(line[i:])
	}
	name := strings.ToUpper(word)
	do, ok := map[string]func(name, rest string) error{
		"CMD": a.cmd, "ENTRYPOINT": a.entrypoint, "ENV": a.env, "EXPOSE": a.expose, "HEALTHCHECK": a.healthcheck,
		"LABEL": a.label, "ONBUILD": a.onbuild, "SHELL": a.shell, "STOPSIGNAL": a.stopsignal, "USER": a.user,
		"VOLUME": a.volume, "WORKDIR": a.workdir,
	}[name]
	if !ok {
		return errs.New(errs.Invalid, "%s is not a valid change command", clip(word))
	}
	if strings.IndexByte(rest, 0) >= 0 {
		return errs.New(errs.Invalid, "%s holds a NUL", name)
	}
	if rest == "" && name != "CMD" && name != "ENTRYPOINT" {
		if name == "ENV" || name == "LABEL" || name == "EXPOSE" || name == "VOLUME" || name == "HEALTHCHECK" || name == "SHELL" {
			return errs.New(errs.Invalid, "%s requires at least one argument", name)
		}
		return errs.New(errs.Invalid, "%s requires exactly one argument", name)
	}
	return do(name, rest)
}

// command returns the words of the exec form, or those of the shell and the text of the shell form.
func (a *applier) command(rest string) []string {
	if words, ok := jsonForm(rest); ok {
		return words
	}
	if rest == "" {
		return nil
	}
	shell := a.cfg.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), rest)
}

// jsonForm parses the exec form. It returns false when the text is not a JSON array of strings.
func jsonForm(s string) ([]string, bool) {
	if !strings.HasPrefix(s, "[") {
		return nil, false
	}
	var raw []any
	if json.Unmarshal([]byte(s), &raw) != nil {
		return nil, false
	}
	words := make([]string, len(raw))
	for i, v := range raw {
		w, ok := v.(string)
		if !ok {
			return nil, false
		}
		words[i] = w
	}
	return words, true
}

func (a *applier) cmd(_, rest string) error {
	a.cfg.Cmd, a.cfg.ArgsEscaped = a.command(rest), false
	a.cmdSet = true
	return nil
}

func (a *applier) entrypoint(_, rest string) error {
	a.cfg.Entrypoint = a.command(rest)
	if !a.cmdSet {
		a.cfg.Cmd = nil // it belongs to the old entry point
	}
	return nil
}

func (a *applier) env(name, rest string) error {
	pairs, err := a.pairs(name, rest)
	for _, p := range pairs {
		a.setEnv(p[0], p[1])
	}
	return err
}

func (a *applier) setEnv(k, v string) {
	for i, e := range a.cfg.Env {
		if have, _, _ := strings.Cut(e, "="); have == k {
			a.cfg.Env[i] = k + "=" + v
			return
		}
	}
	a.cfg.Env = append(a.cfg.Env, k+"="+v)
}

func (a *applier) label(name, rest string) error {
	pairs, err := a.pairs(name, rest)
	for _, p := range pairs {
		if a.cfg.Labels == nil {
			a.cfg.Labels = map[string]string{}
		}
		a.cfg.Labels[p[0]] = p[1]
	}
	return err
}

// pairs parses "k=v k2=v2" or, if the first word has no "=", "k the rest".
func (a *applier) pairs(name, rest string) ([][2]string, error) {
	words := splitWords(rest)
	if !strings.Contains(words[0], "=") {
		k, v, ok := cutSpace(rest)
		if !ok {
			return nil, errs.New(errs.Invalid, "%s must have two arguments", name)
		}
		p, err := a.pair(name, k, v)
		return [][2]string{p}, err
	}
	var out [][2]string
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return nil, errs.New(errs.Invalid, "syntax error - can't find = in %q. Must be of the form: name=value", clip(w))
		}
		p, err := a.pair(name, k, v)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func (a *applier) pair(name, k, v string) (p [2]string, err error) {
	if p[0], err = a.expand(k); err != nil {
		return p, err
	}
	if p[0] == "" {
		return p, errs.New(errs.Invalid, "%s names can not be blank", name)
	}
	p[1], err = a.expand(v)
	return p, err
}

func cutSpace(s string) (before, after string, ok bool) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, "", false
	}
	return s[:i], strings.TrimSpace(s[i:]), true
}

func (a *applier) expose(_, rest string) error {
	for _, w := range splitWords(rest) {
		w, err := a.expand(w)
		if err != nil {
			return err
		}
		ports, err := parsePorts(w)
		if err != nil {
			return err
		}
		if a.cfg.ExposedPorts == nil {
			a.cfg.ExposedPorts = map[string]struct{}{}
		}
		for _, p := range ports {
			a.cfg.ExposedPorts[p] = struct{}{}
		}
	}
	return nil
}

// parsePorts parses "80", "80/udp" or "8000-8010/tcp".
func parsePorts(s string) ([]string, error) {
	bad := errs.New(errs.Invalid, "invalid containerPort: %s", clip(s))
	ports, proto, given := strings.Cut(s, "/")
	proto = strings.ToLower(proto)
	if !given {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return nil, errs.New(errs.Invalid, "invalid proto: %s", clip(proto))
	}
	low, high, ranged := strings.Cut(ports, "-")
	if !ranged {
		high = low
	}
	from, err1 := strconv.ParseUint(low, 10, 16)
	to, err2 := strconv.ParseUint(high, 10, 16)
	if err1 != nil || err2 != nil || from == 0 || to < from {
		return nil, bad
	}
	out := make([]string, 0, to-from+1)
	for p := from; p <= to; p++ {
		out = append(out, strconv.FormatUint(p, 10)+"/"+proto)
	}
	return out, nil
}

func (a *applier) healthcheck(_, rest string) error {
	kind, rest, flags, err := healthFlags(rest)
	if err != nil {
		return err
	}
	h := &oci.Healthcheck{}
	switch kind {
	case "NONE":
		if rest != "" || len(flags) > 0 {
			return errs.New(errs.Invalid, "HEALTHCHECK NONE takes no arguments")
		}
		h.Test = []string{"NONE"}
	case "CMD":
		if rest == "" {
			return errs.New(errs.Invalid, "missing command after HEALTHCHECK CMD")
		}
		if words, ok := jsonForm(rest); ok {
			h.Test = append([]string{"CMD"}, words...)
		} else {
			h.Test = []string{"CMD-SHELL", rest}
		}
	default:
		return errs.New(errs.Invalid, "unknown type %q in HEALTHCHECK (try CMD)", clip(kind))
	}
	for k, v := range flags {
		if err := setHealth(h, k, v); err != nil {
			return err
		}
	}
	a.cfg.Healthcheck = h
	return nil
}

// healthFlags parses the words --key=value at the beginning and returns the rest.
func healthFlags(rest string) (kind, args string, flags map[string]string, err error) {
	flags = map[string]string{}
	for strings.HasPrefix(rest, "--") {
		word, tail, _ := cutSpace(rest)
		k, v, ok := strings.Cut(word[2:], "=")
		if !ok {
			return "", "", nil, errs.New(errs.Invalid, "missing a value on flag: %s", clip(k))
		}
		if _, twice := flags[k]; twice {
			return "", "", nil, errs.New(errs.Invalid, "duplicate flag specified: %s", clip(k))
		}
		flags[k], rest = v, tail
	}
	kind, args, _ = cutSpace(rest)
	return strings.ToUpper(kind), args, flags, nil
}

func setHealth(h *oci.Healthcheck, k, v string) error {
	if k == "retries" {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil || n < 0 {
			return errs.New(errs.Invalid, "--retries must be at least 0, not %q", clip(v))
		}
		h.Retries = int(n)
		return nil
	}
	to, ok := map[string]*time.Duration{
		"interval": &h.Interval, "timeout": &h.Timeout, "start-period": &h.StartPeriod, "start-interval": &h.StartInterval,
	}[k]
	if !ok {
		return errs.New(errs.Invalid, "unknown flag: %s", clip(k))
	}
	if v == "" {
		return nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return errs.New(errs.Invalid, "--%s: %w", k, err)
	}
	if d < 0 || d > 0 && d < time.Millisecond {
		return errs.New(errs.Invalid, "interval %q cannot be less than %s", k, time.Millisecond)
	}
	*to = d
	return nil
}

func (a *applier) onbuild(_, rest string) error {
	word, _, _ := cutSpace(rest)
	switch trigger := strings.ToUpper(word); trigger {
	case "ONBUILD":
		return errs.New(errs.Invalid, "chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
	case "MAINTAINER", "FROM":
		return errs.New(errs.Invalid, "%s isn't allowed as an ONBUILD trigger", trigger)
	}
	a.cfg.OnBuild = append(a.cfg.OnBuild, rest)
	return nil
}

func (a *applier) shell(_, rest string) error {
	words, ok := jsonForm(rest)
	if !ok {
		return errs.New(errs.Invalid, "SHELL requires the arguments to be in JSON form")
	}
	if len(words) == 0 {
		return errs.New(errs.Invalid, "SHELL requires at least one argument")
	}
	a.cfg.Shell = words
	return nil
}

func (a *applier) stopsignal(_, rest string) error {
	s, err := a.expand(rest)
	if err != nil {
		return err
	}
	if _, err := oci.ParseSignal(s); err != nil {
		return err
	}
	a.cfg.StopSignal = s
	return nil
}

func (a *applier) user(_, rest string) (err error) {
	s, err := a.expand(rest)
	if err == nil && strings.TrimSpace(s) == "" {
		return errs.New(errs.Invalid, "USER is empty")
	}
	a.cfg.User = s
	return err
}

func (a *applier) volume(_, rest string) error {
	words, ok := jsonForm(rest)
	if !ok {
		words = splitWords(rest)
	}
	if len(words) == 0 {
		return errs.New(errs.Invalid, "VOLUME requires at least one argument")
	}
	for _, w := range words {
		w, err := a.expand(w)
		if err != nil {
			return err
		}
		if w = strings.TrimSpace(w); w == "" {
			return errs.New(errs.Invalid, "VOLUME specified can not be an empty string")
		}
		if a.cfg.Volumes == nil {
			a.cfg.Volumes = map[string]struct{}{}
		}
		a.cfg.Volumes[w] = struct{}{}
	}
	return nil
}

func (a *applier) workdir(_, rest string) error {
	p, err := a.expand(rest)
	if err != nil {
		return err
	}
	if p == "" {
		return errs.New(errs.Invalid, "WORKDIR is empty")
	}
	if !path.IsAbs(p) {
		p = path.Join("/", a.cfg.WorkingDir, p)
	}
	a.cfg.WorkingDir = path.Clean(p)
	return nil
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
