// Package etc makes the files that the engine writes for a container's /etc: hosts, hostname and resolv.conf.
package etc

import (
	"os"

	"golang.org/x/sys/unix"
)

const maxHostFile = 1 << 20 // bytes of one of the host's files

// Write replaces the content of a file. It follows no link at path. Each start writes the files again, so they are not
// synced.
func Write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		_ = f.Close() // the error of the write is returned
		return err
	}
	return f.Close()
}
