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
