package progress

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// at is a printer on a screen of a width, whose clock the test moves.
type at struct {
	*tty
	t      *testing.T
	screen screen
	clock  time.Time
}

func newAt(t *testing.T, width int) *at {
	a := &at{t: t, clock: time.Unix(1000, 0)}
	a.tty = newTTY(&a.screen, func() (int, int) { return width, 24 })
	a.tty.now = func() time.Time { return a.clock }
	t.Cleanup(func() { a.Close() })
	return a
}

// prints prints messages, each a tenth of a second after the one before.
func (a *at) prints(messages ...string) {
	a.t.Helper()
	for _, m := range messages {
		a.mu.Lock()
		a.clock = a.clock.Add(100 * time.Millisecond)
		a.mu.Unlock()
		if err := a.Print(message(a.t, m)); err != nil {
			a.t.Fatal(err)
		}
	}
}

// passes lets time pass without a message.
func (a *at) passes(d time.Duration) {
	a.mu.Lock()
	a.clock = a.clock.Add(d)
	a.mu.Unlock()
	a.refresh()
}

func (a *at) sees(want ...string) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := strings.Join(a.screen.lines, "\n"); got != strings.Join(want, "\n") {
		a.t.Errorf("screen:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

func downloading(id string, current, total, kept int64) string {
	return fmt.Sprintf(`{"status":"Downloading","progressDetail":{"current":%d,"total":%d,"kept":%d},"id":%q}`, current, total, kept, id)
}

func queued(id string, size int64) string {
	return fmt.Sprintf(`{"status":"Pulling fs layer","progressDetail":{"size":%d},"id":%q}`, size, id)
}

// A download shows its speed, the time that is left, and what an earlier pull fetched, which does not count as speed. Several show a total.
func TestSpeedAndTotal(t *testing.T) {
	a := newAt(t, 80)
	a.prints(queued("aaa", 300e6), queued("bbb", 100e6))
	a.sees("aaa: Pulling fs layer", "bbb: Pulling fs layer", "Total 0B/400MB 0%")
	a.prints(downloading("aaa", 125e6, 300e6, 125e6))
	a.passes(time.Second)
	for range 40 {
		a.prints(downloading("aaa", a.last[0].have+2e6, 300e6, 125e6))
	}
	a.passes(0)
	a.sees("aaa: Downloading    205MB/300MB 16MB/s 6s resumed 125MB", "bbb: Pulling fs layer", "Total 205MB/400MB 51% 15.4MB/s 13s")
	// what is here is no speed, and no total is left when all is here
	a.prints(downloading("aaa", 300e6, 300e6, 125e6), downloading("bbb", 100e6, 100e6, 0), `{"status":"Pull complete","progressDetail":{},"id":"aaa"}`)
	a.sees("aaa: Pull complete", "bbb: Downloading    100MB/100MB", "")
	a.prints(`{"status":"Digest: sha256:x"}`)
	a.sees("aaa: Pull complete", "bbb: Downloading    100MB/100MB", "Digest: sha256:x")
}

// The end clears the total.
func TestTotalIsCleared(t *testing.T) {
	a := newAt(t, 80)
	a.prints(queued("aaa", 10), queued("bbb", 10), downloading("aaa", 5, 10, 0))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a.sees("aaa: Downloading       5B/10B", "bbb: Pulling fs layer", "")
	a.passes(time.Minute)
	a.sees("aaa: Downloading       5B/10B", "bbb: Pulling fs layer", "")
}

// A download that gets no bytes says so, although no message comes, and the next bytes end that.
func TestStalled(t *testing.T) {
	a := newAt(t, 80)
	a.prints(queued("aaa", 10e6), queued("bbb", 10e6), downloading("aaa", 1e6, 10e6, 0))
	a.passes(2 * time.Second)
	a.sees("aaa: Downloading      1MB/10MB", "bbb: Pulling fs layer", "Total 1MB/20MB 5% 455kB/s 42s")
	a.passes(4 * time.Second)
	a.sees("aaa: Downloading      1MB/10MB stalled", "bbb: Pulling fs layer", "Total 1MB/20MB 5% stalled")
	a.prints(downloading("aaa", 7e6, 10e6, 0))
	a.passes(time.Second)
	a.sees("aaa: Downloading      7MB/10MB 845kB/s 4s", "bbb: Pulling fs layer", "Total 7MB/20MB 35% 959kB/s 14s")
}

// The printer draws a download that has stalled by itself.
func TestStalledWithoutMessages(t *testing.T) {
	a := newAt(t, 80)
	a.prints(downloading("aaa", 1e6, 10e6, 0))
	a.mu.Lock()
	a.clock = a.clock.Add(time.Minute)
	a.mu.Unlock()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		a.mu.Lock()
		line := a.screen.lines[0]
		a.mu.Unlock()
		if strings.HasSuffix(line, " stalled") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the line is %q", line)
		}
	}
}

// A narrow terminal shows whole words and numbers only, the most important ones, and no line is wrapped.
func TestNarrowTerminals(t *testing.T) {
	for width, want := range map[int]string{
		200: "0123456789ab: Downloading [===========>                                       ]  71.57MB/300MB 1.34MB/s 2m51s resumed 50MB",
		75:  "0123456789ab: Downloading  71.57MB/300MB 1.34MB/s 2m51s resumed 50MB",
		60:  "0123456789ab: Downloading  71.57MB/300MB 1.34MB/s 2m51s",
		50:  "0123456789ab: Downloading  71.57MB/300MB 1.34MB/s",
		40:  "0123456789ab: Downloading  71.57MB/300MB",
		30:  "0123456789ab: Downloading 23%",
		28:  "0123456789ab: Downloading",
		20:  "0123456789ab: Downlo",
	} {
		a := newAt(t, width)
		for i := range int64(162) {
			a.prints(downloading("0123456789ab", 50e6+i*134e3, 300e6, 50e6))
		}
		a.passes(0)
		a.mu.Lock()
		got := a.screen.lines[0]
		a.mu.Unlock()
		if got != want || utf8.RuneCountInString(got) > width {
			t.Errorf("%d columns: %q, want %q", width, got, want)
		}
	}
}
