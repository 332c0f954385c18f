package docker

import (
	"net/http"
	"sync"
)

// flusher is a writer to a client. Safe for concurrent use.
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

// begin sends the headers, unless something has been written already.
func (f *flusher) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.begun || f.ended {
		return
	}
	f.begun = true
	f.w.WriteHeader(http.StatusOK)
	_ = f.rc.Flush() // when the client is gone, the next write fails
}

// end prevents later calls of begin from writing. It reports whether something was sent.
func (f *flusher) end() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	return f.begun
}
