package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// bigTree returns a tar stream of dir/, with files of random bytes: more than any buffer between engine and client.
func bigTree(t testing.TB, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	random := rand.NewChaCha8([32]byte{1})
	header := func(h tar.Header) {
		h.Format = tar.FormatPAX
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	header(tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: cpOld})
	for i := 0; size > 0; i++ {
		n := min(size, 1+i*i*1000)
		header(tar.Header{Name: fmt.Sprintf("dir/f%d", i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(n), ModTime: cpOld})
		if _, err := io.CopyN(tw, random, int64(n)); err != nil {
			t.Fatal(err)
		}
		size -= n
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// copyWay is a way to read a container's files as a stream.
type copyWay struct {
	name string
	path string // of the API, after the container's
	ply  []string
}

var copyWays = []copyWay{
	{"export", "/export", []string{"export", "ID"}},
	{"copy", "/archive?path=" + url.QueryEscape("/dir"), []string{"cp", "ID:/dir", "-"}},
}

// big creates a container with the tree in it and returns its ID, and the digest of its stream that a quick reader gets.
func (w *world) big(t *testing.T, way copyWay, tree []byte) (id, digest string) {
	t.Helper()
	c := &cpClient{program: w.program("ply"), sock: w.sock, dir: t.TempDir()}
	id = strings.TrimSpace(c.must(t, nil, "create", "busybox", "sleep", "1000"))
	c.must(t, bytes.NewReader(tree), "cp", "-", id+":/")
	c.must(t, nil, "start", id) // a removal has to kill it first
	digest, _, err := w.digest(t, id, way, nil)
	if err != nil {
		t.Fatal(err)
	}
	return id, digest
}

// digest reads a stream of the container, calling pause before each read, and returns its digest and length.
func (w *world) digest(t *testing.T, id string, way copyWay, pause func(read int64)) (string, int64, error) {
	t.Helper()
	r, err := w.client().Get("http://ply/containers/" + id + way.path)
	if err != nil {
		return "", 0, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return "", 0, errors.New(r.Status)
	}
	h := sha256.New()
	buf := make([]byte, 64<<10)
	for read := int64(0); ; {
		if pause != nil {
			pause(read)
		}
		n, err := r.Body.Read(buf)
		h.Write(buf[:n])
		read += int64(n)
		if errors.Is(err, io.EOF) {
			return fmt.Sprintf("%x", h.Sum(nil)), read, nil
		}
		if err != nil {
			return "", read, err
		}
	}
}

// remove removes a container by force in the background.
func (w *world) remove(id string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, e, err := w.run("ply", "rm", "-f", id)
		if err != nil {
			err = fmt.Errorf("rm -f: %w: %s", err, e)
		}
		done <- err
	}()
	return done
}

// gone checks that nothing is left of a removed container.
func (w *world) gone(t *testing.T, id string) {
	t.Helper()
	if out, _, err := w.run("ply", "inspect", id); err == nil {
		t.Errorf("the container is still there: %s", out)
	}
	for _, dir := range []string{"data", "run"} {
		if _, err := os.Lstat(filepath.Join(w.dir, dir, "containers", id)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the container's directory in %s is still there: %v", dir, err)
		}
	}
}

// Readers of export and cp get every byte, or an error: readers that are slow, that pause, that close, and that never read on, also
// while the container is removed. A removal waits for a reader that pauses for 8 seconds, and not for one that has stalled.
func TestCopyStreams(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	tree := bigTree(t, 24<<20)
	// Most of the time they wait, so all run at once.
	var all sync.WaitGroup
	defer all.Wait()
	run := func(name string, f func(t *testing.T)) { all.Go(func() { t.Run(name, f) }) }
	for _, way := range copyWays {
		run(way.name+" to a slow reader", func(t *testing.T) {
			id, want := w.big(t, way, tree)
			got, n, err := w.digest(t, id, way, func(int64) { time.Sleep(time.Millisecond) })
			if err != nil || got != want {
				t.Errorf("%d bytes with the digest %s, want %s: %v", n, got, want, err)
			}
		})
		run(way.name+" to a slow pipe", func(t *testing.T) {
			id, want := w.big(t, way, tree)
			for _, program := range []string{"ply", "docker", "docker20"} {
				args := strings.Fields(strings.ReplaceAll(strings.Join(way.ply, " "), "ID", id))
				c := exec.Command("sh", append([]string{"-c", `"$@" | { sleep 1; head -c 1000000; sleep 1; cat; } | sha256sum`, "sh", w.program(program)}, args...)...)
				c.Env = append(os.Environ(), w.clientEnv()...)
				out, err := c.Output()
				if got, _, _ := strings.Cut(string(out), " "); err != nil || got != want {
					t.Errorf("%s: digest %s, want %s: %v", program, got, want, err)
				}
			}
		})
		run(way.name+" to a reader that pauses during a removal", func(t *testing.T) {
			id, want := w.big(t, way, tree)
			var removed <-chan error
			got, n, err := w.digest(t, id, way, func(read int64) {
				if removed == nil && read > 1<<20 {
					removed = w.remove(id)
					time.Sleep(8 * time.Second)
				}
			})
			if err != nil || got != want {
				t.Errorf("%d bytes with the digest %s, want %s: %v", n, got, want, err)
			}
			if err := <-removed; err != nil {
				t.Error(err)
			}
			w.gone(t, id)
		})
		run(way.name+" to a reader that stalls during a removal", func(t *testing.T) {
			id, _ := w.big(t, way, tree)
			var removed <-chan error
			_, n, err := w.digest(t, id, way, func(read int64) {
				if removed != nil || read <= 1<<20 {
					return
				}
				removed = w.remove(id)
				select {
				case err := <-removed:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(30 * time.Second):
					t.Error("the removal waits for a reader that does not read")
				}
				w.gone(t, id)
			})
			if err == nil {
				t.Errorf("%d bytes look like the whole stream", n)
			}
		})
		run(way.name+" to a reader that closes", func(t *testing.T) {
			id, _ := w.big(t, way, tree)
			ctx, cancel := context.WithCancel(t.Context())
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://ply/containers/"+id+way.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r, err := w.client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(io.Discard, r.Body, 1<<20); err != nil {
				t.Fatal(err)
			}
			cancel()
			r.Body.Close()
			began := time.Now()
			if err := <-w.remove(id); err != nil {
				t.Error(err)
			}
			if d := time.Since(began); d > 9*time.Second {
				t.Errorf("the removal took %v", d)
			}
			w.gone(t, id)
		})
	}
	for name, stalls := range map[string]bool{"pauses": false, "stalls": true} {
		run("copy from a writer that "+name+" during a removal", func(t *testing.T) {
			id, _ := w.big(t, copyWays[1], tree)
			pr, pw := io.Pipe()
			req, err := http.NewRequest(http.MethodPut, "http://ply/containers/"+id+"/archive?path=/tmp", pr)
			if err != nil {
				t.Fatal(err)
			}
			answer := make(chan error, 1)
			go func() {
				r, err := w.client().Do(req)
				if err == nil {
					if r.Body.Close(); r.StatusCode != http.StatusOK {
						err = errors.New(r.Status)
					}
				}
				answer <- err
			}()
			half := len(tree) / 2
			if _, err := pw.Write(tree[:half]); err != nil {
				t.Fatal(err)
			}
			removed := w.remove(id)
			if stalls {
				select {
				case err := <-removed:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(30 * time.Second):
					t.Error("the removal waits for a writer that does not write")
				}
				pw.CloseWithError(io.ErrUnexpectedEOF)
				if err := <-answer; err == nil {
					t.Error("half a stream was accepted")
				}
			} else {
				time.Sleep(8 * time.Second)
				go func() { _, err := pw.Write(tree[half:]); pw.CloseWithError(err) }()
				if err := <-answer; err != nil {
					t.Error(err)
				}
				if err := <-removed; err != nil {
					t.Error(err)
				}
			}
			w.gone(t, id)
		})
	}
}

// A stream whose file becomes shorter while it is read ends with an error.
func TestCopyOfShrinkingFile(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	c := &cpClient{program: w.program("ply"), sock: w.sock, dir: t.TempDir()}
	for _, way := range copyWays {
		id := strings.TrimSpace(c.must(t, nil, "run", "-d", "busybox", "sh", "-c", "mkdir /dir; head -c 50000000 /dev/zero >/dir/big; sleep 1000"))
		until(t, func() bool {
			o, _, _ := c.run(nil, "", "exec", id, "stat", "-c", "%s", "/dir/big")
			return o == "50000000\n"
		}, func() string { return "no file" })
		truncated := false
		_, n, err := w.digest(t, id, way, func(read int64) {
			if !truncated && read > 4<<20 {
				c.must(t, nil, "exec", id, "truncate", "-s", "1000", "/dir/big")
				truncated = true
			}
		})
		if err == nil {
			t.Errorf("%s: %d bytes of a file that was truncated look like the whole stream", way.name, n)
		}
		c.must(t, nil, "rm", "-f", id)
	}
}
