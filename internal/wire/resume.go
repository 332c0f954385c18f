package wire

import (
	"fmt"
	"strconv"
	"strings"
)

// A client of ply's own goes on with attach, run and logs when its connection has broken. It asks for the parameter resumable, by which an attached client
// identifies itself, gets TypeResumable, and asks again, with the parameters position and cut, for what follows what it has.
const (
	TypeResumable = "application/vnd.ply.resumable-stream"
	// PositionHeader has the Position at which the output of an attach begins. Without it, the client cannot come back.
	PositionHeader = "Ply-Position"
)

// Frames of TypeResumable beside those for input, output and errors.
const (
	FrameEnded  = 4 // no payload: the stream has ended, its connection has not broken
	FrameRecord = 5 // after the frame of a record of a log: its LogPosition
)

// Position is a place in the output of a container: the number of bytes of each stream before it.
type Position struct{ Stdout, Stderr int64 }

// String returns the form in parameters and headers: two numbers and a comma.
func (p Position) String() string { return fmt.Sprintf("%d,%d", p.Stdout, p.Stderr) }

// ParsePosition parses the form of String.
func ParsePosition(s string) (p Position, ok bool) {
	a, b, _ := strings.Cut(s, ",")
	var errA, errB error
	p.Stdout, errA = strconv.ParseInt(a, 10, 64)
	p.Stderr, errB = strconv.ParseInt(b, 10, 64)
	return p, errA == nil && errB == nil && p.Stdout >= 0 && p.Stderr >= 0
}

// LogPosition is a place in a log: the time of the record before it, in nanoseconds since 1970, and for each stream, 1 for stdout and 2 for stderr, whether that
// record has left a line unfinished. Times of the records of a log increase.
type LogPosition struct {
	Time   int64
	Inside [3]bool
}

// String returns the form in parameters and frames: the time, a comma, and a digit per stream.
func (p LogPosition) String() string {
	bit := map[bool]byte{false: '0', true: '1'}
	return strconv.FormatInt(p.Time, 10) + "," + string([]byte{bit[p.Inside[1]], bit[p.Inside[2]]})
}

// ParseLogPosition parses the form of String.
func ParseLogPosition(s string) (p LogPosition, ok bool) {
	text, bits, _ := strings.Cut(s, ",")
	t, err := strconv.ParseInt(text, 10, 64)
	if err != nil || len(bits) != 2 || strings.Trim(bits, "01") != "" {
		return p, false
	}
	return LogPosition{Time: t, Inside: [3]bool{1: bits[0] == '1', 2: bits[1] == '1'}}, true
}
