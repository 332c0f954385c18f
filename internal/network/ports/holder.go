package ports

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"ply/internal/network"
	"ply/internal/procid"
)

// maxSockets is how much of a list of sockets is read, in bytes.
const maxSockets = 16 << 20

// holder returns in words which process has a socket on the port: "nginx, pid 12"; "" when it cannot be found, such as one of another
// pid namespace.
func holder(p network.PortBinding) string {
	for _, family := range []string{"", "6"} {
		f, err := os.Open("/proc/net/" + p.Proto + family)
		if err != nil {
			continue
		}
		inode := socketIn(io.LimitReader(f, maxSockets), p)
		_ = f.Close() // nothing was written
		if inode == "" {
			continue
		}
		if pid := ownerOf("socket:[" + inode + "]"); pid > 0 {
			return procid.Describe(pid)
		}
	}
	return ""
}

// socketIn returns the inode of the socket in a list of /proc/net that keeps others from the port; "" when there is none.
func socketIn(list io.Reader, p network.PortBinding) string {
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
		f := strings.Fields(lines.Text())
		if len(f) < 10 || p.Proto == "tcp" && f[3] != "0A" { // 0A: it listens
			continue
		}
		addr, ok := parseSocket(f[1])
		if !ok || addr.Port() != p.HostPort {
			continue
		}
		if a := addr.Addr(); a == p.HostIP || a.IsUnspecified() || p.HostIP.IsUnspecified() {
			return f[9]
		}
	}
	return ""
}

// parseSocket parses an address of /proc/net, whose bytes are in groups of four in the order of the machine.
func parseSocket(text string) (netip.AddrPort, bool) {
	a, p, ok := strings.Cut(text, ":")
	raw, err := hex.DecodeString(a)
	port, perr := strconv.ParseUint(p, 16, 16)
	if !ok || err != nil || perr != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	if littleEndian {
		for i := 0; i < len(raw); i += 4 {
			raw[i], raw[i+1], raw[i+2], raw[i+3] = raw[i+3], raw[i+2], raw[i+1], raw[i]
		}
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// ownerOf returns the first process that has a file open, by what its descriptor points at; 0 when there is none.
func ownerOf(target string) int {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0
	}
	for _, dir := range processes {
		files, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue
		}
		for _, f := range files {
			if got, err := os.Readlink(filepath.Join(dir, "fd", f.Name())); err == nil && got == target {
				var pid int
				if _, err := fmt.Sscanf(filepath.Base(dir), "%d", &pid); err == nil {
					return pid
				}
			}
		}
	}
	return 0
}
