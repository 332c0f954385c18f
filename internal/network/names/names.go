// Package names keeps on disk which names the containers of the networks have, so that the resolvers of containers answer
// while the engine is away.
//
// The tables are directories: a name is a directory with one empty file per address, and an address is a link to a name. So an addition or
// removal costs the same in every network, and readers need neither a copy nor a notice. The files are true until the next boot and are not
// synced.
//
//	networks/ID/names/NAME/ADDRESS
//	networks/ID/addresses/ADDRESS    → the container's first name
//	containers/ID/networks/NN-NAME   → ID of the network, in the order of look-ups
//	containers/ID/links/ALIAS        → NETWORK/NAME
package names

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ply/internal/durable"
	"ply/internal/errs"
)

// maxName is the longest name in bytes, as in the DNS.
const maxName = 253

// Check refuses what cannot be a name. The error's class is errs.Invalid.
func Check(name string) error {
	bad := name == "" || len(name) > maxName || name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f })
	if bad {
		if len(name) > 64 {
			name = name[:64] + "…"
		}
		return errs.New(errs.Invalid, "invalid network alias %q", name)
	}
	return nil
}

// key returns the form of a name in which it is compared.
func key(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// Tables are the tables of one engine. Safe for concurrent use; the caller serialises the changes of one container.
type Tables struct{ root string }

// New returns the tables in a directory, which need not exist.
func New(dir string) Tables { return Tables{dir} }

// Dir returns the directory.
func (t Tables) Dir() string { return t.root }

// Entry is a container in a network.
type Entry struct {
	Names []string // each was checked; the first one answers look-ups of an address
	Addrs []netip.Addr
}

func (t Tables) network(id string) string   { return filepath.Join(t.root, "networks", id) }
func (t Tables) container(id string) string { return filepath.Join(t.root, "containers", id) }

// Add enters a container in a network. What is there already is no error.
func (t Tables) Add(network string, e Entry) error {
	dir := t.network(network)
	for _, name := range e.Names {
		at := filepath.Join(dir, "names", key(name))
		if err := os.MkdirAll(at, 0o700); err != nil {
			return err
		}
		for _, a := range e.Addrs {
			if err := os.WriteFile(filepath.Join(at, a.String()), nil, 0o600); err != nil {
				return err
			}
		}
	}
	if len(e.Names) == 0 {
		return nil
	}
	at := filepath.Join(dir, "addresses")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	for _, a := range e.Addrs {
		if err := replaceLink(e.Names[0], filepath.Join(at, a.String())); err != nil {
			return err
		}
	}
	return nil
}

// Remove undoes Add.
func (t Tables) Remove(network string, e Entry) error {
	dir := t.network(network)
	var all error
	for _, name := range e.Names {
		at := filepath.Join(dir, "names", key(name))
		for _, a := range e.Addrs {
			all = errors.Join(all, remove(filepath.Join(at, a.String())))
		}
		_ = os.Remove(at) // other containers have the name too
	}
	for _, a := range e.Addrs {
		all = errors.Join(all, remove(filepath.Join(dir, "addresses", a.String())))
	}
	return all
}

// Drop removes a network.
func (t Tables) Drop(network string) error { return os.RemoveAll(t.network(network)) }

// Membership is a network in which a container looks names up.
type Membership struct {
	Network, ID string            // name and ID
	Links       map[string]string // names of the container's own, by alias
}

// SetMemberships says where a container looks names up, in this order.
func (t Tables) SetMemberships(container string, list []Membership) error {
	dir := t.container(container)
	fresh := durable.TempName(filepath.Join(t.root, "containers"))
	if err := errors.Join(os.MkdirAll(filepath.Join(fresh, "networks"), 0o700), os.MkdirAll(filepath.Join(fresh, "links"), 0o700)); err != nil {
		return err
	}
	for i, m := range list {
		if err := os.Symlink(m.ID, filepath.Join(fresh, "networks", fmt.Sprintf("%02d-%s", i, m.Network))); err != nil {
			return errors.Join(err, os.RemoveAll(fresh))
		}
		for alias, target := range m.Links {
			if err := replaceLink(m.ID+"/"+key(target), filepath.Join(fresh, "links", key(alias))); err != nil {
				return errors.Join(err, os.RemoveAll(fresh))
			}
		}
	}
	return errors.Join(os.RemoveAll(dir), os.Rename(fresh, dir))
}

// Forget removes what SetMemberships wrote.
func (t Tables) Forget(container string) error { return os.RemoveAll(t.container(container)) }

// Restore makes the tables of the networks say who is in them, by the networks' IDs, and nothing else: the engine that wrote them may have been killed in between,
// or the host with its containers. Entries that are right stay as they are, so that containers find each other meanwhile.
func (t Tables) Restore(networks map[string][]Entry) error {
	list, err := os.ReadDir(filepath.Join(t.root, "networks"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var all error
	for _, e := range list {
		if len(networks[e.Name()]) == 0 {
			all = errors.Join(all, t.Drop(e.Name()))
		}
	}
	for id, entries := range networks {
		all = errors.Join(all, t.restore(id, entries))
	}
	return all
}

// restore is Restore for one network.
func (t Tables) restore(network string, entries []Entry) error {
	want := map[string]bool{}
	for _, e := range entries {
		for _, a := range e.Addrs {
			for _, name := range e.Names {
				want[filepath.Join("names", key(name), a.String())] = true
			}
			want[filepath.Join("addresses", a.String())] = true
		}
	}
	have := map[string]bool{}
	var all error
	dir := t.network(network)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at, err := filepath.Rel(dir, path)
		switch {
		case err != nil || e.IsDir():
		case want[at]:
			have[at] = true
		default:
			all = errors.Join(all, remove(path))
			_ = os.Remove(filepath.Dir(path)) // other containers have the name too
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(all, err)
	}
	for _, e := range entries {
		missing := len(e.Names) > 0 && len(e.Addrs) > 0 && !have[filepath.Join("addresses", e.Addrs[0].String())]
		for _, a := range e.Addrs {
			for _, name := range e.Names {
				missing = missing || !have[filepath.Join("names", key(name), a.String())]
			}
		}
		if missing {
			all = errors.Join(all, t.Add(network, e))
		}
	}
	return all
}

// Memberships returns the networks in which a container looks names up, without its links.
func (t Tables) Memberships(container string) []Membership {
	var out []Membership
	for _, m := range t.View(container).networks() {
		out = append(out, Membership{Network: m.name, ID: m.id})
	}
	return out
}

// Prune removes the containers that keep does not want.
func (t Tables) Prune(keep func(container string) bool) error {
	list, err := os.ReadDir(filepath.Join(t.root, "containers"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var all error
	for _, e := range list {
		if !keep(e.Name()) {
			all = errors.Join(all, t.Forget(e.Name()))
		}
	}
	return all
}

// View is the names as one container sees them.
type View struct {
	tables    Tables
	container string
}

// View returns the view of a container.
func (t Tables) View(container string) View { return View{t, container} }

// Lookup returns the addresses of a name, sorted; known is false when no network of the container has the name.
func (v View) Lookup(name string) (addrs []netip.Addr, known bool) {
	name = key(name)
	if Check(name) != nil {
		return nil, false
	}
	if to, err := os.Readlink(filepath.Join(v.tables.container(v.container), "links", name)); err == nil {
		network, target, _ := strings.Cut(to, "/")
		if addrs = v.tables.addresses(network, target); len(addrs) > 0 {
			return addrs, true
		}
	}
	for _, m := range v.networks() {
		if addrs = v.tables.addresses(m.id, name); len(addrs) == 0 {
			if short, ok := strings.CutSuffix(name, "."+strings.ToLower(m.name)); ok {
				addrs = v.tables.addresses(m.id, short)
			}
		}
		if len(addrs) > 0 {
			return addrs, true
		}
	}
	return nil, false
}

// Reverse returns the name of an address with that of its network, such as "web.backend"; "" when there is none.
func (v View) Reverse(a netip.Addr) string {
	for _, m := range v.networks() {
		if name, err := os.Readlink(filepath.Join(v.tables.network(m.id), "addresses", a.String())); err == nil {
			return name + "." + m.name
		}
	}
	return ""
}

type membership struct{ name, id string }

func (v View) networks() []membership {
	dir := filepath.Join(v.tables.container(v.container), "networks")
	list, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil
	}
	var out []membership
	for _, e := range list {
		_, name, _ := strings.Cut(e.Name(), "-")
		if id, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			out = append(out, membership{name, id})
		}
	}
	return out
}

func (t Tables) addresses(network, name string) []netip.Addr {
	if Check(name) != nil {
		return nil
	}
	list, err := os.ReadDir(filepath.Join(t.network(network), "names", name))
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, e := range list {
		if a, err := netip.ParseAddr(e.Name()); err == nil {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// replaceLink makes a symbolic link at path, in place of what is there.
func replaceLink(target, path string) error {
	if err := remove(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
