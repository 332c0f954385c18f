package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ply/internal/container/logfile"
	"ply/internal/container/shim"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/procid"
	"ply/internal/store"
	"ply/internal/store/check"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
)

// Check examines the records, directories, mounts and logs of the containers, and what lies in their directories without a
// record. A container is examined while nothing else changes it. Work that ends at this moment, such as that of a process that has
// just been killed, is waited for: only a problem that stays is a finding.
func (s *Service) Check(ctx context.Context, r *check.Run) error {
	x := &examiner{env: s.env, runs: s.runs, r: r, looks: maxLooks}
	if r.Offline {
		x.looks = 1
	}
	all := s.env.index.all()
	slices.SortFunc(all, func(a, b *ctr) int { return a.rec.Created.Compare(b.rec.Created) })
	r.Checked("container", len(all))
	part := r.Part("containers", int64(len(all)), false)
	for _, c := range all {
		if err := x.examine(ctx, c); err != nil {
			return err
		}
		part.Add(1)
	}
	if err := x.damagedRecords(ctx); err != nil {
		return err
	}
	return x.strays(ctx)
}

// Hold calls do while no start, end or removal of the container is under way.
func (s *Service) Hold(ctx context.Context, id oci.ContainerID, do func()) error {
	c := s.env.index.get(id)
	if c == nil {
		do()
		return nil
	}
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	do()
	return nil
}

// maxLooks is how often something is looked at before it is a finding, and lookAgain the time between.
const (
	maxLooks  = 5
	lookAgain = 500 * time.Millisecond
)

// examiner is one call of Check.
type examiner struct {
	env   *env
	runs  *starter
	r     *check.Run
	looks int
}

// trouble is one problem of a container; mend is nil when no repair heals it.
type trouble struct {
	kind    string // "" = container
	problem string
	heal    string
	mend    func() (string, error)
}

