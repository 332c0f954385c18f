package builder

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ply/internal/cli/command"
	"ply/internal/cli/direct"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// plan is a build that is ready to be sent.
type plan struct {
	request   wire.DirectBuild
	resources direct.Resources
	remove    []string // directories that the build needs and that are removed after it
	agents    []string // values of --ssh
}

func (p *plan) close() {
	for _, dir := range p.remove {
		_ = os.RemoveAll(dir) // it is in the directory for temporary files
	}
}

// plan reads the flags of a build of the context at source. stdin is read when the flags name it.
func (b *buildFlags) plan(ctx context.Context, inv *command.Invocation, source string, stdin io.Reader) (_ *plan, err error) {
	p := &plan{request: wire.DirectBuild{Options: map[string]string{}, Allow: b.allow, Explain: b.explain}}
	p.resources = direct.Resources{Dirs: map[string]string{}, Credentials: inv.Auth}
	inv.Config() // Credentials is called by several goroutines
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err := errors.Join(b.options(p.request.Options, inv.Proxies()), b.refuse(), b.checkPolicy()); err != nil {
		return nil, err
	}
	switch b.network {
	case "", "default", "bridge", "none":
	case "host":
		p.request.Allow = append(slices.Clone(p.request.Allow), "network.host")
	default:
		p.request.Network = b.network
	}
	if err := b.sources(p, source, stdin); err != nil {
		return nil, err
	}
	p.resources.Pack = packer(p.request.Options)
	for _, add := range []func(*plan) error{b.namedContexts, b.addSecrets, b.addAgents} {
		if err := add(p); err != nil {
			return nil, err
		}
	}
	if err := b.caches(p, inv.Err); err != nil {
		return nil, err
	}
	return p, b.exports(p, inv)
}

// refuse returns an error for values that a build cannot have.
func (b *buildFlags) refuse() error {
	switch {
	case !b.noVerify:
		return errs.New(errs.Unimplemented, "--disable-content-trust=false: image verification with Notary is not supported")
	case b.isolation != "" && b.isolation != "default":
		return errs.New(errs.Unimplemented, "--isolation %s is not supported", b.isolation)
	case len(b.securityOpt) > 0:
		return errs.New(errs.Unimplemented, "--security-opt is not supported in a build: a step that needs more asks for it with RUN --security=insecure, and the build allows it with --allow security.insecure")
	}
	return nil
}

// options sets the options of the front end.
func (b *buildFlags) options(o map[string]string, proxies map[string]string) error {
	for name, v := range map[string]string{
		"target": b.target, "platform": strings.ToLower(strings.Join(b.platform, ",")), "cgroup-parent": b.cgroupParent, "cpusetcpus": b.cpusetCpus, "cpusetmems": b.cpusetMems,
	} {
		if v != "" {
			o[name] = v
		}
	}
	if len(b.platform) > 1 {
		o["multi-platform"] = "true"
	}
	for name, n := range map[string]int64{
		"cpuperiod": b.cpuPeriod, "cpuquota": b.cpuQuota, "cpushares": b.cpuShares, "memory": b.memory.N, "memswap": b.memSwap.N, "shm-size": b.shmSize.N,
	} {
		if n != 0 {
			o[name] = strconv.FormatInt(n, 10)
		}
	}
	switch b.network {
	case "", "default", "bridge":
	case "host", "none":
		o["force-network-mode"] = b.network
	}
	if b.noCache {
		if len(b.noCacheFilter) > 0 {
			return errs.New(errs.Invalid, "--no-cache and --no-cache-filter cannot currently be used together")
		}
		o["no-cache"] = ""
	} else if len(b.noCacheFilter) > 0 {
		o["no-cache"] = strings.Join(b.noCacheFilter, ",")
	}
	if b.pull {
		o["image-resolve-mode"] = "pull"
	}
	for k, v := range proxies {
		o["build-arg:"+k] = v
	}
	if v := os.Getenv("SOURCE_DATE_EPOCH"); v != "" {
		o["build-arg:SOURCE_DATE_EPOCH"] = v
	}
	for _, s := range b.buildArg.Values {
		k, v, has := strings.Cut(s, "=")
		delete(o, "build-arg:"+k)
		if !has {
			if v, has = os.LookupEnv(k); !has {
				continue
			}
		}
		o["build-arg:"+k] = v
	}
	for k, v := range opts.KeyValues(b.label.Values) {
		o["label:"+k] = v
	}
	var hosts, limits []string
	for _, h := range b.addHost.Values {
		name, ip, _ := strings.Cut(h, ":")
		hosts = append(hosts, name+"="+ip)
	}
	if len(hosts) > 0 {
		o["add-hosts"] = strings.Join(hosts, ",")
	}
	for _, l := range b.ulimits.List {
		limits = append(limits, l.String())
	}
	if len(limits) > 0 {
		o["ulimit"] = strings.Join(limits, ",")
	}
	return errors.Join(b.attestations(o), b.question(o))
}

