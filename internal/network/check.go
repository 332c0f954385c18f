package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"ply/internal/durable"
	"ply/internal/network/namespace"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/store/check"
	"ply/internal/store/meta"
)

// Checker examines the records of the networks and what is kept of the connected containers.
type Checker struct {
	// Service is the running service; nil when no engine serves, and only what is on disk is examined.
	Service *Service
	// Hold calls a function while nothing attaches or detaches a container. It is needed with Service.
	Hold func(ctx context.Context, id oci.ContainerID, do func()) error

	Meta     *meta.DB
	StateDir string
}

// Check implements check.Checker.
func (x Checker) Check(ctx context.Context, r *check.Run) error {
	if err := x.records(r); err != nil {
		return err
	}
	entries, err := os.ReadDir(x.StateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	files := map[oci.ContainerID][]string{}
	count := 0
	for _, e := range entries {
		if id, ok := fileOf(e.Name()); ok {
			files[id] = append(files[id], e.Name())
			count++
		}
	}
	if x.Service == nil {
		for _, id := range slices.Sorted(maps.Keys(files)) {
			for _, name := range files[id] {
				x.file(r, id, name)
			}
		}
		r.Checked("endpoint", count)
		return nil
	}
	x.Service.mu.Lock()
	for id, list := range x.Service.connected {
		if files[id] == nil && len(list) > 0 {
			files[id] = []string{}
		}
	}
	x.Service.mu.Unlock()
	r.Checked("endpoint", count)
	for _, id := range slices.Sorted(maps.Keys(files)) {
		if err := x.Hold(ctx, id, func() { x.endpoints(r, id) }); err != nil {
			return err
		}
	}
	return nil
}

// records compares the records of the networks with those in memory.
func (x Checker) records(r *check.Run) error {
	type bad struct {
		name string
		err  error
	}
	var all []bad
	err := x.Meta.View(func(tx *meta.Tx) error {
		bucket := meta.As[networkRecord](tx.Networks)
		r.Checked("network", bucket.Len())
		for name := range bucket.Keys() {
			rec, err := bucket.Get(name)
			if err == nil && x.Service != nil {
				if m := x.Service.named(name); m != nil && m.ID != rec.ID {
					err = fmt.Errorf("names the ID %.12s, the engine has %.12s", rec.ID, m.ID)
				}
			}
			if err != nil {
				all = append(all, bad{name, err})
			}
		}
		if x.Service == nil {
			return nil // plyd writes the records that are missing when it starts
		}
		for _, m := range x.Service.all() {
			if !bucket.Has(m.name) && x.Service.named(m.name) == m && !m.pending.Load() {
				all = append(all, bad{m.name, errors.New("the record is missing")})
			}
		}
		return nil
	})
	for _, b := range all {
		r.Mend(check.Finding{Kind: "network record", Object: b.name, Problem: b.err.Error()}, func() (string, error) {
			return x.mendRecord(b.name)
		})
	}
	return err
}

func (x Checker) mendRecord(name string) (string, error) {
	if x.Service == nil {
		return "deleted: plyd writes it again when it starts", x.Meta.Update(func(tx *meta.Tx) error { return tx.Networks.Delete(name) })
	}
	m := x.Service.named(name)
	if m == nil {
		return "", errors.New("the engine has no such network")
	}
	return "written again from the memory of the engine", x.Meta.Update(func(tx *meta.Tx) error {
		return meta.As[networkRecord](tx.Networks).Put(name, m.networkRecord)
	})
}

// named returns the network of a name; nil when there is none.
func (s *Service) named(name string) *managed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.networks[name]
}

// file examines the file of a container's endpoint.
func (x Checker) file(r *check.Run, id oci.ContainerID, file string) {
	name := filepath.Join(x.StateDir, file)
	var c Connection
	err := record.ReadFile(durable.OS, name, maxConnection, connectionVersion, &c)
	if err == nil && c.Container != id {
		err = fmt.Errorf("is that of container %.12s", c.Container)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.Report(check.Finding{Kind: "endpoint", Object: string(id), Problem: err.Error(), Heal: "ply restart " + id.Short() + ", if the container runs"})
	}
}

// endpoints compares what is kept of a container's endpoints with their files and with the host. Nothing attaches or detaches it.
func (x Checker) endpoints(r *check.Run, id oci.ContainerID) {
	s := x.Service
	s.mu.Lock()
	list := slices.Clone(s.connected[id])
	s.mu.Unlock()
	known := map[string]bool{}
	for _, c := range list {
		x.endpoint(r, c, known)
	}
	left, err := filepath.Glob(filepath.Join(x.StateDir, string(id)+"*.json"))
	if err != nil {
		return // the pattern is valid
	}
	for _, name := range left {
		if known[name] {
			continue
		}
		r.Mend(check.Finding{Kind: "endpoint", Object: string(id), Problem: "its file " + name + " is there, and the container is not connected"}, func() (string, error) {
			return "the file was removed", os.Remove(name)
		})
	}
}

// endpoint examines one endpoint and enters its files in known.
func (x Checker) endpoint(r *check.Run, c Connection, known map[string]bool) {
	s, id := x.Service, c.Container
	name := filepath.Join(x.StateDir, fileName(c))
	if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		if old := filepath.Join(x.StateDir, oldFileName(c)); exists(old) {
			name = old
		}
	}
	known[name] = true
	var stored Connection
	err := record.ReadFile(durable.OS, name, maxConnection, connectionVersion, &stored)
	restart := "ply restart " + id.Short()
	if err == nil && !same(stored, c) {
		err = errors.New("it says something else than the engine has in memory")
	}
	if err != nil {
		r.Mend(check.Finding{Kind: "endpoint", Object: string(id), Problem: "its file: " + err.Error()}, func() (string, error) {
			return "the file was written again", s.files.save(c)
		})
	}
	if !namespace.Exists(c.Netns) {
		r.Report(check.Finding{Kind: "endpoint", Object: string(id), Problem: "its network namespace is gone", Heal: restart})
	}
	if c.Endpoint.HostIf != "" {
		if there, err := namespace.HasLink(c.Endpoint.HostIf); err != nil {
			r.Report(check.Finding{Kind: "endpoint", Object: string(id), Problem: err.Error(), Heal: restart})
		} else if !there {
			r.Report(check.Finding{Kind: "endpoint", Object: string(id), Problem: "its interface " + c.Endpoint.HostIf + " is gone", Heal: restart})
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// same reports whether two connections are stored as the same bytes.
func same(a, b Connection) bool {
	x, xerr := record.Marshal(connectionVersion, a)
	y, yerr := record.Marshal(connectionVersion, b)
	return xerr == nil && yerr == nil && bytes.Equal(x, y)
}
