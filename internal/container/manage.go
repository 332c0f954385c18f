package container

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"ply/internal/container/runspec"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/events"
)

func (s *Service) publishPrune(reclaimed int64) {
	s.opts.Events.Publish(events.Event{Type: "container", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(reclaimed, 10)}})
}

// Rename gives a container another name. Errors: NotFound, Invalid, Conflict.
func (s *Service) Rename(ctx context.Context, ref, name string) error {
	if ref == "" || name == "" {
		return invalid("Neither old nor new names may be empty")
	}
	name = strings.TrimPrefix(name, "/")
	if err := checkName(name); err != nil {
		return err
	}
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.release()
	old := c.name()
	if old == name {
		return invalid("Renaming a container with the same name as its current name")
	}
	s.mu.Lock()
	if other, taken := s.byName[name]; taken {
		s.mu.Unlock()
		return nameConflict(name, other)
	}
	s.byName[name] = c.id
	s.mu.Unlock()
	set := func(n string) {
		c.mu.Lock()
		c.rec.Name, c.rec.Spec.Name = n, n
		c.mu.Unlock()
	}
	set(name)
	freed := old
	if err = s.save(c); err != nil {
		set(old)
		freed = name
	}
	s.mu.Lock()
	delete(s.byName, freed)
	s.mu.Unlock()
	if err == nil {
		s.publish(c, "rename", "oldName", "/"+old)
	}
	return err
}

// Update changes limits and the restart policy, of a running container at once. Zero fields stay as they are.
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
	if l != nil && r != (spec.Resources{}) {
		lr, more, err := runspec.LinuxResources(next)
		if err != nil {
			return nil, err
		}
		warnings = append(warnings, more...)
		if err := l.client.Update(ctx, lr); err != nil {
			return nil, fmt.Errorf("cannot update container %s: %w", c.id, err)
		}
	}
	c.mu.Lock()
	c.rec.Spec.Resources = next
	if policy != nil && policy.Name != "" {
		c.rec.Spec.RestartPolicy = *policy
	}
	c.mu.Unlock()
	if err := s.save(c); err != nil {
		c.mu.Lock()
		c.rec.Spec = before
		c.mu.Unlock()
		return nil, err
	}
	s.publish(c, "update")
	return warnings, nil
}

// Resize sets the size of the terminal. Errors: Conflict when it does not run.
func (s *Service) Resize(ctx context.Context, ref string, height, width uint) error {
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	if height > 65535 || width > 65535 {
		return invalid("terminal size %dx%d is larger than 65535", height, width)
	}
	l, err := c.running()
	if err != nil {
		return err
	}
	if err := l.client.Resize(ctx, "", height, width); err != nil {
		return err
	}
	s.publish(c, "resize", "height", strconv.Itoa(int(height)), "width", strconv.Itoa(int(width)))
	return nil
}

// Top runs the host's ps and gives the lines of the container's processes. psArgs empty means -ef.
func (s *Service) Top(ctx context.Context, ref string, psArgs []string) (titles []string, rows []Process, err error) {
	if len(psArgs) == 0 {
		psArgs = []string{"-ef"}
	}
	for _, a := range psArgs {
		if strings.IndexByte(a, 0) >= 0 {
			return nil, nil, invalid("ps argument %q holds a NUL", a)
		}
	}
	c, err := s.find(ref)
	if err != nil {
		return nil, nil, err
	}
	l, err := c.running()
	if err != nil {
		return nil, nil, err
	}
	pids, err := l.client.Pids(ctx)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, "ps", psArgs...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if msg := strings.TrimSpace(stderr.String()); msg != "" {
			first, _, _ := strings.Cut(msg, "\n")
			return nil, nil, invalid("ps: %s", first)
		}
		return nil, nil, errs.New(errs.Internal, "ps: %w", err)
	}
	titles, rows, err = filterPS(stdout.String(), pids)
	if err == nil {
		s.publish(c, "top")
	}
	return titles, rows, err
}

// filterPS keeps the lines whose PID column is one of pids. The last column takes the rest of its line.
func filterPS(out string, pids []int) (titles []string, rows []Process, err error) {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	titles = strings.Fields(lines[0])
	col := slices.Index(titles, "PID")
	if col < 0 {
		return nil, nil, invalid("couldn't find PID field in ps output")
	}
	for _, line := range lines[1:] {
		fields := splitN(line, len(titles))
		if len(fields) <= col {
			continue
		}
		pid, err := strconv.Atoi(fields[col])
		if err != nil {
			return nil, nil, errs.New(errs.Internal, "unexpected pid '%s'", clip(fields[col]))
		}
		if slices.Contains(pids, pid) {
			rows = append(rows, fields)
		}
	}
	return titles, rows, nil
}

// splitN splits at blanks into at most n fields, leaving the last as it is.
func splitN(line string, n int) []string {
	var out []string
	rest := strings.TrimLeft(line, " \t")
	for len(out) < n-1 && rest != "" {
		i := strings.IndexAny(rest, " \t")
		if i < 0 {
			break
		}
		out = append(out, rest[:i])
		rest = strings.TrimLeft(rest[i:], " \t")
	}
	if rest != "" {
		out = append(out, strings.TrimRight(rest, " \t"))
	}
	return out
}
