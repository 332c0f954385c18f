package run

import (
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"ply/internal/cli/opts"
	"ply/internal/errs"
)

// addProcess defines the flags that say what runs, and how it starts and ends.
func (r *runFlags) addProcess(f *pflag.FlagSet) {
	c, h := &r.cfg, &r.host
	f.StringVarP(&c.Hostname, "hostname", "h", "", "Container host name")
	f.StringVar(&c.Domainname, "domainname", "", "Container NIS domain name")
	f.StringVarP(&c.User, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	f.StringVarP(&c.WorkingDir, "workdir", "w", "", "Working directory inside the container")
	f.BoolVarP(&c.Tty, "tty", "t", false, "Allocate a pseudo-TTY")
	f.StringVar(&c.StopSignal, "stop-signal", "", "Signal to stop the container")
	listVar(f, &h.GroupAdd, "group-add", "Add additional groups to join", nil)

	entrypoint := f.String("entrypoint", "", "Overwrite the default ENTRYPOINT of the image")
	timeout := f.Int("stop-timeout", 0, "Timeout (in seconds) to stop a container")
	init := f.Bool("init", false, "Run an init inside the container that forwards signals and reaps processes")
	r.then(func() error {
		if f.Changed("entrypoint") {
			c.Entrypoint = []string{*entrypoint} // one empty string resets the image's
		}
		if f.Changed("stop-timeout") {
			c.StopTimeout = timeout
		}
		if f.Changed("init") {
			h.Init = init
		}
		return nil
	})
	umask := f.String("umask", "", "Initial umask of the container's processes, in octal (default 0022)")
	r.then(func() error {
		if !f.Changed("umask") {
			return nil
		}
		n, err := strconv.ParseUint(strings.TrimPrefix(*umask, "0o"), 8, 32)
		if err != nil || n > 0o777 {
			return errs.New(errs.Invalid, "invalid umask %q: must be an octal number from 0000 to 0777", *umask)
		}
		mask := uint32(n)
		h.Umask = &mask
		return nil
	})
	r.addStreams(f)
	r.addRestart(f)
	r.addEnv(f)
	r.addLabels(f)
}

func (r *runFlags) addStreams(f *pflag.FlagSet) {
	f.BoolVarP(&r.cfg.OpenStdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	f.VarP(&r.attach, "attach", "a", "Attach to STDIN, STDOUT or STDERR")
	r.then(func() error {
		c := &r.cfg
		for _, s := range r.attach.Values {
			switch s {
			case "stdin":
				c.AttachStdin = true
			case "stdout":
				c.AttachStdout = true
			case "stderr":
				c.AttachStderr = true
			}
		}
		if len(r.attach.Values) == 0 && !r.detach {
			c.AttachStdin, c.AttachStdout, c.AttachStderr = c.OpenStdin, true, true
		}
		c.StdinOnce = c.OpenStdin && c.AttachStdin
		return nil
	})
}

func (r *runFlags) addRestart(f *pflag.FlagSet) {
	f.BoolVar(&r.host.AutoRemove, "rm", false, "Automatically remove the container and its associated anonymous volumes when it exits")
	restart := f.String("restart", "no", "Restart policy to apply when a container exits")
	r.then(func() (err error) {
		r.host.RestartPolicy, err = opts.Restart(*restart)
		if name := r.host.RestartPolicy.Name; err == nil && r.host.AutoRemove && name != "" && name != "no" {
			return errs.New(errs.Invalid, "conflicting options: cannot specify both --restart and --rm")
		}
		return err
	})
}

func (r *runFlags) addEnv(f *pflag.FlagSet) {
	vars, files := opts.List{Check: opts.Env}, opts.List{}
	f.VarP(&vars, "env", "e", "Set environment variables")
	f.Var(&files, "env-file", "Read in a file of environment variables")
	r.then(func() error {
		env, err := opts.EnvFiles(files.Values)
		if err != nil {
			return err
		}
		env = append(env, vars.Values...)
		have := opts.KeyValues(env)
		for _, kv := range opts.Pairs(r.proxies) {
			name, _, _ := strings.Cut(kv, "=")
			if _, ok := have[name]; !ok {
				env = append(env, kv)
			}
		}
		r.cfg.Env = env
		return nil
	})
}

func (r *runFlags) addLabels(f *pflag.FlagSet) {
	labels, files := opts.List{Check: opts.Label}, opts.List{}
	f.VarP(&labels, "label", "l", "Set meta data on a container")
	f.Var(&files, "label-file", "Read in a line delimited file of labels")
	annotations := opts.Map{Check: opts.Label}
	f.Var(&annotations, "annotation", "Add an annotation to the container (passed through to the OCI runtime)")
	r.then(func() error {
		fromFiles, err := opts.LabelFiles(files.Values)
		if err != nil {
			return err
		}
		r.cfg.Labels = opts.KeyValues(append(fromFiles, labels.Values...))
		r.host.Annotations = annotations.Values
		return nil
	})
}
