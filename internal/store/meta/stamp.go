package meta

import "sync"

// Stamp returns a number that is another one whenever a record of these kinds, which are names of buckets, was written or deleted in the meantime: as long as it
// is the same, what was made of the records in an earlier View is what would be made of them now. It is of use until the database is closed. ok is false when
// the number is not known: in an Update, and in a View that began before an update which is known already.
func (tx *Tx) Stamp(kinds ...string) (stamp uint64, ok bool) {
	if tx.log != nil {
		return 0, false
	}
	g, err := generation(tx.tx)
	if err != nil {
		return 0, false
	}
	stamp = tx.db.stamps.last(kinds)
	return stamp, stamp <= g.Commits
}

// stamps has the number of the last update that changed a kind of record, for the kinds that were changed since the database was opened.
type stamps struct {
	mu      sync.Mutex
	changed map[string]uint64
}

// change notes the changes of an update. It is called before they can be seen: a View that does not see them then has no stamp, but none has the stamp of
// before and sees them. It does not matter when the update fails after all.
func (s *stamps) change(log []Change, commits uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = map[string]uint64{}
	}
	for _, c := range log {
		s.changed[c.Bucket] = commits
	}
}

// last returns the number of the last update that changed one of the kinds.
func (s *stamps) last(kinds []string) (commits uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range kinds {
		commits = max(commits, s.changed[k])
	}
	return commits
}
