package cli

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// now is replaced in tests: human times in tables are relative to it.
var now = time.Now

const formatHelp = "Format output using a custom template:\n" +
	"'table':            Print output in table format with column headers (default)\n" +
	"'table TEMPLATE':   Print output in table format using the given Go template\n" +
	"'json':             Print in JSON format\n" +
	"'TEMPLATE':         Print output using the given Go template.\n" +
	"Refer to https://docs.docker.com/go/formatting/ for more information about formatting output with templates"

const inspectFormatHelp = "Format output using a custom template:\n" +
	"'json':             Print in JSON format\n" +
	"'TEMPLATE':         Print output using the given Go template.\n" +
	"Refer to https://docs.docker.com/go/formatting/ for more information about formatting output with templates"

// psRow is a row of ps.
type psRow struct {
	format.RowMark
	Command, CreatedAt, ID, Image, Labels, LocalVolumes, Mounts, Names, Networks string
	Platform                                                                     *struct{}
	Ports, RunningFor, Size, State, Status                                       string
	labels                                                                       map[string]string
}

// Label gives one label.
func (r psRow) Label(name string) string { return r.labels[name] }

var psTitles = format.Titles{
	"ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED", "Status": "STATUS",
	"Ports": "PORTS", "Names": "NAMES", "Size": "SIZE", "Labels": "LABELS", "Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES",
	"Networks": "NETWORKS", "State": "STATE", "Platform": "PLATFORM",
}

const psTable = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"

type psFlags struct {
	all, latest, noTrunc, quiet, size bool
	last                              int
	format                            string
	filters                           opts.Filters
}

func (a *App) cmdPs() *cobra.Command {
	f := &psFlags{}
	c := &cobra.Command{
		Use: "ps [OPTIONS]", Short: "List containers", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.ps(cmd, f) },
	}
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	fs.VarP(&f.filters, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&f.format, "format", "", formatHelp)
	fs.IntVarP(&f.last, "last", "n", -1, "Show n last created containers (includes all states)")
	fs.BoolVarP(&f.latest, "latest", "l", false, "Show the latest created container (includes all states)")
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only display container IDs")
	fs.BoolVarP(&f.size, "size", "s", false, "Display total file sizes")
	return c
}

