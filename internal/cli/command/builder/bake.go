package builder

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"

	"ply/internal/cli/bakefile"
	"ply/internal/cli/buildview"
	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/direct"
	"ply/internal/errs"
	"ply/internal/wire"
)

// bakeFlags are the flags of bake.
type bakeFlags struct {
	allow, file, set, vars                  []string
	call, metadataFile, progress, list      string
	provenance, sbom                        string
	check, load, noCache, print, pull, push bool
	explain                                 bool
	noCacheSet, pullSet                     bool
}

// bakeFiles are read when no file is named, as far as they exist.
var bakeFiles = []string{"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml", "docker-bake.json", "docker-bake.hcl", "docker-bake.override.json", "docker-bake.override.hcl"}

// Bake returns the command bake.
func Bake(inv *command.Invocation) *cobra.Command {
	f := &bakeFlags{}
	c := &cobra.Command{
		Use: "bake [OPTIONS] [TARGET...]", Short: "Build from a file", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.noCacheSet, f.pullSet = cmd.Flags().Changed("no-cache"), cmd.Flags().Changed("pull")
			return command.EndOf(cmd.Context(), bake(cmd.Context(), inv, f, args))
		},
	}
	fl := c.Flags()
	fl.StringArrayVar(&f.allow, "allow", nil, `Allow build to access specified resources (e.g., "network.host", "security.insecure", "fs.read=path", "fs.write=path", "fs=path", "ssh")`)
	fl.StringVar(&f.call, "call", "", `Set method for evaluating build ("check", "outline", "targets")`)
	fl.BoolVar(&f.check, "check", false, `Shorthand for "--call=check"`)
	fl.BoolVar(&f.explain, "explain", false, "Say for each step that is executed why its result was not in the cache")
	fl.StringArrayVarP(&f.file, "file", "f", nil, "Build definition file")
	fl.StringVar(&f.list, "list", "", `List targets or variables ("targets", "variables", with ",format=json" as JSON)`)
	fl.BoolVar(&f.load, "load", false, `Shorthand for "--set=*.output=type=docker". Conditional.`)
	fl.StringVar(&f.metadataFile, "metadata-file", "", "Write build result metadata to a file")
	fl.BoolVar(&f.noCache, "no-cache", false, "Do not use cache when building the image")
	fl.BoolVar(&f.print, "print", false, "Print the options without building")
	fl.StringVar(&f.progress, "progress", "auto", `Set type of progress output ("auto", "tty", "plain", "rawjson", "quiet")`)
	fl.StringVar(&f.provenance, "provenance", "", `Shorthand for "--set=*.attest=type=provenance"`)
	fl.BoolVar(&f.pull, "pull", false, "Always attempt to pull all referenced images")
	fl.BoolVar(&f.push, "push", false, `Shorthand for "--set=*.output=type=registry". Conditional.`)
	fl.StringVar(&f.sbom, "sbom", "", `Shorthand for "--set=*.attest=type=sbom"`)
	fl.StringArrayVar(&f.set, "set", nil, `Override target value (e.g., "targetpattern.key=value")`)
	fl.StringArrayVar(&f.vars, "var", nil, `Set a variable value (e.g., "name=value")`)
	return c
}

// readBakeFiles reads the files that are named, by flags or by the environment, or those that the directory has.
func readBakeFiles(names []string, stdin io.Reader) ([]bakefile.File, error) {
	var out []bakefile.File
	if set := os.Getenv("BUILDX_BAKE_FILE"); len(names) == 0 && set != "" {
		sep := os.Getenv("BUILDX_BAKE_PATH_SEPARATOR")
		if sep == "" {
			sep = string(os.PathListSeparator)
		}
		names = strings.Split(set, sep)
	}
	usual := len(names) == 0
	if usual {
		names = bakeFiles
	}
	for _, n := range names {
		var data []byte
		var err error
		if n == "-" {
			data, err = io.ReadAll(io.LimitReader(stdin, bakefile.MaxSize+1))
		} else {
			data, err = readBounded(n)
		}
		if usual && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, bakefile.File{Name: n, Data: data})
	}
	if len(out) == 0 {
		return nil, errs.New(errs.NotFound, "couldn't find a bake definition: %s", strings.Join(bakeFiles, ", "))
	}
	return out, nil
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, bakefile.MaxSize+1))
}

