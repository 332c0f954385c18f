package goclient

import (
	"context"
	"errors"
	"io"

	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
)

// docker is github.com/docker/docker's client.
type docker struct{ *client.Client }

var _ engine = docker{}

// newDocker returns a client that negotiates its version of the API, or that has a fixed one.
func newDocker(host, fixed string, a *conns) (engine, error) {
	opts := []client.Opt{client.WithHost(host), client.WithDialContext(a.dial), client.WithAPIVersionNegotiation()}
	if fixed != "" {
		opts = append(opts, client.WithVersion(fixed))
	}
	c, err := client.NewClientWithOpts(opts...)
	return docker{c}, err
}

func (d docker) version() string { return d.ClientVersion() }

func (d docker) ping(ctx context.Context) (string, error) {
	p, err := d.Ping(ctx)
	return p.APIVersion, err
}

func (d docker) server(ctx context.Context) (api, oldest string, err error) {
	v, err := d.ServerVersion(ctx)
	return v.APIVersion, v.MinAPIVersion, err
}

func (d docker) close() error { return d.Close() }

func (d docker) pull(ctx context.Context, ref string) (io.ReadCloser, error) {
	return d.ImagePull(ctx, ref, image.PullOptions{})
}

func (d docker) build(ctx context.Context, tar io.Reader, tag string) (io.ReadCloser, error) {
	r, err := d.ImageBuild(ctx, tar, build.ImageBuildOptions{Tags: []string{tag}, Remove: true})
	return r.Body, err
}

func (d docker) save(ctx context.Context, ref string) (io.ReadCloser, error) {
	return d.ImageSave(ctx, []string{ref})
}

func (d docker) load(ctx context.Context, archive io.Reader) (io.ReadCloser, error) {
	r, err := d.ImageLoad(ctx, archive)
	return r.Body, err
}

func (d docker) imageID(ctx context.Context, ref string) (string, error) {
	r, err := d.ImageInspect(ctx, ref)
	return r.ID, err
}

func (d docker) removeImage(ctx context.Context, ref string) error {
	_, err := d.ImageRemove(ctx, ref, image.RemoveOptions{})
	return err
}

func (d docker) create(ctx context.Context, name string, s spec) (string, error) {
	r, err := d.ContainerCreate(ctx, &container.Config{Image: s.image, Cmd: s.cmd, OpenStdin: s.stdin, StdinOnce: s.stdin, Labels: map[string]string{"test": s.label}},
		&container.HostConfig{Binds: s.binds}, nil, nil, name)
	return r.ID, err
}

func (d docker) start(ctx context.Context, id string) error {
	return d.ContainerStart(ctx, id, container.StartOptions{})
}

func (d docker) stop(ctx context.Context, id string) error {
	now := 0
	return d.ContainerStop(ctx, id, container.StopOptions{Timeout: &now})
}

func (d docker) kill(ctx context.Context, id string) error { return d.ContainerKill(ctx, id, "KILL") }

func (d docker) remove(ctx context.Context, id string) error {
	return d.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
}

func (d docker) status(ctx context.Context, id string) (string, error) {
	r, err := d.ContainerInspect(ctx, id)
	if err != nil {
		return "", err
	}
	return r.State.Status, nil
}

func (d docker) names(ctx context.Context, label string) (names []string, err error) {
	all, err := d.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", "test="+label))})
	for _, c := range all {
		names = append(names, c.Names...)
	}
	return names, err
}

func (d docker) wait(ctx context.Context, id string, condition string, acknowledged func() error) (int64, error) {
	result, errs := d.ContainerWait(ctx, id, container.WaitCondition(condition))
	if err := acknowledged(); err != nil {
		return 0, err
	}
	select {
	case r := <-result:
		return r.StatusCode, nil
	case err := <-errs:
		return 0, err
	}
}

func (d docker) logs(ctx context.Context, id string, follow bool) (io.ReadCloser, error) {
	return d.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Follow: follow})
}

func (d docker) attach(ctx context.Context, id string) (*stream, error) {
	r, err := d.ContainerAttach(ctx, id, container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	return &stream{r.Conn, r.Reader}, err
}

func (d docker) exec(ctx context.Context, id string, cmd ...string) (string, error) {
	r, err := d.ContainerExecCreate(ctx, id, container.ExecOptions{Cmd: cmd, AttachStdin: true, AttachStdout: true, AttachStderr: true})
	return r.ID, err
}

func (d docker) attachExec(ctx context.Context, execID string) (*stream, error) {
	r, err := d.ContainerExecAttach(ctx, execID, container.ExecAttachOptions{})
	return &stream{r.Conn, r.Reader}, err
}

func (d docker) exitCode(ctx context.Context, execID string) (int, error) {
	r, err := d.ContainerExecInspect(ctx, execID)
	return r.ExitCode, err
}

func (d docker) stats(ctx context.Context, id string, stream bool) (io.ReadCloser, error) {
	if !stream {
		r, err := d.ContainerStatsOneShot(ctx, id)
		return r.Body, err
	}
	r, err := d.ContainerStats(ctx, id, true)
	return r.Body, err
}

func (d docker) copyTo(ctx context.Context, id, dir string, tar io.Reader) error {
	return d.CopyToContainer(ctx, id, dir, tar, container.CopyToContainerOptions{})
}

func (d docker) copyFrom(ctx context.Context, id, path string) (io.ReadCloser, error) {
	r, _, err := d.CopyFromContainer(ctx, id, path)
	return r, err
}

func (d docker) size(ctx context.Context, id, path string) (int64, error) {
	r, err := d.ContainerStatPath(ctx, id, path)
	return r.Size, err
}

func (d docker) events(ctx context.Context, since, until string, each func(action, name string)) error {
	messages, errs := d.Events(ctx, events.ListOptions{Since: since, Until: until, Filters: filters.NewArgs(filters.Arg("type", "container"))})
	for {
		select {
		case m := <-messages:
			each(string(m.Action), m.Actor.Attributes["name"])
		case err := <-errs:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

func (d docker) createNetwork(ctx context.Context, name string) error {
	_, err := d.NetworkCreate(ctx, name, network.CreateOptions{})
	return err
}

func (d docker) connect(ctx context.Context, name, id string) error {
	return d.NetworkConnect(ctx, name, id, &network.EndpointSettings{Aliases: []string{"alias"}})
}

func (d docker) members(ctx context.Context, name string) (int, error) {
	r, err := d.NetworkInspect(ctx, name, network.InspectOptions{})
	return len(r.Containers), err
}

func (d docker) removeNetwork(ctx context.Context, name string) error {
	return d.NetworkRemove(ctx, name)
}

func (d docker) createVolume(ctx context.Context, name string) error {
	_, err := d.VolumeCreate(ctx, volume.CreateOptions{Name: name})
	return err
}

func (d docker) volumes(ctx context.Context, name string) (int, error) {
	r, err := d.VolumeList(ctx, volume.ListOptions{Filters: filters.NewArgs(filters.Arg("name", name))})
	return len(r.Volumes), err
}

func (d docker) removeVolume(ctx context.Context, name string) error {
	return d.VolumeRemove(ctx, name, false)
}
