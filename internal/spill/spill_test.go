package spill

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// space returns a Space with a file in a directory of the test.
func space(tb testing.TB, limit int64) *Space {
	tb.Helper()
	s := NewSpace(limit, func() (*os.File, error) {
		f, err := os.CreateTemp(tb.TempDir(), "")
		if err != nil {
			return nil, err
		}
		return f, os.Remove(f.Name())
	})
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// An array has what was put into it, whether it is in memory or in the file, and what was changed stays changed.
func TestArray(t *testing.T) {
	for _, limit := range []int64{0, 1 << 20, 1 << 40} {
		s := space(t, limit)
		a, b := NewArray[[3]uint32](s), NewArray[uint32](s)
		const n = 10*partSize + 7
		for i := range n {
			a.Append([3]uint32{uint32(i), 1, 2})
			b.Append(uint32(i))
			a.At(i / 2)[1]++
			s.Tick()
		}
		b.Extend(2*partSize + 1)
		for i := range n {
			want := [3]uint32{uint32(i), 1, 2}
			if 2*i < n {
				want[1]++
			}
			if 2*i+1 < n {
				want[1]++
			}
			if got := *a.At(i); got != want || *b.At(i) != uint32(i) {
				t.Fatalf("limit %d: element %d is %v and %d, want %v", limit, i, got, *b.At(i), want)
			}
		}
		if b.Len() != n+2*partSize+1 || *b.At(b.Len() - 1) != 0 || *b.At(n) != 0 {
			t.Errorf("limit %d: Extend made %d elements, the last one is %d", limit, b.Len(), *b.At(b.Len() - 1))
		}
		if most := limit + 4*partSize*16; s.Memory() > most {
			t.Errorf("limit %d: %d bytes are in memory", limit, s.Memory())
		}
		if limit == 1<<40 && s.file != nil {
			t.Error("an array that fits has a file")
		}
	}
}

// A pass that goes from one element to another one far away has few pages of the file mapped.
func TestVisit(t *testing.T) {
	s := space(t, 0)
	a := NewArray[[80]byte](s)
	const n = 1_000_000
	for range n {
		a.Append([80]byte{1})
		s.Tick()
	}
	pass := func(visit func(i int)) (most int) {
		for k := range 20_000 {
			i := k * 997 % n
			visit(i)
			if a.At(i)[0] != 1 {
				t.Fatalf("element %d is %v", i, *a.At(i))
			}
			if k%2000 == 1999 {
				most = max(most, mapped(t, s))
			}
		}
		return most
	}
	all := pass(func(int) {})
	s.maps.drop()
	if got := pass(s.Visit); got > all/2 {
		t.Errorf("%d KiB of the file are mapped, and %d KiB without Visit", got, all)
	}
}

// mapped returns how many KiB of the file of a Space are mapped.
func mapped(t *testing.T, s *Space) (sum int) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(s.file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	inode, ours := fmt.Sprintf(" %d ", st.Ino), false
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		switch {
		case strings.Contains(key, "-"): // the line of a mapping
			ours = strings.Contains(line, inode)
		case ours && key == "Rss":
			var n int
			if _, err := fmt.Sscan(value, &n); err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// Names finds each name in its directory only, and returns its path, whatever moved to the file.
func TestNames(t *testing.T) {
	type value struct{ n uint32 }
	for _, limit := range []int64{0, 1 << 40} {
		s := space(t, limit)
		names := NewNames[value](s)
		const n = 100_000
		var dir NameID
		for i := range n {
			if i%100 == 0 {
				dir = names.Add(Root, fmt.Sprint("d", i), value{})
			}
			names.Add(dir, fmt.Sprint(i), value{uint32(i)})
			s.Tick()
		}
		second, _ := names.Find(Root, "d100")
		again := names.Replace(second, value{5})
		for range n {
			i := rand.IntN(n)
			dir, ok := names.Find(Root, fmt.Sprint("d", i/100*100))
			if !ok {
				t.Fatalf("no d%d", i/100*100)
			}
			id, ok := names.Find(dir, fmt.Sprint(i))
			if replaced := i/100 == 1; ok == replaced {
				t.Fatalf("%d is found: %v", i, ok)
			} else if replaced {
				continue
			}
			if got, want := string(names.Path(nil, id)), fmt.Sprintf("/d%d/%d", i/100*100, i); got != want || names.Value(id).n != uint32(i) || names.Parent(id) != dir {
				t.Fatalf("%s is %s with %d", want, got, names.Value(id).n)
			}
			if _, ok := names.Find(Root, fmt.Sprint(i)); ok {
				t.Fatalf("%d is found in the root", i)
			}
		}
		if got, ok := names.Find(Root, "d100"); !ok || got != again || names.Value(got).n != 5 || names.Parent(got) != Root {
			t.Errorf("the name that replaced another one is %d, %v", got, ok)
		}
		if got := string(names.Path([]byte("x"), Root)); got != "x" {
			t.Errorf("the path of the root is %q", got)
		}
		if names.Len() != n+n/100+2 {
			t.Errorf("%d names", names.Len())
		}
		if limit == 0 && s.size == 0 {
			t.Error("nothing moved to the file")
		}
		before := s.Memory()
		names.Forget()
		if _, ok := names.Find(Root, "d100"); ok || s.Memory() > before-n*slotSize {
			t.Error("the table is still there")
		}
	}
}

// Where there is no file, or no room for it, everything stays in memory.
func TestNoRoom(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("no mounts: ", err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	for name, open := range map[string]func() (*os.File, error){
		"none": nil, "error": func() (*os.File, error) { return nil, errors.New("no") },
		"full": func() (*os.File, error) { return os.Create(filepath.Join(dir, "f")) },
	} {
		s := NewSpace(0, open)
		a := NewArray[uint64](s)
		text := NewText(s)
		const n = 100 * partSize
		for i := range n {
			a.Append(uint64(i))
			if at := text.Append("1234567"); string(text.At(at, 7)) != "1234567" {
				t.Fatal(name)
			}
		}
		for i := range n {
			if *a.At(i) != uint64(i) {
				t.Fatalf("%s: element %d is %d", name, i, *a.At(i))
			}
		}
		if s.Memory() < 6*n+7*n {
			t.Errorf("%s: %d bytes are in memory", name, s.Memory())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A page of the file that cannot be read is an error and does not end the process.
func TestGuard(t *testing.T) {
	var f *os.File
	s := NewSpace(0, func() (_ *os.File, err error) {
		f, err = os.Create(filepath.Join(t.TempDir(), "f"))
		return f, err
	})
	defer s.Close()
	a := NewArray[uint64](s)
	a.Extend(4 * partSize)
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	err := func() (err error) {
		defer Guard(&err)()
		return fmt.Errorf("read %d", *a.At(0))
	}()
	if !errors.Is(err, unix.EIO) {
		t.Errorf("a page that is gone: %v", err)
	}
}
