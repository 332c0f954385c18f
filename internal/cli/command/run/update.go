package run

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// Update returns the command update.
func Update(inv *command.Invocation) *cobra.Command {
	r := newRunFlags()
	var restart string
	c := &cobra.Command{
		Use: "update [OPTIONS] CONTAINER [CONTAINER...]", Short: "Update configuration of one or more containers", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().NFlag() == 0 {
				return errs.New(errs.Invalid, "you must provide one or more flags when using this command")
			}
			policy, err := opts.Restart(restart)
			if err != nil {
				return err
			}
			body := struct {
				wire.Resources
				RestartPolicy wire.RestartPolicy
			}{wire.Resources{
				BlkioWeight: r.blkioWeight, CPUPeriod: r.cpuPeriod, CPUQuota: r.cpuQuota, CPURealtimePeriod: r.cpuRtPeriod,
				CPURealtimeRuntime: r.cpuRtRuntime, CPUShares: r.cpuShares, NanoCPUs: int64(r.cpus), CpusetCpus: r.cpusetCpus,
				CpusetMems: r.cpusetMems, Memory: r.memory.N, MemoryReservation: r.memReserve.N, MemorySwap: r.memSwap.N, PidsLimit: &r.pidsLimit,
			}, policy}
			return update(cmd.Context(), inv, args, body)
		},
	}
	updateFlags(c.Flags(), r, &restart)
	return c
}

// update posts body to every container, and prints the warnings after all names.
func update(ctx context.Context, inv *command.Invocation, args []string, body any) error {
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	var warnings []string
	err = command.Each(ctx, args, func(id string) error {
		var out wire.Created
		if err := api.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + id + "/update", Body: body}, &out); err != nil {
			return err
		}
		fmt.Fprintln(inv.Out, id)
		warnings = append(warnings, out.Warnings...)
		return nil
	})
	if len(warnings) > 0 {
		fmt.Fprintln(inv.Out, strings.Join(warnings, "\n"))
	}
	return err
}

// updateFlags defines the flags of update on f.
func updateFlags(f *pflag.FlagSet, r *runFlags, restart *string) {
	r.fs = f
	f.Uint16Var(&r.blkioWeight, "blkio-weight", 0, "Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)")
	f.Int64Var(&r.cpuPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	f.Int64Var(&r.cpuQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	f.Int64Var(&r.cpuRtPeriod, "cpu-rt-period", 0, "Limit the CPU real-time period in microseconds")
	f.Int64Var(&r.cpuRtRuntime, "cpu-rt-runtime", 0, "Limit the CPU real-time runtime in microseconds")
	f.Int64VarP(&r.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	f.Var(&r.cpus, "cpus", "Number of CPUs")
	f.StringVar(&r.cpusetCpus, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	f.StringVar(&r.cpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	f.VarP(&r.memory, "memory", "m", "Memory limit")
	f.Var(&r.memReserve, "memory-reservation", "Memory soft limit")
	f.Var(&r.memSwap, "memory-swap", "Swap limit equal to memory plus swap: -1 to enable unlimited swap")
	f.Int64Var(&r.pidsLimit, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
	f.StringVar(restart, "restart", "", "Restart policy to apply when a container exits")
}
