package container

import (
	"ply/internal/container/logfile"
	"ply/internal/container/shim"
)

// A json-file log is rotated unless a user says otherwise: an engine must not fill a disk with what its
// containers say.
const (
	defaultLogSize  = 20_000_000
	defaultLogFiles = 5
)

// logConfig takes a log driver and its options; the path is left empty. Errors name the option.
func logConfig(driver string, opts map[string]string) (shim.Log, error) {
	l, err := logfile.ParseOptions(driver, opts)
	if err != nil {
		return l, err
	}
	_, sized := opts["max-size"]
	_, counted := opts["max-file"]
	if l.Driver == logfile.JSONFile && !sized {
		l.MaxSize = defaultLogSize
		if !counted {
			l.MaxFiles = defaultLogFiles
		}
	}
	return l, nil
}
