package remotetest

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CutOff breaks the connection of a request: with a reset, or with an ordinary end.
func CutOff(w http.ResponseWriter, reset bool) {
	conn, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	_ = buf.Flush()
	if tcp, ok := conn.(*net.TCPConn); ok && reset {
		waitUntilSent(tcp)
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// waitUntilSent waits until the far end has everything that was sent, or has gone: a reset would discard the rest.
func waitUntilSent(tcp *net.TCPConn) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for tries, left := 0, 1; left > 0 && tries < 500; tries++ {
		<-tick.C
		err := raw.Control(func(fd uintptr) {
			var queued int32
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCOUTQ, uintptr(unsafe.Pointer(&queued)))
			left = int(queued)
			if errno != 0 {
				left = 0
			}
		})
		if err != nil {
			return
		}
	}
}

// LayerOf returns the layer of the image that a request asks for, or nil.
func LayerOf(r *http.Request, img *Image) *Layer {
	for i := range img.Layers {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, string(img.Layers[i].Digest)) {
			return &img.Layers[i]
		}
	}
	return nil
}

// ServeSome sends n bytes of the range that a request asks for, with the headers of the whole range.
func (f *Fake) ServeSome(w http.ResponseWriter, r *http.Request, l *Layer, n int) {
	from, end := Range(r, len(l.Blob))
	w.Header().Set("Content-Length", strconv.Itoa(end-from))
	if r.Header.Get("Range") != "" {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, end-1, len(l.Blob)))
		w.WriteHeader(http.StatusPartialContent)
	}
	sent, _ := w.Write(l.Blob[from:min(from+n, end)])
	f.CountServed(string(l.Digest), sent)
}
