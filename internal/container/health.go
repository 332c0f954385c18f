package container

import (
	"context"
	"io"
	"slices"
	"time"

	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/oci"
)

// Docker's defaults and bounds of health checks.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthLogLength     = 5
	healthOutput        = 4096
)

// startHealth begins the checks of a run, when the container has any.
func (s *Service) startHealth(c *ctr, l *life) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.rec.Spec.Healthcheck
	if h == nil || len(h.Test) == 0 || h.Test[0] == "NONE" || h.Test[0] == "" && len(h.Test) == 1 {
		c.rec.State.Health = nil
		return
	}
	check := *h
	c.rec.State.Health = &Health{Status: "starting"}
	s.work.Go(func() { s.healthLoop(c, l, check) })
}

func (s *Service) healthLoop(c *ctr, l *life, h oci.Healthcheck) {
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
			continue // a frozen container cannot answer, and is not ill
		}
		res := s.probe(l.ctx, c, l, &h)
		if l.ctx.Err() != nil {
			return
		}
		if status, changed := c.recordHealth(res, &h, time.Since(began) < h.StartPeriod); changed {
			s.publish(c, "health_status: "+status)
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

// recordHealth takes one result up. A failure in the start period does not count; a success ends that period.
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

// probe runs the check once.
func (s *Service) probe(ctx context.Context, c *ctr, l *life, h *oci.Healthcheck) HealthResult {
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
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out := &limitedBuffer{max: healthOutput}
	code, err := s.runOnce(ctx, c, l, spec.ExecSpec{Cmd: cmd}, out)
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

// runOnce runs a process in the container with its output in out. When ctx ends first the process is killed.
func (s *Service) runOnce(ctx context.Context, c *ctr, l *life, spec spec.ExecSpec, out io.Writer) (int, error) {
	p, err := s.execProcess(c, spec, [2]uint{})
	if err != nil {
		return -1, err
	}
	id := newExecID()
	if err := l.client.Exec(ctx, id, p, shim.ExecOptions{}); err != nil {
		return execCode(err), err
	}
	st, err := l.client.Attach(ctx, id, shim.AttachArgs{Stdout: true, Stderr: true})
	if err != nil {
		return -1, err
	}
	defer st.Close()
	if err := s.execBegin(ctx, c, l, id); err != nil {
		return execCode(err), err
	}
	err = pump(ctx, st, AttachOptions{Stdout: out, Stderr: out}, nil)
	if ctx.Err() != nil {
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), killPatience)
		defer cancel()
		_ = l.client.Kill(kill, id, shim.KillArgs{Signal: 9}) // it may have ended in this moment
		return -1, context.Cause(ctx)
	}
	if err != nil {
		return -1, err
	}
	e, err := l.client.Wait(ctx, id)
	return e.Code, err
}

// limitedBuffer keeps the first bytes and swallows the rest.
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
