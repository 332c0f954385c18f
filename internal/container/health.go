package container

import (
	"context"
	"slices"
	"time"

	"ply/internal/container/spec"
	"ply/internal/oci"
)

// Docker's defaults and limits of health checks.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthLogLength     = 5
	healthOutput        = 4096
)

// watchHealth checks the health of a run until its end, if the container has a check.
func (s *supervisor) watchHealth(c *ctr, l *life) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.rec.Spec.Healthcheck
	if h == nil || len(h.Test) == 0 || h.Test[0] == "NONE" || h.Test[0] == "" && len(h.Test) == 1 {
		c.rec.State.Health = nil
		return
	}
	check := *h
	c.rec.State.Health = &Health{Status: "starting"}
	s.env.work.Go(func() { checkHealth(c, l, check) })
}

// checkHealth runs the check at its intervals until the run ends.
func checkHealth(c *ctr, l *life, h oci.Healthcheck) {
	interval := orDefault(h.Interval, healthInterval)
	startInterval := orDefault(h.StartInterval, healthStartInterval)
	began := time.Now()
	for {
		wait := interval
		starting := h.StartPeriod > 0 && time.Since(began) < h.StartPeriod && c.healthStatus() == "starting"
		if starting {
			wait = min(startInterval, interval)
		}
		t := time.NewTimer(wait)
		select {
		case <-l.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if c.status() != StatusRunning {
			continue // a frozen container cannot answer, but that does not make it unhealthy
		}
		res := probeHealth(c, l, &h)
		if l.ctx.Err() != nil {
			return
		}
		if status, changed := c.recordHealth(res, &h, time.Since(began) < h.StartPeriod); changed {
			c.publish("health_status: " + status)
		}
	}
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

func (c *ctr) healthStatus() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.State.Health == nil {
		return ""
	}
	return c.rec.State.Health.Status
}

// recordHealth adds the result of one check. A failure in the start period does not count; a success ends the period.
// changed reports that the status is another than before.
func (c *ctr) recordHealth(res HealthResult, h *oci.Healthcheck, inStart bool) (status string, changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.State.Health == nil {
		return "", false
	}
	now := *c.rec.State.Health
	now.Log = append(slices.Clone(now.Log), res)
	if n := len(now.Log); n > healthLogLength {
		now.Log = now.Log[n-healthLogLength:]
	}
	before := now.Status
	retries := h.Retries
	if retries == 0 {
		retries = healthRetries
	}
	switch {
	case res.ExitCode == 0:
		now.Status, now.FailingStreak = "healthy", 0
	case inStart && before == "starting":
	default:
		if now.FailingStreak++; now.FailingStreak >= retries {
			now.Status = "unhealthy"
		}
	}
	c.rec.State.Health = &now
	return now.Status, now.Status != before
}

// probeHealth runs the check once.
func probeHealth(c *ctr, l *life, h *oci.Healthcheck) HealthResult {
	c.mu.Lock()
	shell := c.rec.Spec.Shell
	c.mu.Unlock()
	cmd := h.Test[1:]
	switch h.Test[0] {
	case "CMD-SHELL":
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		cmd = append(slices.Clone(shell), cmd...)
	case "CMD":
	default:
		cmd = h.Test
	}
	res := HealthResult{Start: time.Now().UTC()}
	timeout := orDefault(h.Timeout, healthTimeout)
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	out := &limitedBuffer{max: healthOutput}
	code, err := c.sessions.RunOnce(ctx, l.Run, spec.ExecSpec{Cmd: cmd}, out)
	res.End, res.ExitCode, res.Output = time.Now().UTC(), code, out.String()
	switch {
	case ctx.Err() != nil:
		res.ExitCode = -1
		res.Output = "Health check exceeded timeout (" + timeout.String() + ")"
		if out.String() != "" {
			res.Output += ": " + out.String()
		}
	case err != nil:
		res.ExitCode, res.Output = -1, err.Error()
	}
	return res
}

// limitedBuffer keeps the first max bytes and discards the rest.
type limitedBuffer struct {
	b   []byte
	max int
	cut bool
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	room := l.max - len(l.b)
	l.cut = l.cut || len(p) > room
	l.b = append(l.b, p[:min(len(p), room)]...)
	return len(p), nil
}

func (l *limitedBuffer) String() string {
	if l.cut {
		return string(l.b) + "..."
	}
	return string(l.b)
}
