package transfer_test

import (
	"testing"

	"go.uber.org/goleak"

	"ply/test/leak"
)

// TestMain fails when a test leaves goroutines running, such as flights, relays, compressors or readers of bodies.
func TestMain(m *testing.M) {
	leak.Main(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}
