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

// format encodes and decodes the records of a driver. It is not safe for concurrent use.
type format interface {
	// encode appends a record to buf.
	encode(buf []byte, m Message) []byte
	// next decodes the first record of buf and returns its length; n is 0 when buf does not hold all of it. ok is false
	// for a damaged record, which the caller skips. The message may keep a part of these n bytes, which are then changed.
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
	f := &jsonFormat{}
	if len(attributes) > 0 {
		f.attrs, _ = json.Marshal(attributes) // a map of strings always has a form
	}
	return f
}

// jsonFormat is docker's json-file format: {"log":"text\n","stream":"stdout","attrs":{"key":"value"},"time":"RFC3339Nano"} and a newline. Without
// attributes there is no attrs.
type jsonFormat struct {
	attrs []byte

	// The second that was written or read last, because that of the next record is mostly the same.
	written, read second
}

func (f *jsonFormat) encode(buf []byte, m Message) []byte {
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
	buf = f.written.append(buf, m.Time)
	return append(buf, "\"}\n"...)
}

const hexDigits = "0123456789abcdef"

// appendJSONString appends a quoted string as docker's writer does: it escapes HTML characters and the two Unicode line
// separators, and replaces bytes that are not UTF-8 by U+FFFD.
func appendJSONString(buf, s []byte) []byte {
	buf = append(buf, '"')
	from := 0
	for i := plain(s); i < len(s); {
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
			i += plain(s[i:])
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

func (f *jsonFormat) next(buf []byte) (m Message, n int, ok bool) {
	i := bytes.IndexByte(buf, '\n')
	if i < 0 {
		if len(buf) > maxRecord {
			return m, len(buf), false // no record is that long; skip until a newline
		}
		return m, 0, false
	}
	if m, ok := f.decode(buf[:i]); ok {
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

// decode decodes a record in the form that encode writes, several times faster than package json. ok is false for every other form, and b is then unchanged.
// Else the message has a part of b.
func (f *jsonFormat) decode(b []byte) (m Message, ok bool) {
	b, ok = bytes.CutPrefix(b, []byte(`{"log":"`))
	if !ok {
		return m, false
	}
	end := stringEnd(b)
	if end < 0 {
		return m, false
	}
	line, b := b[:end:end], b[end+1:]
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
	if m.Time, ok = f.read.parse(b); !ok && m.Time.UnmarshalText(b) != nil {
		return m, false
	}
	m.Line, ok = unquote(line)
	return m, ok
}

// stringEnd returns the offset of the quote that ends a string of JSON, of which b has what follows its first quote; -1 when there is none.
func stringEnd(b []byte) int {
	end := 0
	for {
		i := bytes.IndexByte(b[end:], '"')
		if i < 0 {
			return -1
		}
		end += i
		slashes := 0
		for slashes < end && b[end-1-slashes] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return end
		}
		end++
	}
}

// unquote decodes the text between the quotes of a string of JSON. ok is false where it has an escape that encode does not write, or bytes that are not allowed;
// b is then unchanged. Else text is a part of b or a copy.
func unquote(b []byte) (text []byte, ok bool) {
	if n := plain(b); n == len(b) {
		return b, true
	} else if n == len(b)-2 && b[n] == '\\' && b[n+1] == 'n' { // most lines: the escaped newline at their end is the only one
		b[n] = '\n'
		return b[: n+1 : n+1], true
	}
	if !utf8.Valid(b) {
		return nil, false
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
				return nil, false
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
				return nil, false
			}
			n, err := strconv.ParseUint(string(b[1:5]), 16, 16)
			if err != nil || utf16.IsSurrogate(rune(n)) {
				return nil, false
			}
			text = utf8.AppendRune(text, rune(n))
			b = b[4:]
		default:
			return nil, false
		}
		b = b[1:]
	}
	return text, true
}

// plain returns how many bytes at the start of s are the same in a string of JSON as encode writes it: ASCII characters that are not escaped.
func plain(s []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	zero := func(x uint64) uint64 { return (x - ones) &^ x & highs } // not 0 if a byte of x is 0
	n := 0
	for ; n+8 <= len(s); n += 8 {
		x := binary.LittleEndian.Uint64(s[n:])
		odd := x & highs                    // not ASCII
		odd |= (x - ones*0x20) &^ x & highs // a control character
		odd |= zero(x^ones*'"') | zero(x^ones*'\\') | zero(x^ones*'<') | zero(x^ones*'>') | zero(x^ones*'&')
		if odd != 0 {
			break
		}
	}
	for ; n < len(s); n++ {
		if c := s[n]; c < 0x20 || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			break
		}
	}
	return n
}

// second is a second of UTC with its form in a record.
type second struct {
	unix int64
	text [len("2006-01-02T15:04:05")]byte // zero bytes = none yet
}

func (s *second) set(t time.Time) (ok bool) {
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		return false
	}
	s.unix = t.Unix()
	t.AppendFormat(s.text[:0], "2006-01-02T15:04:05")
	return true
}

// append appends a time in the form time.RFC3339Nano.
func (s *second) append(buf []byte, t time.Time) []byte {
	if (s.text[0] == 0 || t.Unix() != s.unix) && !s.set(t) {
		return t.UTC().AppendFormat(buf, time.RFC3339Nano)
	}
	buf = append(buf, s.text[:]...)
	if n := t.Nanosecond(); n > 0 {
		var digits [9]byte
		for i := len(digits) - 1; i >= 0; i-- {
			digits[i] = byte('0' + n%10)
			n /= 10
		}
		buf = append(append(buf, '.'), bytes.TrimRight(digits[:], "0")...)
	}
	return append(buf, 'Z')
}

// parse parses what append has written. ok is false for every other form.
func (s *second) parse(b []byte) (t time.Time, ok bool) {
	n := len(s.text)
	if len(b) <= n || b[len(b)-1] != 'Z' {
		return t, false
	}
	if s.text[0] == 0 || string(b[:n]) != string(s.text[:]) {
		whole, err := time.Parse("2006-01-02T15:04:05", string(b[:n]))
		if err != nil || !s.set(whole) {
			return t, false
		}
	}
	fraction := b[n : len(b)-1]
	if len(fraction) == 0 {
		return time.Unix(s.unix, 0).UTC(), true
	}
	if len(fraction) > 10 || len(fraction) < 2 || fraction[0] != '.' {
		return t, false
	}
	nanos := int64(0)
	for _, c := range fraction[1:] {
		if c < '0' || c > '9' {
			return t, false
		}
		nanos = 10*nanos + int64(c-'0')
	}
	for range 10 - len(fraction) {
		nanos *= 10
	}
	return time.Unix(s.unix, nanos).UTC(), true
}

func (*jsonFormat) whole(tail []byte, start bool) int {
	i := bytes.LastIndexByte(tail, '\n')
	if i < 0 && !start {
		return len(tail) // the record is longer than any that this package writes; leave the file as it is
	}
	return i + 1
}

func (*jsonFormat) back(buf []byte, n int) (size, records int) {
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
			m.Line = field[:len(field):min(len(field)+1, cap(field))] // the newline goes into the length behind the entry
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
