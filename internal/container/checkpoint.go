package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/safepath"
)

// Checkpoint names a checkpoint of a container: the state of its processes, which CRIU has saved. The files of the container are no part of it.
type Checkpoint struct {
	Name string
	Dir  string // absolute path of the directory that has it; "" is the container's own, which is removed with the container
}

// Checkpoints makes, lists and removes checkpoints. Safe for concurrent use.
type Checkpoints struct {
	find func(ref string) (*ctr, error)
	runs *starter
}

// NewCheckpoints returns the access to the checkpoints of the service's containers.
func NewCheckpoints(s *Service) *Checkpoints { return &Checkpoints{find: s.find, runs: s.runs} }

// checkpointName is what docker allows as the name of a checkpoint.
var checkpointName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// maxCheckpointName bounds a name, so that its temporary fits into a directory too.
const maxCheckpointName = 200

func (p Checkpoint) check() error {
	if !checkpointName.MatchString(p.Name) || len(p.Name) > maxCheckpointName {
		return invalid("Invalid checkpoint ID (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", clip(p.Name))
	}
	return checkCheckpointDir(p.Dir)
}

func checkCheckpointDir(dir string) error {
	if dir != "" && !filepath.IsAbs(dir) {
		return invalid("checkpoint directory %q: not an absolute path of the engine's host", clip(dir))
	}
	return nil
}

