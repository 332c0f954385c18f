package buildkit

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/safepath"
)

// packets is the stream on which a client sends a directory: the client describes every file in order, then sends the content of those that
// the receiver asks for.
type packets interface {
	Send(*types.Packet) error
	RecvMsg(m any) error
}

const (
	// window is how many files are asked for at a time.
	window = 64
	// trust is how much older than the transfer before a file must be to count as unchanged when its size and time are the same: a file that changes
	// twice within the resolution of its clock keeps its time.
	trust = 2 * time.Second
	// maxSilence is how long a client may take for the next part of its directory.
	maxSilence = 10 * time.Minute
	// reserve is how much of a file system a transfer leaves free, in bytes.
	reserve = 256 << 20
)

// receiver writes the files of a client below a directory. Files that an earlier transfer left there are kept when they did not change; everything
// else that was there goes. Its memory depends on the depth of the directory and on the names in the directories on the way, not on the number of files.
type receiver struct {
	root   *os.File
	stream packets
	cancel context.CancelCauseFunc // ends the stream
	since  time.Time               // begin of the transfer that filled root; zero = it is empty

	levels []level
	dir    *os.File // the directory of the last of levels
	next   uint32   // ID of the next file
	want   *bufio.Writer
	wanted int64 // bytes of the files in want
	taken  int64 // bytes of all files

	silence *time.Timer
}

// level is a directory on the way to the file that is described.
type level struct {
	path string
	last string          // name of its last file
	left map[string]bool // names of an earlier transfer that were not described yet
	stat *types.Stat     // nil for the root
}

// wantedFile is a file whose content is asked for.
type wantedFile struct {
	id   uint32
	mode uint32
	time int64
	path string
}

// receive runs a transfer.
func (r *receiver) receive(ctx context.Context) error {
	list, err := durable.Nameless("/proc/self/fd/" + strconv.Itoa(int(r.root.Fd())))
	if err != nil {
		return errs.New(errs.Internal, "build context: %w", err)
	}
	defer list.Close()
	r.want = bufio.NewWriter(list)
	defer func() {
		if r.silence != nil {
			r.silence.Stop()
		}
		if r.dir != nil {
			_ = r.dir.Close() // only read from
		}
	}()
	if err := r.describe(ctx); err != nil {
		return r.refuse(err)
	}
	if err := errors.Join(r.want.Flush(), r.space()); err != nil {
		return r.refuse(err)
	}
	if _, err := list.Seek(0, io.SeekStart); err != nil {
		return r.refuse(err)
	}
	if err := r.content(ctx, bufio.NewReader(list)); err != nil {
		return r.refuse(err)
	}
	if err := r.stream.Send(&types.Packet{Type: types.PACKET_FIN}); err != nil {
		return streamError(err)
	}
	for {
		var p types.Packet
		if err := r.stream.RecvMsg(&p); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return streamError(err)
		}
	}
}

// refuse tells the client why the transfer ends.
func (r *receiver) refuse(err error) error {
	defer time.AfterFunc(lastWords, func() { r.cancel(err) }).Stop()
	_ = r.stream.Send(&types.Packet{Type: types.PACKET_ERR, Data: []byte(err.Error())}) // the client may be gone
	return err
}

// space checks that the files that are asked for fit on the disk.
func (r *receiver) space() error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r.root.Fd()), &st); err != nil {
		return errs.New(errs.Internal, "build context: %w", err)
	}
	if free := int64(st.Bavail) * st.Bsize; r.wanted > free-reserve && r.wanted > 0 {
		return errs.New(errs.Exhausted, "the build context has %d bytes, and the disk has %d bytes left", r.wanted, free).WithHint("Leave files out with .dockerignore.")
	}
	return nil
}

// recv reads the next packet of the client. A client that sends nothing for too long loses the transfer.
func (r *receiver) recv(ctx context.Context, p *types.Packet) error {
	if r.silence == nil {
		r.silence = time.AfterFunc(maxSilence, func() { r.cancel(errs.New(errs.Unavailable, "the client sent nothing for %s", maxSilence)) })
	}
	r.silence.Reset(maxSilence)
	if err := r.stream.RecvMsg(p); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, io.EOF) {
			return errs.New(errs.Unavailable, "the client ended the transfer of a directory too early")
		}
		return streamError(err)
	}
	if p.Type == types.PACKET_ERR {
		return errs.New(errs.Invalid, "the client cannot send its directory: %s", clip(string(p.Data)))
	}
	return nil
}

