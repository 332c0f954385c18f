package container

import (
	"context"
	"strings"
)

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
	if name == old {
		return invalid("Renaming a container with the same name as its current name")
	}
	if name, err = s.env.index.reserve(c.id, name); err != nil {
		return err
	}
	set := func(n string) {
		c.mu.Lock()
		c.rec.Name, c.rec.Spec.Name = n, n
		c.mu.Unlock()
	}
	set(name)
	if err := c.save(); err != nil {
		set(old)
		s.env.index.free(c.id, name)
		return err
	}
	s.env.index.free(c.id, old)
	if err := s.env.opts.Network.Rename(c.id, old, name); err != nil {
		s.env.log.Warn("networks do not know the new name of a container", "container", c.id, "err", err)
	}
	c.publish("rename", "oldName", "/"+old)
	return nil
}
