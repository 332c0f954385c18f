package builder

import (
	"encoding/json"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"ply/internal/cli/opts"
	"ply/internal/errs"
)

// buildFlags are the flags of build.
type buildFlags struct {
	addHost, buildArg, label, tag                opts.List
	cacheFrom, cacheTo, securityOpt              []string
	allow, annotation, attest, buildContext      []string
	noCacheFilter, output, platform, secret, ssh []string
	policy                                       []string
	provenance, sbom, squash, call, metadataFile string
	check, explain, load, push, shellOnError     bool
	format                                       string // of the answer to call
	ignoreStatus                                 bool   // of call
	cgroupParent, cpusetCpus, cpusetMems, file   string
	iidfile, isolation, network, target          string
	progress                                     string
	compress, forceRm, noCache, pull, quiet, rm  bool
	noVerify                                     bool
	cpuPeriod, cpuQuota, cpuShares               int64
	memory, memSwap, shmSize                     opts.Bytes
	ulimits                                      opts.Ulimits
}

// newBuildFlags returns flags with their checks and defaults.
func newBuildFlags() *buildFlags {
	return &buildFlags{addHost: opts.List{Check: opts.ExtraHost}, buildArg: opts.List{Check: opts.Env}, label: opts.List{Check: opts.Label},
		memSwap: opts.Bytes{Signed: true}, tag: opts.List{Check: func(s string) (string, error) {
			repo, tag, err := opts.NewTag(s)
			return repo + ":" + tag, err
		}}}
}

