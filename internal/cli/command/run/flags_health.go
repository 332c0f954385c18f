package run

import (
	"time"

	"github.com/spf13/pflag"

	"ply/internal/errs"
	"ply/internal/oci"
)

// addHealth defines the flags of the health check.
func (r *runFlags) addHealth(f *pflag.FlagSet) {
	h := &oci.Healthcheck{}
	cmd := f.String("health-cmd", "", "Command to run to check health")
	f.DurationVar(&h.Interval, "health-interval", 0, "Time between running the check (ms|s|m|h) (default 0s)")
	f.IntVar(&h.Retries, "health-retries", 0, "Consecutive failures needed to report unhealthy")
	f.DurationVar(&h.Timeout, "health-timeout", 0, "Maximum time to allow one check to run (ms|s|m|h) (default 0s)")
	f.DurationVar(&h.StartPeriod, "health-start-period", 0, "Start period for the container to initialize before starting health-retries countdown (ms|s|m|h) (default 0s)")
	f.DurationVar(&h.StartInterval, "health-start-interval", 0, "Time between running the check during the start period (ms|s|m|h) (default 0s)")
	none := f.Bool("no-healthcheck", false, "Disable any container-specified HEALTHCHECK")
	r.then(func() error {
		set := *cmd != "" || h.Interval != 0 || h.Timeout != 0 || h.StartPeriod != 0 || h.Retries != 0 || h.StartInterval != 0
		if *none {
			if set {
				return errs.New(errs.Invalid, "--no-healthcheck conflicts with --health-* options")
			}
			r.cfg.Healthcheck = &oci.Healthcheck{Test: []string{"NONE"}}
			return nil
		}
		for _, d := range []struct {
			name  string
			value time.Duration
		}{{"interval", h.Interval}, {"timeout", h.Timeout}, {"start-period", h.StartPeriod}, {"start-interval", h.StartInterval}, {"retries", time.Duration(h.Retries)}} {
			if d.value < 0 {
				return errs.New(errs.Invalid, "--health-%s cannot be negative", d.name)
			}
		}
		if *cmd != "" {
			h.Test = []string{"CMD-SHELL", *cmd}
		}
		if set {
			r.cfg.Healthcheck = h
		}
		return nil
	})
}
