package push_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails when a test leaves goroutines behind: flights, relays, compressors, bodies that nobody closed.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}
