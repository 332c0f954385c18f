package container

import (
	"strings"
	"sync"

	"ply/internal/container/names"
	"ply/internal/errs"
	"ply/internal/oci"
)

// index finds containers by ID and name. Safe for concurrent use; its lock is a leaf (see Service).
type index struct {
	mu     sync.RWMutex
	byID   map[oci.ContainerID]*ctr
	byName map[string]oci.ContainerID // also names of containers that are being created

	lost     map[oci.ContainerID]*lost // containers with a damaged record; not in byID
	removing map[oci.ContainerID]bool  // those of lost that are being removed
}

func newIndex() *index {
	return &index{
		byID: map[oci.ContainerID]*ctr{}, byName: map[string]oci.ContainerID{},
		lost: map[oci.ContainerID]*lost{}, removing: map[oci.ContainerID]bool{},
	}
}

// find resolves an ID, a name or an unambiguous prefix of an ID, in docker's order. The error's class is errs.DataLoss for a
// container whose record is damaged.
func (x *index) find(ref string) (*ctr, error) {
	name := strings.TrimPrefix(ref, "/")
	x.mu.RLock()
	defer x.mu.RUnlock()
	if c := x.byID[oci.ContainerID(ref)]; c != nil {
		return c, nil
	}
	if c := x.byID[x.byName[name]]; c != nil {
		return c, nil
	}
	var found *ctr
	if ref != "" && isHex(ref) {
		for id, c := range x.byID {
			if !strings.HasPrefix(string(id), ref) {
				continue
			}
			if found != nil {
				return nil, errs.New(errs.Invalid, "Multiple IDs found with provided prefix: %s", ref)
			}
			found = c
		}
	}
	if found == nil {
		if l := x.findLost(ref); l != nil {
			return nil, l.refusal()
		}
		return nil, errs.New(errs.NotFound, "No such container: %s", clip(ref))
	}
	return found, nil
}

// get returns the container of that ID, or nil.
func (x *index) get(id oci.ContainerID) *ctr {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.byID[id]
}

// known returns the containers that exist and those that are being created.
func (x *index) known() map[oci.ContainerID]bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make(map[oci.ContainerID]bool, len(x.byID))
	for id := range x.byID {
		out[id] = true
	}
	for _, id := range x.byName {
		if x.lost[id] == nil {
			out[id] = true
		}
	}
	return out
}

func (x *index) all() []*ctr {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]*ctr, 0, len(x.byID))
	for _, c := range x.byID {
		out = append(out, c)
	}
	return out
}

// add makes a container known; name is "" when it was reserved before.
func (x *index) add(c *ctr, name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.byID[c.id] = c
	if name != "" {
		x.byName[name] = c.id
	}
}

// reserve gives a name to a container, and returns it. The name "" makes one up. Errors: Invalid, Conflict.
func (x *index) reserve(id oci.ContainerID, name string) (string, error) {
	if name != "" {
		name = strings.TrimPrefix(name, "/")
		if err := checkName(name); err != nil {
			return "", err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if name == "" {
		for try := 0; ; try++ {
			name = names.New(try)
			if _, taken := x.byName[name]; !taken {
				break
			}
		}
	} else if other, taken := x.byName[name]; taken {
		return "", errs.New(errs.Conflict, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, string(other))
	}
	x.byName[name] = id
	return name, nil
}

// free gives a name back.
func (x *index) free(id oci.ContainerID, name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byName[name] == id {
		delete(x.byName, name)
	}
}

// remove forgets a container and its name.
func (x *index) remove(id oci.ContainerID, name string) {
	x.free(id, name)
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.byID, id)
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) <= 64
}
