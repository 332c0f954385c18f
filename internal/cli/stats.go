package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/wire"
)

// reading is one answer of /containers/ID/stats.
type reading struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"`
	Read     time.Time `json:"read"`
	CPU      cpuStats  `json:"cpu_stats"`
	PreCPU   cpuStats  `json:"precpu_stats"`
	PidStats struct {
		Current uint64 `json:"current"`
	} `json:"pids_stats"`
	Memory struct {
		Usage uint64            `json:"usage"`
		Limit uint64            `json:"limit"`
		Stats map[string]uint64 `json:"stats"`
	} `json:"memory_stats"`
	Networks map[string]struct {
		Rx uint64 `json:"rx_bytes"`
		Tx uint64 `json:"tx_bytes"`
	} `json:"networks"`
	Blkio struct {
		Bytes []struct {
			Op    string `json:"op"`
			Value uint64 `json:"value"`
		} `json:"io_service_bytes_recursive"`
	} `json:"blkio_stats"`
}

type cpuStats struct {
	Usage struct {
		Total  uint64   `json:"total_usage"`
		PerCPU []uint64 `json:"percpu_usage"`
	} `json:"cpu_usage"`
	System uint64 `json:"system_cpu_usage"`
	Online uint32 `json:"online_cpus"`
}

type statsRow struct {
	format.RowMark
	BlockIO, CPUPerc, Container, ID, MemPerc, MemUsage, Name, NetIO, PIDs string
}

var statsTitles = format.Titles{"Container": "CONTAINER", "ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT",
	"MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS"}

const statsTable = "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}"

func statsRowOf(ref string, r *reading, trunc bool) statsRow {
	row := statsRow{Container: ref, ID: r.ID, Name: strings.TrimPrefix(r.Name, "/")}
	if trunc {
		row.ID = format.ShortID(r.ID)
	}
	cpu := 0.0
	used := float64(r.CPU.Usage.Total) - float64(r.PreCPU.Usage.Total)
	total := float64(r.CPU.System) - float64(r.PreCPU.System)
	online := float64(r.CPU.Online)
	if online == 0 {
		online = float64(len(r.CPU.Usage.PerCPU))
	}
	if total > 0 && used > 0 {
		cpu = used / total * online * 100
	}
	row.CPUPerc = fmt.Sprintf("%.2f%%", cpu)
	mem := float64(withoutCache(r.Memory.Usage, r.Memory.Stats))
	row.MemUsage = format.IEC(mem) + " / " + format.IEC(float64(r.Memory.Limit))
	row.MemPerc = "0.00%"
	if r.Memory.Limit > 0 {
		row.MemPerc = fmt.Sprintf("%.2f%%", mem/float64(r.Memory.Limit)*100)
	}
	var rx, tx, rd, wr uint64
	for _, n := range r.Networks {
		rx += n.Rx
		tx += n.Tx
	}
	for _, b := range r.Blkio.Bytes {
		switch b.Op {
		case "Read", "read":
			rd += b.Value
		case "Write", "write":
			wr += b.Value
		}
	}
	row.NetIO = format.Size(int64(rx)) + " / " + format.Size(int64(tx))
	row.BlockIO = format.Size(int64(rd)) + " / " + format.Size(int64(wr))
	row.PIDs = fmt.Sprint(r.PidStats.Current)
	return row
}

// withoutCache takes the page cache that can be dropped off the usage, for cgroup v1 and v2.
func withoutCache(usage uint64, stats map[string]uint64) uint64 {
	for _, key := range []string{"total_inactive_file", "inactive_file"} {
		if v, ok := stats[key]; ok && v < usage {
			return usage - v
		}
	}
	return usage
}

func emptyStats(ref string) statsRow {
	return statsRow{Container: ref, ID: format.ShortID(ref), Name: "--", CPUPerc: "--", MemUsage: "-- / --", MemPerc: "--", NetIO: "--", BlockIO: "--", PIDs: "--"}
}

type statsFlags struct {
	all, noStream, noTrunc bool
	format                 string
}

func (a *App) cmdStats() *cobra.Command {
	f := &statsFlags{}
	c := &cobra.Command{
		Use: "stats [OPTIONS] [CONTAINER...]", Short: "Display a live stream of container(s) resource usage statistics",
		Args: func(cmd *cobra.Command, args []string) error { return dashes(cmd, args) },
		RunE: func(cmd *cobra.Command, args []string) error { return a.stats(cmd.Context(), f, args) },
	}
	c.Flags().BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	c.Flags().StringVar(&f.format, "format", "", formatHelp)
	c.Flags().BoolVar(&f.noStream, "no-stream", false, "Disable streaming stats and only pull the first result")
	c.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "Do not truncate the output")
	return c
}

