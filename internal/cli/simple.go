package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ply/internal/cli/client"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// perContainer makes a command that posts to an endpoint of every named container and echoes the names.
func (a *App) perContainer(use, short string, flags func(*pflag.FlagSet), req func(fs *pflag.FlagSet, id string) (client.Request, error)) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: minArgs(1)}
	if flags != nil {
		flags(c.Flags())
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		api, err := a.engine(ctx)
		if err != nil {
			return err
		}
		return a.concurrently(args, func(id string) error {
			r, err := req(cmd.Flags(), id)
			if err != nil {
				return err
			}
			return api.Do(ctx, r, nil)
		})
	}
	return c
}

// errQuiet says that a name is done with, but not to be echoed.
var errQuiet = errors.New("nothing to echo")

// concurrently runs f for every name, several at a time, and reports in the order typed.
func (a *App) concurrently(args []string, f func(string) error) error {
	results := make([]chan error, len(args))
	slots := make(chan struct{}, 50)
	for i, arg := range args {
		results[i] = make(chan error, 1)
		go func() {
			slots <- struct{}{}
			results[i] <- f(arg)
			<-slots
		}()
	}
	var list engineErrors
	for i, ch := range results {
		err := <-ch
		if errors.Is(err, errQuiet) {
			continue
		}
		if err != nil {
			list = append(list, err)
			continue
		}
		fmt.Fprintln(a.Out, args[i])
	}
	if len(list) > 0 {
		return list
	}
	return nil
}

func post(id, verb string, q url.Values) (client.Request, error) {
	return client.Request{Method: "POST", Path: "/containers/" + id + "/" + verb, Query: q}, nil
}

func (a *App) stopper(verb, short string) *cobra.Command {
	var signal string
	var timeout int
	return a.perContainer(verb+" [OPTIONS] CONTAINER [CONTAINER...]", short, func(fs *pflag.FlagSet) {
		fs.StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
		fs.IntVarP(&timeout, "timeout", "t", 0, "Seconds to wait before killing the container")
		fs.IntVar(&timeout, "time", 0, "Seconds to wait before killing the container")
		fs.Lookup("time").Hidden = true
	}, func(fs *pflag.FlagSet, id string) (client.Request, error) {
		q := url.Values{}
		if signal != "" {
			q.Set("signal", signal)
		}
		if fs.Changed("timeout") && fs.Changed("time") {
			return client.Request{}, errs.New(errs.Invalid, "conflicting options: cannot specify both --timeout and --time")
		}
		if fs.Changed("timeout") || fs.Changed("time") {
			q.Set("t", strconv.Itoa(timeout))
		}
		return post(id, verb, q)
	})
}

func (a *App) cmdStop() *cobra.Command {
	return a.stopper("stop", "Stop one or more running containers")
}

func (a *App) cmdRestart() *cobra.Command {
	return a.stopper("restart", "Restart one or more containers")
}

func (a *App) cmdKill() *cobra.Command {
	var signal string
	return a.perContainer("kill [OPTIONS] CONTAINER [CONTAINER...]", "Kill one or more running containers", func(fs *pflag.FlagSet) {
		fs.StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	}, func(_ *pflag.FlagSet, id string) (client.Request, error) {
		s := signal
		if s == "" {
			s = "KILL"
		}
		return post(id, "kill", url.Values{"signal": {s}})
	})
}

func (a *App) cmdPause() *cobra.Command {
	return a.perContainer("pause CONTAINER [CONTAINER...]", "Pause all processes within one or more containers", nil,
		func(_ *pflag.FlagSet, id string) (client.Request, error) { return post(id, "pause", nil) })
}

func (a *App) cmdUnpause() *cobra.Command {
	return a.perContainer("unpause CONTAINER [CONTAINER...]", "Unpause all processes within one or more containers", nil,
		func(_ *pflag.FlagSet, id string) (client.Request, error) { return post(id, "unpause", nil) })
}

