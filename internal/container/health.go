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
	if l.Client.Newer() != nil { // that shim cannot be asked to run the check, so the health is unknown
		c.rec.State.Health = nil
		return
	}
	check := *h
	c.rec.State.Health = &Health{Status: "starting"}
	s.env.work.Go(func() { (&healthCheck{c: c, l: l, h: check}).run() })
}

// healthCheck is the health check of one run.
type healthCheck struct {
	c *ctr
	l *life
	h oci.Healthcheck
}

// run runs the check at its intervals until the run ends.
func (k *healthCheck) run() {
	interval := orDefault(k.h.Interval, healthInterval)
	startInterval := orDefault(k.h.StartInterval, healthStartInterval)
	began := time.Now()
	for {
		wait := interval
		starting := k.h.StartPeriod > 0 && time.Since(began) < k.h.StartPeriod && k.status() == "starting"
		if starting {
			wait = min(startInterval, interval)
		}
		t := time.NewTimer(wait)
		select {
		case <-k.l.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if k.c.status() != StatusRunning {
			continue // a frozen container cannot answer, but that does not make it unhealthy
		}
		res := k.probe()
		if k.l.ctx.Err() != nil {
			return
		}
		if status, changed := k.add(res, time.Since(began) < k.h.StartPeriod); changed {
			k.c.publish("health_status: " + status)
		}
	}
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

func (k *healthCheck) status() string {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	if k.c.rec.State.Health == nil {
		return ""
	}
	return k.c.rec.State.Health.Status
}

// add adds the result of one check. A failure in the start period does not count; a success ends the period.
// changed reports that the status is another than before.
func (k *healthCheck) add(res HealthResult, inStart bool) (status string, changed bool) {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	if k.c.rec.State.Health == nil {
		return "", false
	}
	now := *k.c.rec.State.Health
	now.Log = append(slices.Clone(now.Log), res)
	if n := len(now.Log); n > healthLogLength {
		now.Log = now.Log[n-healthLogLength:]
	}
	before := now.Status
	retries := k.h.Retries
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
	k.c.rec.State.Health = &now
	return now.Status, now.Status != before
}

// probe runs the check once.
func (k *healthCheck) probe() HealthResult {
	k.c.mu.Lock()
	shell := k.c.rec.Spec.Shell
	k.c.mu.Unlock()
	cmd := k.h.Test[1:]
	switch k.h.Test[0] {
	case "CMD-SHELL":
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		cmd = append(slices.Clone(shell), cmd...)
	case "CMD":
	default:
		cmd = k.h.Test
	}
	res := HealthResult{Start: time.Now().UTC()}
	timeout := orDefault(k.h.Timeout, healthTimeout)
	ctx, cancel := context.WithTimeout(k.l.ctx, timeout)
	defer cancel()
	out := &limitedBuffer{max: healthOutput}
	code, err := k.c.sessions.RunOnce(ctx, k.l.Run, spec.ExecSpec{Cmd: cmd}, out)
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
