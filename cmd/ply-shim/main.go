// Command ply-shim owns one container: it creates the container, holds its streams, and writes its log and its exit file.
// plyd starts it, and it keeps running when plyd ends.
//
//	ply-shim -bundle DIR [-hold]    run the container of a bundle; the response is written to descriptor 3.
//	                                With -hold the spec is there when descriptor 4 has a byte, and all that the
//	                                container needs when it has another. With -wait one byte means both
//	ply-shim -bundle DIR -cleanup   remove what a killed shim left
//	docker-init -- PROGRAM ARG…     run as a container's first process (this binary is mounted at /sbin/docker-init)
//
// libcontainer runs "ply-shim init" inside the container, where it becomes the user's program.
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
	wait := flag.Bool("wait", false, "read one byte from descriptor 4 before the spec")
	hold := flag.Bool("hold", false, "read one byte from descriptor 4 before the spec, and one after it")
	flag.Parse()
	if !filepath.IsAbs(*bundle) || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "ply-shim: usage: ply-shim -bundle /absolute/directory [-hold | -wait | -cleanup]")
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
	var spec *os.File
	if *wait || *hold {
		spec = os.NewFile(shim.SpecFD, "spec")
	}
	os.Exit(supervise.Run(*bundle, os.NewFile(shim.ReadyFD, "ready"), spec, *hold))
}
