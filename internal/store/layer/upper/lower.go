package upper

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// Lower looks up names in the layers below an upper directory. Paths are relative and clean; "." is the root. A path whose
// parent is not a directory does not exist. Implementations need not be safe for concurrent use.
type Lower interface {
	// Lookup returns the inode at a path. Found is false when there is none.
	Lookup(path string) (st unix.Stat_t, found bool, err error)
	// List returns the names in a directory, sorted, or none when the path is not a directory.
	List(path string) ([]string, error)
}

// Nothing is the Lower of an empty chain.
var Nothing Lower = StackLower()

// StackLower looks up names in directories in overlay format (with whiteouts and opaque markers), top first, by the rules
// of overlayfs. The caller closes the descriptors, which may be O_PATH, after the last use of the result. Directories are
// cached, so the layers must not change; see Forget.
func StackLower(layers ...*os.File) *Stack {
	s := &Stack{}
	for _, l := range layers {
		s.layers = append(s.layers, int(l.Fd()))
	}
	return s
}

// Stack is a stack of layers that overlayfs would merge.
type Stack struct {
	layers []int
	dirs   map[string][]int
	root   *int // the layer whose root directory has the attributes of the whole; -1 for none
}

// SetRoot sets the layer whose root directory has the attributes of the whole; the default is the top one. With -1 the root
// is owned by root and has mode 0755.
func (s *Stack) SetRoot(layer int) { s.root = &layer }

// cachedDirs is how many directories a stack caches.
const cachedDirs = 4096

// Forget empties the cache. It is called when the top layer has changed.
func (s *Stack) Forget() { s.dirs = nil }

// Lookup implements Lower.
func (s *Stack) Lookup(p string) (unix.Stat_t, bool, error) {
	if p == "." && s.root != nil {
		st := unix.Stat_t{Mode: unix.S_IFDIR | 0o755}
		if *s.root < 0 {
			return st, true, nil
		}
		err := unix.Fstatat(s.layers[*s.root], ".", &st, unix.AT_SYMLINK_NOFOLLOW)
		return st, err == nil, err
	}
	st, _, _, err := s.find(p)
	return st, err == nil && st.Mode != 0, err
}

// Where is Lookup that also returns the index of the layer that has the name; 0 is the top.
func (s *Stack) Where(p string) (st unix.Stat_t, layer int, found bool, err error) {
	st, layer, _, err = s.find(p)
	return st, layer, err == nil && st.Mode != 0, err
}

// Layers returns the layers that together form the directory at p, top first, or none when p is not a directory.
func (s *Stack) Layers(p string) ([]int, error) { return s.merged(p) }

// List implements Lower.
func (s *Stack) List(p string) ([]string, error) {
	merged, err := s.merged(p)
	if err != nil {
		return nil, err
	}
	hidden := map[string]bool{}
	var names []string
	for _, l := range merged {
		fd, err := openDirAt(s.layers[l], p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		entries, err := readNames(fd)
		if err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		for _, name := range entries {
			if hidden[name] {
				continue
			}
			hidden[name] = true
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				unix.Close(fd)
				return nil, fmt.Errorf("%s/%s: %w", p, name, err)
			}
			if isWhiteout(&st) {
				continue
			}
			names = append(names, name)
		}
		unix.Close(fd)
	}
	slices.Sort(names)
	return names, nil
}

// find resolves p. Merged are the layers of a directory; st.Mode is 0 when the name does not exist.
func (s *Stack) find(p string) (st unix.Stat_t, top int, merged []int, err error) {
	parent := s.all()
	if p != "." {
		if parent, err = s.merged(path.Dir(p)); err != nil {
			return st, 0, nil, err
		}
	}
	var found unix.Stat_t
	for _, l := range parent {
		var cur unix.Stat_t
		err := unix.Fstatat(s.layers[l], p, &cur, unix.AT_SYMLINK_NOFOLLOW)
		if absent(err) {
			continue
		}
		if err != nil {
			return st, 0, nil, fmt.Errorf("%s: %w", p, err)
		}
		if isWhiteout(&cur) {
			break
		}
		dir := cur.Mode&unix.S_IFMT == unix.S_IFDIR
		if found.Mode == 0 {
			found, top = cur, l
		}
		if !dir {
			break // a file ends the search; below directories it ends the merging
		}
		merged = append(merged, l)
		if p != "." && Opaque(s.layers[l], p) {
			break
		}
	}
	return found, top, merged, nil
}

func (s *Stack) all() []int {
	all := make([]int, len(s.layers))
	for i := range all {
		all[i] = i
	}
	return all
}

func (s *Stack) merged(p string) ([]int, error) {
	if m, ok := s.dirs[p]; ok {
		return m, nil
	}
	_, _, m, err := s.find(p)
	if err != nil {
		return nil, err
	}
	if len(s.dirs) >= cachedDirs || s.dirs == nil {
		s.dirs = make(map[string][]int)
	}
	s.dirs[p] = m
	return m, nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG)
}

// procPath names an entry of an open directory for system calls that only take paths. The system calls that do not follow
// links do not follow its last component either.
func procPath(dirfd int, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, name)
}

// OpaqueXattr, with the value "y", marks a directory that hides its content in the layers below.
const OpaqueXattr = "trusted.overlay.opaque"

// Opaque reports whether the directory name below dirfd has the mark.
func Opaque(dirfd int, name string) bool {
	var v [2]byte
	n, err := unix.Lgetxattr(procPath(dirfd, name), OpaqueXattr, v[:])
	return err == nil && n == 1 && v[0] == 'y'
}

func openDirAt(dirfd int, p string) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat2(dirfd, p, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
		})
	})
}

func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR && err != unix.EAGAIN {
			return n, err
		}
	}
}

// readNames returns the names in an open directory, sorted.
func readNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := retry(func() (int, error) { return unix.ReadDirent(fd, buf) })
		if err != nil {
			return nil, err
		}
		if n == 0 {
			slices.Sort(names)
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}
