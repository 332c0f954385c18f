package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	idleInterval = 15 * time.Second // between two checks
	idleBytes    = 1 << 20          // an engine that allocates fewer bytes between two checks is idle
	worthBytes   = 10 << 20         // a collection is worth its time after this many allocated bytes
)

// freeWhenIdle returns memory to the system after a pull or a build. Go would keep it for minutes, because it collects when
// the heap has grown, and the heap of an idle engine does not grow. It ends with ctx.
func freeWhenIdle(ctx context.Context) {
	allocs := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}} // since the process began
	tick := time.NewTicker(idleInterval)
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
		if now-before < idleBytes && now-done > worthBytes {
			debug.FreeOSMemory()
			done = now
		}
		before = now
	}
}
