package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/oci"
)

// checkDriverOptions checks the options of the local driver. They name what is mounted on the volume's directory while a
// container runs with it.
func checkDriverOptions(name string, opts map[string]string) error {
	if len(opts) == 0 {
		return nil
	}
	for k := range opts {
		switch k {
		case "type", "device", "o":
		case "size":
			return errs.New(errs.Unimplemented, "create %s: quota size requested but no quota support", name)
		default:
			return errs.New(errs.Invalid, "create %s: invalid option: %q", name, k)
		}
	}
	if opts["device"] == "" {
		return errs.New(errs.Invalid, "create %s: missing device in volume options", name)
	}
	flags, _, err := mountOptions(opts["o"])
	if err != nil {
		return errs.New(errs.Invalid, "create %s: %w", name, err)
	}
	if opts["type"] == "" && flags&unix.MS_BIND == 0 {
		return errs.New(errs.Invalid, "create %s: missing type in volume options", name)
	}
	if flags&unix.MS_BIND != 0 && !filepath.IsAbs(opts["device"]) {
		return errs.New(errs.Invalid, "create %s: device of a bind must be an absolute path: %s", name, opts["device"])
	}
	return nil
}

var mountFlags = map[string]struct {
	set, clear uintptr
}{
	"defaults": {}, "ro": {set: unix.MS_RDONLY}, "rw": {clear: unix.MS_RDONLY},
	"nosuid": {set: unix.MS_NOSUID}, "suid": {clear: unix.MS_NOSUID},
	"nodev": {set: unix.MS_NODEV}, "dev": {clear: unix.MS_NODEV},
	"noexec": {set: unix.MS_NOEXEC}, "exec": {clear: unix.MS_NOEXEC},
	"sync": {set: unix.MS_SYNCHRONOUS}, "async": {clear: unix.MS_SYNCHRONOUS}, "dirsync": {set: unix.MS_DIRSYNC},
	"noatime": {set: unix.MS_NOATIME}, "atime": {clear: unix.MS_NOATIME}, "relatime": {set: unix.MS_RELATIME},
	"nodiratime": {set: unix.MS_NODIRATIME}, "diratime": {clear: unix.MS_NODIRATIME}, "strictatime": {set: unix.MS_STRICTATIME},
	"bind": {set: unix.MS_BIND}, "rbind": {set: unix.MS_BIND | unix.MS_REC},
}

// mountOptions splits the options of mount(8) into flags and options of the file system.
func mountOptions(o string) (flags uintptr, data string, err error) {
	if len(o) >= os.Getpagesize() || strings.IndexByte(o, 0) >= 0 {
		return 0, "", errors.New("mount options are too long or hold a NUL")
	}
	var rest []string
	for w := range strings.SplitSeq(o, ",") {
		if w == "" {
			continue
		}
		if f, ok := mountFlags[w]; ok {
			flags = flags&^f.clear | f.set
			continue
		}
		rest = append(rest, w)
	}
	return flags, strings.Join(rest, ","), nil
}

// mountDevice mounts what a volume's options name on its directory.
func (s *Service) mountDevice(name string, opts map[string]string) error {
	target := s.path(name)
	flags, data, err := mountOptions(opts["o"])
	if err != nil {
		return err
	}
	fail := func(err error) error {
		return errs.New(errs.Internal, "error while mounting volume '%s': failed to mount local volume: mount %s:%s: %w", target, opts["device"], target, err)
	}
	typ := opts["type"]
	if strings.HasPrefix(typ, "nfs") || typ == "cifs" {
		if data, err = resolveAddr(data); err != nil {
			return fail(err)
		}
	}
	if flags&unix.MS_BIND != 0 {
		typ = ""
	}
	if err := unix.Mount(opts["device"], target, typ, flags, data); err != nil {
		return fail(err)
	}
	if flags&unix.MS_BIND != 0 && flags&^(unix.MS_BIND|unix.MS_REC) != 0 {
		if err := unix.Mount("", target, "", flags|unix.MS_REMOUNT, ""); err != nil {
			return fail(errors.Join(err, unix.Unmount(target, unix.MNT_DETACH)))
		}
	}
	return nil
}

// resolveAddr replaces a host name in addr= by its address: the kernel accepts addresses only.
func resolveAddr(data string) (string, error) {
	words := strings.Split(data, ",")
	for i, w := range words {
		host, ok := strings.CutPrefix(w, "addr=")
		if !ok || net.ParseIP(host) != nil {
			continue
		}
		ip, err := net.ResolveIPAddr("ip", host)
		if err != nil {
			return "", fmt.Errorf("error resolving passed in network volume address: %w", err)
		}
		words[i] = "addr=" + ip.String()
	}
	return strings.Join(words, ","), nil
}

