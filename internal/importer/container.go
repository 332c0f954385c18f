package importer

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"ply/internal/container"
	"ply/internal/container/spec"
	"ply/internal/dockerroot"
	"ply/internal/errs"
	"ply/internal/volume"
	"ply/internal/wire"
)

// importContainers imports the containers with their IDs, each after those whose namespaces or names it uses.
func (r *run) importContainers(ctx context.Context) error {
	all, problems := r.root.Containers(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, p := range problems {
		r.problem(p)
	}
	r.there = byReference(all)
	for _, c := range r.usedFirst(all) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := r.importContainer(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

const containerMode = "container:" // prefix of a mode that joins a namespace of another container

// uses returns the names and IDs of the containers to which a container refers.
func uses(c *dockerroot.Container) (refs []string) {
	h := &c.HostConfig
	for _, mode := range []string{h.NetworkMode, h.PidMode, h.IpcMode} {
		if ref, ok := strings.CutPrefix(mode, containerMode); ok {
			refs = append(refs, ref)
		}
	}
	for _, l := range h.Links {
		refs = append(refs, linkTarget(l))
	}
	return refs
}

// linkTarget returns the container of a link, such as db:alias or /db:/web/alias.
func linkTarget(link string) string {
	ref, _, _ := strings.Cut(link, ":")
	return strings.TrimPrefix(ref, "/")
}

// byReference returns the containers by what refers to them: their IDs, and their names. An ID counts before a name, which may look like one.
func byReference(all []dockerroot.Container) map[string]*dockerroot.Container {
	by := map[string]*dockerroot.Container{}
	for i := range all {
		by[all[i].Name] = &all[i]
	}
	for i := range all {
		by[string(all[i].ID)] = &all[i]
	}
	return by
}

// usedFirst sorts containers so that each comes after those that it uses, as far as they do not use each other.
func (r *run) usedFirst(all []dockerroot.Container) (out []*dockerroot.Container) {
	// A chain of containers may be long, so this is no recursion.
	seen, done := map[*dockerroot.Container]bool{}, map[*dockerroot.Container]bool{}
	for i := range all {
		stack := []*dockerroot.Container{&all[i]}
		for len(stack) > 0 {
			c := stack[len(stack)-1]
			first := !seen[c]
			seen[c] = true
			if first {
				for _, ref := range uses(c) {
					if u := r.there[ref]; u != nil && !seen[u] {
						stack = append(stack, u)
					}
				}
				continue
			}
			stack = stack[:len(stack)-1]
			if !done[c] { // it may be on the stack twice
				done[c] = true
				out = append(out, c)
			}
		}
	}
	return out
}

func (r *run) importContainer(ctx context.Context, c *dockerroot.Container) error {
	o := Object{Kind: dockerroot.KindContainer, Name: c.Name, ID: string(c.ID)}
	if o.Name == "" {
		o.Name = c.ID.Short()
	}
	if have, err := r.to.Containers.Get(ctx, string(c.ID), false); err == nil && have.ID == c.ID {
		o.State, o.As = Present, have.Name
		r.containers[c.ID] = have.Name
		r.report(o)
		return nil
	}
	as, _, err := r.place(o.Kind, c.Name, func(name string) (placed, error) {
		_, err := r.to.Containers.Get(ctx, name, false)
		switch {
		case errors.Is(err, errs.NotFound):
			return absent, nil
		case err != nil:
			return other, err
		}
		return other, nil
	})
	if err == nil {
		o.As = as
		o.Note, err = r.adoptContainer(ctx, c, as)
	}
	if err == nil {
		r.containers[c.ID] = as
	}
	return r.done(ctx, o, err)
}

// adoptContainer makes a container, or only checks that it could be made. The note says what is different.
func (r *run) adoptContainer(ctx context.Context, c *dockerroot.Container, as string) (note string, err error) {
	if !r.images[c.Image] {
		return "", errs.New(errs.NotFound, "its image %s (%s) did not come over", c.ImageName, c.Image.Short())
	}
	for _, ref := range uses(c) { // one that docker, too, does not have matters at the start
		if u := r.there[ref]; u != nil && r.containers[u.ID] == "" {
			return "", errs.New(errs.NotFound, "container %s, which it uses, did not come over", ref)
		}
	}
	sp, err := r.specOf(c)
	if err != nil {
		return "", err
	}
	sp.Name = as
	adopt := container.AdoptOptions{ID: c.ID, Image: c.Image, Created: c.Created, Stopped: c.Stopped, Spec: sp, State: container.State{
		Status: container.StatusExited, ExitCode: c.State.ExitCode, Error: c.State.Error, OOMKilled: c.State.OOMKilled, Started: c.State.StartedAt.UTC(),
		Finished: c.State.FinishedAt.UTC(), Restarts: c.RestartCount,
	}}
	switch s := &c.State; {
	case s.Running || s.Paused || s.Restarting:
		adopt.State.ExitCode, adopt.State.Finished = lostExit, time.Now().UTC()
		note = "it ran when docker ended: its exit code is 255"
	case s.StartedAt.IsZero():
		adopt.State.Status = container.StatusCreated
	}
	for _, n := range slices.Sorted(maps.Keys(c.Networks)) {
		name, ok := r.networks[n]
		if !ok {
			return "", errs.New(errs.NotFound, "its network %s did not come over", n)
		}
		adopt.Networks = append(adopt.Networks, name)
	}
	if adopt.Mounts, err = r.mountsOf(c); err != nil {
		return "", err
	}
	if r.o.DryRun {
		return note, nil
	}
	upper, err := r.root.Upper(c)
	if err != nil {
		return "", err
	}
	defer upper.Close()
	adopt.Fill = func(ctx context.Context, root *os.File) error { return volume.ApplyUpper(ctx, root, upper) }
	if adopt.Files, err = r.filesOf(c); err != nil {
		return "", err
	}
	defer closing(adopt.Files)
	r.progress(dockerroot.KindContainer, as, 0, 0)
	return note, r.to.Adopter.Adopt(ctx, adopt)
}

// lostExit is the exit code of a container of whose end nothing is known.
const lostExit = 255

// specOf translates the options of a container. Names of networks, volumes and containers become those here.
func (r *run) specOf(c *dockerroot.Container) (spec.Spec, error) {
	cfg, host := c.Config, c.HostConfig
	cfg.OnBuild = nil // of images
	// What docker records of a container that joins the namespaces of others is not what a user asked for, and cannot be asked for.
	joins := strings.HasPrefix(host.NetworkMode, containerMode)
	if joins || host.UTSMode == "host" {
		cfg.Hostname, cfg.Domainname = "", ""
	}
	if joins {
		cfg.ExposedPorts, cfg.MacAddress = nil, ""
	}
	if cfg.Image == "" {
		cfg.Image = string(c.Image)
	}
	if ref, ok := strings.CutPrefix(host.NetworkMode, containerMode); ok {
		host.NetworkMode = containerMode + r.containerHere(ref)
	} else if name, ok := r.networks[host.NetworkMode]; ok {
		host.NetworkMode = name
	} else if host.NetworkMode != "" && host.NetworkMode != "default" {
		return spec.Spec{}, errs.New(errs.NotFound, "its network %s did not come over", host.NetworkMode)
	}
	for _, mode := range []*string{&host.PidMode, &host.IpcMode} {
		if ref, ok := strings.CutPrefix(*mode, containerMode); ok {
			*mode = containerMode + r.containerHere(ref)
		}
	}
	host.Links = slices.Clone(host.Links)
	for i, l := range host.Links {
		_, alias, found := strings.Cut(l, ":")
		if target := r.containerHere(linkTarget(l)); found {
			host.Links[i] = target + ":" + alias
		}
	}
	host.Binds = slices.Clone(host.Binds)
	for i, b := range host.Binds {
		if name, rest, ok := strings.Cut(b, ":"); ok && r.volumeNames[name] != "" {
			host.Binds[i] = r.volumeNames[name] + ":" + rest
		}
	}
	host.Mounts = slices.Clone(host.Mounts)
	for i := range host.Mounts {
		if m := &host.Mounts[i]; m.Type == "volume" && r.volumeNames[m.Source] != "" {
			m.Source = r.volumeNames[m.Source]
		}
	}
	for i, from := range host.VolumesFrom {
		ref, mode, found := strings.Cut(from, ":")
		if here := r.containerHere(ref); here != ref {
			host.VolumesFrom = slices.Clone(host.VolumesFrom)
			if host.VolumesFrom[i] = here; found {
				host.VolumesFrom[i] += ":" + mode
			}
		}
	}
	networking := &wire.NetworkingConfig{EndpointsConfig: map[string]*wire.EndpointSettings{}}
	for name, e := range c.Networks {
		if here, ok := r.networks[name]; ok && e != nil {
			networking.EndpointsConfig[here] = asked(e, name, c)
		}
	}
	sp, err := r.o.Spec(&wire.CreateBody{Config: &cfg, HostConfig: &host, NetworkingConfig: networking})
	if err == nil {
		_, err = sp.Check()
	}
	return sp, err
}

// containerHere returns the name here of a container.
func (r *run) containerHere(ref string) string {
	if u := r.there[ref]; u != nil && r.containers[u.ID] != "" {
		return r.containers[u.ID]
	}
	return ref
}

// asked returns what a user asked of an endpoint, without what docker chose.
func asked(e *dockerroot.Endpoint, name string, c *dockerroot.Container) *wire.EndpointSettings {
	out := &wire.EndpointSettings{Links: e.Links, DriverOpts: e.DriverOpts, MacAddress: e.DesiredMacAddress, GwPriority: e.GwPriority}
	if e.IPAMConfig != nil && (e.IPAMConfig.IPv4Address != "" || e.IPAMConfig.IPv6Address != "" || len(e.IPAMConfig.LinkLocalIPs) > 0) {
		out.IPAMConfig = e.IPAMConfig
	}
	if name != "bridge" && name != "host" && name != "none" {
		for _, a := range e.Aliases {
			if a != c.ID.Short() { // docker adds it
				out.Aliases = append(out.Aliases, a)
			}
		}
	}
	return out
}

// mountsOf returns the mounts of a container.
func (r *run) mountsOf(c *dockerroot.Container) (all []container.AdoptedMount, err error) {
	for _, m := range c.Mounts {
		a := container.AdoptedMount{MountSpec: volume.MountSpec{Type: m.Type, Source: m.Source, Target: m.Destination, ReadOnly: !m.RW}, Mode: m.Mode}
		if a.Type == "" { // records of old releases
			if a.Type = "bind"; m.Name != "" {
				a.Type = "volume"
			}
		}
		switch a.Type {
		case "bind":
			a.Propagation, a.CreateSource = m.Propagation, !m.SkipMissing
			a.NonRecursive = m.Spec.BindOptions != nil && m.Spec.BindOptions.NonRecursive
		case "volume":
			v, ok := r.volumes[m.Name]
			if !ok {
				return nil, errs.New(errs.NotFound, "its volume %s did not come over", m.Name)
			}
			a.Source, a.Anonymous = r.volumeNames[m.Name], v.Anonymous && m.Spec.Source == ""
			if m.Spec.VolumeOptions != nil {
				a.Subpath = m.Spec.VolumeOptions.Subpath
			}
		case "tmpfs":
			a.Source = ""
			if t := m.Spec.TmpfsOptions; t != nil {
				a.TmpfsSize, a.TmpfsMode = t.SizeBytes, t.Mode
			}
		case "image":
			a.Source = m.Spec.Source
		default:
			return nil, errs.New(errs.Unimplemented, "its mount at %s is of the type %s", m.Destination, m.Type)
		}
		all = append(all, a)
	}
	return all, nil
}

// filesOf opens the files of a container outside of its layers. The caller closes them.
func (r *run) filesOf(c *dockerroot.Container) (files map[string]*os.File, err error) {
	files = map[string]*os.File{}
	defer func() {
		if err != nil {
			closing(files)
		}
	}()
	for _, name := range []string{"hostname", "hosts", "resolv.conf"} {
		f, err := r.root.File(c, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[name] = f
	}
	logs, err := r.root.Log(c)
	if err != nil {
		return nil, err
	}
	for _, name := range logs {
		if files["log"+name], err = r.root.LogFile(c, name); err != nil {
			delete(files, "log"+name)
			return nil, err
		}
	}
	return files, nil
}
