package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	restLook   = 15 * time.Second
	restQuiet  = 1 << 20  // bytes allocated between two looks of an engine at rest
	restEnough = 10 << 20 // bytes allocated since the last time that are worth a collection
)

// rest gives memory back when a pull or a build is over. Go would keep it for minutes: it collects when the heap has grown,
// and an engine at rest does not grow.
func rest(ctx context.Context) {
	allocs := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}} // since the process began
	tick := time.NewTicker(restLook)
	defer tick.Stop()
	var before, done uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(allocs)
		now := allocs[0].Value.Uint64()
		if now-before < restQuiet && now-done > restEnough {
			debug.FreeOSMemory()
			done = now
		}
		before = now
	}
}
