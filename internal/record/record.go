// Package record encodes and decodes what ply stores as JSON: the records of the database and its files on disk.
//
// Every record is a JSON object that starts with its version and with the release of ply that wrote it:
//
//	{"version":1,"writer":"0.1.0","image":"sha256:…"}
//
// Each kind of record has a version of its own, a number from 1. These rules let a data root survive an upgrade:
//
//   - A record without a version has version 1: builds before the first release wrote none.
//   - A record of a newer version is refused (errs.Precondition), and the error names the release that wrote it.
//   - Fields that the reader does not know are ignored, and they are lost when the reader writes the record again.
//     They are not carried over, because they may describe what the reader has just changed.
//   - So a field that an older build may ignore and lose is added without a new version. Any other change, such as a
//     field with a new meaning, or one that an older build must obey, raises the version, and the reader converts the
//     older versions (see ReadHeader).
//
// The same value always encodes to the same bytes, so that golden files can hold the form of each record.
package record

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"strconv"
	"strings"
	"unicode"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/version"
)

// Header is what every record starts with.
type Header struct {
	Version int    // of the kind of record; never 0 in a decoded header
	Writer  string // the release that wrote the record; "" when it does not say
}

// Marshal encodes v as a record. V must encode to a JSON object and must not have fields named "version" or "writer".
func Marshal(vers int, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, errs.New(errs.Internal, "record %T: encode: %w", v, err)
	}
	if len(body) < 2 || body[0] != '{' {
		return nil, errs.New(errs.Internal, "record %T: does not encode to a JSON object", v)
	}
	var taken rawHeader
	if err := json.Unmarshal(body, &taken); err != nil || taken != (rawHeader{}) {
		return nil, errs.New(errs.Internal, "record %T: has a field named version or writer", v)
	}
	writer, err := json.Marshal(version.Version)
	if err != nil {
		return nil, err
	}
	data := append(make([]byte, 0, len(body)+48), `{"version":`...)
	data = strconv.AppendInt(data, int64(vers), 10)
	data = append(data, `,"writer":`...)
	data = append(data, writer...)
	if len(body) > 2 {
		data = append(data, ',')
	}
	return append(data, body[1:]...), nil
}

// Unmarshal decodes a record into v, which must be a pointer. What names the record in errors, such as "container 1f0e…";
// known is the newest version that the caller reads. The error's class is errs.Precondition for a newer version and
// errs.DataLoss for anything that is not a whole record.
func Unmarshal(what string, data []byte, known int, v any) error {
	if err := CheckHeader(what, data, known); err != nil {
		return err
	}
	return Decode(what, data, v)
}

// CheckHeader returns the error that Unmarshal returns for the header of a record. It need not look at what follows the header.
func CheckHeader(what string, data []byte, known int) error {
	if h, ok := plainHeader(data); ok && h.Version <= known {
		return nil
	}
	_, err := ReadHeader(what, data, known)
	return err
}

// ReadHeader returns the header of a record and fails like Unmarshal. Readers that convert older versions call it first.
func ReadHeader(what string, data []byte, known int) (Header, error) {
	var raw rawHeader
	if !bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{")) {
		return Header{}, errs.New(errs.DataLoss, "%s: damaged record: not a JSON object", what)
	}
	if err := Decode(what, data, &raw); err != nil {
		return Header{}, err
	}
	h := Header{Version: 1}
	if raw.Version.set {
		n, err := strconv.Atoi(raw.Version.text)
		if err != nil || n < 1 {
			return h, errs.New(errs.DataLoss, "%s: damaged record: its version is %.40q", what, raw.Version.text)
		}
		h.Version = n
	}
	if raw.Writer.set {
		// A newer version may write this field in a form that is unknown here; its refusal is then less exact.
		err := json.Unmarshal([]byte(raw.Writer.text), &h.Writer)
		if err != nil && h.Version <= known {
			return h, errs.New(errs.DataLoss, "%s: damaged record: its writer is %.40q", what, raw.Writer.text)
		}
	}
	if h.Version > known {
		return h, Newer(what, h, known)
	}
	return h, nil
}

// plainHeader reads the header of a record in the form in which Marshal writes it. Decoding the whole record for it would take as long as decoding the record does.
func plainHeader(data []byte) (h Header, ok bool) {
	rest, ok := bytes.CutPrefix(data, []byte(`{"version":`))
	if !ok || bytes.Contains(rest, []byte(`"version"`)) {
		return h, false
	}
	number, rest, ok := bytes.Cut(rest, []byte(`,"writer":"`))
	if !ok || bytes.Contains(rest, []byte(`"writer"`)) {
		return h, false
	}
	writer, _, ok := bytes.Cut(rest, []byte(`"`))
	h.Writer = string(writer)
	if !ok || !isPlain(h.Writer) || strings.Contains(h.Writer, `\\`) {
		return h, false
	}
	n, err := strconv.Atoi(string(number))
	h.Version = n
	return h, err == nil && n >= 1 && strconv.Itoa(n) == string(number)
}

// Newer returns the error for a record, or a whole database, whose version is not known yet.
func Newer(what string, h Header, known int) error {
	writer := "a newer release"
	if isPlain(h.Writer) {
		writer = "ply " + h.Writer
	}
	return errs.New(errs.Precondition, "%s has version %d, written by %s; this is ply %s, which knows versions up to %d",
		what, h.Version, writer, version.Version, known).
		WithHint("Run %s, or a later one, on this data; nothing was changed.", writer)
}

// isPlain reports whether a writer can be shown as it is.
func isPlain(s string) bool {
	for _, r := range s {
		if r >= unicode.MaxASCII || !unicode.IsPrint(r) {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// ReadFile reads and decodes the record in a file of at most limit bytes. It fails like Unmarshal; other errors, such as
// fs.ErrNotExist, are those of the file system.
func ReadFile(fsys durable.FS, name string, limit int64, known int, v any) error {
	data, err := durable.ReadFile(fsys, name, limit)
	if err != nil {
		return err
	}
	return Unmarshal(name, data, known, v)
}

// WriteFile encodes v and replaces the file by it, durable when it returns.
func WriteFile(fsys durable.FS, name string, vers int, v any, perm fs.FileMode) error {
	data, err := Marshal(vers, v)
	if err != nil {
		return err
	}
	return durable.WriteFile(fsys, name, data, perm)
}

// Decode decodes a record whose header the caller has checked. It fails like Unmarshal.
func Decode(what string, data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return errs.New(errs.DataLoss, "%s: damaged record: %w", what, err)
	}
	return nil
}

type rawHeader struct {
	Version text `json:"version"`
	Writer  text `json:"writer"`
}

// text is the JSON text of a value; unlike in json.RawMessage, null is a value.
type text struct {
	set  bool
	text string
}

func (t *text) UnmarshalJSON(b []byte) error {
	*t = text{true, string(b)}
	return nil
}
