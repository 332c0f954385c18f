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
	"path/filepath"
	"slices"
	"strings"
	"sync"

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
	allow, file, set                        []string
	call, metadataFile, progress            string
	provenance, sbom                        string
	check, load, noCache, print, pull, push bool
	explain                                 bool
}

// bakeFiles are read when no file is named.
var bakeFiles = []string{"docker-bake.json", "docker-bake.hcl", "docker-bake.override.json", "docker-bake.override.hcl"}

// composeFiles are those that buildx reads as well, and ply does not.
var composeFiles = []string{"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"}

// Bake returns the command bake.
func Bake(inv *command.Invocation) *cobra.Command {
	f := &bakeFlags{}
	c := &cobra.Command{
		Use: "bake [OPTIONS] [TARGET...]", Short: "Build from a file", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return command.EndOf(cmd.Context(), bake(cmd.Context(), inv, f, args))
		},
	}
	fl := c.Flags()
	fl.StringArrayVar(&f.allow, "allow", nil, `Allow extra privileged entitlement (e.g., "network.host", "security.insecure")`)
	fl.StringVar(&f.call, "call", "", `Set method for evaluating build ("check", "outline", "targets")`)
	fl.BoolVar(&f.check, "check", false, `Shorthand for "--call=check"`)
	fl.BoolVar(&f.explain, "explain", false, "Say for each step that is executed why its result was not in the cache")
	fl.StringArrayVarP(&f.file, "file", "f", nil, "Build definition file")
	fl.BoolVar(&f.load, "load", false, `Shorthand for "--set=*.output=type=docker"`)
	fl.StringVar(&f.metadataFile, "metadata-file", "", "Write build result metadata to a file")
	fl.BoolVar(&f.noCache, "no-cache", false, "Do not use cache when building the image")
	fl.BoolVar(&f.print, "print", false, "Print the options without building")
	fl.StringVar(&f.progress, "progress", "auto", `Set type of progress output ("auto", "tty", "plain", "rawjson", "quiet")`)
	fl.StringVar(&f.provenance, "provenance", "", `Shorthand for "--set=*.attest=type=provenance"`)
	fl.BoolVar(&f.pull, "pull", false, "Always attempt to pull all referenced images")
	fl.BoolVar(&f.push, "push", false, `Shorthand for "--set=*.output=type=registry"`)
	fl.StringVar(&f.sbom, "sbom", "", `Shorthand for "--set=*.attest=type=sbom"`)
	fl.StringArrayVar(&f.set, "set", nil, `Override target value (e.g., "targetpattern.key=value")`)
	return c
}

