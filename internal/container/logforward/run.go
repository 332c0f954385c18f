package logforward

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"ply/internal/container/logfile"
	"ply/internal/container/shim"
	"ply/internal/errs"
)

// sender sends records to one receiver. It is used by one goroutine.
type sender interface {
	send(m logfile.Message) error
	close() error
}

// senders make the sender of each driver. An error means that the receiver cannot be reached, or that the options are wrong.
var senders = map[string]func(l shim.Log) (sender, error){
	logfile.Syslog: newSyslog, logfile.Journald: newJournald, logfile.Fluentd: newFluentd, logfile.GELF: newGELF,
}

const (
	maxConfig   = 4 << 20 // bytes of the configuration
	reportEvery = 10 * time.Second
)

// Run reads the configuration and then records from in until its end, and sends the records. It writes "ok", or why it cannot send,
// to answer, and what it could not send to report. It returns the exit status of the program.
func Run(in io.Reader, answer io.WriteCloser, report io.Writer) int {
	s, l, err := open(in)
	if err != nil {
		fmt.Fprintln(answer, err)
		_ = answer.Close() // the shim reads to the end
		return 1
	}
	if _, err := io.WriteString(answer, "ok\n"); err != nil {
		return 1
	}
	if err := answer.Close(); err != nil {
		return 1
	}
	r := &reporter{w: report, driver: l.Driver}
	q := newQueue(l.Forward)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for {
			m, ok := q.take()
			if !ok {
				return
			}
			if err := s.send(m); err != nil {
				r.lost(err)
			}
		}
	}()
	b := bufio.NewReaderSize(in, 64<<10)
	for {
		m, err := logfile.ReadRecord(b)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				r.lost(err)
			}
			break
		}
		if !q.put(m) {
			r.lost(errFull)
		}
	}
	q.end()
	select {
	case <-sent:
	case <-time.After(logfile.EndTime):
		r.lost(errors.New("the receiver did not take the rest in time"))
		r.end()
		return 1
	}
	if err := s.close(); err != nil {
		r.lost(err)
	}
	r.end()
	return 0
}

// open reads the configuration and reaches the receiver.
func open(in io.Reader) (sender, shim.Log, error) {
	var l shim.Log
	var size [4]byte
	if _, err := io.ReadFull(in, size[:]); err != nil {
		return nil, l, fmt.Errorf("configuration: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxConfig {
		return nil, l, fmt.Errorf("configuration of %d bytes", n)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(in, data); err != nil {
		return nil, l, fmt.Errorf("configuration: %w", err)
	}
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, l, fmt.Errorf("configuration: %w", err)
	}
	if l.Forward == nil || senders[l.Driver] == nil {
		return nil, l, errs.New(errs.Invalid, "log driver %q: unknown", l.Driver)
	}
	s, err := senders[l.Driver](l)
	return s, l, err
}

var errFull = errors.New("the buffer is full")

// reporter writes what was lost, at most once per reportEvery.
type reporter struct {
	w      io.Writer
	driver string

	mu   sync.Mutex
	n    int
	err  error
	last time.Time
}

func (r *reporter) lost(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	r.err = err
	if time.Since(r.last) >= reportEvery {
		r.say()
	}
}

// say writes what was lost since the last time; mu is held.
func (r *reporter) say() {
	if r.n > 0 {
		fmt.Fprintf(r.w, "log driver %s: %d records lost: %v\n", r.driver, r.n, r.err)
	}
	r.n, r.last = 0, time.Now()
}

func (r *reporter) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.say()
}

// queue holds the records that were read and not sent. Without a limit it holds one, and put waits.
type queue struct {
	limit int64 // bytes; 0 = put waits until the queue is empty

	mu     sync.Mutex
	change *sync.Cond
	all    []logfile.Message
	size   int64
	ended  bool
}

// recordCost is what a record takes beside its line, in bytes.
const recordCost = 64

func newQueue(f *shim.Forward) *queue {
	q := &queue{}
	if f.NonBlocking {
		q.limit = max(f.Buffer, 1)
	}
	q.change = sync.NewCond(&q.mu)
	return q
}

// put adds a record. It returns false when the queue is full: the record is lost, as with docker.
func (q *queue) put(m logfile.Message) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	cost := int64(len(m.Line)) + recordCost
	for q.limit == 0 && len(q.all) > 0 {
		q.change.Wait()
	}
	if q.limit > 0 && len(q.all) > 0 && q.size+cost > q.limit {
		return false
	}
	q.all, q.size = append(q.all, m), q.size+cost
	q.change.Broadcast()
	return true
}

// take waits for a record and removes it. ok is false when no more will come.
func (q *queue) take() (m logfile.Message, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.all) == 0 && !q.ended {
		q.change.Wait()
	}
	if len(q.all) == 0 {
		return m, false
	}
	m, q.all[0] = q.all[0], logfile.Message{}
	q.all = q.all[1:]
	q.size -= int64(len(m.Line)) + recordCost
	q.change.Broadcast()
	return m, true
}

// end says that no more records come.
func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.change.Broadcast()
}

// Main is the program ply-log.
func Main() {
	debug.SetGCPercent(50) // the environment that it has from its shim switches the collector off (shim.Begin)
	os.Exit(Run(os.Stdin, os.Stdout, os.Stderr))
}
