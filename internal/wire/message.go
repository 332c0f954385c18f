package wire

import "encoding/json"

// Message is one line of a progress stream.
type Message struct {
	Stream      string          `json:"stream,omitempty"`
	Status      string          `json:"status,omitempty"`
	Detail      *ProgressDetail `json:"progressDetail,omitempty"`
	Progress    string          `json:"progress,omitempty"` // Detail as a text, for clients that show it as it is
	ID          string          `json:"id,omitempty"`
	ErrorDetail *ErrorDetail    `json:"errorDetail,omitempty"`
	Error       string          `json:"error,omitempty"`
	Aux         json.RawMessage `json:"aux,omitempty"`
}

// ProgressDetail is how far something is; Total 0 is unknown, Units "" means bytes.
type ProgressDetail struct {
	Current    int64  `json:"current,omitempty"`
	Total      int64  `json:"total,omitempty"`
	Start      int64  `json:"start,omitempty"` // when it began, in seconds since 1970
	HideCounts bool   `json:"hidecounts,omitempty"`
	Units      string `json:"units,omitempty"`
	Size       int64  `json:"size,omitempty"` // ply's own: bytes that will be fetched, told before the first of them arrives
	Kept       int64  `json:"kept,omitempty"` // ply's own: the part of Current that an earlier pull fetched
}

// ErrorDetail ends a stream whose status was sent already.
type ErrorDetail struct {
	Code    int    `json:"code,omitempty"`
	Message string `json:"message"`
}

// PushResult is the auxiliary value with which the push of one tag ends.
type PushResult struct {
	Tag    string
	Digest string
	Size   int
}
