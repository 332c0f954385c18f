package main

import (
	"context"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"ply/internal/api/docker"
	"ply/internal/engine"
	"ply/internal/errs"
	"ply/internal/store/check"
)

// checkModes are the values of --check, separated by commas.
var checkModes = []string{"quick", "full", "repair", "json"}

// examine checks the data root without serving, for `plyd --check` and for `ply system check` when no engine runs. Its error
// says that problems remain.
func examine(mode string, o engine.Options, out io.Writer) error {
	modes := strings.Split(mode, ",")
	for _, m := range modes {
		if !slices.Contains(checkModes, m) {
			return errs.New(errs.Invalid, "--check=%s: %q is none of %s", mode, m, strings.Join(checkModes, ", "))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	co := check.Options{Full: slices.Contains(modes, "full"), Repair: slices.Contains(modes, "repair")}
	checker := engine.Offline{Options: o}
	if slices.Contains(modes, "json") {
		return docker.WriteCheck(ctx, out, checker, co)
	}
	sum, err := checker.Check(ctx, co, check.Listener{Found: func(f check.Finding) {
		fmt.Fprintf(out, "%s %s: %s\n", f.Kind, f.Object, f.Problem)
		if f.Repaired != "" {
			fmt.Fprintf(out, "    repaired: %s\n", f.Repaired)
		} else {
			fmt.Fprintf(out, "    to heal it: %s\n", f.Heal)
		}
	}})
	if err != nil {
		return err
	}
	if left := sum.Findings - sum.Repaired; left > 0 {
		return errs.New(errs.DataLoss, "problems that remain: %d", left)
	}
	fmt.Fprintln(out, "Everything agrees.")
	return nil
}
