// Package dockerfile is the language of a build: it turns a Dockerfile and the options of a build into graphs of operations and
// image configs, and says what each instruction made of the config.
//
// BuildKit's front end, as a library, reads the Dockerfile, so that instructions, stages, arguments, contexts, .dockerignore and
// checks mean what they mean there. It asks for its files and for the configs of base images through Solver, which the builder
// implements on the store; nothing of BuildKit's daemon is used.
//
// Differences from BuildKit: `# syntax=` selects this built-in front end, and no foreign one is run; outside RUN an unquoted ` # …`
// at the end of a line is a comment, dropped with a warning. The options attest:* are the builder's business and have no effect here.
//
// Invariants: no Dockerfile makes the front end panic, and none makes it use more memory than the limits of bounds.go allow; an error
// about the text of the Dockerfile is an *Error that has its lines; Build does not evaluate the results that it returns.
package dockerfile

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	commonexptypes "github.com/moby/buildkit/exporter/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/client"

	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Solver is what the front end needs from the builder. Its methods are called concurrently.
type Solver interface {
	// Solve returns the result of a graph. It need not execute anything before the result is used.
	Solve(ctx context.Context, g *ops.Graph) (Result, error)
	// ImageConfig returns the config of an image for a platform, the digest by which to use it, and the reference to use in place of
	// ref, which is the same unless a policy says otherwise. errs.NotFound when there is no such image.
	ImageConfig(ctx context.Context, ref string, opt ImageOptions) (resolved string, d oci.Digest, config []byte, err error)
	// SourceTime returns when a source was made: the time of a git commit, or the Last-Modified of a web server. The zero time when
	// that is unknown. It serves SOURCE_DATE_EPOCH=context.
	SourceTime(ctx context.Context, source ops.Op) (time.Time, error)
	// Warn tells the user something about the Dockerfile.
	Warn(ctx context.Context, w Warning)
}

// Result is a file system. Names are absolute or relative to its root. A name that does not exist is errs.NotFound.
type Result interface {
	// Evaluate makes the file system now.
	Evaluate(ctx context.Context) error
	// ReadFile returns up to n bytes from off.
	ReadFile(ctx context.Context, name string, off, n int64) ([]byte, error)
	Stat(ctx context.Context, name string) (FileInfo, error)
	// ReadDir lists a directory. include is a pattern of names, or "".
	ReadDir(ctx context.Context, dir, include string) ([]FileInfo, error)
}

// FileInfo describes a file of a Result.
type FileInfo struct {
	Name     string // without its directory
	Mode     uint32 // as fs.FileMode
	UID, GID uint32
	Size     int64
	ModTime  time.Time
	Link     string // where a symbolic link leads to
}

// ImageOptions says which image ImageConfig means.
type ImageOptions struct {
	Platform *oci.Platform // nil = that of the host
	Mode     ops.ResolveMode
	Layout   *Layout // the image is in an OCI layout that the client has
	LogName  string  // what progress calls the look-up
}

// Layout names an OCI layout of a client.
type Layout struct{ Session, Store string }

// Warning is a remark about the Dockerfile.
type Warning struct {
	Rule    string // of the linter: "FromAsCasing"; RuleTrailingComment and RuleBuiltinSyntax are ours
	Message string // "'as' and 'FROM' keywords' casing do not match"
	Detail  string // what the rule is about
	URL     string // documentation
	Note    bool   // something to know, and nothing to correct
	File    File
	Ranges  []Range
}

// Rules of our own.
const (
	RuleTrailingComment = "TrailingComment"
	RuleBuiltinSyntax   = "BuiltinSyntax"
)

// Line returns the first line that the warning is about, or 0.
func (w Warning) Line() int {
	if len(w.Ranges) == 0 {
		return 0
	}
	return w.Ranges[0].Start
}

// String returns the warning as docker prints it: "FromAsCasing: … (line 3)".
func (w Warning) String() string {
	if n := w.Line(); n > 0 {
		return fmt.Sprintf("%s: %s (line %d)", w.Rule, w.Message, n)
	}
	return w.Rule + ": " + w.Message
}

// Range is a part of a file. Lines count from 1; characters, which most ranges leave at 0, from 0.
type Range struct{ Start, StartChar, End, EndChar int }