// describe reads the descriptions of all files and makes everything but their content.
func (r *receiver) describe(ctx context.Context) error {
	top := level{}
	if !r.since.IsZero() {
		names, err := readNames(r.root)
		if err != nil {
			return err
		}
		top.left = names
	}
	r.levels = []level{top}
	for {
		p := &types.Packet{}
		if err := r.recv(ctx, p); err != nil {
			return err
		}
		if p.Type != types.PACKET_STAT {
			return errs.New(errs.Invalid, "the client sent a packet of type %s while it described its directory", p.Type)
		}
		if p.Stat == nil {
			return r.leave(0)
		}
		if err := r.file(p.Stat); err != nil {
			return err
		}
		r.next++
		if r.next == 0 {
			return errs.New(errs.Invalid, "the client sends too many files")
		}
	}
}

// file makes one file. Files come in order, a directory before its content.
func (r *receiver) file(st *types.Stat) error {
	clean, err := safepath.Clean(st.Path)
	if err != nil {
		return err
	}
	if clean != st.Path || clean == "." {
		return errs.New(errs.Invalid, "the client sent the path %q, which is not clean", clip(st.Path))
	}
	parent, base := path.Split(clean)
	parent = strings.TrimSuffix(parent, "/")
	for n := len(r.levels) - 1; r.levels[n].path != parent; n-- {
		if n == 0 {
			return errs.New(errs.Invalid, "the client sent the path %q before its directory", clip(st.Path))
		}
		if err := r.leave(n); err != nil {
			return err
		}
	}
	l := &r.levels[len(r.levels)-1]
	if base <= l.last {
		return errs.New(errs.Invalid, "the client sent the path %q after %q", clip(st.Path), clip(l.last))
	}
	l.last = base
	if r.dir == nil {
		if r.dir, err = safepath.OpenNoLinks(r.root, l.path, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
			return err
		}
	}
	exists := l.left[base]
	delete(l.left, base)
	return r.create(st, base, exists)
}

// leave finishes the directories from levels[n] down: what an earlier transfer left in them goes, and they get their time. The root stays in levels.
func (r *receiver) leave(n int) error {
	for i := len(r.levels) - 1; i >= n; i-- {
		l := r.levels[i]
		dir := r.dir
		if dir == nil {
			var err error
			if dir, err = safepath.OpenNoLinks(r.root, l.path, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
				return err
			}
		}
		var err error
		for name := range l.left {
			err = errors.Join(err, safepath.RemoveAll(dir, name, nil))
		}
		if l.stat != nil && err == nil {
			err = setMeta(dir, l.stat)
		}
		if err = errors.Join(err, dir.Close()); err != nil {
			return err
		}
		r.dir = nil
		if i > 0 {
			r.levels = r.levels[:i]
		}
	}
	return nil
}

func readNames(dir *os.File) (map[string]bool, error) {
	d, err := safepath.OpenNoLinks(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	list, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool, len(list))
	for _, n := range list {
		names[n] = true
	}
	return names, nil
}

