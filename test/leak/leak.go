// Package leak makes the tests of a package fail when they leave goroutines.
package leak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// endLimit is how long goroutines that are ending when the tests are over may take. That of a connection, for example, may notice
// only after some seconds that its client has gone, and a test of it may be the last one.
const endLimit = 30 * time.Second

// Main is called by TestMain and does not return. It runs the tests, and fails if they pass and leave goroutines other than ignored.
func Main(m *testing.M, ignored ...goleak.Option) {
	code := m.Run()
	if code == 0 {
		if err := Find(ignored...); err != nil {
			fmt.Fprintln(os.Stderr, "the tests passed and left goroutines:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Find returns an error that describes the goroutines that are left, other than ignored. It waits for what is ending.
func Find(ignored ...goleak.Option) error {
	for deadline := time.Now().Add(endLimit); ; {
		if err := goleak.Find(ignored...); err == nil || time.Now().After(deadline) { // each call takes half a second before it fails
			return err
		}
	}
}