// Request is a build.
type Request struct {
	// Options are those of BuildKit's Dockerfile front end: target, filename, platform, no-cache, build-arg:NAME, label:NAME,
	// context:NAME, add-hosts, shm-size, ulimit, cgroup-parent, requestid and so on.
	Options   map[string]string
	SessionID string
	Inputs    map[string][]byte // definitions of LLB that contexts may refer to by input:NAME
	Platforms []oci.Platform    // what the builder can run, that of the host first; nil = the host's only
}

// CacheImport names a cache that the options of a request want to be used.
type CacheImport struct {
	Type  string
	Attrs map[string]string
}

// Output is what the front end made of a request: images, or the answer to a question (requestid).
type Output struct {
	Images   []Image
	Index    bool              // the images belong into an index, even a single one
	Metadata map[string][]byte // result.json, result.txt, version; nil for a build
	About    map[string][]byte // what the front end says about the images, by BuildKit's names
	File     File              // the Dockerfile as it was read
}

// Image is one image for one platform.
type Image struct {
	Platform   oci.Platform
	Result     Result
	Graph      *ops.Graph
	Config     []byte // JSON, without layers; its history has an entry per instruction, EmptyLayer for those without a layer
	BaseConfig []byte // of the base image; nil when there is none
	Epoch      *time.Time
	Steps      []Step
	Definition []byte // of the graph, for a client that builds on the result

	configs iter.Seq[oci.RunConfig]
}

// File is a Dockerfile.
type File struct {
	Name string
	Data []byte
}

// Build runs the front end. Errors: *Error when the Dockerfile is wrong, errs.Invalid for options, and those of s.
func Build(ctx context.Context, req Request, s Solver) (out *Output, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g := &gateway{solver: s, req: req, run: &run{hosts: newHosts()}}
	g.run.check = func(config []byte) *Error {
		return g.run.hosts.check(g.run, g.run.hidden, g.opts, g.buildPlatform(), config)
	}
	g.opts = maps.Clone(req.Options)
	if g.opts == nil {
		g.opts = map[string]string{}
	}
	maps.DeleteFunc(g.opts, func(k, _ string) bool {
		return strings.HasPrefix(k, "attest:") || strings.HasPrefix(k, "build-arg:BUILDKIT_ATTEST_")
	})
	if err := g.checkOptions(); err != nil {
		return nil, err
	}
	if err := g.run.hosts.hideContexts(g.opts); err != nil {
		return nil, err
	}
	defer func() {
		if r := recover(); r != nil {
			err = errs.New(errs.Internal, "the Dockerfile front end panicked: %v\n%s", r, debug.Stack())
		}
		if err != nil {
			out, err = nil, g.run.explain(err)
		}
	}()
	res, err := g.frontEnd(ctx)
	if err != nil {
		return nil, err
	}
	g.run.hosts.showAll(res.Metadata)
	return g.output(res)
}

// patience is how long a cancelled build waits for the front end.
const patience = 500 * time.Millisecond

// frontEnd runs BuildKit's front end. It returns soon after ctx ends, whatever the front end waits for.
func (g *gateway) frontEnd(ctx context.Context) (*client.Result, error) {
	var res *client.Result
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() {
			if r := recover(); r != nil {
				err = errs.New(errs.Internal, "the Dockerfile front end panicked: %v\n%s", r, debug.Stack())
			}
		}()
		res, err = builder.Build(ctx, g)
	}()
	select {
	case <-ended:
		return res, err
	case <-ctx.Done():
	}
	select {
	case <-ended:
		return res, err
	case <-time.After(patience):
		return nil, context.Cause(ctx)
	}
}

// CacheImports returns the caches that the options cache-imports and cache-from name.
func (r Request) CacheImports() ([]CacheImport, error) {
	var out []CacheImport
	if text := r.Options["cache-imports"]; text != "" {
		var entries []struct {
			Type  string            `json:"Type"`
			Attrs map[string]string `json:"Attrs"`
		}
		if err := json.Unmarshal([]byte(text), &entries); err != nil {
			return nil, errs.New(errs.Invalid, "cache-imports: %w", err)
		}
		for _, e := range entries {
			out = append(out, CacheImport{Type: e.Type, Attrs: e.Attrs})
		}
	}
	if text := r.Options["cache-from"]; text != "" {
		for ref := range strings.SplitSeq(text, ",") {
			out = append(out, CacheImport{Type: "registry", Attrs: map[string]string{"ref": ref}})
		}
	}
	return out, nil
}

