package supervise

import (
	"fmt"
	"net"
	"os"
	"time"

	"ply/internal/container/shim"
)

// carry takes the published ports over, with the sockets that follow the request.
func (s *server) carry(conn *net.UnixConn, req shim.Request) error {
	a, err := arguments[shim.PortsArgs](req)
	if err != nil {
		return err
	}
	if len(a.Ports) > shim.MaxPorts {
		return &failure{shim.ClassInvalid, fmt.Sprintf("%d published ports are more than the %d allowed", len(a.Ports), shim.MaxPorts)}
	}
	_ = conn.SetReadDeadline(time.Now().Add(s.requestTime)) // never fails for sockets
	var sockets []*os.File
	for _, p := range a.Ports {
		if !p.Socket {
			continue
		}
		f, err := shim.ReceiveFile(conn)
		if err != nil {
			for _, f := range sockets {
				_ = f.Close() // nothing was written
			}
			return &failure{shim.ClassInvalid, fmt.Sprintf("published port %s/%s: its socket: %v", p.Host, p.Proto, err)}
		}
		sockets = append(sockets, f)
	}
	_ = conn.SetReadDeadline(time.Time{})
	return s.ports.Serve(a.Ports, sockets)
}
