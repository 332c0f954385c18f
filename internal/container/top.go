package container

import (
	"bytes"
	"context"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"ply/internal/errs"
)

// Top runs the host's ps and returns the lines of the container's processes. No psArgs means -ef.
// Errors: Conflict when the container does not run, Invalid for arguments that ps refuses.
func (s *Service) Top(ctx context.Context, ref string, psArgs []string) (titles []string, rows []Process, err error) {
	if len(psArgs) == 0 {
		psArgs = []string{"-ef"}
	}
	for _, a := range psArgs {
		if strings.IndexByte(a, 0) >= 0 {
			return nil, nil, invalid("ps argument %q holds a NUL", a)
		}
	}
	c, err := s.find(ref)
	if err != nil {
		return nil, nil, err
	}
	l, err := c.running()
	if err != nil {
		return nil, nil, err
	}
	pids, err := l.Client.Pids(ctx)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, "ps", psArgs...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if msg := strings.TrimSpace(stderr.String()); msg != "" {
			first, _, _ := strings.Cut(msg, "\n")
			return nil, nil, invalid("ps: %s", first)
		}
		return nil, nil, errs.New(errs.Internal, "ps: %w", err)
	}
	titles, rows, err = selectProcesses(stdout.String(), pids)
	if err == nil {
		c.publish("top")
	}
	return titles, rows, err
}

// selectProcesses returns the titles and those lines of ps whose PID column is one of pids. The last column takes the
// rest of its line.
func selectProcesses(out string, pids []int) (titles []string, rows []Process, err error) {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	titles = strings.Fields(lines[0])
	col := slices.Index(titles, "PID")
	if col < 0 {
		return nil, nil, invalid("couldn't find PID field in ps output")
	}
	for _, line := range lines[1:] {
		fields := splitN(line, len(titles))
		if len(fields) <= col {
			continue
		}
		pid, err := strconv.Atoi(fields[col])
		if err != nil {
			return nil, nil, errs.New(errs.Internal, "unexpected pid '%s'", clip(fields[col]))
		}
		if slices.Contains(pids, pid) {
			rows = append(rows, fields)
		}
	}
	return titles, rows, nil
}

// splitN splits at blanks into at most n fields; the last may have blanks.
func splitN(line string, n int) []string {
	var out []string
	rest := strings.TrimLeft(line, " \t")
	for len(out) < n-1 && rest != "" {
		i := strings.IndexAny(rest, " \t")
		if i < 0 {
			break
		}
		out = append(out, rest[:i])
		rest = strings.TrimLeft(rest[i:], " \t")
	}
	if rest != "" {
		out = append(out, strings.TrimRight(rest, " \t"))
	}
	return out
}
