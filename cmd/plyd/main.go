// Command plyd is the engine: it serves the Docker Engine API and manages images, layers and containers.
//
// Its flags and the keys of daemon.json have the names of dockerd's. Each container runs under a ply-shim of its own and
// keeps running when plyd ends.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"

	"ply/internal/api/docker"
	"ply/internal/api/listen"
	"ply/internal/config"
	"ply/internal/engine"
	"ply/internal/errs"
	"ply/internal/host"
	"ply/internal/procid"
	"ply/internal/version"
)

const defaultConfigFile = "/etc/ply/daemon.json"

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "plyd:", err)
		os.Exit(1)
	}
}

// commandLine holds the flags.
type commandLine struct {
	configFile string
	texts      map[string][]string // by flag: the values as given
	validate   bool
	check      string // modes of an examination; "" = serve
	version    bool
	manual     string // directory into which manual pages are written; "" = none

	flags *pflag.FlagSet
}

func parse(args []string, stdout io.Writer) (*commandLine, error) {
	cl := &commandLine{texts: map[string][]string{}}
	fs := pflag.NewFlagSet("plyd", pflag.ContinueOnError)
	fs.SetOutput(stdout)
	fs.SortFlags = true
	fs.StringVar(&cl.configFile, "config-file", defaultConfigFile, "configuration file")
	fs.BoolVar(&cl.validate, "validate", false, "check the configuration and exit")
	fs.StringVar(&cl.check, "check", "", "examine the data root, which no plyd serves, and exit: quick, or full, repair, json separated by commas")
	fs.Lookup("check").NoOptDefVal = "quick"
	fs.BoolVarP(&cl.version, "version", "v", false, "print the version and exit")
	fs.StringVar(&cl.manual, "manual", "", "write manual pages below a directory and exit")
	fs.Lookup("manual").Hidden = true
	cl.flags = fs
	for _, f := range config.Flags() {
		v := &textFlag{flag: f, texts: cl.texts}
		p := fs.VarPF(v, f.Name, f.Short, f.Usage)
		p.DefValue = f.Default
		if f.Bool {
			p.NoOptDefVal = "true"
		}
	}
	fs.Usage = func() {
		fmt.Fprintf(stdout, "Usage:  plyd [OPTIONS]\n\nThe engine of ply: images, layers and containers behind the Docker Engine API.\n\nOptions:\n%s", fs.FlagUsages())
	}
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.Changed("config-file") {
		cl.texts[config.ConfigFlag] = []string{cl.configFile} // a file that is named must exist
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: plyd takes options only", fs.Arg(0))
	}
	return cl, nil
}

// textFlag collects the values of a flag as text for config.Load, which knows the types.
type textFlag struct {
	flag  config.Flag
	texts map[string][]string
}

func (t *textFlag) String() string { return "" }

func (t *textFlag) Set(s string) error {
	if t.flag.Many {
		t.texts[t.flag.Name] = append(t.texts[t.flag.Name], s)
	} else {
		t.texts[t.flag.Name] = []string{s}
	}
	return nil
}

func (t *textFlag) Type() string {
	switch {
	case t.flag.Bool:
		return "bool"
	case t.flag.Many:
		return "list"
	}
	return "string"
}

// limitMemory makes the collector keep the heap within the memory that plyd may use, however much it has collected before. The rest
// is for memory that the collector does not manage. A limit that the administrator set stays.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(host.MemoryLimit() / 5 * 4)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	cl, err := parse(args, stdout)
	if err != nil {
		return err
	}
	if cl.version {
		fmt.Fprintf(stdout, "plyd version %s\n", version.Version)
		return nil
	}
	if cl.manual != "" {
		return writeManual(cl.manual, cl.flags)
	}
	cfg, warnings, err := config.Load(cl.configFile, cl.texts)
	for _, w := range warnings {
		fmt.Fprintln(stderr, "plyd: warning:", w)
	}
	if err != nil {
		return err
	}
	if cl.validate {
		fmt.Fprintln(stdout, "configuration OK")
		return nil
	}
	if os.Geteuid() != 0 {
		return errs.New(errs.Forbidden, "plyd must run as root").WithHint("Start it with sudo, or as a service: systemctl enable --now ply.socket.")
	}
	// An idle engine should be small. Stream buffers are reused, so collecting more often costs little.
	debug.SetGCPercent(50)
	limitMemory()
	syscall.Umask(0o022)
	var level slog.LevelVar
	level.Set(logLevel(cfg))
	log := logger(cfg, &level, stderr)
	if cl.check != "" {
		shim, err := shimPath()
		if err != nil {
			return err
		}
		return examine(cl.check, engine.Options{Config: cfg, ConfigFile: cl.configFile, ShimPath: shim, Log: log}, stdout)
	}
	release, err := writePidfile(cfg.Pidfile)
	if err != nil {
		return err
	}
	defer release()
	return serve(cl, cfg, log, &level)
}

func logLevel(cfg *config.Config) slog.Level {
	switch {
	case cfg.Debug || cfg.LogLevel == "debug":
		return slog.LevelDebug
	case cfg.LogLevel == "warn":
		return slog.LevelWarn
	case cfg.LogLevel == "error" || cfg.LogLevel == "fatal":
		return slog.LevelError
	}
	return slog.LevelInfo
}

