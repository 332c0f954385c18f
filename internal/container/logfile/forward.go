package logfile

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"ply/internal/container/shim"
)

const (
	forwardStart = 30 * time.Second // how long the program may take to reach the receiver when the container is created
	// EndTime is how long records may take to reach the receiver after the end of the container. Later ones are dropped, as docker does.
	EndTime      = 10 * time.Second
	restartPause = time.Second
	maxAnswer    = 64 << 10 // bytes of the program's answer
)

// forwarder is the program that sends records away, a child of the shim. When it ends, it is started again with the next records.
type forwarder struct {
	log shim.Log

	mu     sync.Mutex // guards what follows; not held while something is written
	in     *os.File   // nil while the program does not run
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
	ending time.Time     // when writes fail; zero = never
	last   time.Time     // of the last start
}

// startForwarder starts the program and waits until it has reached the receiver.
func startForwarder(log shim.Log) (*forwarder, error) {
	f := &forwarder{log: log}
	if err := f.start(); err != nil {
		return nil, fmt.Errorf("failed to initialize logging driver: %w", err)
	}
	return f, nil
}

func (f *forwarder) start() (err error) {
	f.last = time.Now()
	config, err := json.Marshal(f.log)
	if err != nil {
		return err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	answer, said, err := os.Pipe()
	if err != nil {
		return errors.Join(err, in.Close())
	}
	defer answer.Close()
	cmd := exec.Command(f.log.Forward.Program) //nolint:noctx // it outlives every request
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = out, said, os.Stderr, "/"
	err = cmd.Start()
	_ = said.Close() // the child has it
	if err != nil {
		return errors.Join(err, in.Close())
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // whether and how it ended does not matter: records that are lost are counted by it
		close(ended)
	}()
	give := func() error {
		if err := errors.Join(in.SetWriteDeadline(time.Now().Add(forwardStart)), answer.SetReadDeadline(time.Now().Add(forwardStart))); err != nil {
			return err
		}
		if _, err := in.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(config))), config...)); err != nil {
			return err
		}
		said, err := io.ReadAll(io.LimitReader(answer, maxAnswer))
		if err != nil {
			return err
		}
		if text := strings.TrimSpace(string(said)); text != "ok" {
			return errors.New(text)
		}
		return nil
	}
	if err := give(); err != nil {
		_ = cmd.Process.Kill() // it fails only when it has ended
		<-ended
		return errors.Join(err, in.Close())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.in, f.cmd, f.ended = in, cmd, ended
	return in.SetWriteDeadline(f.ending)
}

// AppendRecord appends the form in which a record goes to the program that sends it away.
func AppendRecord(buf []byte, m Message) []byte {
	buf = binary.BigEndian.AppendUint32(buf, uint32(9+len(m.Line)))
	buf = binary.BigEndian.AppendUint64(buf, uint64(m.Time.UnixNano()))
	buf = append(buf, m.Stream)
	return append(buf, m.Line...)
}

// ReadRecord reads what AppendRecord wrote. The error is io.EOF at the end.
func ReadRecord(r io.Reader) (m Message, err error) {
	var head [13]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return m, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 9 || n > 9+maxPiece {
		return m, fmt.Errorf("record of %d bytes", n)
	}
	m.Time = time.Unix(0, int64(binary.BigEndian.Uint64(head[4:])))
	m.Stream = head[12]
	m.Line = make([]byte, n-9)
	_, err = io.ReadFull(r, m.Line)
	return m, err
}

// send sends records. It blocks while the program does not read them, as one does that waits for its receiver.
func (f *forwarder) send(records []byte) error {
	for {
		f.mu.Lock()
		in, ending := f.in, f.ending
		f.mu.Unlock()
		if in == nil {
			if !ending.IsZero() || time.Since(f.last) < restartPause {
				return errors.New("the program that sends records away has ended")
			}
			if err := f.start(); err != nil {
				return err
			}
			continue
		}
		_, err := in.Write(records)
		if err == nil {
			return nil
		}
		// A part of the records may have been written, so nothing can follow.
		f.mu.Lock()
		f.in = nil
		f.mu.Unlock()
		_ = in.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// end says that the container has ended: what cannot be sent within EndTime is dropped.
func (f *forwarder) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ending.IsZero() {
		f.ending = time.Now().Add(EndTime)
		if f.in != nil {
			_ = f.in.SetWriteDeadline(f.ending) // never fails for a pipe
		}
	}
}

// close waits until the program has sent what it got, for EndTime at most.
func (f *forwarder) close() {
	f.end()
	f.mu.Lock()
	in, cmd, ended := f.in, f.cmd, f.ended
	f.in = nil
	left := time.Until(f.ending)
	f.mu.Unlock()
	if in != nil {
		_ = in.Close() // the end of the records
	}
	if cmd == nil {
		return
	}
	select {
	case <-ended:
	case <-time.After(left):
		_ = cmd.Process.Kill() // it fails only when it has ended
		<-ended
	}
}
