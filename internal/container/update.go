package container

import (
	"context"
	"fmt"
	"runtime"

	"ply/internal/container/runspec"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/network"
)

// Settings are what Update changes.
type Settings struct {
	Resources     spec.Resources      // zero fields leave the limit as it is
	RestartPolicy *spec.RestartPolicy // nil = as it is
	Ports         *Ports              // nil = as they are
}

// Ports are published ports in place of those that a container has.
type Ports struct{ List []network.PortBinding }

// Update changes limits, the restart policy and the published ports. On a running container the limits change at once; its ports cannot
// change. Errors: Invalid, Conflict for limits that contradict those in force, and for the ports of a running container.
func (s *Service) Update(ctx context.Context, ref string, change Settings) (warnings []string, err error) {
	r, policy := &change.Resources, change.RestartPolicy
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	if policy != nil && policy.Name == "" {
		policy, change.RestartPolicy = nil, nil
	}
	if policy != nil {
		if err := policy.Check(); err != nil {
			return nil, err
		}
	}
	if err := r.CheckChange(); err != nil {
		return nil, err
	}
	if err := r.CheckCPUs(runtime.NumCPU()); err != nil {
		return nil, err
	}
	host, err := runspec.ProbeHost()
	if err != nil {
		return nil, err
	}
	warnings = r.Reduce()
	more, err := runspec.FitLimits(r, &host)
	if err != nil {
		return nil, err
	}
	warnings = append(warnings, more...)
	w := c.wait(WaitNextExit)
	defer w.cancel()
	refused, err := c.update(ctx, &change, host.SwapLimit)
	if refused && ctx.Err() == nil && w.await(ctx, endWait) {
		_, err = c.update(ctx, &change, host.SwapLimit) // it was ending, so there is no process with limits
	}
	if err != nil {
		return nil, err
	}
	c.publish("update")
	return warnings, nil
}

// update changes the container and its record. refused reports that the limits of the process could not be changed, as when the
// process is ending. limitSwap: the host can limit swap.
func (c *ctr) update(ctx context.Context, change *Settings, limitSwap bool) (refused bool, err error) {
	r, policy := &change.Resources, change.RestartPolicy
	if err := c.lock(ctx); err != nil {
		return false, err
	}
	defer c.release()
	c.mu.Lock()
	before, st, l := c.rec.Spec, c.rec.State.Status, c.life
	c.mu.Unlock()
	if st == StatusRemoving || st == StatusDead {
		return false, errs.New(errs.Conflict, "cannot update container %s: container is marked for removal and cannot be \"update\"", c.id)
	}
	if err := before.Resources.CheckUpdate(r); err != nil {
		return false, fmt.Errorf("Cannot update container %s: %w", c.id, err)
	}
	if policy != nil && before.AutoRemove && policy.Restarts() {
		return false, errs.New(errs.Conflict, "Cannot update container %s: Restart policy cannot be updated because AutoRemove is enabled for the container", c.id)
	}
	after := before
	if change.Ports != nil {
		if c.isActive() {
			return false, errs.New(errs.Conflict, "cannot change the published ports of container %s while it is running: stop it first", c.id)
		}
		if err := after.Publish(change.Ports.List); err != nil {
			return false, err
		}
	}
	after.Resources.Overlay(*r)
	if limitSwap {
		after.Resources.LimitSwap()
	}
	if policy != nil {
		after.RestartPolicy = *policy
	}
	if l != nil && !r.IsZero() {
		lr, _, err := runspec.LinuxResources(after.Resources)
		if err != nil {
			return false, err
		}
		if err := l.Client.Update(ctx, lr); err != nil {
			return true, fmt.Errorf("cannot update container %s: %w", c.id, err)
		}
	}
	c.mu.Lock()
	c.rec.Spec = after
	c.mu.Unlock()
	if err := c.save(); err != nil {
		c.mu.Lock()
		c.rec.Spec = before
		c.mu.Unlock()
		return false, err
	}
	return false, nil
}
