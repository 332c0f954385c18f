package network

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
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
const connectionVersion = 1

// networkRecord is a network in the database; its key is the network's name.
type networkRecord struct {
	ID      string    `json:"id"`
	Driver  string    `json:"driver"`
	Created time.Time `json:"created"`
}

// loadNetworks reads the records of the default networks and writes those that are missing or damaged: only their IDs
// are lost. It notes the other damaged records, which are of no network that could be used.
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
			s.networks[n.name] = m
		}
		for name, r := range bucket.All() {
			if r.Err != nil {
				s.damaged[name] = errs.New(errs.DataLoss, "%w", r.Err).WithHint("Remove it with network rm: the default networks do not need it.")
			}
		}
		return nil
	})
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
		path := filepath.Join(dir, e.Name())
		var c Connection
		err := record.ReadFile(durable.OS, path, maxConnection, connectionVersion, &c)
		if errors.Is(err, errs.Precondition) {
			return nil, err
		}
		if err != nil || e.Name() != fileName(c.Container) || !namespace.Exists(c.Netns) {
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

func fileName(id oci.ContainerID) string { return string(id) + ".json" }

// save writes the connection's file. It is not synced: what it says is true until the next boot only.
func (s *Service) save(c Connection) error {
	b, err := record.Marshal(connectionVersion, c)
	if err != nil {
		return err
	}
	tmp := durable.TempName(s.opts.StateDir)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.opts.StateDir, fileName(c.Container)))
}

func randomID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
