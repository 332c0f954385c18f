package run

import (
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// runFlags are the flags that run and create share. Most of them write straight into the body of the request; a flag that has more to
// say adds a step with then. So one place declares an option and applies it.
type runFlags struct {
	cfg   wire.Config
	host  wire.HostConfig
	nets  map[string]*wire.EndpointSettings
	steps []func() error

	// proxies are variables of the environment to set where the user does not.
	proxies map[string]string

	// What the commands read themselves.
	name, platform, pull, cidfile, mac string
	quiet                              bool
	attach                             opts.List

	// run only
	detach, sigProxy bool
	detachKeys       string
}

// newRunFlags returns flags whose lists are empty, not null: so docker sends these fields.
func newRunFlags() *runFlags {
	r := &runFlags{attach: opts.List{Check: opts.Attach}}
	r.host.DNS, r.host.DNSOptions, r.host.DNSSearch = []string{}, []string{}, []string{}
	r.host.Devices, r.host.Ulimits = []wire.DeviceMapping{}, []wire.Ulimit{}
	r.host.BlkioWeightDevice = []wire.WeightDevice{}
	for _, l := range []*[]wire.ThrottleDevice{&r.host.BlkioDeviceReadBps, &r.host.BlkioDeviceWriteBps, &r.host.BlkioDeviceReadIOps, &r.host.BlkioDeviceWriteIOps} {
		*l = []wire.ThrottleDevice{}
	}
	return r
}

// then adds a step of build: it checks flags, or turns them into fields of the request.
func (r *runFlags) then(step func() error) { r.steps = append(r.steps, step) }

// add defines the flags; run says whether those of `run` alone are among them.
func (r *runFlags) add(f *pflag.FlagSet, run bool) {
	r.addProcess(f)
	r.addHealth(f)
	r.addStorage(f)
	r.addRights(f)
	r.addHost(f)
	r.addLimits(f)
	r.addNetwork(f)
	pull := "creating"
	if run {
		pull = "running"
		f.BoolVarP(&r.detach, "detach", "d", false, "Run container in background and print container ID")
		f.BoolVar(&r.sigProxy, "sig-proxy", true, "Proxy received signals to the process")
		f.StringVar(&r.detachKeys, "detach-keys", "", "Override the key sequence for detaching a container")
	}
	f.StringVar(&r.pull, "pull", "missing", `Pull image before `+pull+` ("always", "missing", "never")`)
	f.BoolVarP(&r.quiet, "quiet", "q", false, "Suppress the pull output")
	f.StringVar(&r.platform, "platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "Set platform if server is multi-platform capable")
	f.StringVar(&r.name, "name", "", "Assign a name to the container")

	noVerify := f.Bool("disable-content-trust", true, "Skip image verification")
	apiSocket := f.Bool("use-api-socket", false, "Bind mount Docker API socket and required auth")
	r.then(func() error {
		if *apiSocket {
			return errs.New(errs.Unimplemented, "--use-api-socket is not supported: mount the engine's socket with -v")
		}
		if !*noVerify {
			return errs.New(errs.Unimplemented, "--disable-content-trust=false: image verification with Notary is not supported")
		}
		return nil
	})
}

// build turns the flags into the body of a create. proxies are variables to set where the user did not set them.
func (r *runFlags) build(image string, command []string, proxies map[string]string) (*wire.CreateBody, error) {
	r.cfg.Image, r.proxies = image, proxies
	if len(command) > 0 {
		r.cfg.Cmd = command
	}
	for _, step := range r.steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return &wire.CreateBody{Config: &r.cfg, HostConfig: &r.host, NetworkingConfig: &wire.NetworkingConfig{EndpointsConfig: r.nets}}, nil
}

// listField is a flag that may be given often and writes into a field.
type listField struct {
	opts.List
	to *[]string
}

// Set adds a value.
func (v *listField) Set(s string) error {
	if err := v.List.Set(s); err != nil {
		return err
	}
	*v.to = v.Values
	return nil
}

// listVar defines a flag that may be given often, with its values in to. check may be nil.
func listVar(f *pflag.FlagSet, to *[]string, name, usage string, check func(string) (string, error)) {
	f.Var(&listField{opts.List{Check: check}, to}, name, usage)
}

// sizeField is a flag of a size that writes into a field.
type sizeField struct {
	opts.Bytes
	to *int64
}

// Set parses a size.
func (v *sizeField) Set(s string) error {
	if err := v.Bytes.Set(s); err != nil {
		return err
	}
	*v.to = v.N
	return nil
}

// sizeVar returns a flag's value that writes bytes into to.
func sizeVar(to *int64) *sizeField { return &sizeField{to: to} }

// usageOf makes err, a wrong value of a flag, an error of cmd's usage with run's exit code.
func usageOf(path string, err error) error {
	return &command.ExitError{Code: 125, Text: fmt.Sprintf("ply: %v\n\nRun '%s --help' for more information", err, path)}
}
