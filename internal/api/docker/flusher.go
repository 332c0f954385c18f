package docker

import (
	"net/http"
	"sync"
)

// flusher sends what is written at once. Safe for concurrent use.
type flusher struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	always bool // flush after each write

	mu    sync.Mutex
	begun bool
	ended bool
}

func (f *flusher) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun = true
	n, err := f.w.Write(b)
	if err == nil && f.always {
		err = f.rc.Flush()
	}
	return n, err
}

// begin sends the headers when nothing has been written yet.
func (f *flusher) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.begun || f.ended {
		return
	}
	f.begun = true
	f.w.WriteHeader(http.StatusOK)
	_ = f.rc.Flush() // a client that left shows in the next write
}

// end stops begin from writing later, and tells whether something was sent.
func (f *flusher) end() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	return f.begun
}
