package network

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/network/namespace"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/store/meta"
)

// connectionVersion is the version of a connection's file (see package record). The version of a network's record is the
// database's.
//
//   - Version 1: one network per container, in a file that has the name of the container only.
//   - Version 2: one file per container and network.
const connectionVersion = 2

// networkRecord is a network in the database; its key is the network's name.
type networkRecord struct {
	ID      string    `json:"id"`
	Driver  string    `json:"driver"`
	Created time.Time `json:"created"`

	// What follows is of networks that users create.
	User       bool              `json:"user,omitempty"`
	NoIPv4     bool              `json:"noIPv4,omitempty"`
	IPv6       bool              `json:"ipv6,omitempty"`
	Pools      []Pool            `json:"pools,omitempty"`
	IPAM       map[string]string `json:"ipam,omitempty"` // options
	Internal   bool              `json:"internal,omitempty"`
	Attachable bool              `json:"attachable,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Options    map[string]string `json:"options,omitempty"`
}

// loadNetworks reads the records. It writes those of the default networks that are missing or damaged: only their IDs
// are lost. It notes the other damaged records, which are of networks that cannot be used.
func (s *Service) loadNetworks() error {
	return s.opts.Meta.Update(func(tx *meta.Tx) error {
		bucket := meta.As[networkRecord](tx.Networks)
		for _, n := range defaultNetworks {
			m := &managed{name: n.name}
			if n.name == "bridge" {
				m.config = s.opts.Default
			}
			var err error
			m.networkRecord, err = bucket.Get(n.name)
			if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.DataLoss) {
				return err
			}
			if errors.Is(err, errs.DataLoss) {
				s.log.Warn("damaged record of a network is made anew, with another ID", "network", n.name, "err", err)
			}
			if err != nil || m.ID == "" {
				m.networkRecord = networkRecord{ID: randomID(), Driver: n.driver, Created: time.Now().UTC()}
				if err := bucket.Put(n.name, m.networkRecord); err != nil {
					return err
				}
			}
			m.config.ID = m.ID
			s.networks[n.name] = m
		}
		for name, r := range bucket.All() {
			if r.Err != nil {
				s.damaged[name] = errs.New(errs.DataLoss, "%w", r.Err).WithHint("Remove it with network rm, and create it again.")
			} else if r.Value.User {
				loadUserNetwork(s, name, r.Value)
			}
		}
		return nil
	})
}

// loadUserNetwork takes over the record of a network that a user created. A network whose driver is not there, or does not take its
// options any more, is listed and cannot be used.
func loadUserNetwork(s *Service, name string, rec networkRecord) {
	m := &managed{name: name, networkRecord: rec}
	if m.config, m.unusable = s.configure(rec); m.unusable != nil {
		s.log.Warn("network cannot be used", "network", name, "err", m.unusable)
	}
	s.networks[name] = m
}

// maxConnection is the longest file of a connection that is read, in bytes.
const maxConnection = 1 << 20

// readConnections returns the connected containers and removes the files of others: those of an earlier boot, and
// damaged ones. It fails, and removes none, when a newer release wrote one of them.
func readConnections(dir string) ([]Connection, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []Connection
	var stale []string
	for _, e := range entries {
		if e.IsDir() {
			continue // the tables of names
		}
		path := filepath.Join(dir, e.Name())
		var c Connection
		err := record.ReadFile(durable.OS, path, maxConnection, connectionVersion, &c)
		if errors.Is(err, errs.Precondition) {
			return nil, err
		}
		if err != nil || e.Name() != fileName(c) && e.Name() != oldFileName(c) || !namespace.Exists(c.Netns) {
			stale = append(stale, path)
			continue
		}
		found = append(found, c)
	}
	for _, path := range stale {
		_ = os.Remove(path) // what cannot be removed is found again by the next start
	}
	return found, nil
}

func fileName(c Connection) string {
	return fmt.Sprintf("%s-%.12s.json", c.Container, c.Endpoint.NetworkID)
}

// oldFileName is the name of version 1, when a container had one network.
func oldFileName(c Connection) string { return string(c.Container) + ".json" }

// fileOf reads the container's ID from the name of a file.
func fileOf(name string) (oci.ContainerID, bool) {
	id, ok := strings.CutSuffix(name, ".json")
	id, _, _ = strings.Cut(id, "-")
	return oci.ContainerID(id), ok && oci.IsHex64(id)
}

// files are the files of the connections, in a directory.
type files string

// remove removes the connection's file.
func (d files) remove(c Connection) error {
	var all error
	for _, name := range []string{fileName(c), oldFileName(c)} {
		if err := os.Remove(filepath.Join(string(d), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, err)
		}
	}
	return all
}

// save writes the connection's file. It is not synced: what it says is true until the next boot only.
func (d files) save(c Connection) error {
	b, err := record.Marshal(connectionVersion, c)
	if err != nil {
		return err
	}
	tmp := durable.TempName(string(d))
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(string(d), fileName(c)))
}

func randomID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
