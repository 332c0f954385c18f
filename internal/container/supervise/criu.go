package supervise

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/container/shim"
)

// criuOptions are how a container is saved and restored. An open TCP connection makes both fail, as with docker, unless CRIU's own configuration for
// containers, /etc/criu/runc.conf, says otherwise.
func criuOptions(images *os.File, work string) *libcontainer.CriuOpts {
	return &libcontainer.CriuOpts{
		ImagesDirectory: fmt.Sprintf("/proc/self/fd/%d", images.Fd()), WorkDirectory: work,
		LeaveRunning: true, // the caller kills them, when the checkpoint is durable
		FileLocks:    true,
	}
}

// hasCRIU returns an error when CRIU is not installed.
func hasCRIU() error {
	if _, err := exec.LookPath("criu"); err != nil {
		return &failure{shim.ClassMissing, "checkpoints need CRIU, and there is no program criu on this host. Install it (Debian's package is criu), " +
			"or use pause, which keeps the processes in memory, or commit, which keeps their files"}
	}
	return nil
}

func (r *linked) checkpoint(images *os.File, work string) error {
	if err := hasCRIU(); err != nil {
		return err
	}
	if err := r.c.Checkpoint(criuOptions(images, work)); err != nil {
		return criuError("checkpoint", err, filepath.Join(work, "dump.log"))
	}
	return nil
}

func (r *linked) restore(p *specs.Process, io ends, images *os.File, work string) (child, error) {
	if err := hasCRIU(); err != nil {
		return child{}, err
	}
	lp, err := r.process(p, io, true)
	if err != nil {
		return child{}, err
	}
	if err := r.c.Restore(lp, criuOptions(images, work)); err != nil {
		return child{}, criuError("restore", err, filepath.Join(work, "restore.log"))
	}
	c, err := begun(lp)
	if err != nil {
		return c, err
	}
	r.first = c.pid
	// The object that was restored does not know when its process started, and takes it for one that has ended.
	r.c, err = libcontainer.Load(r.stateDir, r.c.ID())
	return c, err
}

const (
	criuTail  = 256 << 10 // bytes of the end of CRIU's log that are looked through
	criuLines = 4         // lines of it that an error has
)

// criuError returns the error of a checkpoint or restore with the last errors in CRIU's log.
func criuError(what string, err error, log string) error {
	lines := lastErrors(log)
	if len(lines) == 0 {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %s (the whole log is %s; CRIU's options for containers, such as tcp-established, are those of /etc/criu/runc.conf)", what, err, strings.Join(lines, "; "), log)
}

// lastErrors returns the last lines of CRIU's log that are errors.
func lastErrors(name string) []string {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close() // only read from
	if st, err := f.Stat(); err == nil && st.Size() > criuTail {
		_, _ = f.Seek(-criuTail, io.SeekEnd) // after an error the beginning is looked through
	}
	tail, err := io.ReadAll(io.LimitReader(f, criuTail))
	if err != nil {
		return nil
	}
	var out []string
	for line := range bytes.Lines(tail) {
		if _, text, ok := bytes.Cut(line, []byte("Error ")); ok {
			out = append(out, strings.ToValidUTF8(string(bytes.TrimSpace(text[:min(len(text), 300)])), "?"))
		}
	}
	return out[max(0, len(out)-criuLines):]
}

// notByCommand returns the error of a runtime that is run as a program.
func (r *command) notByCommand() error {
	return &failure{shim.ClassInvalid, fmt.Sprintf("container %s runs under %s; checkpoints are made of containers under the default runtime", r.cfg.ID, r.cfg.Runtime)}
}

func (r *command) checkpoint(*os.File, string) error { return r.notByCommand() }

func (r *command) restore(*specs.Process, ends, *os.File, string) (child, error) {
	return child{}, r.notByCommand()
}
