package wire

import "encoding/json"

// Message is one line of a progress stream.
type Message struct {
	Stream   string `json:"stream,omitempty"`
	Status   string `json:"status,omitempty"`
	Progress string `json:"progress,omitempty"`
	Detail   *struct {
		Current    int64  `json:"current,omitempty"`
		Total      int64  `json:"total,omitempty"`
		Start      int64  `json:"start,omitempty"`
		HideCounts bool   `json:"hidecounts,omitempty"`
		Units      string `json:"units,omitempty"`
	} `json:"progressDetail,omitempty"`
	ID          string `json:"id,omitempty"`
	Error       string `json:"error,omitempty"`
	ErrorDetail *struct {
		Code    int    `json:"code,omitempty"`
		Message string `json:"message,omitempty"`
	} `json:"errorDetail,omitempty"`
	Aux json.RawMessage `json:"aux,omitempty"`
}
