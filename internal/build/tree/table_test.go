package tree

import (
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// The table returns what was put under a key, and nothing for another state of the file. It grows to its bound and no further, and then forgets few files.
func TestTable(t *testing.T) {
	sum := func(n int) (s [sha256.Size]byte) {
		binary.NativeEndian.PutUint64(s[:], uint64(n)+1)
		return s
	}
	const limit = 10 * minSlots
	all := limit * len((&table{}).parts)
	for _, n := range []int{1, minSlots, all / 2, all * 3 / 4, 2 * all} {
		tb := newTable(limit)
		state := func(i int) key { return tb.key(&unix.Stat_t{Dev: 7, Ino: uint64(i), Size: 3}) }
		if _, ok := tb.get(state(0)); ok {
			t.Error("an empty table has a file")
		}
		for i := range n {
			tb.put(state(i), sum(i))
			tb.put(state(i), sum(i))
		}
		here := 0
		for i := range n {
			if got, ok := tb.get(state(i)); ok && got != sum(i) {
				t.Fatalf("%d of %d has the digest %x", i, n, got)
			} else if ok {
				here++
			}
			if _, ok := tb.get(tb.key(&unix.Stat_t{Dev: 7, Ino: uint64(i), Size: 4})); ok {
				t.Fatalf("%d of %d is remembered with another size", i, n)
			}
		}
		if count, slots := tb.size(); count != here || slots > all || here < min(n*98/100, all*9/10) {
			t.Errorf("%d of %d files are remembered, the count is %d, in %d slots", here, n, count, slots)
		}
	}
}
