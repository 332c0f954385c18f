package logfile

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"ply/internal/container/shim"
)

// format encodes and decodes the records of a driver.
type format interface {
	// encode appends a record to buf.
	encode(buf []byte, m Message) []byte
	// next decodes the first record of buf and returns its length; n is 0 when buf does not hold all of it. ok is false
	// for a damaged record, which the caller skips.
	next(buf []byte) (m Message, n int, ok bool)
	// whole returns how much of tail to keep, so that the file ends with a whole record. tail is the end of the file;
	// start reports that it is the whole file. A negative result asks for the whole file.
	whole(tail []byte, start bool) int
	// back returns the size of the last n records of buf, and their number if there are fewer.
	back(buf []byte, n int) (size, records int)
}

// formatOf returns the format of a driver. It writes the attributes with each record if the format has them.
func formatOf(driver string, attributes map[string]string) format {
	if driver == Local || IsRemote(driver) {
		return localFormat{}
	}
	f := jsonFormat{}
	if len(attributes) > 0 {
		f.attrs, _ = json.Marshal(attributes) // a map of strings always has a form
	}
	return f
}

// jsonFormat is docker's json-file format: {"log":"text\n","stream":"stdout","attrs":{"key":"value"},"time":"RFC3339Nano"} and a newline. Without
// attributes there is no attrs.
type jsonFormat struct{ attrs []byte }

func (f jsonFormat) encode(buf []byte, m Message) []byte {
	buf = append(buf, `{"log":`...)
	buf = appendJSONString(buf, m.Line)
	buf = append(buf, `,"stream":"`...)
	buf = append(buf, streamName(m.Stream)...)
	buf = append(buf, '"')
	if f.attrs != nil {
		buf = append(buf, `,"attrs":`...)
		buf = append(buf, f.attrs...)
	}
	buf = append(buf, `,"time":"`...)
	buf = m.Time.UTC().AppendFormat(buf, time.RFC3339Nano)
	return append(buf, "\"}\n"...)
}

const hexDigits = "0123456789abcdef"

// appendJSONString appends a quoted string as docker's writer does: it escapes HTML characters and the two Unicode line
// separators, and replaces bytes that are not UTF-8 by U+FFFD.
func appendJSONString(buf, s []byte) []byte {
	buf = append(buf, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= 0x20 && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' {
				i++
				continue
			}
			buf = append(buf, s[from:i]...)
			switch c {
			case '"', '\\':
				buf = append(buf, '\\', c)
			case '\n':
				buf = append(buf, `\n`...)
			case '\r':
				buf = append(buf, `\r`...)
			default:
				buf = append(buf, `\u00`...)
				buf = append(buf, hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			from = i
			continue
		}
		r, size := utf8.DecodeRune(s[i:])
		if r == utf8.RuneError && size == 1 || r == '\u2028' || r == '\u2029' {
			buf = append(buf, s[from:i]...)
			if size == 1 {
				buf = append(buf, `\ufffd`...)
			} else {
				buf = append(buf, `\u202`...)
				buf = append(buf, hexDigits[r&15])
			}
			i += size
			from = i
			continue
		}
		i += size
	}
	return append(append(buf, s[from:]...), '"')
}

func (jsonFormat) next(buf []byte) (m Message, n int, ok bool) {
	i := bytes.IndexByte(buf, '\n')
	if i < 0 {
		if len(buf) > maxRecord {
			return m, len(buf), false // no record is that long; skip until a newline
		}
		return m, 0, false
	}
	if m, ok := written(buf[:i]); ok {
		return m, i + 1, true
	}
	var rec struct {
		Log    *string           `json:"log"`
		Stream string            `json:"stream"`
		Attrs  map[string]string `json:"attrs"`
		Time   time.Time         `json:"time"`
	}
	if json.Unmarshal(buf[:i], &rec) != nil || rec.Log == nil {
		return m, i + 1, false
	}
	return Message{Time: rec.Time, Stream: streamOf(rec.Stream), Line: []byte(*rec.Log), Attributes: rec.Attrs}, i + 1, true
}

// written decodes a record in the form that encode writes, several times faster than package json. ok is false for every other form.
func written(b []byte) (m Message, ok bool) {
	b, ok = bytes.CutPrefix(b, []byte(`{"log":"`))
	if !ok {
		return m, false
	}
	if m.Line, b, ok = unquote(b); !ok {
		return m, false
	}
	if b, ok = bytes.CutPrefix(b, []byte(`,"stream":"std`)); !ok {
		return m, false
	}
	m.Stream = shim.Stdout
	after, ok := bytes.CutPrefix(b, []byte(`out","time":"`))
	if !ok {
		if after, ok = bytes.CutPrefix(b, []byte(`err","time":"`)); !ok {
			return m, false
		}
		m.Stream = shim.Stderr
	}
	if b, ok = bytes.CutSuffix(after, []byte(`"}`)); !ok {
		return m, false
	}
	return m, m.Time.UnmarshalText(b) == nil
}

