package meta

import "go.etcd.io/bbolt"

// maxProblems bounds what Check returns: one damaged page has many effects.
const maxProblems = 20

// Check reads every page of the database and returns what is wrong with their structure. It waits for an Update that is under
// way and keeps others waiting, because pages move while one writes.
func (db *DB) Check() (problems []error) {
	tx, err := db.bolt.Begin(true)
	if err != nil {
		return []error{err}
	}
	for err := range tx.Check(bbolt.WithKVStringer(bbolt.HexKVStringer())) {
		if len(problems) < maxProblems {
			problems = append(problems, err)
		}
	}
	if err := tx.Rollback(); err != nil {
		problems = append(problems, err)
	}
	return problems
}