// examine examines one container, again while there are problems that may still go away.
func (x *examiner) examine(ctx context.Context, c *ctr) error {
	for look := 1; ; look++ {
		if err := c.acquire(ctx); err != nil {
			return err
		}
		c.mu.Lock()
		gone := c.gone
		c.mu.Unlock()
		var found []trouble
		if !gone {
			found = x.troubles(ctx, c)
		}
		if len(found) == 0 || look >= x.looks {
			for _, t := range found {
				x.report(c.id, c.name(), t)
			}
			c.release()
			return context.Cause(ctx)
		}
		c.release()
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// pause waits until something is looked at again.
func pause(ctx context.Context) error {
	t := time.NewTimer(lookAgain)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (x *examiner) report(id oci.ContainerID, name string, t trouble) {
	f := check.Finding{Kind: t.kind, Object: string(id), Problem: t.problem, Heal: t.heal}
	if f.Kind == "" {
		f.Kind = "container"
	}
	if name != "" {
		f.Object += " (" + name + ")"
	}
	if t.mend == nil {
		x.r.Report(f)
		return
	}
	x.r.Mend(f, t.mend)
}

// killedExit is the exit code in the exit file that a clean-up writes for a shim that was killed.
const killedExit = 137

// troubles examines a container; c.op is held.
func (x *examiner) troubles(ctx context.Context, c *ctr) (found []trouble) {
	add := func(t trouble) { found = append(found, t) }
	c.mu.Lock()
	rec, running := c.rec, c.life != nil
	c.mu.Unlock()
	x.checkRecord(c, &rec, add)
	x.checkFiles(ctx, c, &rec, add)
	if running || x.r.Offline && rec.State.Status.active() {
		x.checkRunning(c, &rec, add)
	} else {
		x.checkStopped(ctx, c, add)
	}
	return found
}

// checkRecord compares the record in the database with the one in memory.
func (x *examiner) checkRecord(c *ctr, rec *record, add func(trouble)) {
	var stored record
	err := x.env.opts.Store.Meta.View(func(tx *meta.Tx) (err error) {
		stored, err = meta.As[record](tx.Containers).Get(c.id)
		return err
	})
	if err == nil && (stored.Name != rec.Name || stored.Image != rec.Image || !slices.Equal(stored.Chain, rec.Chain)) {
		err = errors.New("the record names another name, image or layers than the engine has in memory")
	}
	if err == nil {
		if other, ferr := x.env.index.find(rec.Name); ferr == nil && other.id != c.id {
			add(trouble{problem: "its name belongs to container " + other.id.Short() + " too", heal: "ply rename " + c.id.Short() + " NEW_NAME"})
		}
		return
	}
	add(trouble{kind: "container record", problem: err.Error(), mend: func() (string, error) {
		return "written again from the memory of the engine", x.env.opts.Store.Meta.Update(func(tx *meta.Tx) error {
			return meta.As[record](tx.Containers).Put(c.id, *rec)
		})
	}})
}

// checkFiles examines what a container has below the data root.
func (x *examiner) checkFiles(ctx context.Context, c *ctr, rec *record, add func(trouble)) {
	remove := "ply rm -f " + c.id.Short()
	if w, ok := x.env.opts.Store.Layers.(layer.WritableExaminer); ok {
		if err := w.ExamineWritable(c.paths.writable, false); err != nil {
			add(trouble{problem: err.Error(), heal: "the changes that the container made are lost: " + remove, mend: func() (string, error) { return x.mendWritable(ctx, c, rec, w) }})
		}
	}
	exit, exitErr := shim.ReadExit(c.paths.exit)
	if err := exitErr; err != nil && !errors.Is(err, errs.NotFound) {
		add(trouble{problem: "exit.json: " + err.Error(), mend: func() (string, error) {
			return "exit.json removed: the end of the run is in the record", x.env.opts.Store.FS.Remove(c.paths.exit)
		}})
	}
	for _, name := range volumeNames(rec.Mounts) {
		if _, err := x.env.opts.Volumes.Get(ctx, name); errors.Is(err, errs.NotFound) {
			add(trouble{problem: "needs the volume " + name + ", which has no record", heal: "ply volume create " + name, mend: func() (string, error) {
				_, err := x.env.opts.Volumes.Create(ctx, name, "", nil, nil)
				return "volume " + name + " recorded again; data that is still there was kept", err
			}})
		}
	}
	if rec.LogPath == "" {
		return
	}
	// A shim writes the exit file when its log is durable. Without one, or with one that a clean-up has written, the shim may have been
	// killed before it made the log, or a power cut may have taken the log.
	own := exitErr == nil && exit.Code != killedExit
	if fi, err := os.Lstat(rec.LogPath); own && rec.State.Status == StatusExited && (err != nil || !fi.Mode().IsRegular()) {
		add(trouble{kind: "log", problem: "is missing: what the container has printed is lost", heal: "the log goes with its container: " + remove})
		return
	}
	if !x.r.Full {
		return
	}
	log, err := sessionHost{c}.Log()
	if err != nil {
		return // reported by logs itself: the options are not valid any more
	}
	n, err := logfile.Examine(ctx, log)
	switch {
	case errors.Is(err, errs.Unimplemented) || ctx.Err() != nil:
	case err != nil:
		add(trouble{kind: "log", problem: err.Error(), heal: "the records are lost, and logs prints the others; the log goes with its container: " + remove})
	case n > 0:
		add(trouble{kind: "log", problem: fmt.Sprintf("%d records are damaged", n), heal: "they are lost, and logs prints the others; the log goes with its container: " + remove})
	}
}

// mendWritable makes again what holds no data: overlayfs' work directory, and the whole writable layer of a container that never
// ran.
func (x *examiner) mendWritable(ctx context.Context, c *ctr, rec *record, w layer.WritableExaminer) (string, error) {
	defer c.root.Changed()
	err := w.ExamineWritable(c.paths.writable, true)
	if err == nil {
		return "made again, without a loss", nil
	}
	if rec.State.Status != StatusCreated || !rec.State.Started.IsZero() {
		return "", err
	}
	drv := x.env.opts.Store.Layers
	err = os.MkdirAll(c.paths.writable, 0o711)
	if err == nil {
		err = drv.RemoveWritable(ctx, c.paths.writable)
	}
	if err == nil {
		err = x.env.createWritable(ctx, c.paths.writable, rec.Chain, &rec.Spec)
	}
	return "made again: the container never ran", err
}

// checkRunning examines what a running container has on the host. Its shim, which holds all of it, is not disturbed.
func (x *examiner) checkRunning(c *ctr, rec *record, add func(trouble)) {
	restart := "ply restart " + c.id.Short()
	bad := func(format string, args ...any) { add(trouble{problem: fmt.Sprintf(format, args...), heal: restart}) }
	who, err := shim.ReadIdentity(filepath.Join(c.paths.bundle, shim.PidFile))
	switch {
	case err != nil:
		bad("%s of the running container: %v", shim.PidFile, err)
	case !procid.Alive(procid.ID(who)):
		bad("the container is recorded as running, and its shim is gone")
	}
	if cfg, err := shim.ReadConfigCore(c.paths.bundle); err != nil {
		bad("%s of the running container: %v", shim.ConfigFile, err)
	} else if cfg.ID != string(c.id) {
		bad("%s of the running container is that of %.80s", shim.ConfigFile, cfg.ID)
	}
	if _, err := shim.ReadIdentity(c.paths.init); err != nil {
		bad("%s of the running container: %v", shim.InitFile, err)
	}
	if data, err := durable.ReadFile(durable.OS, filepath.Join(c.paths.bundle, shim.SpecFile), shim.MaxFrame); err != nil || !json.Valid(data) {
		bad("%s of the running container is missing or damaged", shim.SpecFile)
	}
	if fi, err := os.Lstat(filepath.Join(c.paths.bundle, shim.SocketFile)); err != nil || fi.Mode()&fs.ModeSocket == 0 {
		add(trouble{problem: shim.SocketFile + " of the running container is missing, so it cannot be reached", heal: "restart plyd, which ends the container: systemctl restart ply"})
	}
	if mounted, err := mount.IsMounted(c.paths.rootfs); err == nil && !mounted {
		bad("the root of the running container is not mounted")
	}
	if rec.LogPath != "" {
		if fi, err := os.Lstat(rec.LogPath); err != nil || !fi.Mode().IsRegular() {
			bad("the log of the running container is missing: its output is lost")
		}
	}
	if isContainerMode(rec.Spec.NetworkMode) {
		return // the files are those of the other container
	}
	for _, p := range []string{c.paths.hostname, c.paths.hosts, c.paths.resolv} {
		if fi, err := os.Lstat(p); err != nil || !fi.Mode().IsRegular() {
			bad("%s of the running container is missing", filepath.Base(p))
		}
	}
}

// checkStopped examines what a container that does not run left on the host.
func (x *examiner) checkStopped(ctx context.Context, c *ctr, add func(trouble)) {
	if who, err := shim.ReadIdentity(filepath.Join(c.paths.bundle, shim.PidFile)); err == nil && procid.Alive(procid.ID(who)) {
		if _, err := os.Lstat(filepath.Join(c.paths.bundle, shim.SocketFile)); err == nil {
			add(trouble{problem: "does not run, and its shim lives", mend: func() (string, error) { return x.cleanRun(ctx, c) }})
			return
		}
	}
	if stale, err := c.root.Stale(false); err == nil && stale {
		add(trouble{kind: "mount", problem: "its root is mounted, and nothing uses it", mend: func() (string, error) {
			_, err := c.root.Stale(true)
			return "unmounted", err
		}})
	}
	if mounted, err := mount.IsMounted(c.paths.shm); err == nil && mounted {
		add(trouble{kind: "mount", problem: "its /dev/shm is mounted, and it does not run", mend: func() (string, error) { return "unmounted", unmountShm(c.paths.shm) }})
	}
	if _, err := os.Lstat(c.paths.netns); err == nil {
		add(trouble{kind: "mount", problem: "its network namespace is bound, and it does not run", mend: func() (string, error) {
			return "removed", x.env.opts.Network.Detach(ctx, c.id, c.paths.netns)
		}})
	}
}

func (x *examiner) cleanRun(ctx context.Context, c *ctr) (string, error) {
	r := &restorer{env: x.env, runs: x.runs}
	r.cleanRun(ctx, c)
	return "ended, and what it held was released", nil
}

// damagedRecords reports the records that no container could be made of.
func (x *examiner) damagedRecords(ctx context.Context) error {
	bad, whole := map[oci.ContainerID]error{}, map[oci.ContainerID]bool{}
	for _, l := range x.env.index.allLost() {
		bad[l.id] = l.err
	}
	err := x.env.opts.Store.Meta.View(func(tx *meta.Tx) error {
		known := x.env.index.known() // the others are not loaded, or were removed since this transaction began
		for id := range tx.Containers.Keys() {
			if known[id] {
				continue
			}
			if _, err := x.env.load(tx, id); err != nil {
				bad[id] = err
			} else {
				whole[id] = true
			}
		}
		return nil
	})
	for id, err := range bad {
		x.report(id, "", trouble{kind: "container record", problem: err.Error(), mend: func() (string, error) { return x.rebuild(ctx, id) }})
	}
	unknown, uerr := x.unknown(slices.Collect(maps.Keys(whole)))
	for _, id := range unknown {
		x.report(id, "", trouble{kind: "container record", problem: "was written again while the engine runs, which does not show the container",
			mend: func() (string, error) { return x.adopt(ctx, id) }})
	}
	return errors.Join(err, uerr, context.Cause(ctx))
}

// unknown returns those of the containers that have a record and are not in the index. A removal deletes the record first, so a
// record that is there now is of no container that was removed when the candidates were read.
func (x *examiner) unknown(candidates []oci.ContainerID) (ids []oci.ContainerID, err error) {
	if len(candidates) == 0 {
		return nil, nil
	}
	known := x.env.index.known()
	err = x.env.opts.Store.Meta.View(func(tx *meta.Tx) error {
		for _, id := range candidates {
			if !known[id] && tx.Containers.Has(id) {
				ids = append(ids, id)
			}
		}
		return nil
	})
	return ids, err
}

// adopt takes up a container that has a record and is not in the index.
func (x *examiner) adopt(ctx context.Context, id oci.ContainerID) (string, error) {
	err := x.env.opts.Store.Meta.View(func(tx *meta.Tx) error {
		x.env.index.addLost(newLost(tx, id, errs.New(errs.DataLoss, "its record was rebuilt")))
		return nil
	})
	if err != nil {
		return "", err
	}
	r := &restorer{env: x.env, runs: x.runs}
	return "taken up", r.takeUp(ctx, id)
}

// rebuild takes the record of a container from the file in its directory, and takes the container up again.
func (x *examiner) rebuild(ctx context.Context, id oci.ContainerID) (string, error) {
	all, err := x.env.opts.Store.Lost(ctx)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(all, func(l store.Lost) bool { return l.Kind == "containers" && l.Key == string(id) && l.Err == nil })
	if i < 0 {
		return "", errs.New(errs.DataLoss, "there is no whole copy of the record; remove the container: ply rm -f %s", id.Short())
	}
	if _, err := x.env.opts.Store.Rebuild(ctx, all[i:i+1]); err != nil {
		return "", err
	}
	r := &restorer{env: x.env, runs: x.runs}
	return "rebuilt from the copy in its directory", r.takeUp(ctx, id)
}

// strays reports directories and mounts of containers that do not exist. A removal deletes the directories last, so what is there
// without a container is looked at again.
func (x *examiner) strays(ctx context.Context) error {
	for look := 1; ; look++ {
		found, err := x.findStrays()
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return nil
		}
		if look < 2*x.looks {
			if err := pause(ctx); err != nil {
				return err
			}
			continue
		}
		for _, p := range found {
			x.r.Report(check.Finding{Kind: "directory", Object: p, Problem: "belongs to no container", Heal: "restart plyd, which removes what a removal left; look at what stays before you remove it"})
		}
		return nil
	}
}

func (x *examiner) findStrays() (found []string, err error) {
	restorer := &restorer{env: x.env, runs: x.runs}
	run := x.env.opts.ExecRoot
	for _, dir := range []string{filepath.Join(x.env.opts.DataRoot, "containers"), filepath.Join(run, "containers"), x.env.opts.stateDir()} {
		entries, err := x.env.opts.Store.FS.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		known := x.env.index.known()
		for _, e := range entries {
			id := oci.ContainerID(e.Name())
			if oci.IsHex64(e.Name()) && !known[id] && !restorer.damaged(id) {
				found = append(found, filepath.Join(dir, e.Name()))
			}
		}
	}
	return found, nil
}
