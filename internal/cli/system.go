package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/version"
	"ply/internal/wire"
)

// clientVersion is the client half of version and info.
type clientVersion struct {
	Version           string
	APIVersion        string `json:"ApiVersion"`
	DefaultAPIVersion string
	GitCommit         string
	GoVersion         string
	Os                string
	Arch              string
	BuildTime         string
	Context           string
}

type serverVersion struct {
	Platform   struct{ Name string }
	Components []struct {
		Name, Version string
		Details       map[string]string
	}
	Version       string
	APIVersion    string `json:"ApiVersion"`
	MinAPIVersion string
	GitCommit     string
	GoVersion     string
	Os, Arch      string
	KernelVersion string
	Experimental  bool
	BuildTime     string
}

func localVersion() clientVersion {
	v := version.Get()
	return clientVersion{Version: v.Version, APIVersion: client.MaxAPI, DefaultAPIVersion: client.MaxAPI, GitCommit: shortCommit(),
		GoVersion: v.Go, Os: v.OS, Arch: v.Arch, BuildTime: displayTime(v.Time), Context: "default"}
}

// shortCommit is what was built, as far as the Go tool wrote it down.
func shortCommit() string {
	c := version.Get().Commit
	if len(c) > 7 {
		c = c[:7]
	}
	if c == "" {
		return "unknown"
	}
	return c
}

// displayTime gives a build time as docker shows it; text that is no time stays.
func displayTime(s string) string {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t.Format(time.ANSIC)
	}
	return s
}

func (a *App) cmdVersion() *cobra.Command {
	var ft string
	var clientOnly bool
	c := &cobra.Command{
		Use: "version [OPTIONS]", Short: "Show the ply version information", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.version(cmd.Context(), ft, clientOnly) },
	}
	c.Flags().StringVarP(&ft, "format", "f", "", inspectFormatHelp)
	c.Flags().BoolVar(&clientOnly, "client", false, "Show the client's version only, without asking the engine")
	return c
}

func (a *App) version(ctx context.Context, ft string, clientOnly bool) error {
	if ft == "json" {
		ft = "{{json .}}"
	}
	tmpl, err := format.Parse(ft)
	if err != nil {
		return &exitError{64, err.Error()}
	}
	cv := localVersion()
	var server json.RawMessage
	var failed error
	if !clientOnly {
		var api *client.Client
		if api, failed = a.engine(ctx); failed == nil {
			server, failed = api.Raw(ctx, client.Request{Path: "/version"})
			cv.APIVersion = api.APIVersion()
		}
	}
	if ft != "" {
		doc, err := json.Marshal(struct {
			Client clientVersion
			Server json.RawMessage
		}{cv, server})
		if err != nil {
			return err
		}
		if err := format.Execute(a.Out, tmpl, doc); err != nil {
			return err
		}
		return failed
	}
	writeClientVersion(a.Out, cv)
	if failed != nil || clientOnly {
		return failed
	}
	var sv serverVersion
	if err := json.Unmarshal(server, &sv); err != nil {
		return err
	}
	writeServerVersion(a.Out, &sv)
	return nil
}

func writeClientVersion(w io.Writer, v clientVersion) {
	api := v.APIVersion
	if api != v.DefaultAPIVersion {
		api += " (downgraded from " + v.DefaultAPIVersion + ")"
	}
	fmt.Fprintf(w, "Client:\n Version:           %s\n API version:       %s\n Go version:        %s\n Git commit:        %s\n Built:             %s\n OS/Arch:           %s/%s\n Context:           %s\n",
		v.Version, api, v.GoVersion, v.GitCommit, v.BuildTime, v.Os, v.Arch, v.Context)
}

func writeServerVersion(w io.Writer, v *serverVersion) {
	name := v.Platform.Name
	if name != "" {
		name = " " + name
	}
	fmt.Fprintf(w, "\nServer:%s\n", name)
	for _, c := range v.Components {
		fmt.Fprintf(w, " %s:\n  %-18s%s\n", c.Name, "Version:", c.Version)
		if c.Name == "Engine" {
			d := c.Details
			fmt.Fprintf(w, "  API version:      %s (minimum version %s)\n  Go version:       %s\n  Git commit:       %s\n  Built:            %s\n  OS/Arch:          %s/%s\n  Experimental:     %s\n",
				d["ApiVersion"], d["MinAPIVersion"], d["GoVersion"], d["GitCommit"], displayTime(d["BuildTime"]), d["Os"], d["Arch"], d["Experimental"])
			continue
		}
		if commit, ok := c.Details["GitCommit"]; ok {
			fmt.Fprintf(w, "  GitCommit:        %s\n", commit)
		}
	}
}

