// Command ply-log sends the output of one container to syslog, journald, fluentd or a GELF server. ply-shim starts it for a container
// with such a log driver, and writes the configuration and the records to its standard input.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"ply/internal/container/logforward"
)

func main() {
	if term.IsTerminal(0) {
		fmt.Fprintln(os.Stderr, "ply-log: ply-shim starts this program")
		os.Exit(2)
	}
	// It ends after the container, whatever ends it.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	logforward.Main()
}
