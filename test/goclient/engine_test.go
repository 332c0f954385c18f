package goclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	dockerstd "github.com/docker/docker/pkg/stdcopy"
)

// engine is what both libraries do. Calls with contexts of their own may run at the same time.
type engine interface {
	version() string // of the API, which the client has negotiated
	ping(ctx context.Context) (api string, err error)
	server(ctx context.Context) (api, oldest string, err error)
	close() error

	pull(ctx context.Context, ref string) (io.ReadCloser, error)
	build(ctx context.Context, tar io.Reader, tag string) (io.ReadCloser, error)
	save(ctx context.Context, ref string) (io.ReadCloser, error)
	imageID(ctx context.Context, ref string) (string, error)
	removeImage(ctx context.Context, ref string) error

	create(ctx context.Context, name string, s spec) (id string, err error)
	start(ctx context.Context, id string) error
	stop(ctx context.Context, id string) error
	kill(ctx context.Context, id string) error
	remove(ctx context.Context, id string) error
	status(ctx context.Context, id string) (string, error)
	names(ctx context.Context, label string) ([]string, error)
	// wait calls acknowledged when plyd has begun to wait, and returns the exit code.
	wait(ctx context.Context, id string, condition string, acknowledged func() error) (int64, error)
	logs(ctx context.Context, id string, follow bool) (io.ReadCloser, error)
	attach(ctx context.Context, id string) (*stream, error)
	exec(ctx context.Context, id string, cmd ...string) (execID string, err error)
	attachExec(ctx context.Context, execID string) (*stream, error)
	exitCode(ctx context.Context, execID string) (int, error)
	stats(ctx context.Context, id string, stream bool) (io.ReadCloser, error)
	copyTo(ctx context.Context, id, dir string, tar io.Reader) error
	copyFrom(ctx context.Context, id, path string) (io.ReadCloser, error)
	size(ctx context.Context, id, path string) (int64, error)
	// events calls each with the action and the name of every event, until the stream or the context ends. It returns nil at the end of the stream.
	events(ctx context.Context, since, until string, each func(action, name string)) error

	createNetwork(ctx context.Context, name string) error
	connect(ctx context.Context, network, id string) error
	members(ctx context.Context, network string) (int, error)
	removeNetwork(ctx context.Context, name string) error
	createVolume(ctx context.Context, name string) error
	volumes(ctx context.Context, name string) (int, error)
	removeVolume(ctx context.Context, name string) error

	load(ctx context.Context, archive io.Reader) (io.ReadCloser, error)
	commands(o object) []command
}

// object is what further commands work on. It has a file that its image does not have, and is in the network.
type object struct {
	container, file, renamed string
	network, volume          string
	made, pushed, imported   string // names of images that the commands make
	label                    string // of nothing that exists
}

// command is a call of a library.
type command struct {
	name string
	call func(ctx context.Context) error
}

// check returns err, or an error that shows what was got if that is not as it must be.
func check(err error, good bool, got any) error {
	if err == nil && !good {
		err = fmt.Errorf("unexpected: %+v", got)
	}
	return err
}

// spec is what a container needs. Its label is the name of the test.
type spec struct {
	image, label string
	cmd          []string
	stdin        bool
	binds        []string
}

// stream is a hijacked connection to a container without a terminal.
type stream struct {
	conn   net.Conn
	reader io.Reader
}

// talk sends text, ends the input, and returns what the container prints until the end.
func (s *stream) talk(text string) (stdout, stderr string, err error) {
	defer s.conn.Close()
	if _, err := io.WriteString(s.conn, text); err != nil {
		return "", "", err
	}
	half, ok := s.conn.(interface{ CloseWrite() error })
	if !ok {
		return "", "", errors.New("the connection can not end its input")
	}
	if err := half.CloseWrite(); err != nil {
		return "", "", err
	}
	return split(s.reader)
}

// split reads the output of a container without a terminal to its end.
func split(r io.Reader) (stdout, stderr string, err error) {
	var o, e writer
	_, err = dockerstd.StdCopy(&o, &e, r)
	return string(o), string(e), err
}

type writer []byte

func (w *writer) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}
