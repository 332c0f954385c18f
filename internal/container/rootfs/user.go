package rootfs

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

// maxUserFile bounds /etc/passwd and /etc/group of an image.
const maxUserFile = 1 << 20

const maxID = 1<<31 - 1

// Account is the user, groups and home directory that a process runs with.
type Account struct {
	UID, GID uint32
	Groups   []uint32 // supplementary; the primary one first
	Home     string
}

// LookupUser resolves docker's user[:group] and the extra groups in add with /etc/passwd and /etc/group below root.
// A word of digits is an ID, never a name. Only regular files of at most 1 MiB are read; a missing file counts as
// empty. Errors are errs.Invalid with docker's words.
func LookupUser(root *os.File, user string, add []string) (Account, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	if strings.Contains(group, ":") || len(user) > 512 {
		return Account{}, errs.New(errs.Invalid, "user %.80q: not of the form user[:group]", user)
	}
	acc := Account{Home: "/"}
	uid, numeric, err := parseID(name)
	if err != nil {
		return acc, err
	}
	login := "" // user whose memberships in /etc/group count
	found := false
	if name == "" {
		numeric = true // "" is the user 0
	}
	err = userLines(root, "etc/passwd", 7, func(f []string) {
		id, ok, err := parseID(f[2])
		if found || !ok || err != nil {
			return
		}
		if numeric && id == uid || !numeric && f[0] == name {
			gid, ok, err := parseID(f[3])
			if !ok || err != nil {
				return
			}
			found, login, uid, acc.GID = true, f[0], id, gid
			if strings.HasPrefix(f[5], "/") {
				acc.Home = f[5]
			}
		}
	})
	if err != nil {
		return acc, err
	}
	if !found && !numeric {
		return acc, errs.New(errs.Invalid, "unable to find user %s: no matching entries in passwd file", name)
	}
	acc.UID = uid
	return withGroups(root, acc, login, group, hasGroup && group != "", add)
}

func withGroups(root *os.File, acc Account, login, group string, explicit bool, add []string) (Account, error) {
	wanted := map[string]bool{} // names that were not found yet
	var extra []uint32
	gid, numeric, err := parseID(group)
	if err != nil {
		return acc, err
	}
	if explicit && numeric {
		acc.GID = gid
	}
	for _, g := range add {
		id, numeric, err := parseID(g)
		switch {
		case err != nil:
			return acc, err
		case g == "":
			return acc, errs.New(errs.Invalid, "unable to find group : no matching entries in group file")
		case numeric:
			extra = append(extra, id)
		default:
			wanted[g] = true
		}
	}
	primary := explicit && !numeric
	var member []uint32
	err = userLines(root, "etc/group", 4, func(f []string) {
		id, ok, err := parseID(f[2])
		if !ok || err != nil {
			return
		}
		if primary && f[0] == group {
			primary, acc.GID = false, id
		}
		if wanted[f[0]] {
			delete(wanted, f[0])
			extra = append(extra, id)
		}
		if !explicit && login != "" && slices.Contains(strings.Split(f[3], ","), login) {
			member = append(member, id)
		}
	})
	if err != nil {
		return acc, err
	}
	if primary {
		return acc, errs.New(errs.Invalid, "unable to find group %s: no matching entries in group file", group)
	}
	for _, g := range add {
		if wanted[g] {
			return acc, errs.New(errs.Invalid, "unable to find group %s: no matching entries in group file", g)
		}
	}
	for _, id := range slices.Concat([]uint32{acc.GID}, member, extra) {
		if !slices.Contains(acc.Groups, id) {
			acc.Groups = append(acc.Groups, id)
		}
	}
	return acc, nil
}

// parseID parses a user or group ID. A number that is out of range is an error, not a name.
func parseID(s string) (id uint32, numeric bool, err error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		if len(s) > 1 && s[0] == '-' && strings.Trim(s[1:], "0123456789") == "" {
			return 0, false, errs.New(errs.Invalid, "user or group %s: uids and gids must be in range 0-%d", s, maxID)
		}
		return 0, false, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > maxID {
		return 0, false, errs.New(errs.Invalid, "user or group %.40s: uids and gids must be in range 0-%d", s, maxID)
	}
	return uint32(n), true, nil
}

// unreadable returns the error for a file of the image that cannot be read. The kernel answers EIO where the layer, or the disk below it, has lost bytes.
func unreadable(name string, err error) error {
	if errors.Is(err, unix.EIO) {
		return errs.New(errs.DataLoss, "image: /%s: %w", name, err).
			WithHint("ply system check says whether a layer is damaged. Pull or load an image that has it again.")
	}
	return errs.New(errs.Invalid, "image: /%s: %w", name, err)
}

// userLines calls visit with the fields of each line of a colon-separated file that has enough of them.
func userLines(root *os.File, name string, fields int, visit func([]string)) error {
	node, err := safepath.Open(root, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return unreadable(name, err)
	}
	defer node.Close()
	f, err := safepath.Reopen(node, unix.O_RDONLY)
	if errors.Is(err, unix.ENXIO) {
		return errs.New(errs.Invalid, "image: /%s: not a regular file", name)
	}
	if err != nil {
		return unreadable(name, err)
	}
	defer f.Close() // only read from
	data, err := io.ReadAll(io.LimitReader(f, maxUserFile+1))
	if err != nil {
		return unreadable(name, err)
	}
	if len(data) > maxUserFile {
		return errs.New(errs.Invalid, "image: /%s: larger than %d bytes", name, maxUserFile)
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		parts := strings.Split(line, ":")
		for len(parts) < fields && len(parts) >= 3 {
			parts = append(parts, "") // home and shell may be missing
		}
		if len(parts) >= fields && !strings.HasPrefix(line, "#") {
			visit(parts)
		}
	}
	return nil
}
