// Package racetest does to files what a hostile container does while a test works on them, and tells whether files of the host were touched.
package racetest

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Exchange exchanges pairs of names with each other, again and again, until stop is called or the test ends. A name that does not exist is no error: the tested code may
// have removed it.
func Exchange(t testing.TB, pairs ...[2]string) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			for _, p := range pairs {
				_ = unix.Renameat2(unix.AT_FDCWD, p[0], unix.AT_FDCWD, p[1], unix.RENAME_EXCHANGE)
			}
		}
	})
	stop = sync.OnceFunc(func() { close(done); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// State returns what may be changed of the files at and below dir: everything but the times of access. The kernel changes Ctim with every other attribute.
func State(t testing.TB, dir string) map[string]unix.Stat_t {
	t.Helper()
	all := map[string]unix.Stat_t{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		err = errors.Join(err, unix.Lstat(p, &st))
		st.Atim = unix.Timespec{}
		all[p] = st
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
