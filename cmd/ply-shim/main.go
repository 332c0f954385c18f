// Command ply-shim owns one container: it creates it, holds its streams and writes its log and exit file. plyd starts
// it; it outlives plyd.
//
//	ply-shim -bundle DIR            run the container of a bundle (descriptor 3 gets the answer)
//	ply-shim -bundle DIR -cleanup   remove what a killed shim left
//	docker-init -- PROGRAM ARG…     be a container's first process (the binary mounted at /sbin/docker-init)
//
// Run as "ply-shim init" it is the container's first process before it becomes the user's program.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	_ "github.com/opencontainers/cgroups/devices" // lets libcontainer manage device cgroups
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters namespaces before Go's threads exist
	"github.com/sirupsen/logrus"

	"ply/internal/container/seccomp"
	"ply/internal/container/shim"
	"ply/internal/container/supervise"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		seccomp.Adopt()
		libcontainer.Init() // does not return
	}
	if filepath.Base(os.Args[0]) == "docker-init" {
		os.Exit(supervise.PID1(os.Args[1:]))
	}
	bundle := flag.String("bundle", "", "bundle `directory`")
	cleanup := flag.Bool("cleanup", false, "remove what a killed shim of this bundle left")
	flag.Parse()
	if !filepath.IsAbs(*bundle) || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "ply-shim: usage: ply-shim -bundle /absolute/directory [-cleanup]")
		os.Exit(2)
	}
	logrus.SetLevel(logrus.WarnLevel)
	if *cleanup {
		if err := supervise.Cleanup(*bundle); err != nil {
			fmt.Fprintln(os.Stderr, "ply-shim:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(supervise.Run(*bundle, os.NewFile(shim.ReadyFD, "ready")))
}