// output converts the front end's result.
func (g *gateway) output(res *client.Result) (*Output, error) {
	out := &Output{File: g.run.file()}
	if _, ok := g.opts["requestid"]; ok {
		out.Metadata = maps.Clone(res.Metadata)
		return out, nil
	}
	var list exptypes.Platforms
	if err := json.Unmarshal(res.Metadata[exptypes.ExporterPlatformsKey], &list); err != nil {
		return nil, errs.New(errs.Internal, "platforms of the front end's result: %w", err)
	}
	out.About = maps.Clone(res.Metadata)
	out.Index = len(res.Refs) > 0
	for _, p := range list.Platforms {
		suffix, ref := "", res.Ref
		if out.Index {
			suffix, ref = "/"+p.ID, res.Refs[p.ID]
		}
		r, ok := ref.(*fileSystem)
		if !ok {
			return nil, errs.New(errs.Internal, "the front end returned no result for %s", p.ID)
		}
		img := Image{
			Platform: oci.Platform{
				OS: p.Platform.OS, Architecture: p.Platform.Architecture, Variant: p.Platform.Variant,
				OSVersion: p.Platform.OSVersion, OSFeatures: p.Platform.OSFeatures,
			},
			Result: r.result, Graph: r.graph, Definition: r.encoded(),
			Config:     res.Metadata[exptypes.ExporterImageConfigKey+suffix],
			BaseConfig: res.Metadata[exptypes.ExporterImageBaseConfigKey+suffix],
		}
		if text := res.Metadata[commonexptypes.ExporterEpochKey+suffix]; text != nil {
			n, err := strconv.ParseInt(string(text), 10, 64)
			if err != nil {
				return nil, errs.New(errs.Internal, "epoch of the front end's result: %w", err)
			}
			t := time.Unix(n, 0).UTC()
			img.Epoch = &t
		}
		var c oci.Config
		if err := json.Unmarshal(img.Config, &c); err != nil {
			return nil, errs.New(errs.Internal, "config of the front end's result: %w", err)
		}
		if c.OS != "" && c.Architecture != "" {
			// Without the option platform, FROM --platform and the base image decide.
			img.Platform = oci.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant, OSVersion: c.OSVersion, OSFeatures: c.OSFeatures}
		}
		if err := g.setSteps(&img, &c); err != nil {
			return nil, err
		}
		out.Images = append(out.Images, img)
	}
	return out, nil
}

// known are the options without a parameter in their name.
var known = map[string]bool{
	"target": true, "filename": true, "platform": true, "multi-platform": true, "no-cache": true, "image-resolve-mode": true,
	"add-hosts": true, "shm-size": true, "ulimit": true, "cgroup-parent": true, "force-network-mode": true, "hostname": true,
	"memory": true, "memswap": true, "cpushares": true, "cpuperiod": true, "cpuquota": true, "cpusetcpus": true, "cpusetmems": true,
	"cache-from": true, "cache-imports": true, "context": true, "contextkey": true, "contextsubdir": true, "dockerfilekey": true,
	"requestid": true, "frontend.caps": true, "cmdline": true, "source": true,
}

// prefixes are those of options with a parameter. vcs: is provenance, which the builder writes.
var prefixes = []string{
	"build-arg:", "label:", "context:", "input-metadata:", "local-sessionid:", "sharedkey:localdir:", "vcs:", "annotation", "manifest-",
}

// checkOptions refuses an option that the front end would ignore.
func (g *gateway) checkOptions() error {
	size := 0
	for k, v := range g.opts {
		size += len(k) + len(v)
		found := known[k]
		for _, p := range prefixes {
			found = found || strings.HasPrefix(k, p)
		}
		if !found {
			return errs.New(errs.Invalid, "unknown build option %q", clip(k))
		}
		if strings.IndexByte(k, 0) >= 0 || strings.IndexByte(v, 0) >= 0 {
			return errs.New(errs.Invalid, "build option %q holds a NUL", clip(k))
		}
	}
	if size > maxOptions {
		return errs.New(errs.Invalid, "the build options are longer than %d bytes", maxOptions)
	}
	return nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
