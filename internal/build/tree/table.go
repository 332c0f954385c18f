package tree

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"runtime"

	"golang.org/x/sys/unix"
)

// key identifies a file in the state in which it was read. It is a keyed hash of 128 bits, so that no one can make two files that have the same.
type key [2]uint64

// table remembers digests by key in memory that is not the garbage collector's, because it can hold a million of them. It forgets some when it is full. It has
// parts that grow one after the other, so that it is never there twice.
type table struct {
	seeds [2]maphash.Seed
	parts [16]part
}

// part has the keys with one value of their highest four bits.
type part struct {
	slots []byte // each a key, all zero when the slot is free, and a digest
	count int    // of the slots that are taken
	limit int    // of the slots
	undo  runtime.Cleanup
}

const (
	slotSize = 16 + sha256.Size
	minSlots = 1 << 8  // of a part
	maxSlots = 5 << 14 // of a part; 60 MiB for all
	maxProbe = 64      // slots that a key may be away from its own
)

// newTable returns a table whose parts have at most limit slots.
func newTable(limit int) *table {
	t := &table{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
	for i := range t.parts {
		t.parts[i].limit = limit
	}
	return t
}

func (t *table) key(st *unix.Stat_t) key {
	state := struct {
		dev, ino     uint64
		size         int64
		mtime, ctime unix.Timespec
	}{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	return key{maphash.Comparable(t.seeds[0], state), maphash.Comparable(t.seeds[1], state) | 1}
}

func (t *table) part(k key) *part { return &t.parts[k[1]>>60] }

func (t *table) get(k key) (sum [sha256.Size]byte, ok bool) { return t.part(k).get(k) }

func (t *table) put(k key, sum [sha256.Size]byte) { t.part(k).put(k, sum) }

// size returns how many digests are remembered, in how many slots.
func (t *table) size() (count, slots int) {
	for i := range t.parts {
		count += t.parts[i].count
		slots += t.parts[i].len()
	}
	return count, slots
}

func (t *part) len() int { return len(t.slots) / slotSize }

// find returns the slot of a key, or the free one where it belongs. When there is neither, taken is true and the slot is that of another key.
func (t *part) find(k key) (slot []byte, found, taken bool) {
	n := uint64(t.len())
	for i := range uint64(maxProbe) {
		at := (k[0] + i) % n * slotSize
		slot = t.slots[at : at+slotSize]
		switch (key{binary.NativeEndian.Uint64(slot), binary.NativeEndian.Uint64(slot[8:])}) {
		case k:
			return slot, true, true
		case key{}:
			return slot, false, false
		}
	}
	at := (k[0] + k[1]>>1%maxProbe) % n * slotSize
	return t.slots[at : at+slotSize], false, true
}

func (t *part) get(k key) (sum [sha256.Size]byte, ok bool) {
	if len(t.slots) == 0 {
		return sum, false
	}
	slot, ok, _ := t.find(k)
	if ok {
		copy(sum[:], slot[16:])
	}
	return sum, ok
}

func (t *part) put(k key, sum [sha256.Size]byte) {
	if t.count >= t.len()/5*4 && t.len() < t.limit && !t.grow() {
		return // no memory: the file is read again
	}
	slot, _, taken := t.find(k)
	if !taken {
		t.count++
	}
	binary.NativeEndian.PutUint64(slot, k[0])
	binary.NativeEndian.PutUint64(slot[8:], k[1])
	copy(slot[16:], sum[:])
}

// grow makes room for twice as many slots, up to the limit.
func (t *part) grow() bool {
	n := min(max(minSlots, 2*t.len()), t.limit)
	slots, err := unix.Mmap(-1, 0, n*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return t.len() > 0
	}
	old := t.slots
	if len(old) > 0 {
		t.undo.Stop()
	}
	t.slots, t.count = slots, 0
	t.undo = runtime.AddCleanup(t, func(b []byte) { _ = unix.Munmap(b) }, slots) // never fails
	for at := 0; at < len(old); at += slotSize {
		k := key{binary.NativeEndian.Uint64(old[at:]), binary.NativeEndian.Uint64(old[at+8:])}
		if k == (key{}) {
			continue
		}
		slot, _, taken := t.find(k)
		if !taken {
			t.count++
		}
		copy(slot, old[at:at+slotSize])
	}
	if len(old) > 0 {
		_ = unix.Munmap(old) // never fails
	}
	return true
}
