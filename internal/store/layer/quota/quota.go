// Package quota limits the size of directories by the project quotas of ext4 and XFS.
//
// A limited directory has a project of its own, and what is made in it belongs to the project. The file system keeps both the number of the project and its limit, so
// that there is nothing else to record. It counts what the files occupy.
//
// Invariants: a project that has a limit or files is never taken for another directory, whoever made it. A limit that the file system does not enforce is an error.
package quota

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/mount"
)

// The interface of the kernel: linux/quota.h, linux/dqblk_xfs.h and linux/fs.h.
const (
	projectQuota = 2
	getQuota     = 0x800007<<8 | projectQuota
	setQuota     = 0x800008<<8 | projectQuota
	getState     = ('X'<<8+8)<<8 | projectQuota

	stateVersion = 1
	accounted    = 1 << 4
	enforced     = 1 << 5

	validSpaceLimits = 1
	blockSize        = 1024 // unit of the limits

	getAttrs = 0x801c581f
	setAttrs = 0x401c5820
	inherit  = 0x200
)

// block is struct if_dqblk.
type block struct {
	hardSpace, softSpace, space, hardInodes, softInodes, inodes, spaceTime, inodeTime uint64
	valid                                                                             uint32
	_                                                                                 uint32
}

// attrs is struct fsxattr.
type attrs struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

func quotactl(dir *os.File, command int, id uint32, data unsafe.Pointer) error {
	if _, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, dir.Fd(), uintptr(command), uintptr(id), uintptr(data), 0, 0); errno != 0 {
		return os.NewSyscallError("quotactl", errno)
	}
	return nil
}

func ioctl(dir *os.File, request uintptr, a *attrs) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), request, uintptr(unsafe.Pointer(a))); errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

func open(dir string) (*os.File, error) {
	return os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// Check returns nil when the file system of dir enforces project quotas. Otherwise the error says what it lacks; its class is errs.Precondition.
func Check(dir string) error {
	f, err := open(dir)
	if err != nil {
		return err
	}
	defer f.Close() // only read from
	return check(f)
}

func check(f *os.File) error {
	state := [200]byte{stateVersion} // struct fs_quota_statv, and room
	err := quotactl(f, getState, 0, unsafe.Pointer(&state))
	flags := uint16(state[2]) | uint16(state[3])<<8
	if err == nil && flags&(accounted|enforced) == accounted|enforced {
		return nil
	}
	kind, kindErr := mount.Kind(f.Name())
	if kindErr != nil {
		kind = "an unknown kind"
	}
	return errs.New(errs.Precondition, "the size of a container's writable layer can be limited on XFS and ext4 with project quotas only, and the file system of %s (%s) has none in force", f.Name(), kind).
		WithHint("Mount it with the option prjquota; an ext4 needs `tune2fs -O project,quota` before, while it is not mounted.")
}

// choosing is held from the choice of a project until it has a limit.
var choosing sync.Mutex

// Limit lets what is made in directories from now on take at most size bytes together. They are empty directories of one file system. An error of class
// errs.Precondition says that the file system cannot.
func Limit(size int64, dirs ...string) (err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, dir := range dirs {
		f, err := open(dir)
		if err != nil {
			return err
		}
		files = append(files, f)
		if err := check(f); err != nil {
			return err
		}
	}
	project, err := take(files[0], size)
	if err != nil {
		return fmt.Errorf("quota of %s: %w", dirs[0], err)
	}
	for _, f := range files {
		if err := assign(f, project); err != nil {
			return errors.Join(fmt.Errorf("quota of %s: %w", f.Name(), err), setLimit(files[0], project, 0))
		}
	}
	return nil
}

// firstProject is the first of the numbers, as many as it is, of which Limit chooses. People who number projects by hand begin at 1.
const firstProject = 1 << 30

// take chooses a project that nothing uses, and gives it its limit. Numbers are random.
func take(f *os.File, size int64) (uint32, error) {
	choosing.Lock()
	defer choosing.Unlock()
	for range 100 {
		project := firstProject + rand.Uint32N(firstProject)
		b := block{}
		err := quotactl(f, getQuota, project, unsafe.Pointer(&b))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
			return 0, err
		}
		if err == nil && (b.hardSpace|b.softSpace|b.space|b.hardInodes|b.softInodes|b.inodes) != 0 {
			continue
		}
		return project, setLimit(f, project, size)
	}
	return 0, errs.New(errs.Exhausted, "no number of a project is free")
}

// setLimit sets the limit of a project; 0 is none.
func setLimit(f *os.File, project uint32, size int64) error {
	limit := uint64(size+blockSize-1) / blockSize
	return quotactl(f, setQuota, project, unsafe.Pointer(&block{hardSpace: limit, softSpace: limit, valid: validSpaceLimits}))
}

// assign makes a directory, and what is made in it, part of a project.
func assign(f *os.File, project uint32) error {
	a := attrs{}
	if err := ioctl(f, getAttrs, &a); err != nil {
		return err
	}
	a.flags |= inherit
	a.project = project
	return ioctl(f, setAttrs, &a)
}

// Of returns the project of a directory that Limit has limited; 0 is none. What is no directory has none. Who owns a directory can change its project: only the
// answer for one that no container reaches is to be trusted. It is never a project that Limit cannot have chosen.
func Of(dir string) (project uint32, err error) {
	f, err := open(dir)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close() // only read from
	a := attrs{}
	err = ioctl(f, getAttrs, &a)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || err == nil && a.flags&inherit == 0 {
		return 0, nil
	}
	if a.project < firstProject || a.project >= 2*firstProject {
		return 0, err
	}
	return a.project, err
}

// Join makes a new directory part of the project of another one, if that has one.
func Join(dir, other string) error {
	project, err := Of(other)
	if err != nil || project == 0 {
		return err
	}
	f, err := open(dir)
	if err != nil {
		return err
	}
	return errors.Join(assign(f, project), f.Close())
}

// Free ends the limit of a project whose files were removed. dir is any directory of its file system.
func Free(dir string, project uint32) error {
	f, err := open(dir)
	if err != nil {
		return err
	}
	defer f.Close() // only read from
	return setLimit(f, project, 0)
}