// readBakeFiles reads the files that are named, or those that the directory has.
func readBakeFiles(names []string, stdin io.Reader) ([]bakefile.File, error) {
	var out []bakefile.File
	if len(names) == 0 {
		for _, n := range bakeFiles {
			data, err := readBounded(n)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			out = append(out, bakefile.File{Name: n, Data: data})
		}
		compose := slices.DeleteFunc(slices.Clone(composeFiles), func(n string) bool { _, err := os.Stat(n); return err != nil })
		switch {
		case len(compose) > 0:
			return nil, errs.New(errs.Unimplemented, "%s: compose files are not read as bake files", compose[0]).
				WithHint("Name the bake files with -f, or build the services with docker compose build.")
		case len(out) == 0:
			return nil, errs.New(errs.NotFound, "couldn't find a bake definition: %s", strings.Join(bakeFiles, ", "))
		}
		return out, nil
	}
	for _, n := range names {
		var data []byte
		var err error
		switch {
		case n == "-":
			data, err = io.ReadAll(io.LimitReader(stdin, bakefile.MaxSize+1))
		case strings.HasSuffix(n, ".yml"), strings.HasSuffix(n, ".yaml"):
			return nil, errs.New(errs.Unimplemented, "%s: compose files are not read as bake files", n).WithHint("Build the services with docker compose build.")
		default:
			data, err = readBounded(n)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, bakefile.File{Name: n, Data: data})
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

// bake builds targets.
func bake(ctx context.Context, inv *command.Invocation, f *bakeFlags, names []string) error {
	files, err := readBakeFiles(f.file, inv.Input(ctx))
	if err != nil {
		return hinted(err)
	}
	all, err := bakefile.Parse(files, lookup)
	if err != nil {
		return err
	}
	b, err := all.Select(names, f.set)
	if err != nil {
		return err
	}
	f.override(b)
	if f.print {
		data, err := json.MarshalIndent(b, "", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintln(inv.Out, string(data))
		return nil
	}
	r := &baking{inv: inv, f: f, bake: b, meta: map[string]any{}, done: map[string]*baked{}}
	defer r.close()
	return r.run(ctx)
}

// hinted returns an error whose text has its hint.
func hinted(err error) error {
	if e, ok := errors.AsType[*errs.Error](err); ok && e.Hint != "" {
		return fmt.Errorf("%w\n%s", err, e.Hint)
	}
	return err
}

// lookup returns a variable of the environment for a bake file.
func lookup(name string) (string, bool) { return os.LookupEnv(name) }

// override applies the flags that hold for all targets.
func (f *bakeFlags) override(b *bakefile.Bake) {
	yes := true
	for _, t := range b.Targets {
		if f.noCache {
			t.NoCache = &yes
		}
		if f.pull {
			t.Pull = &yes
		}
		if f.push {
			t.Output = []string{"type=registry"}
		}
		if f.load {
			t.Output = []string{"type=docker"}
		}
	}
}

// baking is one run of bake. Targets are built at the same time, and those that others begin from before these.
type baking struct {
	inv  *command.Invocation
	f    *bakeFlags
	bake *bakefile.Bake
	api  *client.Client

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

// circle reports a circle of targets that begin from each other.
func (r *baking) circle(name string, above []string) error {
	if slices.Contains(above, name) {
		return errs.New(errs.Invalid, "infinite loop from %s to itself through its contexts", name)
	}
	t := r.bake.Targets[name]
	if t == nil {
		return errs.New(errs.NotFound, "failed to find target %s", name)
	}
	for _, c := range t.Contexts {
		if other, ok := strings.CutPrefix(c, "target:"); ok {
			if err := r.circle(other, append(above, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *baking) build(ctx context.Context, name string, above []string) (string, error) {
	if err := r.circle(name, nil); err != nil {
		return "", err
	}
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
	source := "."
	if t.Context != nil {
		source = *t.Context
	}
	f.file, f.network, f.target = value(t.Dockerfile), value(t.Network), value(t.Target)
	if f.file != "" && !filepath.IsAbs(f.file) && !remoteContext(source) && t.DockerfileInline == nil {
		f.file = filepath.Join(source, f.file) // it is relative to the context
	}
	if t.Call != nil {
		f.call = *t.Call
	}
	if r.f.call != "" {
		f.call = r.f.call
	}
	f.check, f.explain = r.f.check, r.f.explain
	f.noCache, f.pull = t.NoCache != nil && *t.NoCache, t.Pull != nil && *t.Pull
	f.annotation, f.attest, f.cacheFrom, f.cacheTo, f.noCacheFilter, f.output = t.Annotations, t.Attest, t.CacheFrom, t.CacheTo, t.NoCacheFilter, t.Output
	f.platform, f.secret, f.ssh = t.Platforms, t.Secret, t.SSH
	f.provenance, f.sbom = r.f.provenance, r.f.sbom
	for _, e := range t.Entitlements {
		if !slices.Contains(r.f.allow, e) {
			return nil, "", errs.New(errs.Forbidden, "the target asks for the entitlement %s: allow it with --allow %s", e, e)
		}
	}
	f.allow = r.f.allow
	if f.network == "host" && !slices.Contains(f.allow, "network.host") {
		return nil, "", errs.New(errs.Forbidden, "the target asks for the host's network: allow it with --allow network.host")
	}
	for _, k := range slices.Sorted(maps.Keys(contexts)) {
		f.buildContext = append(f.buildContext, k+"="+contexts[k])
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
			if m[k] == nil {
				out = append(out, k)
			} else {
				out = append(out, k+"="+*m[k])
			}
		}
		return out
	}
	var hosts []string
	for _, k := range slices.Sorted(maps.Keys(t.ExtraHosts)) {
		hosts = append(hosts, k+"="+t.ExtraHosts[k])
	}
	err := errors.Join(set(f.buildArg.Set, pairs(t.Args)), set(f.label.Set, pairs(t.Labels)), set(f.tag.Set, t.Tags), set(f.addHost.Set, hosts), set(f.ulimits.Set, t.Ulimits))
	if t.ShmSize != nil {
		err = errors.Join(err, f.shmSize.Set(*t.ShmSize))
	}
	return f, source, err
}
