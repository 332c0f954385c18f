package goclient

import (
	"context"
	"slices"
	"strings"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
)

// commands are further calls, in the order in which they work.
func (d docker) commands(o object) []command {
	return []command{
		{"pause", func(ctx context.Context) error {
			return d.ContainerPause(ctx, o.container)
		}},
		{"unpause", func(ctx context.Context) error {
			return d.ContainerUnpause(ctx, o.container)
		}},
		{"top", func(ctx context.Context) error {
			r, err := d.ContainerTop(ctx, o.container, nil)
			return check(err, len(r.Processes) > 0, r)
		}},
		{"update", func(ctx context.Context) error {
			pids := int64(64)
			_, err := d.ContainerUpdate(ctx, o.container, container.UpdateConfig{Resources: container.Resources{PidsLimit: &pids}})
			return err
		}},
		{"diff", func(ctx context.Context) error {
			r, err := d.ContainerDiff(ctx, o.container)
			return check(err, len(r) == 1 && r[0].Path == o.file && r[0].Kind == container.ChangeAdd, r)
		}},
		{"export", func(ctx context.Context) error {
			out, err := text(d.ContainerExport(ctx, o.container))
			return check(err, strings.Contains(out, o.file[1:]), len(out))
		}},
		{"commit", func(ctx context.Context) error {
			r, err := d.ContainerCommit(ctx, o.container, container.CommitOptions{Reference: o.made, Comment: "of a test"})
			return check(err, strings.HasPrefix(r.ID, "sha256:"), r)
		}},
		{"history", func(ctx context.Context) error {
			r, err := d.ImageHistory(ctx, o.made)
			return check(err, len(r) > 1 && r[0].Comment == "of a test", r)
		}},
		{"tag", func(ctx context.Context) error {
			return d.ImageTag(ctx, o.made, o.pushed)
		}},
		{"images", func(ctx context.Context) error {
			r, err := d.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("reference", o.pushed))})
			return check(err, len(r) == 1 && slices.Contains(r[0].RepoTags, o.pushed), r)
		}},
		{"push", func(ctx context.Context) error {
			out, err := text(d.ImagePush(ctx, o.pushed, image.PushOptions{RegistryAuth: "e30="}))
			return check(err, strings.Contains(out, "digest: sha256:"), out)
		}},
		{"import", func(ctx context.Context) error {
			out, err := text(d.ImageImport(ctx, image.ImportSource{Source: archive("file", "text"), SourceName: "-"}, o.imported, image.ImportOptions{}))
			return check(err, strings.Contains(out, "sha256:"), out)
		}},
		{"rename", func(ctx context.Context) error {
			return d.ContainerRename(ctx, o.container, o.renamed)
		}},
		{"restart", func(ctx context.Context) error {
			now := 0
			return d.ContainerRestart(ctx, o.renamed, container.StopOptions{Timeout: &now})
		}},
		{"disconnect", func(ctx context.Context) error {
			return d.NetworkDisconnect(ctx, o.network, o.container, false)
		}},
		{"networks", func(ctx context.Context) error {
			r, err := d.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("name", o.network))})
			return check(err, len(r) == 1, r)
		}},
		{"volume inspect", func(ctx context.Context) error {
			r, err := d.VolumeInspect(ctx, o.volume)
			return check(err, r.Driver == "local", r)
		}},
		{"info", func(ctx context.Context) error {
			r, err := d.Info(ctx)
			return check(err, r.OSType == "linux" && r.Containers > 0, r)
		}},
		{"df", func(ctx context.Context) error {
			r, err := d.DiskUsage(ctx, types.DiskUsageOptions{})
			return check(err, len(r.Images) > 0 && len(r.Containers) > 0 && len(r.Volumes) > 0, r)
		}},
		{"container prune", func(ctx context.Context) error {
			_, err := d.ContainersPrune(ctx, filters.NewArgs(filters.Arg("label", "test="+o.label)))
			return err
		}},
		{"image prune", func(ctx context.Context) error {
			_, err := d.ImagesPrune(ctx, filters.NewArgs(filters.Arg("label", "test="+o.label)))
			return err
		}},
		{"network prune", func(ctx context.Context) error {
			_, err := d.NetworksPrune(ctx, filters.NewArgs(filters.Arg("label", "test="+o.label)))
			return err
		}},
		{"volume prune", func(ctx context.Context) error {
			_, err := d.VolumesPrune(ctx, filters.NewArgs(filters.Arg("label", "test="+o.label)))
			return err
		}},
	}
}
