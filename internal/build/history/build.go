package history

import (
	"bufio"
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
)

// Build records a build that runs. It is told what the solver reports.
type Build struct {
	h *History

	mu    sync.Mutex
	r     Record
	steps map[oci.Digest]int
	log   *os.File // nil = the log cannot be written
	buf   *bufio.Writer
	size  int64
	wrote time.Time // when buf was written last
	done  bool
}

var _ solver.Progress = (*Build)(nil)

// Begin begins to record a build. r says what is known of it. Its ID is taken if no other build has it, and made otherwise.
func (h *History) Begin(r Record) *Build {
	r.Started = time.Now().UTC()
	h.mu.Lock()
	if !isID(r.ID) || h.active[r.ID] != nil || exists(h.path(r.ID, ".json")) {
		r.ID = NewID()
	}
	b := &Build{h: h, r: r, steps: map[oci.Digest]int{}}
	h.active[r.ID] = b
	h.mu.Unlock()
	var err error
	if b.log, err = os.OpenFile(h.path(r.ID, ".log"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
		h.o.Log.Warn("no log of a build", "build", r.ID, "err", err)
		b.log = nil
	} else {
		b.buf = bufio.NewWriterSize(b.log, 64<<10)
	}
	if data, err := record.Marshal(Version, &r); err == nil {
		b.write(kindBegin, 0, data)
		_ = b.flush() // an error shows at the end
	}
	h.tell(b.Record())
	return b
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// ID returns the ID of the build.
func (b *Build) ID() string { return b.r.ID }

// Record returns what is known of the build now.
func (b *Build) Record() *Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.r
	r.Steps = slices.Clone(r.Steps)
	r.Warnings = slices.Clone(r.Warnings)
	r.LogSize = b.size
	return &r
}

// step returns the number of a vertex; -1 when there are too many.
func (b *Build) step(v *ops.Vertex) int {
	if n, ok := b.steps[v.Digest]; ok {
		return n
	}
	if len(b.r.Steps) == maxSteps {
		return -1
	}
	n := len(b.r.Steps)
	b.steps[v.Digest] = n
	b.r.Steps = append(b.r.Steps, Step{Digest: v.Digest, Name: clip(v.Name), Started: time.Now().UTC()})
	b.put(kindStep, n, []byte(clip(v.Name)))
	return n
}

// Start implements solver.Progress.
func (b *Build) Start(v *ops.Vertex) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.step(v)
}

// Log implements solver.Progress.
func (b *Build) Log(v *ops.Vertex, stderr bool, data []byte) {
	kind := kindOut
	if stderr {
		kind = kindErr
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.step(v); n >= 0 {
		b.put(kind, n, data)
	}
}

// Status implements solver.Progress.
func (b *Build) Status(*ops.Vertex, solver.Status) {}

// Done implements solver.Progress.
func (b *Build) Done(v *ops.Vertex, o solver.Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.step(v)
	if n < 0 {
		return
	}
	s := &b.r.Steps[n]
	s.Took, s.Cached, s.Miss, s.Done = o.Took, o.Cached, clip(o.Miss), true
	word := "DONE " + seconds(o.Took)
	switch {
	case o.Err != nil:
		s.Error = clip(o.Err.Error())
		word = "ERROR: " + s.Error
	case o.Cached:
		word = "CACHED"
	}
	b.put(kindEnd, n, []byte(word))
}

// Warn notes a warning.
func (b *Build) Warn(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.r.Warnings) < maxWarnings {
		b.r.Warnings = append(b.r.Warnings, clip(text))
	}
	b.put(kindErr, 0, []byte("WARNING: "+text+"\n"))
}

// Cancel notes that the build ends because nobody waits for it any more.
func (b *Build) Cancel() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r.Canceled = true
}

// End ends the record of a build. It is durable when End returns. A second call does nothing.
func (b *Build) End(images []oci.ImageID, answers map[string]string, failed error) error {
	b.mu.Lock()
	if b.done {
		b.mu.Unlock()
		return nil
	}
	b.done = true
	b.r.Ended, b.r.Images, b.r.Answers = time.Now().UTC(), images, answers
	if failed != nil {
		b.r.Error = clip(failed.Error())
		b.r.Canceled = b.r.Canceled || errors.Is(failed, context.Canceled)
	}
	err := b.flush()
	if b.log != nil {
		err = errors.Join(err, b.log.Sync(), b.log.Close())
		b.log = nil
	}
	b.r.LogSize = b.size
	b.mu.Unlock()
	r := b.Record()
	h := b.h
	err = errors.Join(err, record.WriteFile(h.o.FS, h.path(r.ID, ".json"), Version, r, 0o600))
	h.mu.Lock()
	delete(h.active, r.ID)
	h.mu.Unlock()
	h.tell(r)
	if err != nil {
		return errs.New(errs.Internal, "record of build %s: %w", r.ID, err)
	}
	return h.Prune()
}

// flushEvery is how long output waits in memory for more.
const flushEvery = 100 * time.Millisecond

func clip(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "…"
	}
	return s
}

// write is put for a caller without the lock.
func (b *Build) write(kind byte, step int, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.put(kind, step, data)
}

// put adds a frame to the log. The caller has the lock.
func (b *Build) put(kind byte, step int, data []byte) {
	if b.log == nil || b.done {
		return
	}
	if b.size+int64(len(data)) > b.h.o.MaxBytes {
		b.r.LogCut = true
		return
	}
	f := frame{kind: kind, at: time.Since(b.r.Started), step: step, data: data}
	n, err := f.writeTo(b.buf)
	b.size += n
	// What a crash must not take: which steps there were, and what they printed until a moment ago.
	if now := time.Now(); err == nil && (kind == kindStep || kind == kindEnd || now.Sub(b.wrote) > flushEvery) {
		b.wrote, err = now, b.flush()
	}
	if err != nil {
		b.r.LogCut = true
		b.h.o.Log.Warn("log of a build not written", "build", b.r.ID, "err", err)
		_ = b.log.Close() // the error above says more
		b.log = nil
	}
}

func (b *Build) flush() error {
	if b.log == nil {
		return nil
	}
	return b.buf.Flush()
}