// create makes one file in the current directory. exists says that an earlier transfer left one of that name.
func (r *receiver) create(st *types.Stat, base string, exists bool) error {
	mode := fs.FileMode(st.Mode)
	var old unix.Stat_t
	if exists {
		if err := unix.Fstatat(int(r.dir.Fd()), base, &old, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: st.Path, Err: err}
		}
	}
	kept := exists && r.keeps(st, mode, base, &old)
	if exists && !kept {
		if err := safepath.RemoveAll(r.dir, base, nil); err != nil {
			return err
		}
	}
	at := int(r.dir.Fd())
	fail := func(op string, err error) error {
		if err == nil {
			return nil
		}
		return errs.New(errs.Internal, "build context: %w", &os.PathError{Op: op, Path: st.Path, Err: err})
	}
	switch {
	case mode.IsDir():
		l := level{path: st.Path, stat: st}
		if !kept {
			if err := unix.Mkdirat(at, base, 0o700); err != nil {
				return fail("mkdir", err)
			}
		}
		dir, err := safepath.OpenNoLinks(r.dir, base, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		if kept {
			if l.left, err = readNames(dir); err != nil {
				return errors.Join(err, dir.Close())
			}
		}
		err = r.dir.Close()
		r.dir = dir
		r.levels = append(r.levels, l)
		return err
	case mode&fs.ModeSymlink != 0:
		if err := unix.Symlinkat(st.Linkname, at, base); err != nil {
			return fail("symlink", err)
		}
		times := []unix.Timespec{unix.NsecToTimespec(st.ModTime), unix.NsecToTimespec(st.ModTime)}
		return fail("utimensat", unix.UtimesNanoAt(at, base, times, unix.AT_SYMLINK_NOFOLLOW))
	case mode&fs.ModeSocket != 0:
		return nil // it is of no use without the process that listens
	case mode&(fs.ModeDevice|fs.ModeNamedPipe) != 0:
		return fail("mknod", r.node(st, mode, base))
	case mode&fs.ModeType != 0:
		return errs.New(errs.Invalid, "the client sent %q, which is a file of an unknown kind", clip(st.Path))
	case st.Linkname != "":
		return r.link(st, base)
	}
	r.taken += st.Size
	if kept {
		return nil
	}
	if st.Size < 0 {
		return errs.New(errs.Invalid, "the client sent %q with a negative size", clip(st.Path))
	}
	fd, err := unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fail("create", err)
	}
	f := os.NewFile(uintptr(fd), st.Path)
	// Its time is set after the content was written.
	if err := errors.Join(setXattrs(f, st), f.Close()); err != nil {
		return err
	}
	if r.wanted += st.Size; r.wanted < 0 {
		return errs.New(errs.Invalid, "the client sends too many bytes")
	}
	return r.note(wantedFile{id: r.next, mode: st.Mode, time: st.ModTime, path: st.Path})
}

// keeps reports whether a file of an earlier transfer is what the client describes.
func (r *receiver) keeps(st *types.Stat, mode fs.FileMode, base string, old *unix.Stat_t) bool {
	if mode.IsDir() {
		return old.Mode&unix.S_IFMT == unix.S_IFDIR && len(st.Xattrs) == 0
	}
	changed := time.Unix(0, st.ModTime)
	if mode&fs.ModeType != 0 || st.Linkname != "" || len(st.Xattrs) > 0 || old.Mode&unix.S_IFMT != unix.S_IFREG || old.Nlink != 1 {
		return false
	}
	if old.Size != st.Size || old.Mode&0o7777 != permissions(mode) || old.Mtim.Nano() != st.ModTime || !changed.Before(r.since.Add(-trust)) {
		return false
	}
	n, err := unix.Llistxattr("/proc/self/fd/"+strconv.Itoa(int(r.dir.Fd()))+"/"+base, nil)
	return n == 0 && err == nil || errors.Is(err, unix.EOPNOTSUPP)
}

func (r *receiver) node(st *types.Stat, mode fs.FileMode, base string) error {
	kind := uint32(unix.S_IFIFO)
	switch {
	case mode&fs.ModeCharDevice != 0:
		kind = unix.S_IFCHR
	case mode&fs.ModeDevice != 0:
		kind = unix.S_IFBLK
	}
	dev := int(unix.Mkdev(uint32(st.Devmajor), uint32(st.Devminor)))
	at := int(r.dir.Fd())
	if err := unix.Mknodat(at, base, kind|permissions(mode), dev); err != nil {
		return err
	}
	times := []unix.Timespec{unix.NsecToTimespec(st.ModTime), unix.NsecToTimespec(st.ModTime)}
	return unix.UtimesNanoAt(at, base, times, unix.AT_SYMLINK_NOFOLLOW)
}

// link makes another name of a file that was sent before.
func (r *receiver) link(st *types.Stat, base string) error {
	target, err := safepath.Clean(st.Linkname)
	if err != nil {
		return err
	}
	f, err := safepath.OpenNoLinks(r.root, target, unix.O_PATH)
	if err != nil {
		return errs.New(errs.Invalid, "the client sent %q as a link to %q, which it did not send: %v", clip(st.Path), clip(st.Linkname), err)
	}
	defer f.Close()
	var info unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &info); err != nil {
		return err
	}
	if info.Mode&unix.S_IFMT != unix.S_IFREG {
		return errs.New(errs.Invalid, "the client sent %q as a link to %q, which is not a file", clip(st.Path), clip(st.Linkname))
	}
	err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), int(r.dir.Fd()), base, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return errs.New(errs.Internal, "build context: %w", &os.PathError{Op: "link", Path: st.Path, Err: err})
	}
	return nil
}

