// Command ply-registry is an OCI registry: one binary that serves one directory.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"ply/internal/registry/gc"
	"ply/internal/registry/server"
	"ply/internal/version"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "ply-registry:", err)
		os.Exit(1)
	}
}

const drain = 30 * time.Second

func run(args []string, stdout, stderr io.Writer) error {
	fs := pflag.NewFlagSet("ply-registry", pflag.ContinueOnError)
	addr := fs.String("addr", ":5000", "address to serve")
	root := fs.String("root", "/var/lib/ply-registry", "directory of everything durable")
	missing := fs.Bool("allow-missing", false, "accept manifests that refer to blobs or manifests that are not there")
	printVersion := fs.BoolP("version", "v", false, "print the version")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *printVersion {
		fmt.Fprintln(stdout, "ply-registry", version.Version)
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	s, err := server.Open(server.Options{Root: *root, Missing: *missing, Log: log,
		Collect: gc.Schedule{Interval: time.Hour, Grace: 2 * time.Hour, Idle: 7 * 24 * time.Hour}})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	fmt.Fprintf(stdout, "ply-registry serves %s at %s, open to everyone\n", *root, l.Addr())
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		end, cancel := context.WithTimeout(context.Background(), drain)
		defer cancel()
		err = errors.Join(s.Shutdown(end), <-served)
	}
	return errors.Join(err, s.Close())
}
