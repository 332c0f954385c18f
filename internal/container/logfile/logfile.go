// Package logfile keeps what a container prints: docker's json-file format and its local format, with
// rotation, and reading them back whole, from the tail, and while they grow.
//
// Invariants: one writer (the container's shim) and any number of readers in other processes, with no lock between
// them; a record is appended by one write, so a reader sees it whole or not yet; a writer that cannot write
// drops the record and never blocks the container; a torn record that a crash left is cut off by the next writer
// and skipped by readers. Times within one writer's life strictly increase.
package logfile

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/docker/go-units"

	"ply/internal/container/shim"
	"ply/internal/errs"
)

// The drivers.
const (
	JSONFile = "json-file"
	Local    = "local"
	None     = "none"
)

// maxPiece is the most bytes of a line in one record, as docker's; longer lines are split.
const maxPiece = 16 << 10

// maxRecord bounds a record on reading: a piece whose every byte was escaped, with room.
const maxRecord = 1 << 20

// Message is one record.
type Message struct {
	Time   time.Time
	Stream byte // shim.Stdout or shim.Stderr
	// Line holds the bytes as printed, with their newline. One without a newline is the beginning of a line
	// that goes on in the next record of its stream, or the unfinished end of the output.
	Line []byte
}

// ParseOptions checks a log driver's name and options as a user gives them and resolves docker's defaults: json-file
// keeps everything in one file, local keeps five files of 20 MB, rotated ones compressed. Path is left empty.
// An option that ply does not have is an error that names it.
func ParseOptions(driver string, opts map[string]string) (shim.Log, error) {
	l := shim.Log{Driver: driver, MaxFiles: 1}
	switch driver {
	case "":
		l.Driver = JSONFile
	case JSONFile:
	case Local:
		l.MaxSize, l.MaxFiles, l.Compress = 20_000_000, 5, true
	case None:
		for _, k := range slices.Sorted(maps.Keys(opts)) {
			return l, errs.New(errs.Invalid, "unknown log opt '%s' for none log driver", k)
		}
		return l, nil
	default:
		return l, errs.New(errs.Invalid, "logger: no log driver named '%s' is registered", driver)
	}
	var err error
	for _, k := range slices.Sorted(maps.Keys(opts)) {
		v := opts[k]
		switch k {
		case "max-size":
			if l.MaxSize, err = units.RAMInBytes(v); err != nil && v != "-1" || l.MaxSize == 0 {
				return l, errs.New(errs.Invalid, "log opt max-size: invalid size %q", v)
			}
			l.MaxSize = max(l.MaxSize, 0)
		case "max-file":
			if l.MaxFiles, err = strconv.Atoi(v); err != nil || l.MaxFiles < 1 || l.MaxFiles > maxRotated {
				return l, errs.New(errs.Invalid, "log opt max-file: %q is not a number from 1 to %d", v, maxRotated)
			}
		case "compress":
			if l.Compress, err = strconv.ParseBool(v); err != nil {
				return l, errs.New(errs.Invalid, "log opt compress: invalid value %q", v)
			}
		case "mode":
			if v != "blocking" && v != "" {
				return l, errs.New(errs.Unimplemented, "log opt mode: %q is not supported, only \"blocking\"", v)
			}
		default:
			return l, errs.New(errs.Invalid, "unknown log opt '%s' for %s log driver", k, l.Driver)
		}
	}
	if l.MaxSize == 0 && l.MaxFiles > 1 && opts["max-size"] == "" {
		return l, errs.New(errs.Invalid, "max-file cannot be used without max-size")
	}
	if l.Driver == JSONFile && l.Compress && l.MaxFiles < 2 {
		return l, errs.New(errs.Invalid, "compress cannot be true when max-file is less than 2 or unset")
	}
	return l, nil
}

// maxRotated bounds the number of files of one log.
const maxRotated = 1000

func streamName(s byte) string {
	if s == shim.Stderr {
		return "stderr"
	}
	return "stdout"
}

func streamOf(name string) byte {
	if name == "stderr" {
		return shim.Stderr
	}
	return shim.Stdout
}
