package config

import "sync"

// Live holds the configuration that is in force while the engine runs. Safe for concurrent use.
type Live struct {
	reload sync.Mutex // serialises Reload

	mu  sync.Mutex
	cur *Config
}

// NewLive returns a Live with the configuration that the engine starts with.
func NewLive(c *Config) *Live { return &Live{cur: c} }

// Current returns the configuration in force. The caller must not change it.
func (l *Live) Current() *Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cur
}

// Reload puts the live settings of next in force. apply hands them to the services; when it returns an error, the old
// configuration stays in force. live and restart are as Reloadable returns them.
func (l *Live) Reload(next *Config, apply func(*Config) error) (live, restart []string, err error) {
	l.reload.Lock()
	defer l.reload.Unlock()
	cur := l.Current()
	live, restart = Reloadable(cur, next)
	taken := cur.Take(next)
	if err := apply(taken); err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cur = taken
	return live, restart, nil
}
