package container

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/network"
)

// Stats sends a reading now and, when stream, every second until ctx ends or the container is removed. The readings of a
// container that does not run are zero, as with docker.
func (s *Service) Stats(ctx context.Context, ref string, stream bool, send func(Stats) error) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		st, err := readStats(ctx, c)
		if err != nil {
			return err
		}
		if err := send(st); err != nil {
			return err
		}
		if !stream {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		case <-c.done.Done():
			return nil
		case <-s.env.run.Done():
			return nil
		}
	}
}

// readStats takes one reading.
func readStats(ctx context.Context, c *ctr) (Stats, error) {
	st := Stats{ID: string(c.id), Name: c.name(), Read: time.Now(), OnlineCPUs: runtime.NumCPU()}
	l, err := c.running()
	if err != nil {
		return st, nil
	}
	st.Cgroup, err = l.Client.Stats(ctx)
	if errors.Is(err, errs.Unavailable) || errors.Is(err, errs.Precondition) {
		return st, nil // the process has just ended
	}
	if err != nil {
		return st, err
	}
	st.Read = time.Now()
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		return st, errs.New(errs.Internal, "stats: %w", err)
	}
	// A container without a limit can have all memory of the host.
	if total := uint64(host.Totalram) * uint64(host.Unit); st.Cgroup.MemoryLimit == 0 || st.Cgroup.MemoryLimit > total {
		st.Cgroup.MemoryLimit = total
	}
	if st.SystemCPU, err = systemCPU(); err != nil {
		return st, err
	}
	c.mu.Lock()
	shared := c.rec.Spec.NetworkMode == "host"
	c.mu.Unlock()
	if !shared {
		st.Networks = netCounters(c)
	}
	return st, nil
}

// systemCPU sums the host's CPU time, in nanoseconds, from the first line of /proc/stat.
func systemCPU() (uint64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, errs.New(errs.Internal, "stats: %w", err)
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := strings.Fields(string(line))
	const tick = uint64(time.Second / 100) // USER_HZ is 100 on every Linux
	var total uint64
	for i, f := range fields {
		if i == 0 || i > 7 { // guest time is counted in user time
			continue
		}
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, errs.New(errs.Internal, "stats: /proc/stat: %w", err)
		}
		total += n
	}
	return total * tick, nil
}

// netCounters reads the counters of the container's interfaces, without loopback. None when the process has ended.
func netCounters(c *ctr) map[string]network.Counters {
	id, err := shim.ReadIdentity(c.paths.init)
	if err != nil {
		return nil
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(id.PID) + "/net/dev")
	if err != nil {
		return nil
	}
	return parseNetDev(data)
}

func parseNetDev(data []byte) map[string]network.Counters {
	out := map[string]network.Counters{}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		name, rest, ok := strings.Cut(sc.Text(), ":")
		f := strings.Fields(rest)
		name = strings.TrimSpace(name)
		if !ok || name == "lo" || len(f) < 12 {
			continue
		}
		var v [12]uint64
		for i := range v {
			v[i], _ = strconv.ParseUint(f[i], 10, 64) // the kernel writes numbers only
		}
		out[name] = network.Counters{
			RxBytes: v[0], RxPackets: v[1], RxErrors: v[2], RxDropped: v[3],
			TxBytes: v[8], TxPackets: v[9], TxErrors: v[10], TxDropped: v[11],
		}
	}
	return out
}
