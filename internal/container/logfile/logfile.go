// Package logfile stores the output of a container in log files and reads them: whole, from the tail, and while they grow.
// The files have docker's json-file format or docker's local format, with docker's rotation.
//
// Invariants: a log has one writer, the container's shim, and any number of readers in other processes, without a lock
// between them. A record is appended by one write, so a reader sees all of it or nothing. A writer that cannot write drops
// the record and never blocks the container. A part of a record that a crash left is skipped by readers and cut off by the
// next writer. Times that one writer stores strictly increase.
//
// Neither format has a version. Both are docker's, other programs read them, and a shim of one release appends to what a
// shim of another release wrote. So they never change: testdata holds a golden file of each. A new format gets a new driver
// name, which a shim that does not know it refuses (see Create).
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

// Names of the log drivers.
const (
	JSONFile = "json-file"
	Local    = "local"
	None     = "none"
)

// maxPiece bounds the part of a line in one record, in bytes, as docker does. A longer line is split into records.
const maxPiece = 16 << 10

// maxRecord bounds a record that is read, in bytes. It has room for a piece of which every byte is escaped.
const maxRecord = 1 << 20

// Message is the content of one record.
type Message struct {
	Time   time.Time
	Stream byte // shim.Stdout or shim.Stderr
	// Line holds the bytes as they were printed, with the newline. Without a newline it is a part of a line that continues
	// in the next record of the stream, or the unfinished last line of the output.
	Line []byte
	// Attributes are those of a record that was read. A writer has its own for all records.
	Attributes map[string]string
}

// ParseOptions checks the name and the options of a log driver as a user wrote them, and sets docker's defaults: json-file
// keeps everything in one file; local keeps five files of 20 MB, of which the rotated ones are compressed. It leaves Path
// empty. It refuses options that ply does not have.
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
			switch v {
			case "", "blocking":
			case "non-blocking":
				l.Buffer = defaultBuffer
			default:
				return l, errs.New(errs.Invalid, "logger: logging mode not supported: %s", v)
			}
		case "max-buffer-size": // below
		case "cache-disabled", "cache-compress", "cache-max-size", "cache-max-file": // of the copies for drivers that cannot be read
			if err := checkCache(k, v); err != nil {
				return l, err
			}
		case "tag", "labels", "labels-regex", "env", "env-regex":
			if l.Driver != JSONFile {
				return l, errs.New(errs.Invalid, "unknown log opt '%s' for %s log driver", k, l.Driver)
			}
			if err := CheckAttributes(k, v); err != nil {
				return l, err
			}
		default:
			return l, errs.New(errs.Invalid, "unknown log opt '%s' for %s log driver", k, l.Driver)
		}
	}
	if v, ok := opts["max-buffer-size"]; ok {
		if l.Buffer == 0 {
			return l, errs.New(errs.Invalid, "logger: max-buffer-size option is only supported with 'mode=non-blocking'")
		}
		if l.Buffer, err = units.RAMInBytes(v); err != nil || l.Buffer < 1 || l.Buffer > maxBuffer {
			return l, errs.New(errs.Invalid, "log opt max-buffer-size: %q is not a size from 1 byte to %s", v, units.BytesSize(maxBuffer))
		}
	}
	if l.Driver == JSONFile && l.Compress && l.MaxFiles < 2 {
		return l, errs.New(errs.Invalid, "compress cannot be true when max-file is less than 2 or unset")
	}
	return l, nil
}

// The buffer of the mode non-blocking, in bytes.
const (
	defaultBuffer = 1 << 20 // docker's
	maxBuffer     = 1 << 30
)

// checkCache checks an option of the copies that docker keeps of the logs of drivers that cannot be read. The drivers here need none.
func checkCache(k, v string) (err error) {
	switch k {
	case "cache-max-size":
		_, err = units.RAMInBytes(v)
	case "cache-max-file":
		_, err = strconv.Atoi(v)
	default:
		_, err = strconv.ParseBool(v)
	}
	if err != nil {
		return errs.New(errs.Invalid, "log opt %s: invalid value %q", k, v)
	}
	return nil
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