// unquote decodes a string of JSON behind its first quote, and returns the bytes after its last one. ok is false where it has an escape that encode does not
// write, or bytes that are not allowed.
func unquote(b []byte) (text, rest []byte, ok bool) {
	end := 0
	for {
		i := bytes.IndexByte(b[end:], '"')
		if i < 0 {
			return nil, nil, false
		}
		end += i
		slashes := 0
		for slashes < end && b[end-1-slashes] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			break
		}
		end++
	}
	b, rest = b[:end], b[end+1:]
	if !utf8.Valid(b) {
		return nil, nil, false
	}
	text = make([]byte, 0, len(b))
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\\')
		plain := b
		if i >= 0 {
			plain = b[:i]
		}
		for _, c := range plain {
			if c < 0x20 {
				return nil, nil, false
			}
		}
		text = append(text, plain...)
		if i < 0 {
			break
		}
		b = b[i+1:]
		switch b[0] { // the last byte is not a backslash
		case 'n':
			text = append(text, '\n')
		case 'r':
			text = append(text, '\r')
		case '"', '\\':
			text = append(text, b[0])
		case 'u':
			if len(b) < 5 {
				return nil, nil, false
			}
			n, err := strconv.ParseUint(string(b[1:5]), 16, 16)
			if err != nil || utf16.IsSurrogate(rune(n)) {
				return nil, nil, false
			}
			text = utf8.AppendRune(text, rune(n))
			b = b[4:]
		default:
			return nil, nil, false
		}
		b = b[1:]
	}
	return text, rest, true
}

func (jsonFormat) whole(tail []byte, start bool) int {
	i := bytes.LastIndexByte(tail, '\n')
	if i < 0 && !start {
		return len(tail) // the record is longer than any that this package writes; leave the file as it is
	}
	return i + 1
}

func (jsonFormat) back(buf []byte, n int) (size, records int) {
	end := len(buf)
	for records < n && end > 0 {
		i := bytes.LastIndexByte(buf[:end-1], '\n')
		if i < 0 {
			break
		}
		end = i + 1
		records++
	}
	return len(buf) - end, records
}

// localFormat is the format of docker's local driver. A record is a big-endian length of 4 bytes, a protobuf LogEntry
// (1 source, 2 time in nanoseconds, 3 line, 4 partial), and the length again.
type localFormat struct{}

func (localFormat) encode(buf []byte, m Message) []byte {
	line, whole := bytes.CutSuffix(m.Line, []byte{'\n'})
	var e []byte
	e = append(e, 1<<3|2)
	e = binary.AppendUvarint(e, uint64(len(streamName(m.Stream))))
	e = append(e, streamName(m.Stream)...)
	e = append(e, 2<<3)
	e = binary.AppendUvarint(e, uint64(m.Time.UnixNano()))
	e = append(e, 3<<3|2)
	e = binary.AppendUvarint(e, uint64(len(line)))
	e = append(e, line...)
	if !whole {
		e = append(e, 4<<3, 1)
	}
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(e)))
	buf = append(buf, e...)
	return binary.BigEndian.AppendUint32(buf, uint32(len(e)))
}

func (localFormat) next(buf []byte) (m Message, n int, ok bool) {
	if len(buf) < 8 {
		return m, 0, false
	}
	size := binary.BigEndian.Uint32(buf)
	if size > maxRecord {
		return m, len(buf), false
	}
	n = int(size) + 8
	if len(buf) < n {
		return m, 0, false
	}
	if binary.BigEndian.Uint32(buf[n-4:]) != size {
		return m, len(buf), false
	}
	m, ok = decodeEntry(buf[4 : n-4])
	return m, n, ok
}

// decodeEntry decodes a LogEntry.
func decodeEntry(b []byte) (m Message, ok bool) {
	m.Stream = shim.Stdout
	partial := false
	for len(b) > 0 {
		tag, k := binary.Uvarint(b)
		if k <= 0 {
			return m, false
		}
		v, j := binary.Uvarint(b[k:])
		if j <= 0 {
			return m, false
		}
		b = b[k+j:]
		var field []byte
		switch tag & 7 {
		case 0:
		case 2:
			if v > uint64(len(b)) {
				return m, false
			}
			field, b = b[:v], b[v:]
		default:
			return m, false
		}
		switch tag {
		case 1<<3 | 2:
			m.Stream = streamOf(string(field))
		case 2 << 3:
			m.Time = time.Unix(0, int64(v)).UTC()
		case 3<<3 | 2:
			m.Line = bytes.Clone(field)
		case 4 << 3:
			partial = v != 0
		}
	}
	if !partial {
		m.Line = append(m.Line, '\n')
	}
	return m, true
}

func (localFormat) whole(tail []byte, start bool) int {
	if !start {
		// Records can only be found from the start of the file, unless the last one is whole.
		if size, records := (localFormat{}).back(tail, 1); records == 1 && size > 0 {
			return len(tail)
		}
		return -1
	}
	off := 0
	for {
		_, n, ok := (localFormat{}).next(tail[off:])
		if n == 0 || !ok {
			return off
		}
		off += n
	}
}

func (localFormat) back(buf []byte, n int) (size, records int) {
	end := len(buf)
	for records < n && end >= 8 {
		l := int(binary.BigEndian.Uint32(buf[end-4:]))
		if l > maxRecord || l+8 > end || int(binary.BigEndian.Uint32(buf[end-l-8:])) != l {
			break
		}
		end -= l + 8
		records++
	}
	return len(buf) - end, records
}
