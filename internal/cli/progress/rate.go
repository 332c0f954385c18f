package progress

import (
	"fmt"
	"time"

	"github.com/docker/go-units"
)

const (
	sampleEvery  = 200 * time.Millisecond // between two samples of a meter
	rateOver     = 10 * time.Second       // a rate is the mean of this time
	stalledAfter = 5 * time.Second        // without a byte
)

// meter measures how fast a number of bytes grows.
type meter struct {
	samples []sample
	n       int64
	moved   time.Time // when n grew last
}

type sample struct {
	at time.Time
	n  int64
}

// add notes the number. A smaller one than before begins a new measurement.
func (m *meter) add(now time.Time, n int64) {
	if len(m.samples) == 0 || n < m.n {
		m.samples = append(m.samples[:0], sample{now, n})
		m.n, m.moved = n, now
		return
	}
	if n > m.n {
		m.n, m.moved = n, now
	}
	if now.Sub(m.samples[len(m.samples)-1].at) >= sampleEvery {
		m.samples = append(m.samples, sample{now, n})
	}
	for len(m.samples) > 2 && now.Sub(m.samples[1].at) > rateOver {
		m.samples = m.samples[1:]
	}
}

// rate returns the bytes per second, or 0 when they are not known yet.
func (m *meter) rate(now time.Time) float64 {
	if len(m.samples) == 0 {
		return 0
	}
	spent := now.Sub(m.samples[0].at)
	if spent < time.Second {
		return 0
	}
	return float64(m.n-m.samples[0].n) / spent.Seconds()
}

// stalled reports whether nothing has arrived for some time.
func (m *meter) stalled(now time.Time) bool {
	return len(m.samples) > 0 && now.Sub(m.moved) >= stalledAfter
}

// speed returns the rate and the time that left bytes take, as texts; "stalled" and "" when nothing arrives; "" and "" when it is not known.
func (m *meter) speed(now time.Time, left int64) (rate, eta string) {
	if m.stalled(now) {
		return "stalled", ""
	}
	r := m.rate(now)
	if r < 1 {
		return "", ""
	}
	rate = units.HumanSizeWithPrecision(r, 3) + "/s"
	if seconds := float64(left) / r; seconds < 100*3600 {
		eta = short(time.Duration(seconds * float64(time.Second)))
	}
	return rate, eta
}

// short returns a duration with its two greatest units.
func short(d time.Duration) string {
	s := int64((d + time.Second - 1) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	}
	return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
}