// filterQuery adds filters to a query.
func filterQuery(q url.Values, f opts.Filters) error {
	if len(f) == 0 {
		return nil
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	q.Set("filters", string(b))
	return nil
}

func (a *App) ps(cmd *cobra.Command, f *psFlags) error {
	ctx := cmd.Context()
	if f.format == "" && !f.quiet {
		f.format = a.config().Format("ps")
	}
	q := url.Values{}
	if f.all {
		q.Set("all", "1")
	}
	if f.latest && f.last < 0 {
		f.last = 1
	}
	if f.last > 0 {
		q.Set("limit", strconv.Itoa(f.last))
	}
	size := f.size
	if !size && !f.quiet && f.format != "" {
		size = format.Uses(strings.TrimPrefix(f.format, "json"), "Size") && !strings.Contains(f.format, "json")
	}
	if size {
		q.Set("size", "1")
	}
	if err := filterQuery(q, f.filters); err != nil {
		return err
	}
	api, err := a.engine(ctx)
	if err != nil {
		return err
	}
	var list []wire.Container
	if err := api.Do(ctx, client.Request{Path: "/containers/json", Query: q}, &list); err != nil {
		return err
	}
	rows := make([]psRow, len(list))
	for i := range list {
		rows[i] = psRowOf(&list[i], !f.noTrunc)
	}
	def := psTable
	if f.size {
		def += "\t{{.Size}}"
	}
	ft := f.format
	if f.quiet {
		switch ft {
		case "", "table":
			ft = "{{.ID}}"
		}
	}
	return format.Table(a.Out, ft, def, psTitles, rows)
}

func psRowOf(c *wire.Container, trunc bool) psRow {
	r := psRow{
		ID: c.ID, Image: c.Image, CreatedAt: format.Stamp(c.Created), RunningFor: format.Ago(now(), time.Unix(c.Created, 0)),
		Ports: displayPorts(c.Ports), State: c.State, Status: c.Status, Labels: strings.Join(opts.Pairs(c.Labels), ","), labels: c.Labels,
	}
	command := c.Command
	if trunc {
		r.ID = format.ShortID(c.ID)
		command = format.Ellipsis(command, 20)
		r.Image = shownImage(c)
	}
	if r.Image == "" {
		r.Image = "<no image>"
	}
	r.Command = strconv.Quote(command)
	var names []string
	for _, n := range c.Names {
		n = strings.TrimPrefix(n, "/")
		if trunc && strings.Contains(n, "/") {
			continue // the name a link gives
		}
		names = append(names, n)
	}
	r.Names = strings.Join(names, ",")
	r.Size = format.Size(c.SizeRw)
	if c.SizeRootFs > 0 {
		r.Size += " (virtual " + format.Size(c.SizeRootFs) + ")"
	}
	volumes := 0
	var mounts []string
	for _, m := range c.Mounts {
		if m.Driver == "local" {
			volumes++
		}
		name := m.Name
		if name == "" {
			name = m.Source
		}
		if trunc {
			name = format.Ellipsis(name, 15)
		}
		mounts = append(mounts, name)
	}
	r.LocalVolumes, r.Mounts = strconv.Itoa(volumes), strings.Join(mounts, ",")
	nets := make([]string, 0, len(c.Networks.Networks))
	for n := range c.Networks.Networks {
		nets = append(nets, n)
	}
	slices.Sort(nets)
	r.Networks = strings.Join(nets, ",")
	return r
}

// shownImage shortens an image given by ID; a name that now belongs to another image shows as the ID it has.
func shownImage(c *wire.Container) string {
	if strings.HasPrefix(c.Image, "sha256:") || strings.HasPrefix(c.ImageID, "sha256:"+c.Image) && len(c.Image) == 64 {
		return format.ShortID(c.Image)
	}
	if name, digest, ok := strings.Cut(c.Image, "@"); ok && digest != "" {
		return name
	}
	return c.Image
}

func (a *App) cmdLogs() *cobra.Command {
	var details, follow, stamps bool
	var since, until, tail string
	c := &cobra.Command{
		Use: "logs [OPTIONS] CONTAINER", Short: "Fetch the logs of a container", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			q := url.Values{"stdout": {"1"}, "stderr": {"1"}, "tail": {tail}}
			for name, on := range map[string]bool{"details": details, "follow": follow, "timestamps": stamps} {
				if on {
					q.Set(name, "1")
				}
			}
			for name, v := range map[string]string{"since": since, "until": until} {
				if v == "" {
					continue
				}
				ts, err := opts.Timestamp(v, now())
				if err != nil {
					return fmt.Errorf("invalid value for %q: %w", name, err)
				}
				q.Set(name, ts)
			}
			api, err := a.engine(ctx)
			if err != nil {
				return err
			}
			var d wire.ContainerDetail
			if err := api.Do(ctx, client.Request{Path: "/containers/" + args[0] + "/json"}, &d); err != nil {
				return err
			}
			resp, err := api.Open(ctx, client.Request{Path: "/containers/" + d.ID + "/logs", Query: q})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if d.Config.Tty {
				return copyOut(ctx, a.Out, resp.Body)
			}
			return endOf(ctx, client.Demux(a.Out, a.Err, resp.Body))
		},
	}
	fs := c.Flags()
	fs.BoolVar(&details, "details", false, "Show extra details provided to logs")
	fs.BoolVarP(&follow, "follow", "f", false, "Follow log output")
	fs.StringVar(&since, "since", "", `Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	fs.StringVarP(&tail, "tail", "n", "all", "Number of lines to show from the end of the logs")
	fs.BoolVarP(&stamps, "timestamps", "t", false, "Show timestamps")
	fs.StringVar(&until, "until", "", `Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	return c
}
