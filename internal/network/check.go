package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
	ids := map[oci.ContainerID]bool{}
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && oci.IsHex64(id) {
			ids[oci.ContainerID(id)] = true
		}
	}
	if x.Service == nil {
		for _, id := range slices.Sorted(maps.Keys(ids)) {
			x.file(r, id)
		}
		r.Checked("endpoint", len(ids))
		return nil
	}
	x.Service.mu.Lock()
	for id := range x.Service.connected {
		ids[id] = true
	}
	x.Service.mu.Unlock()
	r.Checked("endpoint", len(ids))
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if err := x.Hold(ctx, id, func() { x.endpoint(r, id) }); err != nil {
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
				if m := x.Service.networks[name]; m != nil && m.ID != rec.ID {
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
		for name := range x.Service.networks {
			if !bucket.Has(name) {
				all = append(all, bad{name, errors.New("the record is missing")})
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
	m := x.Service.networks[name]
	if m == nil {
		return "", errors.New("the engine has no such network")
	}
	return "written again from the memory of the engine", x.Meta.Update(func(tx *meta.Tx) error {
		return meta.As[networkRecord](tx.Networks).Put(name, m.networkRecord)
	})
}

// file examines the file of a container's endpoint.
func (x Checker) file(r *check.Run, id oci.ContainerID) {
	name := filepath.Join(x.StateDir, fileName(id))
	var c Connection
	err := record.ReadFile(durable.OS, name, maxConnection, connectionVersion, &c)
	if err == nil && c.Container != id {
		err = fmt.Errorf("is that of container %.12s", c.Container)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.Report(check.Finding{Kind: "endpoint", Object: string(id), Problem: err.Error(), Heal: "ply restart " + id.Short() + ", if the container runs"})
	}
}

// endpoint compares what is kept of a container's endpoint with its file and with the host. Nothing attaches or detaches it.
func (x Checker) endpoint(r *check.Run, id oci.ContainerID) {
	s := x.Service
	s.mu.Lock()
	c, connected := s.connected[id]
	s.mu.Unlock()
	name := filepath.Join(x.StateDir, fileName(id))
	var stored Connection
	err := record.ReadFile(durable.OS, name, maxConnection, connectionVersion, &stored)
	restart := "ply restart " + id.Short()
	switch {
	case !connected && errors.Is(err, fs.ErrNotExist):
		return // detached meanwhile
	case !connected:
		r.Mend(check.Finding{Kind: "endpoint", Object: string(id), Problem: "its file " + name + " is there, and the container is not connected"}, func() (string, error) {
			return "the file was removed", os.Remove(name)
		})
		return
	case err == nil && !same(stored, c):
		err = errors.New("it says something else than the engine has in memory")
	}
	if err != nil {
		r.Mend(check.Finding{Kind: "endpoint", Object: string(id), Problem: "its file: " + err.Error()}, func() (string, error) {
			return "the file was written again", s.save(c)
		})
	}
	if !namespace.Exists(c.Netns) {
		r.Report(check.Finding{Kind: "endpoint", Object: string(id), Problem: "its network namespace is gone", Heal: restart})
	}
	if c.Endpoint.HostIf != "" {
		if _, err := net.InterfaceByName(c.Endpoint.HostIf); err != nil {
			r.Report(check.Finding{Kind: "endpoint", Object: string(id), Problem: "its interface " + c.Endpoint.HostIf + " is gone", Heal: restart})
		}
	}
}

// same reports whether two connections are stored as the same bytes.
func same(a, b Connection) bool {
	x, xerr := record.Marshal(connectionVersion, a)
	y, yerr := record.Marshal(connectionVersion, b)
	return xerr == nil && yerr == nil && bytes.Equal(x, y)
}