// note remembers a file whose content is asked for later. The list is on the disk, because a directory may have millions.
func (r *receiver) note(w wantedFile) error {
	var buf [20]byte
	b := buf[:]
	binary.LittleEndian.PutUint32(b[0:], w.id)
	binary.LittleEndian.PutUint32(b[4:], w.mode)
	binary.LittleEndian.PutUint64(b[8:], uint64(w.time))
	binary.LittleEndian.PutUint32(b[16:], uint32(len(w.path)))
	if _, err := r.want.Write(b); err != nil {
		return errs.New(errs.Internal, "build context: %w", err)
	}
	_, err := r.want.WriteString(w.path)
	return err
}

func readWanted(in io.Reader) (w wantedFile, err error) {
	var b [20]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return w, err
	}
	w.id, w.mode = binary.LittleEndian.Uint32(b[0:]), binary.LittleEndian.Uint32(b[4:])
	w.time = int64(binary.LittleEndian.Uint64(b[8:]))
	name := make([]byte, binary.LittleEndian.Uint32(b[16:]))
	_, err = io.ReadFull(in, name)
	w.path = string(name)
	return w, err
}

// content asks for the files of the list, some at a time, and writes them.
func (r *receiver) content(ctx context.Context, list io.Reader) (err error) {
	type incoming struct {
		wantedFile
		f *os.File
	}
	open := map[uint32]*incoming{}
	defer func() {
		for _, in := range open {
			_ = in.f.Close() // the transfer has failed
		}
	}()
	ask := func() error {
		for len(open) < window {
			w, err := readWanted(list)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return errs.New(errs.Internal, "build context: %w", err)
			}
			f, err := safepath.OpenNoLinks(r.root, w.path, unix.O_WRONLY)
			if err != nil {
				return err
			}
			open[w.id] = &incoming{w, f}
			if err := r.stream.Send(&types.Packet{Type: types.PACKET_REQ, ID: w.id}); err != nil {
				return streamError(err)
			}
		}
		return nil
	}
	if err := ask(); err != nil {
		return err
	}
	p := &types.Packet{}
	for len(open) > 0 {
		if err := r.recv(ctx, p); err != nil {
			return err
		}
		in := open[p.ID]
		if p.Type != types.PACKET_DATA || in == nil {
			return errs.New(errs.Invalid, "the client sent what nothing asked for")
		}
		if len(p.Data) > 0 {
			if _, err := in.f.Write(p.Data); err != nil {
				return errs.New(errs.Internal, "build context: %w", err)
			}
			continue
		}
		delete(open, p.ID)
		err := setMeta(in.f, &types.Stat{Mode: in.mode, ModTime: in.time})
		if err = errors.Join(err, in.f.Close()); err != nil {
			return err
		}
		if err := ask(); err != nil {
			return err
		}
	}
	return nil
}

// setMeta sets attributes, mode and time of an open file.
func setMeta(f *os.File, st *types.Stat) error {
	if err := setXattrs(f, st); err != nil {
		return err
	}
	err := unix.Fchmod(int(f.Fd()), permissions(fs.FileMode(st.Mode)))
	if err == nil {
		t := unix.NsecToTimespec(st.ModTime)
		err = unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), []unix.Timespec{t, t}, 0)
	}
	if err != nil {
		return errs.New(errs.Internal, "build context: %w", &os.PathError{Op: "set time and mode", Path: f.Name(), Err: err})
	}
	return nil
}

// setXattrs sets the attributes that an image keeps.
func setXattrs(f *os.File, st *types.Stat) error {
	for name, value := range st.Xattrs {
		if name != "security.capability" && !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_") {
			continue
		}
		err := unix.Fsetxattr(int(f.Fd()), name, value, 0)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
			return errs.New(errs.Internal, "build context: %w", &os.PathError{Op: "setxattr " + name, Path: f.Name(), Err: err})
		}
	}
	return nil
}

// permissions returns the bits of chmod(2).
func permissions(m fs.FileMode) uint32 {
	p := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		p |= unix.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		p |= unix.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		p |= unix.S_ISVTX
	}
	return p
}
