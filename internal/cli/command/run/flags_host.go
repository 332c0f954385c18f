package run

import (
	"strings"

	"github.com/spf13/pflag"

	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// addRights defines the flags of rights and namespaces.
func (r *runFlags) addRights(f *pflag.FlagSet) {
	h := &r.host
	f.BoolVar(&h.Privileged, "privileged", false, "Give extended privileges to this container")
	f.StringVar(&h.UsernsMode, "userns", "", "User namespace to use")
	f.StringVar(&h.IpcMode, "ipc", "", "IPC mode to use")
	f.StringVar(&h.PidMode, "pid", "", "PID namespace to use")
	f.StringVar(&h.UTSMode, "uts", "", "UTS namespace to use")
	f.StringVar(&h.CgroupnsMode, "cgroupns", "", "Cgroup namespace to use (host|private)\n"+
		"'host':    Run the container in the Docker host's cgroup namespace\n"+
		"'private': Run the container in its own private cgroup namespace\n"+
		"'':        Use the cgroup namespace as configured by the\n"+
		"           default-cgroupns-mode option on the daemon (default)")
	r.then(func() error {
		for mode, value := range map[string]string{"ipc": h.IpcMode, "pid": h.PidMode} {
			if value == "container:" {
				return errs.New(errs.Invalid, "--%s: invalid %s mode", mode, strings.ToUpper(mode))
			}
		}
		return nil
	})

	var capAdd, capDrop, security opts.List
	f.Var(&capAdd, "cap-add", "Add Linux capabilities")
	f.Var(&capDrop, "cap-drop", "Drop Linux capabilities")
	f.Var(&security, "security-opt", "Security Options")
	r.then(func() (err error) {
		h.CapAdd, h.CapDrop = opts.Capabilities(capAdd.Values), opts.Capabilities(capDrop.Values)
		unconfined := false
		if h.SecurityOpt, unconfined, err = opts.Security(security.Values); unconfined {
			h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
		}
		return err
	})
	r.addDevices(f)
}

func (r *runFlags) addDevices(f *pflag.FlagSet) {
	h := &r.host
	listVar(f, &h.DeviceCgroupRules, "device-cgroup-rule", "Add a rule to the cgroup allowed devices list", opts.DeviceRule)
	var devices opts.List
	var gpus opts.GPUs
	f.Var(&devices, "device", "Add a host device to the container")
	f.Var(&gpus, "gpus", "GPU devices to add to the container ('all' to pass all GPUs)")
	r.then(func() error {
		h.DeviceRequests = gpus.List
		var cdi []string
		for _, s := range devices.Values {
			if opts.CDI(s) {
				cdi = append(cdi, s)
				continue
			}
			d, err := opts.Device(s)
			if err != nil {
				return err
			}
			h.Devices = append(h.Devices, d)
		}
		if len(cdi) > 0 {
			h.DeviceRequests = append(h.DeviceRequests, wire.DeviceRequest{Driver: "cdi", DeviceIDs: cdi})
		}
		return nil
	})
}

// addHost defines the flags of the runtime, the log and files of the client.
func (r *runFlags) addHost(f *pflag.FlagSet) {
	h := &r.host
	f.StringVar(&h.Isolation, "isolation", "", "Container isolation technology")
	f.StringVar(&h.Runtime, "runtime", "", "Runtime to use for this container")
	f.StringVar(&h.ContainerIDFile, "cidfile", "", "Write the container ID to the file")
	r.then(func() error { r.cidfile = h.ContainerIDFile; return nil })

	var sysctls opts.Map
	f.Var(&sysctls, "sysctl", "Sysctl options")
	r.then(func() error { h.Sysctls = sysctls.Values; return nil })

	var logOpts opts.List
	f.StringVar(&h.LogConfig.Type, "log-driver", "", "Logging driver for the container")
	f.Var(&logOpts, "log-opt", "Log driver options")
	r.then(func() error {
		h.LogConfig.Config = opts.KeyValues(logOpts.Values)
		if h.LogConfig.Type == "none" && len(logOpts.Values) > 0 {
			return errs.New(errs.Invalid, "invalid logging opts for driver none")
		}
		return needPairs("logging", logOpts.Values)
	})
}