// attestations sets the options for --attest, --provenance and --sbom.
func (b *buildFlags) attestations(o map[string]string) error {
	for _, a := range b.attest {
		f, err := fields(a)
		if err != nil {
			return errs.New(errs.Invalid, "--attest %s: %w", a, err)
		}
		typ := f["type"]
		if typ == "" {
			return errs.New(errs.Invalid, "--attest %s: the type is missing: want type=sbom or type=provenance", a)
		}
		off := f["disabled"] == "true"
		rest := strings.Join(slices.DeleteFunc(strings.Split(a, ","), func(s string) bool { return strings.HasPrefix(s, "type=") || strings.HasPrefix(s, "disabled=") }), ",")
		if !off {
			o["attest:"+typ] = rest
		}
	}
	for typ, v := range map[string]string{"provenance": b.provenance, "sbom": b.sbom} {
		if v == "" {
			continue
		}
		on, err := strconv.ParseBool(v)
		switch {
		case err != nil:
			o["attest:"+typ] = v // attributes, such as mode=max
		case on:
			o["attest:"+typ] = ""
		default:
			delete(o, "attest:"+typ)
		}
	}
	return nil
}

// questions are the methods of --call, by BuildKit's names of the requests.
var questions = map[string]string{"check": "frontend.lint", "lint": "frontend.lint", "outline": "frontend.outline", "targets": "frontend.targets", "subrequests.describe": "frontend.subrequests.describe"}

// question sets the option for --call.
func (b *buildFlags) question(o map[string]string) error {
	if b.check {
		if b.call != "build" && b.call != "check" && b.call != "" {
			return errs.New(errs.Invalid, "--check and --call %s cannot be used together", b.call)
		}
		b.call = "check"
	}
	method, rest, _ := strings.Cut(b.call, ",")
	b.format, b.ignoreStatus = "", false
	for f := range strings.SplitSeq(rest, ",") {
		switch f {
		case "":
		case "format=json":
			b.format = "json"
		case "format=text":
			b.format = "text"
		case "ignorestatus=true", "ignorestatus":
			b.ignoreStatus = true
		case "ignorestatus=false":
		default:
			return errs.New(errs.Invalid, "--call %s: unknown attribute %q", b.call, f)
		}
	}
	if method == "" || method == "build" {
		return nil
	}
	id, ok := questions[method]
	if !ok {
		return errs.New(errs.Invalid, "--call %s: want build, check, outline or targets", method)
	}
	o["requestid"] = id
	return nil
}

// asks reports whether the build only answers a question.
func (b *buildFlags) asks() bool {
	method, _, _ := strings.Cut(b.call, ",")
	return b.check || method != "" && method != "build"
}

