package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// asOwner makes this process, when it is root's, one of the user that the root directory belongs to. A file that root wrote could not be
// read by a registry that a service manager runs as another user.
func asOwner(root string) error {
	fi, err := os.Stat(root)
	if errors.Is(err, fs.ErrNotExist) || os.Geteuid() != 0 {
		return nil
	}
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return nil
	}
	for _, become := range []func() error{
		func() error { return syscall.Setgroups(nil) },
		func() error { return syscall.Setgid(int(st.Gid)) },
		func() error { return syscall.Setuid(int(st.Uid)) },
	} {
		if err := become(); err != nil {
			return fmt.Errorf("become the owner of %s: %w", root, err)
		}
	}
	return nil
}
