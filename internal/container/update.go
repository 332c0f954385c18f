package container

import (
	"context"
	"fmt"
	"runtime"

	"ply/internal/container/runspec"
	"ply/internal/container/spec"
	"ply/internal/errs"
)

// Update changes limits and the restart policy. On a running container the limits change at once. Zero fields of r leave
// the limit as it is.
func (s *Service) Update(ctx context.Context, ref string, r spec.Resources, policy *spec.RestartPolicy) (warnings []string, err error) {
	c, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.release()
	c.mu.Lock()
	next := c.rec.Spec.Resources
	auto, st, l, before := c.rec.Spec.AutoRemove, c.rec.State.Status, c.life, c.rec.Spec
	c.mu.Unlock()
	if st == StatusRemoving || st == StatusDead {
		return nil, errs.New(errs.Conflict, "cannot update container %s: container is marked for removal and cannot be \"update\"", c.id)
	}
	next.Overlay(r)
	if err := next.Check(); err != nil {
		return nil, err
	}
	if err := next.CheckCPUs(runtime.NumCPU()); err != nil {
		return nil, err
	}
	warnings = next.Reduce()
	if policy != nil && policy.Name != "" {
		if err := policy.Check(); err != nil {
			return nil, err
		}
		if auto && policy.Restarts() {
			return nil, invalid("Restart policy cannot be updated because AutoRemove is enabled for the container")
		}
	}
	if l != nil && !r.IsZero() {
		lr, more, err := runspec.LinuxResources(next)
		if err != nil {
			return nil, err
		}
		warnings = append(warnings, more...)
		if err := l.Client.Update(ctx, lr); err != nil {
			return nil, fmt.Errorf("cannot update container %s: %w", c.id, err)
		}
	}
	c.mu.Lock()
	c.rec.Spec.Resources = next
	if policy != nil && policy.Name != "" {
		c.rec.Spec.RestartPolicy = *policy
	}
	c.mu.Unlock()
	if err := c.save(); err != nil {
		c.mu.Lock()
		c.rec.Spec = before
		c.mu.Unlock()
		return nil, err
	}
	c.publish("update")
	return warnings, nil
}
