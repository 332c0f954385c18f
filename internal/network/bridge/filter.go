package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"ply/internal/network/nft"
)

// A packet is forwarded only if no chain of the host drops it. The chain FORWARD of iptables does where its policy is DROP, which ufw and dockerd set, or where
// its last rule rejects everything. Rules that accept the packets of the bridges stand in a chain of their own, to which FORWARD comes last,
// before it would drop: what the administrator forbids in other rules, DOCKER-USER and "ufw route" included, stays forbidden, and what
// the engine's own table forbids as well. All engines of a host have their rules in this chain.
//
// The rules are in the form that iptables reads and writes. A chain FORWARD of iptables-legacy is not seen here.

// passChain is the chain with the rules of ply, and hostChain that of the host, both in the table "filter" of iptables.
const (
	passChain = "PLY-FORWARD"
	hostChain = "FORWARD"
)

// chainRule is a rule of a chain as nft prints it, without counters.
type chainRule struct {
	text   string
	handle string
}

// passThrough makes the chains FORWARD pass what is forwarded from and to the bridges of this engine, where they would drop it. It reports whether it changed
// something.
func (d *Driver) passThrough(ctx context.Context) (changed bool, err error) {
	if d.opts.NoRules {
		return false, nil
	}
	d.filtering.Lock()
	defer d.filtering.Unlock()
	v4, v6 := []string{}, []string{}
	for _, s := range d.all() {
		if !s.cfg.NoIPv4 {
			v4 = append(v4, s.cfg.Bridge)
		}
		if s.gateway6.IsValid() {
			v6 = append(v6, s.cfg.Bridge)
		}
	}
	slices.Sort(v4)
	slices.Sort(v6)
	for _, f := range []struct {
		family  string
		bridges []string
	}{{"ip", v4}, {"ip6", v6}} {
		if len(f.bridges) == 0 {
			continue
		}
		script := passScript(f.family, nft.ListChain(ctx, f.family+" filter", hostChain), func() string {
			return nft.ListChain(ctx, f.family+" filter", passChain)
		}, f.bridges)
		changed = changed || script != ""
		err = errors.Join(err, nft.Apply(ctx, script))
	}
	return changed, err
}

// passScript returns what is to be changed; "" when nothing is. host is the listing of the chain FORWARD, ours returns that of the other one.
func passScript(family, host string, ours func() string, bridges []string) string {
	head, rules := readChain(host)
	end := slices.IndexFunc(rules, dropsEverything)
	if end < 0 && !strings.Contains(head, "policy drop") {
		return ""
	}
	if end < 0 {
		end = len(rules)
	}
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	table := family + " filter"
	_, have := readChain(ours())
	p("add chain %s %s", table, passChain)
	before := b.Len()
	for _, bridge := range bridges {
		for _, text := range passRules(bridge) {
			if !slices.ContainsFunc(have, func(r chainRule) bool { return r.text == text }) {
				p("add rule %s %s %s", table, passChain, strings.Replace(text, " accept", " counter accept", 1))
			}
		}
	}
	jumps := 0
	for _, r := range rules {
		if r.text == "jump "+passChain {
			jumps++
		}
	}
	if jumps != 1 || end == 0 || rules[end-1].text != "jump "+passChain {
		for _, r := range rules {
			if r.text == "jump "+passChain {
				p("delete rule %s %s handle %s", table, hostChain, r.handle)
			}
		}
		if end < len(rules) {
			p("insert rule %s %s position %s counter jump %s", table, hostChain, rules[end].handle, passChain)
		} else {
			p("add rule %s %s counter jump %s", table, hostChain, passChain)
		}
	}
	if b.Len() == before {
		return ""
	}
	return b.String()
}

// passRules returns the rules of a bridge.
func passRules(bridge string) []string {
	return []string{fmt.Sprintf("iifname %q accept", bridge), fmt.Sprintf("oifname %q accept", bridge)}
}

// dropsEverything reports whether no packet gets past a rule of FORWARD. The chain of ufw has one such rule if its policy is REJECT.
func dropsEverything(r chainRule) bool {
	switch r.text {
	case "drop", "jump ufw-reject-forward", "jump ufw6-reject-forward", `xt target "REJECT"`:
		return true
	}
	return r.text == "reject" || strings.HasPrefix(r.text, "reject with ")
}

// stopPassing undoes passThrough for a bridge that is removed. It removes the chain with its last rule.
func (s *segment) stopPassing(ctx context.Context) error {
	s.driver.filtering.Lock()
	defer s.driver.filtering.Unlock()
	families := []string{"ip"}
	if s.gateway6.IsValid() {
		families = append(families, "ip6")
	}
	var failed error
	for _, family := range families {
		table := family + " filter"
		head, rules := readChain(nft.ListChain(ctx, table, passChain))
		if head == "" {
			continue
		}
		var b strings.Builder
		left := len(rules)
		for _, r := range rules {
			if slices.Contains(passRules(s.cfg.Bridge), r.text) {
				fmt.Fprintf(&b, "delete rule %s %s handle %s\n", table, passChain, r.handle)
				left--
			}
		}
		if b.Len() > 0 && left == 0 {
			_, host := readChain(nft.ListChain(ctx, table, hostChain))
			for _, r := range host {
				if r.text == "jump "+passChain {
					fmt.Fprintf(&b, "delete rule %s %s handle %s\n", table, hostChain, r.handle)
				}
			}
			fmt.Fprintf(&b, "delete chain %s %s\n", table, passChain)
		}
		failed = errors.Join(failed, nft.Apply(ctx, b.String()))
	}
	return failed
}

// readChain splits a listing of a chain into the line with its policy and its rules. Both are empty when there is no such chain.
func readChain(listing string) (head string, rules []chainRule) {
	for line := range strings.Lines(listing) {
		line = strings.TrimSpace(line)
		text, handle, ok := strings.Cut(line, " # handle ")
		switch {
		case strings.HasPrefix(line, "chain "):
			head += line
		case strings.HasPrefix(line, "type "):
			head += " " + line
		case ok && !strings.HasPrefix(line, "table "):
			rules = append(rules, chainRule{withoutCounter(text), handle})
		}
	}
	return head, rules
}

// withoutCounter removes "counter packets N bytes N" from a rule.
func withoutCounter(rule string) string {
	words := strings.Fields(rule)
	if i := slices.Index(words, "counter"); i >= 0 && len(words) >= i+5 && words[i+1] == "packets" && words[i+3] == "bytes" {
		words = slices.Delete(words, i, i+5)
	}
	return strings.Join(words, " ")
}
