package server

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// childRoot, in the environment, makes this test binary a registry of that root, which serves until it is killed.
const childRoot = "PLY_REGISTRY_TEST_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(childRoot); root != "" {
		if err := serveChild(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// serveChild prints its address when it serves.
func serveChild(root string) error {
	s, err := Open(Options{Root: root, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return s.Serve(l)
}
