// Command ply-registry is an OCI registry: one binary that serves one directory.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"ply/internal/registry/config"
	"ply/internal/registry/server"
	"ply/internal/version"
)

func main() {
	err := run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "ply-registry:", err)
		os.Exit(1)
	}
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "user":
			return user(args[1:], stdin, stdout, stderr)
		case "group":
			return group(args[1:], stdout, stderr)
		case "namespace":
			return namespace(args[1:], stdout, stderr)
		case "token":
			return token(args[1:], stdout, stderr)
		case "audit":
			return auditLog(args[1:], stdout, stderr)
		case "migrate":
			return migrateRegistry(args[1:], stdout, stderr)
		case "check":
			return checkRegistry(args[1:], stdout, stderr)
		case "backup":
			return backupRegistry(args[1:], stdout, stderr)
		case "retention":
			return retention(args[1:], stdout, stderr)
		case "serve": // what images of the reference registry are started with
			args = args[1:]
		}
	}
	fs := pflag.NewFlagSet("ply-registry", pflag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintf(stderr, "Usage:\n  ply-registry [serve] [FLAG]... [CONFIG]\n  ply-registry user|group|namespace|token|audit|migrate|check|backup|retention … (see ply-registry COMMAND --help)\n\n%s", fs.FlagUsages())
	}
	c, warnings, err := config.Load(fs, args, os.Environ())
	if err != nil {
		return err
	}
	if c.PrintVersion {
		fmt.Fprintln(stdout, "ply-registry", version.Version)
		return nil
	}
	log, err := c.Logger(stderr)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		log.Warn(w)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	s, err := server.Open(c.Server(log))
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		reload(ctx, c, args, s, log)
	}()
	err = serve(ctx, c, s, stdout, log)
	stop()
	<-ended
	return errors.Join(err, s.Close())
}

// reload reads the settings again at each SIGHUP. Settings that are wrong change nothing.
func reload(ctx context.Context, c *config.Config, args []string, s *server.Server, log *slog.Logger) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		next, warnings, err := config.Load(pflag.NewFlagSet("ply-registry", pflag.ContinueOnError), args, os.Environ())
		if err == nil {
			for _, w := range warnings {
				log.Warn(w)
			}
			err = s.Reload(next.Server(log))
		}
		if err != nil {
			log.Error("the new settings are not used", "err", err)
			continue
		}
		log.Info("settings reloaded")
		if names := next.NeedRestart(c); len(names) > 0 {
			log.Warn("settings that need a restart have changed", "settings", names)
		}
	}
}

// serve serves until ctx is done, and then lets the requests that were begun end.
func serve(ctx context.Context, c *config.Config, s *server.Server, stdout io.Writer, log *slog.Logger) error {
	listeners, err := s.Listen(c.Addr, c.MetricsAddr)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "ply-registry %s serves %s at %s\n", version.Version, c.Root, listeners[0].Addr())
	if len(listeners) > 1 {
		fmt.Fprintf(stdout, "Metrics are at http://%s/metrics\n", listeners[1].Addr())
	}
	where := "--root " + c.Root
	if c.Database != "" {
		where = "--database ADDRESS" // the address may have a password in it
	}
	if s.IsOpen() {
		fmt.Fprintln(stdout, "It is open: everyone who reaches it may read, write and delete. The first user closes it: ply-registry user add NAME", where)
	}
	if text := s.Trust(); text != "" {
		fmt.Fprintln(stdout, text)
	}
	served := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { served <- s.Serve(l) }()
	}
	select {
	case err = <-served:
	case <-ctx.Done():
		log.Info("draining", "limit", c.Drain)
		end, cancel := context.WithTimeout(context.Background(), c.Drain)
		defer cancel()
		err = s.Shutdown(end)
		for range listeners {
			err = errors.Join(err, <-served)
		}
	}
	return err
}
