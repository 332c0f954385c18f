package auth

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ply/internal/errs"
)

// logins checks passwords. Clients that log in by Basic send their password with every request, so one that was right is remembered
// by a keyed hash. Wrong ones are counted by address.
type logins struct {
	key     []byte
	cost    int           // of hashes, by bcrypt's count
	nobody  string        // what follows the cost in a hash that no password has
	slots   chan struct{} // checks that run at the same time
	compare func(hash, password []byte) error

	mu       sync.Mutex
	right    map[[32]byte]time.Time
	failures map[netip.Prefix]*bucket
}

// bucket has the failures of an address. It empties with time.
type bucket struct {
	level float64
	at    time.Time
}

const (
	maxRight       = 10_000
	maxAddresses   = 10_000
	rightFor       = 10 * time.Minute
	burst          = 20              // wrong passwords of an address at once
	perFailure     = 6 * time.Second // after which one more is allowed
	bcryptText     = 53              // characters of a hash behind its cost: salt and sum
	blockedMessage = "too many wrong passwords from this address"
)

func newLogins(cost int) *logins {
	l := &logins{
		key: make([]byte, 32), cost: cmp.Or(cost, passwordCost), nobody: (rand.Text() + rand.Text() + rand.Text())[:bcryptText], compare: bcrypt.CompareHashAndPassword,
		slots: make(chan struct{}, max(runtime.NumCPU()-1, 1)), right: map[[32]byte]time.Time{}, failures: map[netip.Prefix]*bucket{},
	}
	_, _ = rand.Read(l.key) // never fails
	return l
}

// matches compares a password with a hash; an empty one stands for a user who does not exist. A wrong password takes the same work whoever the
// user is and whatever the cost of its hash, so that the time does not tell who exists.
func (l *logins) matches(hash string, password []byte) bool {
	if hash == "" {
		_ = l.compare(l.nobodyOf(l.cost), password)
		return false
	}
	if l.compare([]byte(hash), password) == nil {
		return true
	}
	// The work doubles with each cost: that of a hash and of each cost from its own to below l.cost is together that of l.cost.
	cost, err := bcrypt.Cost([]byte(hash))
	for ; err == nil && cost < l.cost; cost++ {
		_ = l.compare(l.nobodyOf(cost), password)
	}
	return false
}

// nobodyOf returns a hash of a cost that no password has.
func (l *logins) nobodyOf(cost int) []byte { return fmt.Appendf(nil, "$2a$%02d$%s", cost, l.nobody) }

// prefix returns what counts as one address: of IPv6, a network of a subscriber.
func prefix(remote string) netip.Prefix {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}
	}
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// sum returns the keyed hash by which something that was right is remembered.
func (l *logins) sum(parts ...string) [32]byte {
	mac := hmac.New(sha256.New, l.key)
	for _, s := range parts {
		h := sha256.Sum256([]byte(s))
		mac.Write(h[:])
	}
	return [32]byte(mac.Sum(nil))
}

func (l *logins) known(sum [32]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	until, ok := l.right[sum]
	return ok && time.Now().Before(until)
}

func (l *logins) remember(sum [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.right) >= maxRight {
		clear(l.right)
	}
	l.right[sum] = time.Now().Add(rightFor)
}

// check checks a password against a hash; an empty one stands for a user who does not exist.
func (l *logins) check(ctx context.Context, remote, name, password, hash string) error {
	sum := l.sum(name, password, hash)
	if l.known(sum) {
		return nil
	}
	from := prefix(remote)
	if !l.allowed(from) {
		return errs.New(errs.Exhausted, blockedMessage)
	}
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !l.allowed(from) { // others failed while this one waited
		return errs.New(errs.Exhausted, blockedMessage)
	}
	given := []byte(password)
	if len(given) > maxPassword {
		given = given[:maxPassword]
	}
	if !l.matches(hash, given) || len(password) > maxPassword {
		l.fail(from)
		return errs.New(errs.Unauthorized, "wrong user name or password")
	}
	l.remember(sum)
	return nil
}

// token checks a personal access token. One that was right a while ago need not wait, but it is looked up again each time.
func (l *logins) token(remote, name, text string, check func() (AccessToken, error)) (AccessToken, error) {
	sum, from := l.sum(name, text), prefix(remote)
	if !l.known(sum) && !l.allowed(from) {
		return AccessToken{}, errs.New(errs.Exhausted, blockedMessage)
	}
	t, err := check()
	switch {
	case errors.Is(err, errs.Unauthorized):
		l.fail(from)
	case err == nil:
		l.remember(sum)
	}
	return t, err
}

func (b *bucket) drain(now time.Time) {
	b.level = max(b.level-float64(now.Sub(b.at))/float64(perFailure), 0)
	b.at = now
}

func (l *logins) allowed(from netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.failures[from]
	if b == nil {
		return true
	}
	b.drain(time.Now())
	return b.level < burst
}

func (l *logins) fail(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	b := l.failures[from]
	if b == nil {
		if len(l.failures) >= maxAddresses { // forget any other
			for p := range l.failures {
				delete(l.failures, p)
				break
			}
		}
		b = &bucket{at: now}
		l.failures[from] = b
	}
	b.drain(now)
	b.level++
}