// options returns what the expressions of files see.
func (f *bakeFlags) options() (bakefile.Options, error) {
	o := bakefile.Options{ReadFile: readBounded, Set: map[string]string{}, Builtin: map[string]string{"BAKE_CMD_CONTEXT": "cwd://", "BAKE_LOCAL_PLATFORM": platforms.Format(platforms.DefaultSpec())}}
	if off, err := strconv.ParseBool(os.Getenv("BUILDX_BAKE_DISABLE_VARS_ENV_LOOKUP")); err != nil || !off {
		o.Lookup, o.Environ = os.LookupEnv, os.Environ()
	}
	for _, v := range f.vars {
		name, value, has := strings.Cut(v, "=")
		if name == "" {
			return o, errs.New(errs.Invalid, "invalid variable %q, expected name=value", v)
		}
		if !has {
			if value, has = os.LookupEnv(name); !has {
				continue
			}
		}
		o.Set[name] = value
	}
	return o, nil
}

// overrides returns the values of --set, and those that other flags mean.
func (f *bakeFlags) overrides() []string {
	out := slices.Clone(f.set)
	if f.push {
		out = append(out, "*.push=true")
	}
	if f.load {
		out = append(out, "*.load=true")
	}
	if f.check {
		f.call = "check"
	}
	if method, _, _ := strings.Cut(f.call, ","); method != "" && method != "build" {
		if method == "check" {
			method = "lint"
		}
		out = append(out, "*.call="+method)
	}
	if f.noCacheSet {
		out = append(out, "*.no-cache="+strconv.FormatBool(f.noCache))
	}
	if f.pullSet {
		out = append(out, "*.pull="+strconv.FormatBool(f.pull))
	}
	for _, a := range [][2]string{{"sbom", f.sbom}, {"provenance", f.provenance}} {
		if a[1] != "" {
			out = append(out, "*.attest="+bakefile.Attestation(a[0], a[1]))
		}
	}
	return out
}

// bake builds targets.
func bake(ctx context.Context, inv *command.Invocation, f *bakeFlags, names []string) error {
	if f.print && f.list != "" {
		return errs.New(errs.Invalid, "--print and --list are mutually exclusive")
	}
	if len(names) > 0 && remoteContext(names[0]) {
		return errs.New(errs.Unimplemented, "%s: bake files are read from this machine only", names[0]).WithHint("Clone the repository and call ply bake in it.")
	}
	files, err := readBakeFiles(f.file, inv.Input(ctx))
	if err != nil {
		return err
	}
	o, err := f.options()
	if err != nil {
		return err
	}
	all, err := bakefile.Parse(files, o)
	if err != nil {
		return err
	}
	for _, w := range all.Warnings {
		fmt.Fprintln(inv.Err, "WARNING: "+w)
	}
	if f.list != "" {
		return f.printList(inv, all)
	}
	b, err := all.Select(names, f.overrides())
	if err != nil {
		return err
	}
	for _, t := range b.Targets {
		normal(t)
	}
	if f.print {
		data, err := json.MarshalIndent(b, "", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintln(inv.Out, string(data))
		return nil
	}
	a, err := f.access()
	if err != nil {
		return err
	}
	if err := a.targets(b); err != nil {
		return err
	}
	r := &baking{inv: inv, f: f, bake: b, access: a, meta: map[string]any{}, done: map[string]*baked{}}
	defer r.close()
	return r.run(ctx)
}

// normal sets what buildx sets in every target: a clean path of the context, and the argument for reproducible builds.
func normal(t *bakefile.Target) {
	context := strings.TrimPrefix(*t.Context, "cwd://")
	if !remoteContext(context) {
		context = path.Clean(context)
	}
	t.Context = &context
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" && t.Args["SOURCE_DATE_EPOCH"] == nil {
		if t.Args == nil {
			t.Args = map[string]*string{}
		}
		t.Args["SOURCE_DATE_EPOCH"] = &epoch
	}
}

