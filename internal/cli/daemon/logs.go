package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"ply/internal/errs"
)

// pollLog is how often a log that is followed is looked at.
const pollLog = 200 * time.Millisecond

// Logs writes the last lines of plyd's log, all when tail is negative, and with follow what is added until ctx ends. The log is where the plyd of s writes; when
// none runs it is where the last one wrote.
func (p Paths) Logs(ctx context.Context, s State, tail int, follow bool, stdout, stderr io.Writer) error {
	file := p.Log
	journal := false
	if s.Process != nil {
		if s.Log == "" && !s.Journal {
			return errs.New(errs.Precondition, "plyd, process %d, writes its log neither to a file nor to the journal", s.PID).WithHint("Start it with its standard error in a file, or with: ply system start")
		}
		file, journal = s.Log, s.Journal
	} else if u, err := p.unit(ctx); err != nil {
		return err
	} else if u.installed {
		journal = true
	}
	if journal {
		cmd, err := p.journal(ctx, tail, follow)
		if err != nil {
			return err
		}
		cmd.Stdout, cmd.Stderr = stdout, stderr
		if err := cmd.Run(); err != nil && ctx.Err() == nil {
			return errs.New(errs.Unavailable, "journalctl: %w", err)
		}
		return context.Cause(ctx)
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "there is no log of plyd at %s", file).WithHint("A plyd that ply has not started writes where its starter said.")
	}
	if err != nil {
		return errs.New(errs.Unavailable, "log of plyd: %w", err)
	}
	defer func() { f.Close() }()
	if tail >= 0 {
		if err := seekLines(f, tail); err != nil {
			return err
		}
	}
	for {
		if _, err := io.Copy(stdout, f); err != nil {
			return errs.New(errs.Unavailable, "log of plyd: %w", err)
		}
		if !follow {
			return nil
		}
		t := time.NewTimer(pollLog)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
		if f, err = current(f, file); err != nil {
			return err
		}
	}
}

// current returns the file to read on: f, from its begin when it was cut, or the one that has its name by now when all of f was read.
func current(f *os.File, name string) (*os.File, error) {
	open, err := f.Stat()
	if err != nil {
		return f, err
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil || open.Size() > at {
		return f, err
	}
	if open.Size() < at {
		_, err := f.Seek(0, io.SeekStart)
		return f, err
	}
	named, err := os.Stat(name)
	if err != nil || os.SameFile(open, named) {
		return f, nil // also between the renaming and the making of a log
	}
	next, err := os.Open(name)
	if err != nil {
		return f, nil
	}
	f.Close()
	return next, nil
}

// seekLines moves f to the begin of its last n lines.
func seekLines(f *os.File, n int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return err
	}
	buf := make([]byte, 64<<10)
	for at := end; at > 0; {
		size := min(int64(len(buf)), at)
		at -= size
		b := buf[:size]
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		if at+size == end {
			b = bytes.TrimSuffix(b, []byte("\n"))
		}
		for i := bytes.LastIndexByte(b, '\n'); i >= 0; i = bytes.LastIndexByte(b[:i], '\n') {
			if n--; n == 0 {
				_, err := f.Seek(at+int64(i)+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
