package buildkit

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"ply/internal/build/export"
	"ply/internal/build/tree"
	"ply/internal/container/rootfs"
	"ply/internal/errs"
)

// Headers of an output that is sent to a client.
const (
	headerExporter = "buildkit-attachable-exporter-id"
	headerExported = "exporter-md-"
	headerSplit    = "buildkit-exporter-multi-platform"
)

// output opens the stream for the index-th output.
func (c *Client) output(ctx context.Context, index int, meta map[string]string) (*offering, context.Context, error) {
	s, err := c.session(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	if !s.offers(filesync.FileSend_DiffCopy_FullMethodName) {
		return nil, nil, errs.New(errs.Invalid, "the client takes no files, so it cannot receive an output")
	}
	md := metadata.Pairs(headerExporter, strconv.Itoa(index), headerSplit, "1")
	for k, v := range meta {
		if !strings.ContainsFunc(k+v, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
			md.Set(headerExported+k, v)
		}
	}
	return s, metadata.NewOutgoingContext(ctx, md), nil
}

// OutputTar implements build.Client.
func (c *Client) OutputTar(ctx context.Context, index int, meta map[string]string) (io.WriteCloser, error) {
	s, ctx, err := c.output(ctx, index, meta)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := filesync.NewFileSendClient(s.cc).DiffCopy(ctx)
	if err != nil {
		cancel()
		return nil, streamError(err)
	}
	return &tarOutput{stream: stream, cancel: cancel}, nil
}

// tarOutput is a tar that a client receives.
type tarOutput struct {
	stream grpc.BidiStreamingClient[filesync.BytesMessage, filesync.BytesMessage]
	cancel context.CancelFunc
}

func (t *tarOutput) Write(p []byte) (int, error) {
	const chunk = 1 << 20
	for done := 0; done < len(p); {
		n := min(chunk, len(p)-done)
		if err := t.stream.Send(&filesync.BytesMessage{Data: p[done : done+n]}); err != nil {
			return done, t.reason(err)
		}
		done += n
	}
	return len(p), nil
}

// reason returns why the client broke the stream off.
func (t *tarOutput) reason(err error) error {
	if !errors.Is(err, io.EOF) {
		return streamError(err)
	}
	if _, err := t.stream.Recv(); err != nil && !errors.Is(err, io.EOF) {
		if status.Code(err) == codes.AlreadyExists {
			return errs.New(errs.Exists, "the client: %s", clip(status.Convert(err).Message()))
		}
		return streamError(err)
	}
	return errs.New(errs.Unavailable, "the client takes no more of the output")
}

// Close ends the tar and waits until the client has it.
func (t *tarOutput) Close() error {
	defer t.cancel()
	if err := t.stream.CloseSend(); err != nil {
		return streamError(err)
	}
	_, err := t.stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		return errs.New(errs.Invalid, "the client answered to an output")
	}
	return streamError(err)
}

// OutputDir implements build.Client.
func (c *Client) OutputDir(ctx context.Context, index int, files export.Files) error {
	s, ctx, err := c.output(ctx, index, nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := filesync.NewFileSendClient(s.cc).DiffCopy(ctx)
	if err != nil {
		return streamError(err)
	}
	return send(ctx, cancel, stream, files)
}

// messages is a stream of packets to a client that receives a directory.
type messages interface {
	SendMsg(m any) error
	RecvMsg(m any) error
	CloseSend() error
}

// sender sends a directory: it describes all files in order, and at the same time sends the content of those that the client asks for.
type sender struct {
	stream messages
	files  export.Files

	mu    sync.Mutex // of the stream's sending side
	named sync.Mutex
	names map[uint32]string // regular files that may be asked for
}

const (
	maxAsked  = 1024            // requests of a client that wait
	lastWords = 5 * time.Second // how long a client may take to read why a transfer fails
)

// send sends files on a stream. cancel ends ctx, which is that of the stream.
func send(ctx context.Context, cancel context.CancelCauseFunc, stream messages, files export.Files) error {
	s := &sender{stream: stream, files: files, names: map[uint32]string{}}
	asked := make(chan uint32, maxAsked)
	var work sync.WaitGroup
	fail := func(err error) {
		if err == nil {
			return
		}
		stop := time.AfterFunc(lastWords, func() { cancel(err) })
		if ctx.Err() == nil {
			_ = s.send(&types.Packet{Type: types.PACKET_ERR, Data: []byte(err.Error())}) // the client may be gone
		}
		stop.Stop()
		cancel(err)
	}
	work.Go(func() { fail(s.describe(ctx)) })
	work.Go(func() {
		for id := range asked {
			if ctx.Err() == nil {
				fail(s.content(ctx, id))
			}
		}
	})
	err := s.listen(ctx, asked)
	close(asked)
	fail(err)
	work.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return streamError(err)
	}
	for {
		var p types.Packet
		if err := stream.RecvMsg(&p); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return streamError(err)
		}
	}
}