// sources finds the context and the Dockerfile.
func (b *buildFlags) sources(p *plan, source string, stdin io.Reader) error {
	o, dirs := p.request.Options, p.resources.Dirs
	switch {
	case source == "-" && b.file == "-":
		return errs.New(errs.Invalid, "invalid argument: can't use stdin for both build context and dockerfile")
	case source == "-":
		head, r, err := peek(stdin)
		if err != nil {
			return err
		}
		if isTar(head) {
			p.resources.Context = r
			o["dockerfilekey"] = "context"
			if b.file != "" {
				o["filename"] = filepath.ToSlash(b.file)
			}
			return nil
		}
		if b.file != "" {
			return errs.New(errs.Invalid, "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
		}
		// The Dockerfile is all of the context.
		dir, err := b.stdinDockerfile(p, r)
		dirs["context"], dirs["dockerfile"] = dir, dir
		return err
	case remoteContext(source):
		o["context"] = source
		if b.file == "-" {
			dir, err := b.stdinDockerfile(p, stdin)
			dirs["dockerfile"] = dir
			o["dockerfilekey"] = "dockerfile"
			return err
		}
		if b.file != "" {
			o["filename"] = filepath.ToSlash(b.file)
		}
		return nil
	}
	root, err := contextDir(source)
	if err != nil {
		return err
	}
	dirs["context"] = root
	if b.file == "-" {
		dirs["dockerfile"], err = b.stdinDockerfile(p, stdin)
		return err
	}
	file, err := dockerfilePath(root, b.file)
	if err != nil {
		return err
	}
	dirs["dockerfile"], o["filename"] = filepath.Dir(file), filepath.Base(file)
	return b.policyBeside(file)
}

// checkPolicy refuses policies, which would say what the build may be made of. It must not be built as if there was none unless the user says so.
func (b *buildFlags) checkPolicy() error {
	for _, p := range b.policy {
		f, err := fields(p)
		if err != nil {
			return errs.New(errs.Invalid, "--policy %s: %w", p, err)
		}
		off, err := strconv.ParseBool(f["disabled"])
		if err != nil || !off || len(f) > 1 || len(b.policy) > 1 {
			return unevaluated("--policy " + p)
		}
	}
	if file := os.Getenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"); file != "" {
		return unevaluated("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY=" + file)
	}
	return nil
}

// policyBeside refuses the policy beside a Dockerfile, which buildx would evaluate.
func (b *buildFlags) policyBeside(dockerfile string) error {
	if len(b.policy) > 0 { // it is disabled
		return nil
	}
	if _, err := os.Lstat(dockerfile + ".rego"); !errors.Is(err, fs.ErrNotExist) {
		return unevaluated(dockerfile + ".rego")
	}
	return nil
}

func unevaluated(what string) error {
	return errs.New(errs.Unimplemented, "%s: policies for the sources of a build are not evaluated by ply", what).
		WithHint("Build with docker buildx, which evaluates them, or without policies: ply build --policy disabled=true")
}

// stdinDockerfile puts the Dockerfile of r into a directory of its own.
func (b *buildFlags) stdinDockerfile(p *plan, r io.Reader) (string, error) {
	text, err := readDockerfile(r)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "ply-build-")
	if err != nil {
		return "", err
	}
	p.remove = append(p.remove, dir)
	p.request.Options["filename"] = "Dockerfile"
	return dir, os.WriteFile(filepath.Join(dir, "Dockerfile"), text, 0o600)
}

// namedContexts adds --build-context.
func (b *buildFlags) namedContexts(p *plan) error {
	for _, c := range b.buildContext {
		name, value, ok := strings.Cut(c, "=")
		if !ok || name == "" || value == "" {
			return errs.New(errs.Invalid, "invalid context value: %s, expected key=value", c)
		}
		name = strings.ToLower(name)
		if err := p.addContext(name, value); err != nil {
			return err
		}
	}
	return nil
}

// addContext adds a named context: a URL, an image, an OCI layout, or a directory.
func (p *plan) addContext(name, value string) error {
	o := p.request.Options
	if rest, ok := strings.CutPrefix(value, "oci-layout://"); ok {
		dir, ref := splitLayout(rest)
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return errs.New(errs.Invalid, "failed to get build context %s: %s is not the directory of an OCI layout", name, dir)
		}
		store := "oci-layout-" + name
		p.resources.Dirs[store] = dir
		ref, err := layoutRef(dir, ref)
		if err != nil {
			return errs.New(errs.Invalid, "failed to get build context %s: %w", name, err)
		}
		o["context:"+name] = "oci-layout://" + store + ref
		return nil
	}
	if _, ok := localContext(value); !ok {
		o["context:"+name] = value
		return nil
	}
	st, err := os.Stat(value)
	if err != nil {
		return errs.New(errs.Invalid, "failed to get build context %s: %v", name, err)
	}
	if !st.IsDir() {
		return errs.New(errs.Invalid, "failed to get build context %s: %s is not a directory", name, value)
	}
	local := name
	if local == "context" || local == "dockerfile" {
		local = "-" + name // these names are those of the context itself
	}
	p.resources.Dirs[local] = value
	o["context:"+name] = "local:" + local
	return nil
}

