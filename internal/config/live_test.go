package config

import (
	"errors"
	"slices"
	"testing"
)

func TestReloadTakesOnlyLiveSettings(t *testing.T) {
	start := Default()
	l := NewLive(&start)
	next := Default()
	next.Labels, next.DataRoot = []string{"a=b"}, "/elsewhere"
	var applied *Config
	live, restart, err := l.Reload(&next, func(c *Config) error { applied = c; return nil })
	if err != nil || !slices.Equal(live, []string{"labels"}) || !slices.Equal(restart, []string{"data-root"}) {
		t.Fatalf("live %v, restart %v, %v", live, restart, err)
	}
	cur := l.Current()
	if cur != applied || !slices.Equal(cur.Labels, next.Labels) || cur.DataRoot != start.DataRoot {
		t.Errorf("in force: labels %v, data root %s", cur.Labels, cur.DataRoot)
	}
	if len(start.Labels) != 0 {
		t.Error("the configuration of the start was changed")
	}
}

func TestARefusedReloadChangesNothing(t *testing.T) {
	start := Default()
	l := NewLive(&start)
	next := Default()
	next.Debug = true
	want := errors.New("no")
	if _, _, err := l.Reload(&next, func(*Config) error { return want }); !errors.Is(err, want) {
		t.Errorf("Reload = %v", err)
	}
	if l.Current() != &start {
		t.Error("another configuration is in force")
	}
}