func logger(cfg *config.Config, level slog.Leveler, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// shimPath returns the path of ply-shim, beside this program. It does not search PATH, because the shim runs as root.
func shimPath() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	p := filepath.Join(filepath.Dir(self), "ply-shim")
	if _, err := os.Stat(p); err != nil {
		return "", errs.New(errs.Precondition, "%s is missing: %w", p, err).WithHint("Install ply-shim beside plyd.")
	}
	return p, nil
}

func serve(cl *commandLine, cfg *config.Config, log *slog.Logger, level *slog.LevelVar) (err error) {
	shim, err := shimPath()
	if err != nil {
		return err
	}
	oldest, err := docker.ParseAPI(cmp.Or(os.Getenv("DOCKER_MIN_API_VERSION"), cfg.MinAPIVersion))
	if err != nil {
		return fmt.Errorf("min-api-version: %w", err)
	}
	setProxies(cfg.Proxies)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	// The sockets come first, so that a second plyd on them fails before it touches the data root.
	listeners, hosts, err := openHosts(cfg)
	if err != nil {
		return err
	}
	closeAll := func() {
		for _, l := range listeners {
			l.Close()
		}
	}
	e, err := engine.Open(ctx, engine.Options{Config: cfg, ConfigFile: cl.configFile, ShimPath: shim, Log: log})
	if err != nil {
		closeAll()
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	go e.Housekeeping(ctx)
	go freeWhenIdle(ctx)
	go handleSignals(ctx, cl, e, log, level)

	server := listen.NewServer(docker.New(services(e, hosts, oldest, cfg.Experimental, log)), log)
	failed := make(chan error, len(listeners))
	var serving sync.WaitGroup
	for _, l := range listeners {
		serving.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	log.Info("plyd is up", "version", version.Version, "driver", e.Store.Layers.Name(), "data-root", cfg.DataRoot, "hosts", cfg.Hosts)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // without a service manager there is no one to notify
	select {
	case <-ctx.Done():
		log.Info("plyd is stopping", "containers-run-on", e.KeepsContainers())
	case err = <-failed:
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	// Streams such as logs -f and events end when their connections are closed. Other requests get some time to finish.
	grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if server.Shutdown(grace) != nil {
		server.Close()
	}
	serving.Wait()
	return err
}

func openHosts(cfg *config.Config) (all []net.Listener, hosts []string, err error) {
	o := listen.Options{Group: cfg.Group, Limiter: listen.NewLimiter(0, 0), TLS: listen.TLS{CertFile: cfg.TLSCert, KeyFile: cfg.TLSKey, CAFile: cfg.TLSCACert, Verify: cfg.TLSVerify || cfg.TLS}}
	for _, h := range cfg.Hosts {
		l, err := listen.Open(h, o)
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			return nil, nil, err
		}
		all = append(all, l...)
	}
	if cfg.TLSCert != "" {
		if hosts, err = listen.CertificateHosts(cfg.TLSCert, cfg.TLSKey); err != nil {
			return nil, nil, err
		}
	}
	return all, hosts, nil
}

// handleSignals reloads the configuration on SIGHUP, and logs the stacks of all goroutines on SIGUSR1.
func handleSignals(ctx context.Context, cl *commandLine, e *engine.Engine, log *slog.Logger, level *slog.LevelVar) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Stop(c)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-c:
			if s == syscall.SIGUSR1 {
				var b strings.Builder
				_ = pprof.Lookup("goroutine").WriteTo(&b, 2) // writing to a strings.Builder does not fail
				log.Info("goroutines", "dump", b.String())
				continue
			}
			next, warnings, err := config.Load(cl.configFile, cl.texts)
			for _, w := range warnings {
				log.Warn(w.String(), "key", w.Key)
			}
			if err == nil {
				err = e.Reload(next)
			}
			if err == nil {
				level.Set(logLevel(next))
			}
			if err != nil {
				log.Error("reload failed, the old configuration stays in force", "err", err)
			}
		}
	}
}

// setProxies puts the configured proxies into the environment, where net/http looks for them.
func setProxies(p config.Proxies) {
	for name, value := range map[string]string{"HTTP_PROXY": p.HTTP, "HTTPS_PROXY": p.HTTPS, "NO_PROXY": p.No} {
		if value != "" {
			os.Setenv(name, value)
		}
	}
}

// writePidfile writes the pid file. It fails when a plyd with the same pid file is running.
func writePidfile(name string) (release func(), err error) {
	if name == "" {
		return func() {}, nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	// The lock decides, not the number in the file: process numbers are reused.
	if err := procid.LockFile(f, 2*time.Second); err != nil {
		b, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		return nil, errs.New(errs.Conflict, "plyd is running already: pid file %s, pid %s", name, strings.TrimSpace(string(b)))
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, fmt.Sprintf("%d\n", os.Getpid()))); err != nil {
		f.Close()
		return nil, err
	}
	return func() { os.Remove(name); f.Close() }, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}