func (a *App) cmdInfo() *cobra.Command {
	var ft string
	c := &cobra.Command{
		Use: "info [OPTIONS]", Short: "Display system-wide information", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.info(cmd.Context(), ft) },
	}
	c.Flags().StringVarP(&ft, "format", "f", "", inspectFormatHelp)
	return c
}

func (a *App) info(ctx context.Context, ft string) error {
	api, err := a.engine(ctx)
	var raw json.RawMessage
	if err == nil {
		raw, err = api.Raw(ctx, client.Request{Path: "/info"})
	}
	if ft != "" {
		if err != nil {
			return err
		}
		if ft == "json" {
			ft = "{{json .}}"
		}
		tmpl, perr := format.Parse(ft)
		if perr != nil {
			return &exitError{64, perr.Error()}
		}
		return format.Execute(a.Out, tmpl, withClientInfo(raw))
	}
	fmt.Fprintf(a.Out, "Client:\n Version:    %s\n Context:    default\n Debug Mode: %t\n\nServer:\n", version.Version, a.global.debug)
	if err != nil {
		return err
	}
	var i engineInfo
	if err := json.Unmarshal(raw, &i); err != nil {
		return err
	}
	i.write(a.Out)
	for _, w := range i.Warnings {
		fmt.Fprintln(a.Err, w)
	}
	return nil
}

// withClientInfo adds ClientInfo to the engine's document, where scripts look for it.
func withClientInfo(raw json.RawMessage) json.RawMessage {
	raw = bytes.TrimSpace(raw)
	v := localVersion()
	add, err := json.Marshal(struct {
		Debug             bool
		Version           string
		GitCommit         string
		GoVersion, Os     string
		Arch, BuildTime   string
		Context           string
		Plugins, Warnings []string
	}{false, v.Version, v.GitCommit, v.GoVersion, v.Os, v.Arch, v.BuildTime, v.Context, []string{}, nil})
	if err != nil || len(raw) < 2 || raw[len(raw)-1] != '}' {
		return raw
	}
	out := append(append(json.RawMessage{}, raw[:len(raw)-1]...), `,"ClientInfo":`...)
	return append(append(out, add...), '}')
}

// dfAnswer is /system/df.
type dfAnswer struct {
	LayersSize int64
	Images     []wire.Image
	Containers []wire.Container
	Volumes    []wire.Volume
	BuildCache []buildCache
}

type buildCache struct {
	ID, Type, Description string
	InUse, Shared         bool
	Size                  int64
	CreatedAt             time.Time
	LastUsedAt            *time.Time
	UsageCount            int
}

type dfRow struct {
	format.RowMark
	Active, Reclaimable, Size, TotalCount, Type string
}

var dfTitles = format.Titles{"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}

func (a *App) cmdDf() *cobra.Command {
	var ft string
	var verbose bool
	c := &cobra.Command{
		Use: "df [OPTIONS]", Short: "Show disk usage", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			var d dfAnswer
			if err := api.Do(cmd.Context(), client.Request{Path: "/system/df"}, &d); err != nil {
				return err
			}
			if verbose {
				return d.writeVerbose(a.Out, ft)
			}
			return format.Table(a.Out, ft, "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}", dfTitles, d.rows())
		},
	}
	c.Flags().StringVar(&ft, "format", "", formatHelp)
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show detailed information on space usage")
	return c
}

func reclaim(part, of int64) string {
	s := format.Size4(part)
	if of > 0 {
		s += fmt.Sprintf(" (%v%%)", part*100/of)
	}
	return s
}

