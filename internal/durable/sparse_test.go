package durable

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A copy has the bytes of the file and its holes, up to the size that is asked for.
func TestCopySparse(t *testing.T) {
	const hole = 1 << 40 // more than the disk has, and than a test could write
	for name, c := range map[string]struct {
		write map[int64]string
		end   int64 // of the file
		size  int64 // that is copied
	}{
		"nothing":            {nil, 0, 0},
		"data":               {map[int64]string{0: "data"}, 4, 4},
		"hole at the start":  {map[int64]string{hole: "end"}, hole + 3, hole + 3},
		"hole at the end":    {map[int64]string{0: "begin"}, hole, hole},
		"hole in the middle": {map[int64]string{0: "begin", hole: "end"}, hole + 3, hole + 3},
		"only a hole":        {nil, hole, hole},
		"it has grown":       {map[int64]string{0: "begin", hole: "end"}, hole + 3, 2},
		"it was cut off":     {map[int64]string{0: "begin"}, 5, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			from, to := create(t, filepath.Join(dir, "from")), create(t, filepath.Join(dir, "to"))
			for at, s := range c.write {
				if _, err := from.WriteAt([]byte(s), at); err != nil {
					t.Fatal(err)
				}
			}
			if err := from.Truncate(c.end); err != nil {
				t.Fatal(err)
			}
			if err := CopySparse(t.Context(), to, from, c.size); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(int(to.Fd()), &st); err != nil || st.Size != c.size || st.Blocks*512 > 1<<20 {
				t.Errorf("%d bytes in %d blocks, %v; want %d bytes", st.Size, st.Blocks, err, c.size)
			}
			for at, s := range c.write {
				want := []byte(s)[:max(0, min(int64(len(s)), c.size-at))]
				got := make([]byte, len(want))
				if _, err := to.ReadAt(got, at); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, want) {
					t.Errorf("at %d: %q, %v; want %q", at, got, err, want)
				}
			}
		})
	}
}

// A copy ends when its context does.
func TestCopySparseEnds(t *testing.T) {
	dir := t.TempDir()
	from, to := create(t, filepath.Join(dir, "from")), create(t, filepath.Join(dir, "to"))
	if _, err := from.WriteString("data"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := CopySparse(ctx, to, from, 4); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func create(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}