func (s *sender) send(p *types.Packet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.SendMsg(p)
}

// listen reads what the client asks for until it has everything.
func (s *sender) listen(ctx context.Context, asked chan<- uint32) error {
	for {
		var p types.Packet
		if err := s.stream.RecvMsg(&p); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, io.EOF) {
				return errs.New(errs.Unavailable, "the client ended the transfer of an output too early")
			}
			return streamError(err)
		}
		switch p.Type {
		case types.PACKET_ERR:
			return errs.New(errs.Invalid, "the client cannot take the output: %s", clip(string(p.Data)))
		case types.PACKET_REQ:
			select {
			case asked <- p.ID:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case types.PACKET_FIN:
			return s.send(&types.Packet{Type: types.PACKET_FIN})
		default:
			return errs.New(errs.Invalid, "the client sent a packet of type %s while it receives an output", p.Type)
		}
	}
}

// describe sends what every file is.
func (s *sender) describe(ctx context.Context) error {
	id := uint32(0)
	first := map[any]string{} // by file: the first of its names
	err := s.files.Walk(ctx, func(name string, info tree.Info) error {
		if name == "" || name == "." {
			return nil
		}
		mode := rootfs.FileMode(info.Mode)
		st := &types.Stat{Path: name, Mode: uint32(mode), Uid: info.UID, Gid: info.GID, ModTime: unixNano(info.Time), Linkname: info.Link}
		if len(info.Xattrs) > 0 {
			st.Xattrs = map[string][]byte{}
			for k, v := range info.Xattrs {
				st.Xattrs[k] = []byte(v)
			}
		}
		switch {
		case info.IsRegular():
			st.Size = info.Size
			file, shared := info.HardLink()
			if shared && first[file] != "" {
				st.Linkname = first[file]
			} else {
				if shared {
					first[file] = name
				}
				s.named.Lock()
				s.names[id] = name
				s.named.Unlock()
			}
		case mode&fs.ModeDevice != 0:
			st.Devmajor, st.Devminor = int64(unix.Major(info.Rdev)), int64(unix.Minor(info.Rdev))
		}
		id++
		return s.send(&types.Packet{Type: types.PACKET_STAT, Stat: st})
	})
	if err != nil {
		return err
	}
	return s.send(&types.Packet{Type: types.PACKET_STAT})
}

// content sends one file that the client asked for.
func (s *sender) content(ctx context.Context, id uint32) error {
	s.named.Lock()
	name, ok := s.names[id]
	delete(s.names, id)
	s.named.Unlock()
	if !ok {
		return errs.New(errs.Invalid, "the client asked for file %d, which it cannot have", id)
	}
	f, err := s.files.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 32<<10)
	for ctx.Err() == nil {
		n, err := f.Read(buf)
		if n > 0 {
			if err := s.send(&types.Packet{Type: types.PACKET_DATA, ID: id, Data: buf[:n]}); err != nil {
				return streamError(err)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	return s.send(&types.Packet{Type: types.PACKET_DATA, ID: id})
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
