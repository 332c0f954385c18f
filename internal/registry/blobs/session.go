package blobs

import (
	"crypto/rand"
	"encoding/hex"
	"io"
)

// SourceError is an error of what an upload reads from, such as a client that went away.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return "receiving the upload: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *SourceError) Unwrap() error { return e.Err }

// NewID returns a new ID of an upload: a random UUID, which cannot be guessed.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// IsID reports whether s has the form of an upload's ID, so that it can be a file name.
func IsID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
		} else if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Empty is a source without bytes.
var Empty io.Reader = empty{}

type empty struct{}

func (empty) Read([]byte) (int, error) { return 0, io.EOF }