// localContext returns the directory on this machine that a named context is, or in which its layout is.
func localContext(value string) (dir string, ok bool) {
	if rest, ok := strings.CutPrefix(value, "oci-layout://"); ok {
		dir, _ = splitLayout(rest)
		return dir, true
	}
	return value, !remoteContext(value) && !strings.HasPrefix(value, "docker-image://") && !strings.HasPrefix(value, "input:")
}

// splitLayout splits the path of an OCI layout from its tag or digest.
func splitLayout(s string) (dir, ref string) {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		if j := strings.LastIndexByte(s[:i], ':'); j > strings.LastIndexByte(s[:i], '/') {
			return s[:j], s[j:]
		}
		return s[:i], ":latest" + s[i:]
	}
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		return s[:i], s[i:]
	}
	return s, ""
}

// addSecrets adds --secret.
func (b *buildFlags) addSecrets(p *plan) error {
	for _, s := range b.secret {
		f, err := fields(s)
		if err != nil {
			return errs.New(errs.Invalid, "invalid secret %s: %w", s, err)
		}
		var sec direct.Secret
		typ, id := "", ""
		for k, v := range f {
			switch k {
			case "id":
				id = v
			case "type":
				if v != "file" && v != "env" {
					return errs.New(errs.Invalid, "unsupported secret type %q", v)
				}
				typ = v
			case "source", "src":
				sec.File = v
			case "env":
				sec.Env = v
			default:
				return errs.New(errs.Invalid, "unexpected key '%s' in '%s'", k, s)
			}
		}
		if id == "" {
			return errs.New(errs.Invalid, "invalid secret %s: the id is missing", s)
		}
		if typ == "env" && sec.Env == "" {
			sec.Env, sec.File = sec.File, ""
		}
		if sec.File == "" && sec.Env == "" {
			if _, ok := os.LookupEnv(id); typ == "env" || typ == "" && ok {
				sec.Env = id
			} else {
				sec.File = id
			}
		}
		if sec.File != "" {
			if st, err := os.Stat(sec.File); err != nil || st.IsDir() {
				return errs.New(errs.Invalid, "secret %s: %s is not a file that can be read", id, sec.File)
			}
		}
		if p.resources.Secrets == nil {
			p.resources.Secrets = map[string]direct.Secret{}
		}
		p.resources.Secrets[id] = sec
	}
	return nil
}