func (d *dfAnswer) rows() []dfRow {
	var usedImages int
	var used int64
	for i := range d.Images {
		im := &d.Images[i]
		if im.Containers > 0 {
			usedImages++
			if im.Size != -1 && im.SharedSize != -1 {
				used += im.Size - im.SharedSize
			}
		}
	}
	rows := []dfRow{{Type: "Images", TotalCount: fmt.Sprint(len(d.Images)), Active: fmt.Sprint(usedImages), Size: format.Size4(d.LayersSize), Reclaimable: reclaim(d.LayersSize-used, d.LayersSize)}}
	var active int
	var size, free int64
	for i := range d.Containers {
		c := &d.Containers[i]
		size += c.SizeRw
		if strings.Contains(c.State, "running") || strings.Contains(c.State, "paused") || strings.Contains(c.State, "restarting") {
			active++
		} else {
			free += c.SizeRw
		}
	}
	rows = append(rows, dfRow{Type: "Containers", TotalCount: fmt.Sprint(len(d.Containers)), Active: fmt.Sprint(active), Size: format.Size4(size), Reclaimable: reclaim(free, size)})
	active, size, free = 0, 0, 0
	for i := range d.Volumes {
		u := d.Volumes[i].UsageData
		if u == nil {
			continue
		}
		if u.RefCount > 0 {
			active++
		}
		if u.Size != -1 {
			size += u.Size
			if u.RefCount == 0 {
				free += u.Size
			}
		}
	}
	rows = append(rows, dfRow{Type: "Local Volumes", TotalCount: fmt.Sprint(len(d.Volumes)), Active: fmt.Sprint(active), Size: format.Size4(size), Reclaimable: reclaim(free, size)})
	active, size, free = 0, 0, 0
	for i := range d.BuildCache {
		b := &d.BuildCache[i]
		if b.InUse {
			active++
		} else if !b.Shared {
			free += b.Size
		}
		if !b.Shared {
			size += b.Size
		}
	}
	return append(rows, dfRow{Type: "Build Cache", TotalCount: fmt.Sprint(len(d.BuildCache)), Active: fmt.Sprint(active), Size: format.Size4(size), Reclaimable: format.Size4(free)})
}

func (d *dfAnswer) writeVerbose(w io.Writer, ft string) error {
	if ft != "" {
		b, err := json.Marshal(d)
		if err != nil {
			return err
		}
		if ft == "json" {
			ft = "{{json .}}"
		}
		t, err := format.Parse(ft)
		if err != nil {
			return err
		}
		return format.Execute(w, t, b)
	}
	fmt.Fprint(w, "Images space usage:\n\n")
	na := func(n int64, text string) string {
		if n < 0 {
			return "N/A"
		}
		return text
	}
	rows := []imageRow{}
	for i := range d.Images { // one row per image, under its first name
		im := &d.Images[i]
		r := imageRows([]wire.Image{*im}, &imagesFlags{})[0]
		if len(im.RepoTags) == 0 {
			r.Repository, r.Tag = "<none>", "<none>"
		}
		r.SharedSize = na(im.SharedSize, format.Size4(im.SharedSize))
		r.UniqueSize = na(im.SharedSize, format.Size4(im.Size-im.SharedSize))
		r.Containers = na(im.Containers, fmt.Sprint(im.Containers))
		rows = append(rows, r)
	}
	if err := format.Table(w, "", "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}", imageTitles, rows); err != nil {
		return err
	}
	fmt.Fprint(w, "\nContainers space usage:\n\n")
	containers := make([]psRow, len(d.Containers))
	for i := range d.Containers {
		d.Containers[i].SizeRootFs = 0
		containers[i] = psRowOf(&d.Containers[i], true)
	}
	if err := format.Table(w, "", "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}", psTitles, containers); err != nil {
		return err
	}
	fmt.Fprint(w, "\nLocal Volumes space usage:\n\n")
	volumes := make([]volumeRow, len(d.Volumes))
	for i := range d.Volumes {
		volumes[i] = volumeRowOf(&d.Volumes[i])
	}
	if err := format.Table(w, "", "{{.Name}}\t{{.Links}}\t{{.Size}}", volumeTitles, volumes); err != nil {
		return err
	}
	var total int64
	cache := [][]string{{"CACHE ID", "CACHE TYPE", "SIZE", "CREATED", "LAST USED", "USAGE", "SHARED"}}
	for _, b := range d.BuildCache {
		last := ""
		if b.LastUsedAt != nil {
			last = format.Ago(now(), *b.LastUsedAt)
		}
		if !b.Shared {
			total += b.Size
		}
		cache = append(cache, []string{format.ShortID(b.ID), b.Type, format.Size4(b.Size), format.Ago(now(), b.CreatedAt), last, fmt.Sprint(b.UsageCount), fmt.Sprint(b.Shared)})
	}
	fmt.Fprintf(w, "\nBuild cache usage: %s\n\n", format.Size4(total))
	return writeColumns(w, 10, cache)
}