func (a *App) stats(ctx context.Context, f *statsFlags, refs []string) error {
	if f.format == "" {
		f.format = a.config().Format("stats")
	}
	api, err := a.engine(ctx)
	if err != nil {
		return err
	}
	if f.noStream {
		named, err := a.statsTargets(ctx, api, f, refs)
		if err != nil {
			return err
		}
		rows, err := statsOnce(ctx, api, named, len(refs) > 0, !f.noTrunc)
		if err != nil {
			return err
		}
		return format.Table(a.Out, f.format, statsTable, statsTitles, rows)
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	w := newStatsWatch(ctx, api, !f.noTrunc)
	defer w.stop()
	for {
		named, err := a.statsTargets(ctx, api, f, refs)
		if err != nil {
			return endOf(ctx, err)
		}
		w.follow(named)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		rows, err := w.rows(len(refs) > 0)
		if err != nil {
			return err
		}
		if f.format == "" || strings.HasPrefix(f.format, "table") {
			if a.OutTerm != nil {
				io.WriteString(a.Out, "\x1b[2J\x1b[H")
			}
		}
		if err := format.Table(a.Out, f.format, statsTable, statsTitles, rows); err != nil {
			return err
		}
		if len(refs) > 0 && len(rows) == 0 {
			return nil
		}
	}
}

// statsTargets are the containers named, or those that run.
func (a *App) statsTargets(ctx context.Context, api *client.Client, f *statsFlags, refs []string) ([]string, error) {
	if len(refs) > 0 {
		return refs, nil
	}
	q := url.Values{}
	if f.all {
		q.Set("all", "1")
	}
	var list []wire.Container
	if err := api.Do(ctx, client.Request{Path: "/containers/json", Query: q}, &list); err != nil {
		return nil, err
	}
	for _, c := range list {
		refs = append(refs, c.ID)
	}
	return refs, nil
}

// statsOnce takes one reading of each; strict says that a missing container is an error.
func statsOnce(ctx context.Context, api *client.Client, refs []string, strict, trunc bool) ([]statsRow, error) {
	rows := make([]statsRow, len(refs))
	failed := make([]error, len(refs))
	var wg sync.WaitGroup
	for i, ref := range refs {
		wg.Go(func() {
			var r reading
			err := api.Do(ctx, client.Request{Path: "/containers/" + ref + "/stats", Query: url.Values{"stream": {"0"}}}, &r)
			if err != nil {
				rows[i], failed[i] = emptyStats(ref), err
				return
			}
			rows[i] = statsRowOf(ref, &r, trunc)
		})
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil && strict {
		return nil, err
	}
	return rows, nil
}

// statsWatch keeps a stream per container and the newest row of each.
type statsWatch struct {
	ctx    context.Context // ends all streams
	cancel context.CancelFunc
	api    *client.Client
	trunc  bool

	mu     sync.Mutex
	order  []string
	newest map[string]*watched
}

type watched struct {
	row  statsRow
	err  error
	done bool
}

func newStatsWatch(ctx context.Context, api *client.Client, trunc bool) *statsWatch {
	ctx, cancel := context.WithCancel(ctx)
	return &statsWatch{ctx: ctx, cancel: cancel, api: api, trunc: trunc, newest: map[string]*watched{}}
}

func (w *statsWatch) stop() { w.cancel() }

func (w *statsWatch) follow(refs []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.order = refs
	for _, ref := range refs {
		if w.newest[ref] == nil {
			x := &watched{row: emptyStats(ref)}
			w.newest[ref] = x
			go w.stream(ref, x)
		}
	}
}

func (w *statsWatch) stream(ref string, x *watched) {
	end := func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		x.err, x.done = err, true
	}
	resp, err := w.api.Open(w.ctx, client.Request{Path: "/containers/" + ref + "/stats", Query: url.Values{"stream": {"1"}}})
	if err != nil {
		end(err)
		return
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var r reading
		if err := dec.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			end(err)
			return
		}
		w.mu.Lock()
		x.row = statsRowOf(ref, &r, w.trunc)
		w.mu.Unlock()
	}
}

// rows gives the newest rows; a container that is gone is left out, or, when it was named and never there, an error.
func (w *statsWatch) rows(strict bool) ([]statsRow, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rows := []statsRow{}
	for _, ref := range w.order {
		x := w.newest[ref]
		if x.done {
			if strict && x.err != nil && client.IsNotFound(x.err) && x.row.Name == "--" {
				return nil, x.err
			}
			continue
		}
		rows = append(rows, x.row)
	}
	return rows, nil
}
