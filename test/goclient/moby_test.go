package goclient

import (
	"context"
	"errors"
	"io"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// moby is github.com/moby/moby/client.
type moby struct{ *client.Client }

var _ engine = moby{}

// newMoby returns a client that negotiates its version of the API, or that has a fixed one.
func newMoby(host, fixed string, a *conns) (engine, error) {
	opts := []client.Opt{client.WithHost(host), client.WithDialContext(a.dial)}
	if fixed != "" {
		opts = append(opts, client.WithAPIVersion(fixed))
	}
	c, err := client.New(opts...)
	return moby{c}, err
}

func (m moby) version() string { return m.ClientVersion() }

func (m moby) ping(ctx context.Context) (string, error) {
	p, err := m.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	return p.APIVersion, err
}

func (m moby) server(ctx context.Context) (api, oldest string, err error) {
	v, err := m.ServerVersion(ctx, client.ServerVersionOptions{})
	return v.APIVersion, v.MinAPIVersion, err
}

func (m moby) close() error { return m.Close() }

func (m moby) pull(ctx context.Context, ref string) (io.ReadCloser, error) {
	return m.ImagePull(ctx, ref, client.ImagePullOptions{})
}

func (m moby) build(ctx context.Context, tar io.Reader, tag string) (io.ReadCloser, error) {
	r, err := m.ImageBuild(ctx, tar, client.ImageBuildOptions{Tags: []string{tag}, Remove: true})
	return r.Body, err
}

func (m moby) save(ctx context.Context, ref string) (io.ReadCloser, error) {
	return m.ImageSave(ctx, []string{ref})
}

func (m moby) load(ctx context.Context, archive io.Reader) (io.ReadCloser, error) {
	return m.ImageLoad(ctx, archive)
}

func (m moby) imageID(ctx context.Context, ref string) (string, error) {
	r, err := m.ImageInspect(ctx, ref)
	return r.ID, err
}

func (m moby) removeImage(ctx context.Context, ref string) error {
	_, err := m.ImageRemove(ctx, ref, client.ImageRemoveOptions{})
	return err
}

func (m moby) create(ctx context.Context, name string, s spec) (string, error) {
	r, err := m.ContainerCreate(ctx, client.ContainerCreateOptions{
		Name:       name,
		Config:     &container.Config{Image: s.image, Cmd: s.cmd, OpenStdin: s.stdin, StdinOnce: s.stdin, Labels: map[string]string{"test": s.label}},
		HostConfig: &container.HostConfig{Binds: s.binds},
	})
	return r.ID, err
}

func (m moby) start(ctx context.Context, id string) error {
	_, err := m.ContainerStart(ctx, id, client.ContainerStartOptions{})
	return err
}

func (m moby) stop(ctx context.Context, id string) error {
	now := 0
	_, err := m.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: &now})
	return err
}

func (m moby) kill(ctx context.Context, id string) error {
	_, err := m.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "KILL"})
	return err
}

func (m moby) remove(ctx context.Context, id string) error {
	_, err := m.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	return err
}

func (m moby) status(ctx context.Context, id string) (string, error) {
	r, err := m.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return "", err
	}
	return string(r.Container.State.Status), nil
}

func (m moby) names(ctx context.Context, label string) (names []string, err error) {
	all, err := m.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("label", "test="+label)})
	for _, c := range all.Items {
		names = append(names, c.Names...)
	}
	return names, err
}

func (m moby) wait(ctx context.Context, id string, condition string, acknowledged func() error) (int64, error) {
	w := m.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitCondition(condition)})
	if err := acknowledged(); err != nil {
		return 0, err
	}
	select {
	case r := <-w.Result:
		return r.StatusCode, nil
	case err := <-w.Error:
		return 0, err
	}
}

func (m moby) logs(ctx context.Context, id string, follow bool) (io.ReadCloser, error) {
	return m.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: follow})
}

func (m moby) attach(ctx context.Context, id string) (*stream, error) {
	r, err := m.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	return &stream{r.Conn, r.Reader}, err
}

func (m moby) exec(ctx context.Context, id string, cmd ...string) (string, error) {
	r, err := m.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: cmd, AttachStdin: true, AttachStdout: true, AttachStderr: true})
	return r.ID, err
}

func (m moby) attachExec(ctx context.Context, execID string) (*stream, error) {
	r, err := m.ExecAttach(ctx, execID, client.ExecAttachOptions{})
	return &stream{r.Conn, r.Reader}, err
}

func (m moby) exitCode(ctx context.Context, execID string) (int, error) {
	r, err := m.ExecInspect(ctx, execID, client.ExecInspectOptions{})
	return r.ExitCode, err
}

func (m moby) stats(ctx context.Context, id string, stream bool) (io.ReadCloser, error) {
	r, err := m.ContainerStats(ctx, id, client.ContainerStatsOptions{Stream: stream})
	return r.Body, err
}

func (m moby) copyTo(ctx context.Context, id, dir string, tar io.Reader) error {
	_, err := m.CopyToContainer(ctx, id, client.CopyToContainerOptions{DestinationPath: dir, Content: tar})
	return err
}

func (m moby) copyFrom(ctx context.Context, id, path string) (io.ReadCloser, error) {
	r, err := m.CopyFromContainer(ctx, id, client.CopyFromContainerOptions{SourcePath: path})
	return r.Content, err
}

func (m moby) size(ctx context.Context, id, path string) (int64, error) {
	r, err := m.ContainerStatPath(ctx, id, client.ContainerStatPathOptions{Path: path})
	return r.Stat.Size, err
}

func (m moby) events(ctx context.Context, since, until string, each func(action, name string)) error {
	r := m.Events(ctx, client.EventsListOptions{Since: since, Until: until, Filters: client.Filters{}.Add("type", "container")})
	for {
		select {
		case e := <-r.Messages:
			each(string(e.Action), e.Actor.Attributes["name"])
		case err := <-r.Err:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

func (m moby) createNetwork(ctx context.Context, name string) error {
	_, err := m.NetworkCreate(ctx, name, client.NetworkCreateOptions{})
	return err
}

func (m moby) connect(ctx context.Context, name, id string) error {
	_, err := m.NetworkConnect(ctx, name, client.NetworkConnectOptions{Container: id, EndpointConfig: &network.EndpointSettings{Aliases: []string{"alias"}}})
	return err
}

func (m moby) members(ctx context.Context, name string) (int, error) {
	r, err := m.NetworkInspect(ctx, name, client.NetworkInspectOptions{})
	return len(r.Network.Containers), err
}

func (m moby) removeNetwork(ctx context.Context, name string) error {
	_, err := m.NetworkRemove(ctx, name, client.NetworkRemoveOptions{})
	return err
}

func (m moby) createVolume(ctx context.Context, name string) error {
	_, err := m.VolumeCreate(ctx, client.VolumeCreateOptions{Name: name})
	return err
}

func (m moby) volumes(ctx context.Context, name string) (int, error) {
	r, err := m.VolumeList(ctx, client.VolumeListOptions{Filters: client.Filters{}.Add("name", name)})
	return len(r.Items), err
}

func (m moby) removeVolume(ctx context.Context, name string) error {
	_, err := m.VolumeRemove(ctx, name, client.VolumeRemoveOptions{})
	return err
}
