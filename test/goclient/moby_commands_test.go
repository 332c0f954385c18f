package goclient

import (
	"context"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// commands are further calls, in the order in which they work.
func (m moby) commands(o object) []command {
	return []command{
		{"pause", func(ctx context.Context) error {
			_, err := m.ContainerPause(ctx, o.container, client.ContainerPauseOptions{})
			return err
		}},
		{"unpause", func(ctx context.Context) error {
			_, err := m.ContainerUnpause(ctx, o.container, client.ContainerUnpauseOptions{})
			return err
		}},
		{"top", func(ctx context.Context) error {
			r, err := m.ContainerTop(ctx, o.container, client.ContainerTopOptions{})
			return check(err, len(r.Processes) > 0, r)
		}},
		{"update", func(ctx context.Context) error {
			pids := int64(64)
			_, err := m.ContainerUpdate(ctx, o.container, client.ContainerUpdateOptions{Resources: &container.Resources{PidsLimit: &pids}})
			return err
		}},
		{"diff", func(ctx context.Context) error {
			r, err := m.ContainerDiff(ctx, o.container, client.ContainerDiffOptions{})
			return check(err, len(r.Changes) == 1 && r.Changes[0].Path == o.file && r.Changes[0].Kind == container.ChangeAdd, r)
		}},
		{"export", func(ctx context.Context) error {
			out, err := text(m.ContainerExport(ctx, o.container, client.ContainerExportOptions{}))
			return check(err, strings.Contains(out, o.file[1:]), len(out))
		}},
		{"commit", func(ctx context.Context) error {
			r, err := m.ContainerCommit(ctx, o.container, client.ContainerCommitOptions{Reference: o.made, Comment: "of a test"})
			return check(err, strings.HasPrefix(r.ID, "sha256:"), r)
		}},
		{"history", func(ctx context.Context) error {
			r, err := m.ImageHistory(ctx, o.made)
			return check(err, len(r.Items) > 1 && r.Items[0].Comment == "of a test", r)
		}},
		{"tag", func(ctx context.Context) error {
			_, err := m.ImageTag(ctx, client.ImageTagOptions{Source: o.made, Target: o.pushed})
			return err
		}},
		{"images", func(ctx context.Context) error {
			r, err := m.ImageList(ctx, client.ImageListOptions{Filters: client.Filters{}.Add("reference", o.pushed)})
			return check(err, len(r.Items) == 1 && slices.Contains(r.Items[0].RepoTags, o.pushed), r)
		}},
		{"push", func(ctx context.Context) error {
			out, err := text(m.ImagePush(ctx, o.pushed, client.ImagePushOptions{RegistryAuth: "e30="}))
			return check(err, strings.Contains(out, "digest: sha256:"), out)
		}},
		{"import", func(ctx context.Context) error {
			source := client.ImageImportSource{Source: archive("file", "text"), SourceName: "-"}
			out, err := text(m.ImageImport(ctx, source, o.imported, client.ImageImportOptions{}))
			return check(err, strings.Contains(out, "sha256:"), out)
		}},
		{"rename", func(ctx context.Context) error {
			_, err := m.ContainerRename(ctx, o.container, client.ContainerRenameOptions{NewName: o.renamed})
			return err
		}},
		{"restart", func(ctx context.Context) error {
			now := 0
			_, err := m.ContainerRestart(ctx, o.renamed, client.ContainerRestartOptions{Timeout: &now})
			return err
		}},
		{"disconnect", func(ctx context.Context) error {
			_, err := m.NetworkDisconnect(ctx, o.network, client.NetworkDisconnectOptions{Container: o.container})
			return err
		}},
		{"networks", func(ctx context.Context) error {
			r, err := m.NetworkList(ctx, client.NetworkListOptions{Filters: client.Filters{}.Add("name", o.network)})
			return check(err, len(r.Items) == 1, r)
		}},
		{"volume inspect", func(ctx context.Context) error {
			r, err := m.VolumeInspect(ctx, o.volume, client.VolumeInspectOptions{})
			return check(err, r.Volume.Driver == "local", r)
		}},
		{"info", func(ctx context.Context) error {
			r, err := m.Info(ctx, client.InfoOptions{})
			return check(err, r.Info.OSType == "linux" && r.Info.Containers > 0, r)
		}},
		{"df", func(ctx context.Context) error {
			r, err := m.DiskUsage(ctx, client.DiskUsageOptions{Containers: true, Images: true, Volumes: true, Verbose: true})
			return check(err, len(r.Images.Items) > 0 && len(r.Containers.Items) > 0 && len(r.Volumes.Items) > 0, r)
		}},
		{"container prune", func(ctx context.Context) error {
			_, err := m.ContainerPrune(ctx, client.ContainerPruneOptions{Filters: client.Filters{}.Add("label", "test="+o.label)})
			return err
		}},
		{"image prune", func(ctx context.Context) error {
			_, err := m.ImagePrune(ctx, client.ImagePruneOptions{Filters: client.Filters{}.Add("label", "test="+o.label)})
			return err
		}},
		{"network prune", func(ctx context.Context) error {
			_, err := m.NetworkPrune(ctx, client.NetworkPruneOptions{Filters: client.Filters{}.Add("label", "test="+o.label)})
			return err
		}},
		{"volume prune", func(ctx context.Context) error {
			_, err := m.VolumePrune(ctx, client.VolumePruneOptions{Filters: client.Filters{}.Add("label", "test="+o.label)})
			return err
		}},
	}
}
