package shim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// MaxChunk bounds one chunk of an attach stream, in bytes.
const MaxChunk = 1 << 20

// Streams in the header of a chunk.
const (
	Stdin  byte = 0
	Stdout byte = 1
	Stderr byte = 2
	Ended  byte = 3 // an empty chunk: the process has ended and all its output was sent
)

// WriteFrame sends one value. After an error the connection cannot be used any more.
func WriteFrame[T any](w io.Writer, v T) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("frame: %w", err)
	}
	if len(body) > MaxFrame {
		return errs.New(errs.Invalid, "frame: %d bytes are more than the %d allowed", len(body), MaxFrame)
	}
	buf := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	_, err = w.Write(append(buf, body...))
	return err
}

// ReadFrame receives one value. It returns io.EOF when the peer closed the connection before it.
func ReadFrame[T any](r io.Reader) (v T, err error) {
	var head [4]byte
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return v, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return v, errs.New(errs.Invalid, "frame: %d bytes are more than the %d allowed", n, MaxFrame)
	}
	body := make([]byte, n)
	if _, err = io.ReadFull(r, body); err != nil {
		return v, fmt.Errorf("frame: %w", noEOF(err))
	}
	if err = json.Unmarshal(body, &v); err != nil {
		return v, errs.New(errs.Invalid, "frame: %w", err)
	}
	return v, nil
}

// AppendChunkHeader appends the 8-byte header of a chunk of n bytes.
func AppendChunkHeader(b []byte, stream byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(b, stream, 0, 0, 0), uint32(n))
}

// ReadChunkHeader receives a chunk's header. It returns io.EOF when the peer closed the connection between two chunks.
func ReadChunkHeader(r io.Reader) (stream byte, n int, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, err
	}
	size := binary.BigEndian.Uint32(head[4:])
	if head[0] > Ended || head[1] != 0 || head[2] != 0 || head[3] != 0 || size > MaxChunk {
		return 0, 0, errs.New(errs.Invalid, "attach stream: bad chunk header % x", head[:])
	}
	return head[0], int(size), nil
}

// noEOF turns the end of a connection in the middle of a message into an error.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Listen creates the socket of a bundle with mode 0600. The kernel limits the path of a unix socket to 107 bytes, and a
// bundle's path may be longer, so the socket is named by way of a descriptor of the directory.
func Listen(bundle string) (*net.UnixListener, error) {
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	var l *net.UnixListener
	err := viaDir(bundle, func(path string) (err error) {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("shim socket of %s: %w", bundle, err)
	}
	l.SetUnlinkOnClose(false) // the name was valid only while the descriptor was open
	return l, nil
}

// viaDir calls use with a short path of the bundle's socket, which is valid during the call.
func viaDir(bundle string, use func(path string) error) error {
	fd, err := unix.Open(bundle, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: bundle, Err: err}
	}
	defer unix.Close(fd)
	return use(filepath.Join("/proc/self/fd", strconv.Itoa(fd), SocketFile))
}
