package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"ply/internal/registry/blobs/s3/s3test"
	"ply/internal/registry/metadata/postgres/postgrestest"
	"ply/test/leak"
)

// childOptions, in the environment, makes this test binary a registry with these options, which serves until it is killed.
const childOptions = "PLY_REGISTRY_TEST_OPTIONS"

// What several replicas share. It is started by the first test that needs it.
var shared struct {
	once     sync.Once
	database *postgrestest.Server
	storage  *s3test.Server
	err      error
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childOptions); text != "" {
		if err := serveChild(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	var err error
	if shared.database != nil {
		err = shared.database.Stop()
	}
	if shared.storage != nil {
		err = errors.Join(err, shared.storage.Stop())
	}
	if code == 0 {
		err = errors.Join(err, leak.Find(goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
			goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait")))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// serveChild prints its address when it serves.
func serveChild(text string) error {
	var o Options
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := Open(o)
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
