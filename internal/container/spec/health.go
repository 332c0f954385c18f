package spec

import (
	"slices"
	"time"

	"ply/internal/oci"
)

// CheckHealth refuses an invalid health check. nil is valid: the container has none.
func CheckHealth(h *oci.Healthcheck) error {
	if h == nil {
		return nil
	}
	if len(h.Test) > 0 && !slices.Contains([]string{"NONE", "CMD", "CMD-SHELL", ""}, h.Test[0]) {
		return invalid("Unknown type %q in Healthcheck: want NONE, CMD or CMD-SHELL", clip(h.Test[0]))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.value != 0 && d.value < time.Millisecond {
			return invalid("%s in Healthcheck cannot be less than %s", d.name, time.Millisecond)
		}
	}
	if h.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	return nil
}