func (a *App) cmdRm() *cobra.Command {
	var force, link, volumes bool
	c := &cobra.Command{
		Use:   "rm [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Remove one or more containers",
		Long: "Remove one or more containers\n\nBind-mounted host directories and named volumes always stay. Anonymous volumes go\n" +
			"only with `rm -v`, `run --rm` and `volume prune`.",
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			api, err := a.engine(ctx)
			if err != nil {
				return err
			}
			q := url.Values{}
			for name, on := range map[string]bool{"force": force, "link": link, "v": volumes} {
				if on {
					q.Set(name, "1")
				}
			}
			return a.concurrently(args, func(id string) error {
				id = strings.Trim(id, "/")
				if id == "" {
					return errs.New(errs.Invalid, "container name cannot be empty")
				}
				err := api.Do(ctx, client.Request{Method: "DELETE", Path: "/containers/" + id, Query: q}, nil)
				if force && client.IsNotFound(err) {
					fmt.Fprintln(a.Err, err)
					return errQuiet
				}
				return err
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the removal of a running container (uses SIGKILL)")
	c.Flags().BoolVarP(&link, "link", "l", false, "Remove the specified link")
	c.Flags().BoolVarP(&volumes, "volumes", "v", false, "Remove anonymous volumes associated with the container")
	return c
}

func (a *App) cmdRename() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NEW_NAME", Short: "Rename a container", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			oldName, newName := strings.TrimSpace(args[0]), strings.TrimSpace(args[1])
			if oldName == "" || newName == "" {
				return errs.New(errs.Invalid, "Error: Neither old nor new names may be empty")
			}
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			r, _ := post(oldName, "rename", url.Values{"name": {newName}})
			if err := api.Do(cmd.Context(), r, nil); err != nil {
				return fmt.Errorf("%w\nError: failed to rename container named %s", err, oldName)
			}
			return nil
		},
	}
}

func (a *App) cmdWait() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER [CONTAINER...]", Short: "Block until one or more containers stop, then print their exit codes", Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			api, err := a.engine(ctx)
			if err != nil {
				return err
			}
			return each(ctx, args, func(id string) error {
				ch, err := waitFor(ctx, api, id, "")
				if err != nil {
					return err
				}
				res := <-ch
				if res.err != nil {
					return res.err
				}
				fmt.Fprintln(a.Out, res.StatusCode)
				return nil
			})
		},
	}
}

func (a *App) cmdUpdate() *cobra.Command {
	r := newRunFlags()
	var restart string
	c := &cobra.Command{
		Use: "update [OPTIONS] CONTAINER [CONTAINER...]", Short: "Update configuration of one or more containers", Args: minArgs(1),
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
			return a.update(cmd.Context(), args, body)
		},
	}
	updateFlags(c.Flags(), r, &restart)
	return c
}

func (a *App) update(ctx context.Context, args []string, body any) error {
	api, err := a.engine(ctx)
	if err != nil {
		return err
	}
	var warnings []string
	err = each(ctx, args, func(id string) error {
		r, _ := post(id, "update", nil)
		r.Body = body
		var out wire.Created
		if err := api.Do(ctx, r, &out); err != nil {
			return err
		}
		fmt.Fprintln(a.Out, id)
		warnings = append(warnings, out.Warnings...)
		return nil
	})
	if len(warnings) > 0 {
		fmt.Fprintln(a.Out, strings.Join(warnings, "\n"))
	}
	return err
}

func (a *App) cmdTop() *cobra.Command {
	c := &cobra.Command{
		Use: "top CONTAINER [ps OPTIONS]", Short: "Display the running processes of a container", Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			q := url.Values{}
			if len(args) > 1 {
				q.Set("ps_args", strings.Join(args[1:], " "))
			}
			var out struct {
				Titles    []string
				Processes [][]string
			}
			if err := api.Do(cmd.Context(), client.Request{Path: "/containers/" + args[0] + "/top", Query: q}, &out); err != nil {
				return err
			}
			return writeColumns(a.Out, 20, append([][]string{out.Titles}, out.Processes...))
		},
	}
	noInterspersed(c)
	return c
}

func (a *App) cmdDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff CONTAINER", Short: "Inspect changes to files or directories on a container's filesystem", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return errs.New(errs.Invalid, "container name cannot be empty")
			}
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			var out []struct {
				Path string
				Kind int
			}
			if err := api.Do(cmd.Context(), client.Request{Path: "/containers/" + args[0] + "/changes"}, &out); err != nil {
				return err
			}
			for _, ch := range out {
				kind := "?"
				if ch.Kind >= 0 && ch.Kind < 3 {
					kind = "CAD"[ch.Kind : ch.Kind+1]
				}
				fmt.Fprintln(a.Out, kind, ch.Path)
			}
			return nil
		},
	}
}

func (a *App) cmdPort() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PRIVATE_PORT[/PROTO]]", Short: "List port mappings or a specific mapping for the container", Args: rangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			var d wire.ContainerDetail
			if err := api.Do(cmd.Context(), client.Request{Path: "/containers/" + args[0] + "/json"}, &d); err != nil {
				return err
			}
			lines, err := portLines(args, d.NetworkSettings.Ports)
			if err != nil {
				return err
			}
			for _, l := range lines {
				fmt.Fprintln(a.Out, l)
			}
			return nil
		},
	}
}
