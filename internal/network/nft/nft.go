// Package nft applies scripts to the kernel's packet filter with the program nft. A script takes effect wholly or not at
// all.
package nft

import (
	"bytes"
	"context"
	"os/exec"
	"strings"

	"ply/internal/errs"
)

// Apply applies a script as one transaction. An empty script does nothing.
func Apply(ctx context.Context, script string) error {
	if script == "" {
		return nil
	}
	path, err := exec.LookPath("nft")
	if err != nil {
		return errs.New(errs.Precondition, "network: the program nft is not installed").
			WithHint("Install the package nftables, or start plyd with --iptables=false.")
	}
	cmd := exec.CommandContext(ctx, path, "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		msg := strings.TrimSpace(out.String())
		if len(msg) > 500 {
			msg = msg[:500] + "…"
		}
		return errs.New(errs.Internal, "network: nft: %w: %s", err, msg)
	}
	return nil
}

// Exists reports whether the kernel has the table, which is named with its family: "inet name".
func Exists(ctx context.Context, table string) bool {
	return Apply(ctx, "list table "+table+"\n") == nil
}

// List returns the rules of a table, which is named with its family, without the elements of its sets; "" when the kernel has no such table.
func List(ctx context.Context, table string) string {
	return list(ctx, append([]string{"-t", "list", "table"}, strings.Fields(table)...))
}

// ListChain returns a chain of a table with its rules and their handles; "" when the kernel has no such chain.
func ListChain(ctx context.Context, table, chain string) string {
	return list(ctx, append(append([]string{"-a", "list", "chain"}, strings.Fields(table)...), chain))
}

// list returns what nft prints; "" when it fails.
func list(ctx context.Context, args []string) string {
	path, err := exec.LookPath("nft")
	if err != nil {
		return ""
	}
	out, err := exec.CommandContext(ctx, path, args...).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

// Shape returns the sets, maps and chains of a table in the language of nft, with the number of lines in each chain. The kernel's words for a rule differ
// from those in which it was written; its shape does not.
func Shape(table string) map[string]int {
	shape := map[string]int{}
	chain := ""
	for line := range strings.Lines(table) {
		line = strings.TrimRight(line, "\n")
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "\t\t"):
			if chain != "" && len(f) > 0 {
				shape[chain]++
			}
		case len(f) >= 3 && (f[0] == "chain" || f[0] == "set" || f[0] == "map"):
			shape[f[0]+" "+f[1]] = 0
			if chain = ""; f[0] == "chain" {
				chain = "chain " + f[1]
			}
		}
	}
	return shape
}