// printList prints the targets or variables of the files.
func (f *bakeFlags) printList(inv *command.Invocation, b *bakefile.Bake) error {
	what, rest, _ := strings.Cut(strings.TrimPrefix(f.list, "type="), ",")
	if rest != "" && rest != "format=json" && rest != "format=table" {
		return errs.New(errs.Invalid, "--list %s: want format=json or format=table", f.list)
	}
	asJSON := rest == "format=json"
	w := tabwriter.NewWriter(inv.Out, 1, 8, 1, '\t', 0)
	switch what {
	case "targets":
		type row struct {
			Name        string   `json:"name"`
			Description string   `json:"description,omitempty"`
			Group       bool     `json:"group,omitempty"`
			Targets     []string `json:"-"`
		}
		var rows []row
		for _, n := range slices.Sorted(maps.Keys(b.Groups)) {
			g := b.Groups[n]
			d := g.Description
			if len(g.Targets) > 0 {
				d = strings.TrimSpace(d + " (" + strings.Join(g.Targets, ", ") + ")")
			}
			rows = append(rows, row{Name: n, Description: d, Group: true})
		}
		for _, n := range slices.Sorted(maps.Keys(b.Targets)) {
			if b.Groups[n] == nil {
				rows = append(rows, row{Name: n, Description: b.Targets[n].Description})
			}
		}
		if asJSON {
			return json.NewEncoder(inv.Out).Encode(rows)
		}
		fmt.Fprintln(w, "TARGET\tDESCRIPTION")
		for _, r := range rows {
			fmt.Fprintf(w, "%s\t%s\n", r.Name, r.Description)
		}
	case "variables":
		if asJSON {
			return json.NewEncoder(inv.Out).Encode(b.Variables)
		}
		fmt.Fprintln(w, "VARIABLE\tTYPE\tVALUE\tDESCRIPTION")
		for _, v := range b.Variables {
			value := "<null>"
			if v.Value != nil {
				value = *v.Value
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", v.Name, v.Type, value, v.Description)
		}
	default:
		return errs.New(errs.Invalid, "--list %s: want targets or variables", f.list)
	}
	return w.Flush()
}

// baking is one run of bake. Targets are built at the same time, and those that others begin from before these.
type baking struct {
	inv    *command.Invocation
	f      *bakeFlags
	bake   *bakefile.Bake
	access *access
	api    *client.Client

	viewing sync.Mutex
	view    buildview.View

	mu   sync.Mutex
	done map[string]*baked
	meta map[string]any
	temp []string // names of images that other targets begin from
}

// baked is a target whose build has begun.
type baked struct {
	ready chan struct{}
	err   error
	image string // a name for it
}

func (r *baking) run(ctx context.Context) (err error) {
	if r.api, err = r.inv.Engine(ctx); err != nil {
		return err
	}
	o := buildview.Options{Mode: r.f.progress, Out: r.inv.Err, Size: r.inv.ErrSize(), Explain: r.f.explain, Log: r.inv.Err}
	if r.view, err = buildview.New(o); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var first sync.Once
	var failed error
	for _, name := range slices.Sorted(maps.Keys(r.bake.Targets)) {
		wg.Go(func() {
			if _, err := r.target(ctx, name, nil); err != nil {
				first.Do(func() { failed = err; cancel(err) })
			}
		})
	}
	wg.Wait()
	end := &wire.BuildDone{}
	if failed != nil {
		end.Error = &wire.BuildError{Message: failed.Error()}
	}
	if err := r.view.Close(end); err != nil && failed == nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if r.f.metadataFile != "" {
		data, err := json.MarshalIndent(r.meta, "", "  ")
		if err != nil {
			return err
		}
		return replaceFile(r.f.metadataFile, data)
	}
	return nil
}

// target builds a target once, and returns a name of its image when another target begins from it.
func (r *baking) target(ctx context.Context, name string, above []string) (string, error) {
	if slices.Contains(above, name) {
		return "", errs.New(errs.Invalid, "infinite loop from %s to itself through its contexts", name)
	}
	r.mu.Lock()
	b := r.done[name]
	mine := b == nil
	if mine {
		b = &baked{ready: make(chan struct{})}
		r.done[name] = b
	}
	r.mu.Unlock()
	if !mine {
		select {
		case <-b.ready:
			return b.image, b.err
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	defer close(b.ready)
	b.image, b.err = r.build(ctx, name, append(slices.Clone(above), name))
	if b.err != nil && ctx.Err() == nil {
		if ee := (*command.ExitError)(nil); errors.As(b.err, &ee) {
			b.err = &command.ExitError{Code: ee.Code, Text: "target " + name + ": " + ee.Text}
		} else {
			b.err = fmt.Errorf("target %s: %w", name, b.err)
		}
	}
	return b.image, b.err
}

// needed reports whether another target begins from a target.
func (r *baking) needed(name string) bool {
	for _, t := range r.bake.Targets {
		for _, c := range t.Contexts {
			if c == "target:"+name {
				return true
			}
		}
	}
	return false
}

func (r *baking) build(ctx context.Context, name string, above []string) (string, error) {
	t := r.bake.Targets[name]
	contexts := maps.Clone(t.Contexts)
	for _, k := range slices.Sorted(maps.Keys(contexts)) {
		if other, ok := strings.CutPrefix(contexts[k], "target:"); ok {
			image, err := r.target(ctx, other, above)
			if err != nil {
				return "", err
			}
			contexts[k] = "docker-image://" + image
		}
	}
	f, source, err := r.flags(t, contexts)
	if err != nil {
		return "", err
	}
	image := ""
	if t.Linked { // it is built for others only
		f.output, f.tag.Values, f.cacheTo = nil, nil, nil
	}
	if r.needed(name) && !f.asks() {
		var id [8]byte
		rand.Read(id[:])
		image = "ply-bake-" + hex.EncodeToString(id[:]) + ":" + hex.EncodeToString([]byte(name))[:min(2*len(name), 100)]
		if len(f.output) > 0 { // the output is made besides
			also := *f
			also.output, also.tag.Values = nil, []string{image}
			if _, err := r.send(ctx, name, &also, source, t); err != nil {
				return "", err
			}
		} else {
			f.tag.Values = append(slices.Clone(f.tag.Values), image)
		}
		r.mu.Lock()
		r.temp = append(r.temp, image)
		r.mu.Unlock()
	}
	meta, err := r.send(ctx, name, f, source, t)
	r.mu.Lock()
	r.meta[name] = meta
	r.mu.Unlock()
	return image, err
}

// send runs one build and returns what is known of its result.
func (r *baking) send(ctx context.Context, name string, f *buildFlags, source string, t *bakefile.Target) (map[string]any, error) {
	if t.DockerfileInline != nil {
		f.file = "-"
	}
	inline := ""
	if t.DockerfileInline != nil {
		inline = *t.DockerfileInline
	}
	p, err := f.plan(ctx, r.inv, source, strings.NewReader(inline))
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := r.access.plan(p); err != nil {
		return nil, err
	}
	p.resources.Check = func(f *os.File, write bool) error { return r.access.opened(p, f, write) }
	done, err := direct.Build(ctx, r.api, p.request, p.resources, func(e *wire.BuildEvents) error { return r.show(name, e) })
	if client.IsNotFound(err) {
		return nil, errs.New(errs.Unimplemented, "the engine at %s has no builds of this kind; it is not ply's, or older", r.api.Host())
	}
	if err != nil {
		return nil, err
	}
	if done.Error != nil {
		r.viewing.Lock()
		defer r.viewing.Unlock()
		return nil, failure(r.inv, done.Error)
	}
	if f.asks() {
		r.viewing.Lock()
		defer r.viewing.Unlock()
		return nil, f.printAnswer(r.inv, done.Metadata)
	}
	if err := r.access.plan(p); err != nil { // the index of a cache is written beside its blobs
		return nil, err
	}
	return metadata(p, done), p.writeCacheIndexes(done.Answers)
}

// show shows what happens in one of several builds: the name of the target stands before that of the operation.
func (r *baking) show(target string, e *wire.BuildEvents) error {
	id := func(digest string) string { return target + "/" + digest }
	for i := range e.Vertexes {
		v := &e.Vertexes[i]
		v.Digest = id(v.Digest)
		for j := range v.Inputs {
			v.Inputs[j] = id(v.Inputs[j])
		}
		if rest, ok := strings.CutPrefix(v.Name, "["); ok {
			v.Name = "[" + target + " " + rest
		} else {
			v.Name = "[" + target + "] " + v.Name
		}
	}
	for _, s := range e.Statuses {
		s.Vertex = id(s.Vertex)
	}
	for i := range e.Logs {
		e.Logs[i].Vertex = id(e.Logs[i].Vertex)
	}
	e.Steps = nil // the order of the instructions is that of one build
	r.viewing.Lock()
	defer r.viewing.Unlock()
	return r.view.Show(e)
}

// close removes the names of images that other targets began from. Their layers stay in the cache.
func (r *baking) close() {
	ctx := context.Background()
	for _, name := range r.temp {
		q := url.Values{"noprune": {"0"}}
		_ = r.api.Do(ctx, client.Request{Method: "DELETE", Path: "/images/" + name, Query: q}, nil) // a build that failed has no name
	}
}

// flags returns the flags and the context of a target.
func (r *baking) flags(t *bakefile.Target, contexts map[string]string) (*buildFlags, string, error) {
	f := newBuildFlags()
	f.noVerify, f.rm, f.call, f.progress = true, true, "build", r.f.progress
	value := func(p *string) string {
		if p == nil {
			return ""
		}
		return *p
	}
	source := value(t.Context)
	f.file, f.network, f.target = value(t.Dockerfile), value(t.Network), value(t.Target)
	if source == "-" || f.file == "-" {
		return nil, "", errs.New(errs.Invalid, "context and dockerfile from stdin not allowed in bake")
	}
	if rest, ok := strings.CutPrefix(f.file, "cwd://"); ok {
		f.file = rest
		abs, err := filepath.Abs(rest)
		if err != nil {
			return nil, "", err
		}
		f.file = abs
	}
	switch {
	case remoteContext(source) && f.file == "Dockerfile":
		f.file = ""
	case !filepath.IsAbs(f.file) && !remoteContext(source):
		f.file = filepath.Join(source, f.file) // it is relative to the context
	}
	if r.f.call != "" {
		f.call = r.f.call
	} else if t.Call != nil {
		f.call = *t.Call
	}
	f.explain = r.f.explain
	f.noCache, f.pull = t.NoCache != nil && *t.NoCache, t.Pull != nil && *t.Pull
	f.annotation, f.attest, f.cacheFrom, f.cacheTo, f.noCacheFilter, f.output = t.Annotations, t.Attest.Flags(), t.CacheFrom.Flags(), t.CacheTo.Flags(), t.NoCacheFilter, t.Output.Flags()
	f.platform, f.secret, f.allow = t.Platforms, t.Secret.Flags(), granted(r.f.allow)
	for _, s := range t.SSH {
		f.ssh = append(f.ssh, s.Flag())
	}
	for _, k := range slices.Sorted(maps.Keys(contexts)) {
		f.buildContext = append(f.buildContext, k+"="+strings.TrimPrefix(contexts[k], "cwd://"))
	}
	set := func(add func(string) error, list []string) error {
		for _, v := range list {
			if err := add(v); err != nil {
				return err
			}
		}
		return nil
	}
	pairs := func(m map[string]*string) (out []string) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if m[k] != nil {
				out = append(out, k+"="+*m[k])
			}
		}
		return out
	}
	err := errors.Join(set(f.buildArg.Set, pairs(t.Args)), set(f.label.Set, pairs(t.Labels)), set(f.tag.Set, t.Tags), set(f.addHost.Set, pairs(t.ExtraHosts)), set(f.ulimits.Set, t.Ulimits))
	if t.ShmSize != nil {
		err = errors.Join(err, f.shmSize.Set(*t.ShmSize))
	}
	return f, source, err
}