// add defines the flags on f.
func (b *buildFlags) add(f *pflag.FlagSet) {
	f.Var(&b.addHost, "add-host", `Add a custom host-to-IP mapping ("host:ip")`)
	f.StringSliceVar(&b.allow, "allow", nil, `Allow extra privileged entitlement (e.g., "network.host", "security.insecure")`)
	f.StringArrayVar(&b.annotation, "annotation", nil, "Add annotation to the image")
	f.StringArrayVar(&b.attest, "attest", nil, `Attestation parameters (format: "type=sbom,generator=image")`)
	f.Var(&b.buildArg, "build-arg", "Set build-time variables")
	f.StringArrayVar(&b.buildContext, "build-context", nil, "Additional build contexts (e.g., name=path)")
	f.StringArrayVar(&b.cacheFrom, "cache-from", nil, `External cache sources (e.g., "user/app:cache", "type=local,src=path/to/dir")`)
	f.StringArrayVar(&b.cacheTo, "cache-to", nil, `Cache export destinations (e.g., "user/app:cache", "type=local,dest=path/to/dir")`)
	f.StringVar(&b.call, "call", "build", `Set method for evaluating build ("check", "outline", "targets")`)
	f.BoolVar(&b.check, "check", false, `Shorthand for "--call=check"`)
	f.StringVar(&b.cgroupParent, "cgroup-parent", "", `Set the parent cgroup for the "RUN" instructions during build`)
	f.BoolVar(&b.compress, "compress", false, "Compress the build context using gzip")
	f.Int64Var(&b.cpuPeriod, "cpu-period", 0, "Limit the CPU CFS (Completely Fair Scheduler) period")
	f.Int64Var(&b.cpuQuota, "cpu-quota", 0, "Limit the CPU CFS (Completely Fair Scheduler) quota")
	f.Int64VarP(&b.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	f.StringVar(&b.cpusetCpus, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	f.StringVar(&b.cpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	f.BoolVar(&b.noVerify, "disable-content-trust", true, "Skip image verification")
	f.BoolVar(&b.explain, "explain", false, "Say for each step that is executed why its result was not in the cache")
	f.StringVarP(&b.file, "file", "f", "", `Name of the Dockerfile (Default is "PATH/Dockerfile")`)
	f.BoolVar(&b.forceRm, "force-rm", false, "Always remove intermediate containers")
	f.StringVar(&b.iidfile, "iidfile", "", "Write the image ID to the file")
	f.StringVar(&b.isolation, "isolation", "", "Container isolation technology")
	f.Var(&b.label, "label", "Set metadata for an image")
	f.BoolVar(&b.load, "load", false, `Shorthand for "--output=type=docker"`)
	f.VarP(&b.memory, "memory", "m", "Memory limit")
	f.Var(&b.memSwap, "memory-swap", "Swap limit equal to memory plus swap: -1 to enable unlimited swap")
	f.StringVar(&b.metadataFile, "metadata-file", "", "Write build result metadata to a file")
	f.StringVar(&b.network, "network", "default", "Set the networking mode for the RUN instructions during build")
	f.BoolVar(&b.noCache, "no-cache", false, "Do not use cache when building the image")
	f.StringArrayVar(&b.noCacheFilter, "no-cache-filter", nil, "Do not cache specified stages")
	f.StringArrayVarP(&b.output, "output", "o", nil, `Output destination (format: "type=local,dest=path")`)
	var platform []string
	if v := os.Getenv("DOCKER_DEFAULT_PLATFORM"); v != "" {
		platform = []string{v}
	}
	f.StringSliceVar(&b.platform, "platform", platform, "Set target platform for build")
	f.StringArrayVar(&b.policy, "policy", nil, `Policies for the sources of the build are not evaluated here; "disabled=true" builds beside a policy file as if there was none`)
	f.StringVar(&b.progress, "progress", "auto", `Set type of progress output ("auto", "tty", "plain", "rawjson", "quiet")`)
	f.StringVar(&b.provenance, "provenance", "", `Shorthand for "--attest=type=provenance"`)
	f.BoolVar(&b.push, "push", false, `Shorthand for "--output=type=registry"`)
	f.BoolVar(&b.pull, "pull", false, "Always attempt to pull a newer version of the image")
	f.BoolVarP(&b.quiet, "quiet", "q", false, "Suppress the build output and print image ID on success")
	f.BoolVar(&b.rm, "rm", true, "Remove intermediate containers after a successful build")
	f.StringVar(&b.sbom, "sbom", "", `Shorthand for "--attest=type=sbom"`)
	f.StringArrayVar(&b.secret, "secret", nil, `Secret to expose to the build (format: "id=mysecret[,src=/local/secret]")`)
	f.StringSliceVar(&b.securityOpt, "security-opt", nil, "Security options")
	f.Var(&b.shmSize, "shm-size", `Size of "/dev/shm"`)
	f.BoolVar(&b.shellOnError, "shell-on-error", false, "Open a shell in the file system that a failed step left")
	f.StringVar(&b.squash, "squash", "", "Squash newly built layers, or those after the stage or image named, into a single new layer")
	f.Lookup("squash").NoOptDefVal = "true"
	f.StringArrayVar(&b.ssh, "ssh", nil, `SSH agent socket or keys to expose to the build (format: "default|<id>[=<socket>|<key>[,<key>]]")`)
	f.VarP(&b.tag, "tag", "t", `Name and optionally a tag in the "name:tag" format`)
	f.StringVar(&b.target, "target", "", "Set the target build stage to build.")
	f.Var(&b.ulimits, "ulimit", "Ulimit options")
}

// query returns the parameters of /build, for an engine without direct builds. proxies are build arguments that the user did not set.
func (b *buildFlags) query(proxies map[string]string) (url.Values, error) {
	if !b.noVerify {
		return nil, errs.New(errs.Unimplemented, "--disable-content-trust=false: image verification with Notary is not supported")
	}
	q := url.Values{"t": b.tag.Values, "extrahosts": b.addHost.Values, "securityopt": b.securityOpt, "version": {"1"}}
	for name, v := range map[string]string{"networkmode": b.network, "cgroupparent": b.cgroupParent, "cpusetcpus": b.cpusetCpus, "cpusetmems": b.cpusetMems,
		"target": b.target, "platform": strings.ToLower(strings.Join(b.platform, ",")), "isolation": b.isolation} {
		if v != "" {
			q.Set(name, v)
		}
	}
	for name, on := range map[string]bool{"q": b.quiet, "nocache": b.noCache, "pull": b.pull, "forcerm": b.forceRm, "squash": b.squash != ""} {
		if on {
			q.Set(name, "1")
		}
	}
	q.Set("rm", map[bool]string{true: "1", false: "0"}[b.rm])
	for name, n := range map[string]int64{"cpuperiod": b.cpuPeriod, "cpuquota": b.cpuQuota, "cpushares": b.cpuShares, "memory": b.memory.N, "memswap": b.memSwap.N, "shmsize": b.shmSize.N} {
		if n != 0 {
			q.Set(name, strconv.FormatInt(n, 10))
		}
	}
	args := map[string]*string{}
	for k, v := range proxies {
		args[k] = &v
	}
	for _, s := range b.buildArg.Values {
		k, v, has := strings.Cut(s, "=")
		args[k] = nil
		if has {
			args[k] = &v
		}
	}
	for name, v := range map[string]any{"buildargs": args, "labels": opts.KeyValues(b.label.Values), "cachefrom": b.cacheFrom, "ulimits": b.ulimits.Wire()} {
		j, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		if s := string(j); s != "{}" && s != "[]" && s != "null" {
			q.Set(name, s)
		}
	}
	return q, nil
}

// writeID writes the file of --iidfile.
func (b *buildFlags) writeID(id string) error {
	if b.iidfile == "" {
		return nil
	}
	if id == "" {
		return errs.New(errs.Invalid, "server did not provide an image ID. Cannot write %s", b.iidfile)
	}
	return os.WriteFile(b.iidfile, []byte(id), 0o666)
}