// mounted reports whether something is mounted on target.
func mounted(target string) bool {
	ok, err := mountinfo.Mounted(target)
	return err == nil && ok
}

// Prepare prepares the sources of a container's mounts before it starts: it creates missing bind sources where that is
// allowed, and mounts the devices of volumes. The mounts that it returns have sources that a runtime can bind. On an error
// nothing stays mounted for the container. The caller calls Release when the container has stopped.
func (s *Service) Prepare(ctx context.Context, id oci.ContainerID, mounts []Mount) (_ []Mount, err error) {
	defer func() {
		if err != nil {
			s.Release(id)
		}
	}()
	out := slices.Clone(mounts)
	for i, m := range out {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		switch m.Type {
		case "bind":
			if err := prepareBind(m); err != nil {
				return nil, err
			}
		case "volume":
			if err := s.prepareVolume(id, m.Name); err != nil {
				return nil, err
			}
			if m.Subpath != "" {
				if out[i].Source, err = s.pin(id, i, m); err != nil {
					return nil, err
				}
			}
		case "image":
			if out[i].Source, err = s.view(ctx, id, i, m); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func prepareBind(m Mount) error {
	_, err := os.Stat(m.Source)
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Invalid, "error while checking mount source path '%s': %w", m.Source, err)
	}
	if !m.CreateSource {
		return errs.New(errs.Invalid, "invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
	}
	if err := os.MkdirAll(m.Source, 0o755); err != nil {
		return errs.New(errs.Invalid, "error while creating mount source path '%s': %w", m.Source, err)
	}
	return nil
}

func (s *Service) prepareVolume(id oci.ContainerID, name string) error {
	rec, err := s.record(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if err := s.ensureData(name); err != nil {
		s.mu.Unlock()
		return err
	}
	if len(rec.Options) == 0 {
		s.mu.Unlock()
		return nil
	}
	first := len(s.active[name]) == 0
	if s.active[name] == nil {
		s.active[name] = map[string]struct{}{}
	}
	s.active[name][string(id)] = struct{}{}
	s.mu.Unlock()
	if !first && mounted(s.path(name)) {
		return nil
	}
	// A network mount can block, so it is made while mu is not held, for one container of a volume at a time.
	done, err := s.lockSlow(context.Background(), name)
	if err != nil {
		return err
	}
	defer done()
	if mounted(s.path(name)) {
		return nil
	}
	return s.mountDevice(name, rec.Options)
}

// Adopt records that a container that runs after a restart of the engine needs its volumes mounted.
func (s *Service) Adopt(id oci.ContainerID, mounts []Mount) {
	for _, m := range mounts {
		if m.Type != "volume" {
			continue
		}
		rec, err := s.record(m.Name)
		if err != nil || len(rec.Options) == 0 {
			continue
		}
		s.mu.Lock()
		if s.active[m.Name] == nil {
			s.active[m.Name] = map[string]struct{}{}
		}
		s.active[m.Name][string(id)] = struct{}{}
		s.mu.Unlock()
	}
}

// Release records that a container does not run any more, and unmounts the parts of volumes and the images that were mounted for it and the
// devices that no other running container needs.
// A second call does nothing.
func (s *Service) Release(id oci.ContainerID) {
	var last []string
	s.mu.Lock()
	for n, a := range s.active {
		if _, ok := a[string(id)]; !ok {
			continue
		}
		delete(a, string(id))
		if len(a) == 0 {
			delete(s.active, n)
			last = append(last, n)
		}
	}
	s.mu.Unlock()
	if err := unpin(s.opts.Store.Layers, s.opts.pins(id)); err != nil { // before the volumes that they are part of
		s.log.Warn("parts of volumes and images stay mounted", "container", id, "err", err)
	}
	for _, n := range last {
		done, err := s.lockSlow(context.Background(), n)
		if err != nil {
			continue
		}
		s.mu.Lock()
		idle := len(s.active[n]) == 0
		s.mu.Unlock()
		if idle && mounted(s.path(n)) {
			if err := unix.Unmount(s.path(n), unix.MNT_DETACH); err != nil {
				s.log.Warn("volume stays mounted", "volume", n, "err", err)
			}
		}
		done()
	}
}

// lockSlow serialises slow work on one volume. The caller calls done after the work.
func (s *Service) lockSlow(ctx context.Context, name string) (done func(), err error) {
	for {
		s.slowMu.Lock()
		c, taken := s.slow[name]
		if !taken {
			c = make(chan struct{})
			s.slow[name] = c
			s.slowMu.Unlock()
			return func() {
				s.slowMu.Lock()
				delete(s.slow, name)
				s.slowMu.Unlock()
				close(c)
			}, nil
		}
		s.slowMu.Unlock()
		select {
		case <-c:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
