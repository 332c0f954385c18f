package meta

import "ply/internal/boltfile"

// Check reads every page of the database and returns what is wrong with their structure. Updates
// wait until it is done, because pages move while one writes.
func (db *DB) Check() (problems []error) {
	db.later.wait()
	db.writing.Lock()
	defer db.writing.Unlock()
	fi, err := db.file.Stat()
	if err == nil {
		err = boltfile.Check(db.file, fi.Size())
	}
	if err != nil {
		problems = append(problems, err)
	}
	return problems
}