// openCheckpoints opens a directory of checkpoints, and makes it first if that is asked for. It follows no link in the last part of the path.
func openCheckpoints(c *ctr, dir string, create bool) (*os.File, error) {
	if dir == "" {
		dir = c.paths.checkpoints
	}
	if create {
		if err := os.MkdirAll(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, errs.New(errs.Invalid, "checkpoint directory: %w", err)
		}
	}
	fd, err := unix.Open(filepath.Clean(dir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, invalid("checkpoint directory %s is a link, or not a directory", clip(dir))
	case errors.Is(err, unix.ENOENT):
		return nil, errs.New(errs.NotFound, "checkpoint directory %s does not exist", clip(dir))
	case err != nil:
		return nil, errs.New(errs.Internal, "checkpoint directory %s: %w", clip(dir), err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// openCheckpoint opens the directory of one checkpoint.
func openCheckpoint(c *ctr, p Checkpoint) (*os.File, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	dir, err := openCheckpoints(c, p.Dir, false)
	if errors.Is(err, errs.NotFound) {
		return nil, noCheckpoint(c, p)
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close() // only read from
	f, err := safepath.OpenNoLinks(dir, p.Name, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, os.ErrNotExist) {
		return nil, noCheckpoint(c, p)
	}
	if err != nil {
		return nil, invalid("checkpoint %s of container %s is a link, or not a directory: %w", p.Name, c.name(), err)
	}
	return f, nil
}

func noCheckpoint(c *ctr, p Checkpoint) error {
	return errs.New(errs.NotFound, "checkpoint %s does not exist for container %s", p.Name, c.name())
}

// Create saves the processes of a running container, frozen or not, in a new checkpoint. Unless leaveRunning is set it ends them at that very point, and
// returns when their end is recorded; restart policies do not start the container then. When the checkpoint cannot be made, the processes run on. Errors:
// Conflict when the container does not run, or when the checkpoint would be removed with the container; Exists; Invalid; Unimplemented without CRIU.
func (k *Checkpoints) Create(ctx context.Context, ref string, p Checkpoint, leaveRunning bool) error {
	c, err := k.find(ref)
	if err != nil {
		return err
	}
	if err := p.check(); err != nil {
		return err
	}
	w, err := saveProcesses(context.WithoutCancel(ctx), c, p, leaveRunning)
	if err != nil || leaveRunning {
		return err
	}
	defer w.cancel()
	if !w.await(ctx, killWait) {
		return errs.New(errs.Unavailable, "container %s: its checkpoint is made, but it does not end", c.id)
	}
	return nil
}

// saveProcesses makes a checkpoint. The waiter waits for the end of the run; it is nil when the processes run on.
func saveProcesses(ctx context.Context, c *ctr, p Checkpoint, leaveRunning bool) (_ *waiter, err error) {
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.release()
	l, err := c.running()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	removed := c.rec.Spec.AutoRemove
	c.mu.Unlock()
	if removed && !leaveRunning && p.Dir == "" {
		return nil, errs.New(errs.Conflict, "container %s is removed when it ends (--rm), and its checkpoints with it", c.name()).
			WithHint("Leave it running (--leave-running), or name a directory outside (--checkpoint-dir).")
	}
	dir, err := openCheckpoints(c, p.Dir, true)
	if err != nil {
		return nil, err
	}
	defer dir.Close() // the shim writes to it, and syncs it
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), p.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		return nil, errs.New(errs.Exists, "checkpoint with name %s already exists for container %s", p.Name, c.name())
	}
	if err := makeWork(c); err != nil {
		return nil, err
	}
	if p.Dir == "" {
		if err := c.env.opts.Store.FS.SyncDir(c.paths.dir); err != nil {
			return nil, errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
		}
	}
	var w *waiter
	if !leaveRunning {
		w = c.wait(WaitNextExit)
		defer func() {
			if err != nil {
				w.cancel()
			}
		}()
		defer endsForGood(c, l, &err)()
	}
	err = c.sessions.WithoutStarts(func() error {
		return l.Client.Checkpoint(ctx, dir, shim.CheckpointArgs{
			Name: p.Name, Temporary: durable.TempPrefix + p.Name, Work: c.paths.criu, LeaveRunning: leaveRunning,
		})
	})
	if err != nil {
		return nil, checkpointError("Cannot checkpoint container "+c.name(), err)
	}
	c.publish("checkpoint")
	return w, nil
}

// endsForGood keeps restart policies from starting a container that is about to end. The function that it returns undoes that after an error. The record says so
// before the end, because plyd may not live to see it.
func endsForGood(c *ctr, l *life, err *error) (undo func()) {
	c.mu.Lock()
	stopped, manual := c.rec.Stopped, l.manual
	c.rec.Stopped, l.manual = true, true
	c.mu.Unlock()
	c.saveLogged()
	return func() {
		if *err == nil {
			return
		}
		c.mu.Lock()
		c.rec.Stopped, l.manual = stopped, manual
		c.mu.Unlock()
		c.saveLogged()
	}
}

// makeWork makes the directory in which CRIU writes its log, without those of the time before.
func makeWork(c *ctr) error {
	err := os.RemoveAll(c.paths.criu)
	if err == nil {
		err = os.Mkdir(c.paths.criu, 0o700)
	}
	if err != nil {
		return errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
	}
	return nil
}

// Start starts a container that does not run: the processes go on that the checkpoint has. Errors are those of Service.Start, and NotFound; Invalid;
// Unimplemented without CRIU.
func (k *Checkpoints) Start(ctx context.Context, ref string, from Checkpoint) error {
	c, err := k.find(ref)
	if err != nil {
		return err
	}
	saved, err := openCheckpoint(c, from)
	if err != nil {
		return err
	}
	defer saved.Close() // only read from
	return k.runs.startByUser(ctx, c, saved)
}

// restoreFrom lets the shim restore a checkpoint.
func restoreFrom(ctx context.Context, c *ctr, client *shim.Client, saved *os.File) error {
	if err := makeWork(c); err != nil {
		return err
	}
	if err := client.Restore(ctx, saved, shim.RestoreArgs{Work: c.paths.criu}); err != nil {
		return checkpointError("Cannot restore container "+c.name(), err)
	}
	return nil
}

// checkpointError says what could not be done with a checkpoint, and keeps the class of the reason.
func checkpointError(what string, err error) error {
	for _, class := range []error{errs.Conflict, errs.Precondition, errs.Invalid, errs.Unimplemented, errs.Unavailable} {
		if errors.Is(err, class) {
			return errs.New(class, "%s: %w", what, err)
		}
	}
	return errs.New(errs.Internal, "%s: %w", what, err)
}

// List returns the names of the checkpoints in a directory, "" for the container's own, sorted. Errors: NotFound, Invalid.
func (k *Checkpoints) List(_ context.Context, ref, in string) ([]string, error) {
	c, err := k.find(ref)
	if err != nil {
		return nil, err
	}
	if err := checkCheckpointDir(in); err != nil {
		return nil, err
	}
	dir, err := openCheckpoints(c, in, false)
	if in == "" && errors.Is(err, errs.NotFound) {
		return nil, nil // none was made yet
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close() // only read from
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, errs.New(errs.Internal, "checkpoints of container %s: %w", c.name(), err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && checkpointName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Remove deletes a checkpoint. Errors: NotFound, Invalid; Conflict while a checkpoint is made or restored.
func (k *Checkpoints) Remove(ctx context.Context, ref string, p Checkpoint) error {
	c, err := k.find(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil { // none is being made or restored
		return err
	}
	defer c.release()
	found, err := openCheckpoint(c, p)
	if err != nil {
		return err
	}
	_ = found.Close() // nothing was read
	dir, err := openCheckpoints(c, p.Dir, false)
	if err != nil {
		return err
	}
	defer dir.Close()
	// It loses its name first, so that no part of one is left under a name.
	temp := durable.TempPrefix + p.Name
	at := int(dir.Fd())
	err = safepath.RemoveAll(dir, temp, nil)
	if err == nil {
		err = unix.Renameat2(at, p.Name, at, temp, unix.RENAME_NOREPLACE)
	}
	if err == nil {
		err = errors.Join(dir.Sync(), safepath.RemoveAll(dir, temp, nil))
	}
	if err != nil {
		return errs.New(errs.Internal, "checkpoint %s of container %s: %w", p.Name, c.name(), err)
	}
	return nil
}
