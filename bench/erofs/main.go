// Command erofs measures what the design of the erofs driver depends on, with the driver's own code: the cost of mounts, the cost
// of look-ups by depth, the page cache with many containers, direct and buffered reads, and the round trip of a fanotify
// pre-content event. It prints the tables of docs/MEASUREMENTS.md. Run it as root:
//
//	go run ./bench/erofs [-dir directory on the file system to measure] [-mib size of the big file]
//
// It drops only its own files from the page cache.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/store/layer/erofs"
)

func main() {
	log.SetFlags(0)
	dir := flag.String("dir", "", "where to work (default the temporary directory)")
	mib := flag.Int("mib", 128, "size of the big file in MiB")
	only := flag.String("only", "", "run one of mount, depth, memory, reads, fanotify")
	reader := flag.String("reader", "", "internal: read pieces of a file and print the times")
	flag.Parse()
	if *reader != "" {
		if err := readPieces(*reader); err != nil {
			log.Fatal(err)
		}
		return
	}
	if err := run(*dir, *mib, *only); err != nil {
		log.Fatal(err)
	}
}

func run(base string, mib int, only string) (err error) {
	dir, err := os.MkdirTemp(base, "ply-bench-erofs-")
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.RemoveAll(dir); err == nil {
			err = rerr
		}
	}()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	fmt.Printf("Linux %s, %d CPUs, %s\n", unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), runtime.Version())
	b := &bench{dir: dir, size: mib << 20}
	for _, part := range []struct {
		name string
		run  func() error
	}{
		{"mount", b.mountCost}, {"depth", b.depth}, {"memory", b.memory}, {"reads", b.reads}, {"fanotify", b.fanotify},
	} {
		if only != "" && only != part.name {
			continue
		}
		if err := part.run(); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

type bench struct {
	dir  string
	size int
	n    int
}

func (b *bench) sub(name string) (string, error) {
	b.n++
	d := filepath.Join(b.dir, fmt.Sprintf("%s-%d", name, b.n))
	return d, os.Mkdir(d, 0o755)
}

// withDriver calls f with a driver on a root of its own.
func (b *bench) withDriver(opts erofs.Options, do func(d *erofs.Driver, root string) error) error {
	root, err := b.sub("store")
	if err != nil {
		return err
	}
	d, err := erofs.Open(durable.OS, root, opts)
	if err != nil {
		return err
	}
	err = do(d, root)
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// table prints one table of docs/MEASUREMENTS.md.
func table(title string, head []string, rows [][]string) {
	fmt.Printf("\n%s\n\n| %s |\n|%s\n", title, strings.Join(head, " | "), strings.Repeat(" --- |", len(head)))
	for _, r := range rows {
		fmt.Printf("| %s |\n", strings.Join(r, " | "))
	}
}

// self starts this program again for reads that must come from another process.
func self(ctx context.Context, args ...string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Stderr = os.Stderr
	return cmd, nil
}