// addAgents adds --ssh.
func (b *buildFlags) addAgents(p *plan) error {
	for _, s := range b.ssh {
		id, paths, ok := strings.Cut(s, "=")
		if id == "" {
			id = "default"
		}
		if !ok || paths == "" {
			paths = os.Getenv("SSH_AUTH_SOCK")
			if paths == "" {
				return errs.New(errs.Invalid, "invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
			}
		}
		agent, err := direct.NewAgent(strings.Split(paths, ","))
		if err != nil {
			return err
		}
		if p.resources.Agents == nil {
			p.resources.Agents = map[string]direct.Agent{}
		}
		p.resources.Agents[id] = agent
		p.agents = append(p.agents, s)
	}
	return nil
}

// caches adds --cache-from and --cache-to. It writes to warnings which cache is not there.
func (b *buildFlags) caches(p *plan, warnings io.Writer) error {
	for _, list := range []struct {
		flag string
		from []string
		to   *[]wire.BuildOption
	}{{"--cache-from", b.cacheFrom, &p.request.CacheFrom}, {"--cache-to", b.cacheTo, &p.request.CacheTo}} {
		for _, s := range list.from {
			if s == "" {
				continue
			}
			c := wire.BuildOption{Type: "registry", Attrs: map[string]string{}}
			if !strings.Contains(s, "=") {
				for ref := range strings.SplitSeq(s, ",") { // docker's older form: images
					*list.to = append(*list.to, wire.BuildOption{Type: "registry", Attrs: map[string]string{"ref": ref}})
				}
				continue
			}
			f, err := fields(s)
			if err != nil {
				return errs.New(errs.Invalid, "%s %s: %w", list.flag, s, err)
			}
			if f["type"] == "" {
				return errs.New(errs.Invalid, "%s %s: the type is missing", list.flag, s)
			}
			c.Type = f["type"]
			delete(f, "type")
			c.Attrs = f
			if c.Type == "local" {
				err := p.addCacheDir(&c)
				if errors.Is(err, errNoCache) {
					fmt.Fprintf(warnings, "WARNING: %s %s: %v\n", list.flag, s, err)
					continue
				}
				if err != nil {
					return errs.New(errs.Invalid, "%s %s: %w", list.flag, s, err)
				}
			}
			*list.to = append(*list.to, c)
		}
	}
	return nil
}

// exports adds --output, --push, --load, --annotation, --squash and the tags.
func (b *buildFlags) exports(p *plan, inv *command.Invocation) error {
	if b.push && b.load {
		return errs.New(errs.Invalid, "--push and --load: name the outputs with --output")
	}
	var list []wire.BuildOption
	var places []direct.Output
	for _, s := range b.output {
		e, place, err := parseOutput(s, inv)
		if err != nil {
			return err
		}
		list, places = append(list, e), append(places, place)
	}
	add := func(typ string) {
		list, places = append(list, wire.BuildOption{Type: typ, Attrs: map[string]string{}}), append(places, direct.Output{})
	}
	if b.push {
		// An output that is an image is pushed, too.
		at := slices.IndexFunc(list, func(e wire.BuildOption) bool { return e.Type == "image" })
		if at >= 0 {
			list[at].Attrs["push"] = "true"
		} else if len(list) == 0 {
			add("registry")
		} else {
			return errs.New(errs.Invalid, "--push together with --output %s: use --output type=registry", b.output[0])
		}
	}
	if b.load && !slices.ContainsFunc(list, func(e wire.BuildOption) bool { return e.Type == "image" }) {
		add("image")
	}
	if len(list) == 0 && (len(b.annotation) > 0 || b.squash != "") && !b.asks() {
		add("image")
	}
	if len(list) == 0 {
		p.request.Tags = b.tag.Values
		return nil
	}
	for i := range list {
		e := &list[i]
		image := slices.Contains([]string{"image", "registry", "oci", "docker"}, e.Type)
		if image && e.Attrs["name"] == "" && len(b.tag.Values) > 0 {
			e.Attrs["name"] = strings.Join(b.tag.Values, ",")
		}
		if b.squash != "" && e.Type != "cacheonly" {
			e.Attrs["squash"] = b.squash
		}
		if !image {
			continue
		}
		for _, a := range b.annotation {
			if err := annotate(e.Attrs, a); err != nil {
				return err
			}
		}
	}
	if len(b.annotation) > 0 && !slices.ContainsFunc(list, func(e wire.BuildOption) bool { return e.Type != "local" && e.Type != "tar" && e.Type != "cacheonly" }) {
		return errs.New(errs.Invalid, "--annotation: no output is an image")
	}
	p.request.Exports, p.resources.Outputs = list, places
	return nil
}

var annotationForm = regexp.MustCompile(`^((?:[a-z-]+(?:\[[A-Za-z0-9_/-]+\])?,)*[a-z-]+(?:\[[A-Za-z0-9_/-]+\])?:)?([^=\s]+)=(.*)$`)

// annotate adds an annotation, [TYPE[PLATFORM],…:]KEY=VALUE, to the attributes of an output.
func annotate(attrs map[string]string, s string) error {
	m := annotationForm.FindStringSubmatch(s)
	if m == nil {
		return errs.New(errs.Invalid, "invalid annotation %q, expected key=value", s)
	}
	if m[1] == "" {
		attrs["annotation."+m[2]] = m[3]
		return nil
	}
	for typ := range strings.SplitSeq(strings.TrimSuffix(m[1], ":"), ",") {
		name, platform, _ := strings.Cut(typ, "[")
		if !slices.Contains([]string{"manifest", "index", "manifest-descriptor", "index-descriptor"}, name) {
			return errs.New(errs.Invalid, "unknown annotation type %q in %q", name, s)
		}
		if platform != "" {
			platform = "[" + platform
		}
		attrs["annotation-"+name+platform+"."+m[2]] = m[3]
	}
	return nil
}

// parseOutput reads a value of --output.
func parseOutput(s string, inv *command.Invocation) (e wire.BuildOption, place direct.Output, err error) {
	if !strings.Contains(s, "=") && s != "" {
		if s == "-" {
			s = "type=tar,dest=-"
		} else {
			s = "type=local,dest=" + s
		}
	}
	f, err := fields(s)
	if err != nil {
		return e, place, errs.New(errs.Invalid, "--output %s: %w", s, err)
	}
	e = wire.BuildOption{Type: f["type"], Attrs: f}
	delete(f, "type")
	if e.Type == "" {
		return e, place, errs.New(errs.Invalid, "type is required for output")
	}
	dest, has := f["dest"]
	switch e.Type {
	case "image", "registry", "cacheonly":
		if has {
			return e, place, errs.New(errs.Invalid, "dest is not supported by the output type %s", e.Type)
		}
		return e, place, nil
	case "docker":
		if !has {
			e.Type = "image" // it is loaded, and the engine is the store
			return e, place, nil
		}
	}
	if e.Type == "local" || f["tar"] == "false" {
		if dest == "" || dest == "-" {
			return e, place, errs.New(errs.Invalid, "dest is required for the output type %s, and names a directory", e.Type)
		}
		if st, err := os.Stat(dest); err == nil && !st.IsDir() {
			return e, place, errs.New(errs.Invalid, "destination directory %s is a file", dest)
		}
		return e, direct.ToDir(dest), nil
	}
	if dest == "" || dest == "-" {
		if inv.OutTerm != nil {
			return e, place, errs.New(errs.Invalid, "dest file is required for %s exporter. refusing to write to console", e.Type)
		}
		e.Attrs["dest"] = "-"
		return e, direct.ToWriter(inv.Out), nil
	}
	if st, err := os.Stat(dest); err == nil && st.IsDir() {
		return e, place, errs.New(errs.Invalid, "destination file %s is a directory", dest)
	}
	return e, direct.ToFile(dest), nil
}

// toStdout reports whether an output goes to the standard output, where no progress can be shown then.
func (p *plan) toStdout() bool {
	return slices.ContainsFunc(p.request.Exports, func(e wire.BuildOption) bool { return e.Attrs["dest"] == "-" })
}

// fields reads KEY=VALUE,… in the form of CSV.
func fields(s string) (map[string]string, error) {
	list, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, f := range list {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return nil, errs.New(errs.Invalid, "invalid value %s: want key=value", f)
		}
		out[strings.ToLower(strings.TrimSpace(k))] = v
	}
	return out, nil
}

// needs returns the flags that an engine without direct builds cannot serve.
func (b *buildFlags) needs() (flags []string) {
	for name, set := range map[string]bool{
		"--output": len(b.output) > 0, "--push": b.push, "--secret": len(b.secret) > 0, "--ssh": len(b.ssh) > 0, "--allow": len(b.allow) > 0, "--annotation": len(b.annotation) > 0,
		"--no-cache-filter": len(b.noCacheFilter) > 0, "--build-context": len(b.buildContext) > 0, "--cache-to": len(b.cacheTo) > 0, "--attest": len(b.attest) > 0,
		"--provenance": b.provenance != "" && b.provenance != "false", "--sbom": b.sbom != "" && b.sbom != "false", "--platform with several platforms": len(b.platform) > 1,
		"--metadata-file": b.metadataFile != "", "--call": b.asks(), "--explain": b.explain, "--shell-on-error": b.shellOnError,
	} {
		if set {
			flags = append(flags, name)
		}
	}
	slices.Sort(flags)
	return flags
}
