package spill

import (
	"encoding/binary"
	"hash/maphash"
)

// NameID is a name in a directory. Root is the top directory, which has no name.
type NameID uint32

// Root is the first of all Names.
const Root NameID = 0

// Names is a tree of names, each with a value of type V, which has no pointers. A name is found by its directory.
type Names[V any] struct {
	s     *Space
	list  Array[named[V]]
	text  Text
	seed  maphash.Seed
	parts [tableParts]tablePart
}

type named[V any] struct {
	parent NameID
	text   uint32
	length uint8
	value  V
}

// NewNames returns a tree with a root.
func NewNames[V any](s *Space) *Names[V] {
	n := &Names[V]{s: s, list: NewArray[named[V]](s), text: NewText(s), seed: maphash.MakeSeed()}
	n.list.Append(named[V]{})
	return n
}

// Len returns the number of names, with the root.
func (n *Names[V]) Len() int { return n.list.Len() }

// Value returns the value of a name. The pointer is valid until the next Add.
func (n *Names[V]) Value(id NameID) *V { return &n.list.At(int(id)).value }

// Parent returns the directory of a name; that of the root is the root.
func (n *Names[V]) Parent(id NameID) NameID { return n.list.At(int(id)).parent }

// Name returns the last component of a name. It may not be changed.
func (n *Names[V]) Name(id NameID) []byte {
	e := n.list.At(int(id))
	return n.text.At(e.text, int(e.length))
}

// Path appends the components of a name, each after a slash, to b. The root adds nothing.
func (n *Names[V]) Path(b []byte, id NameID) []byte {
	size := len(b)
	for at := id; at != Root; at = n.Parent(at) {
		size += 1 + int(n.list.At(int(at)).length)
	}
	if size > cap(b) {
		b = append(make([]byte, 0, size), b...)
	}
	b = b[:size]
	for at := id; at != Root; at = n.Parent(at) {
		name := n.Name(at)
		size -= len(name)
		copy(b[size:], name)
		size--
		b[size] = '/'
	}
	return b
}

// MaxName is how long a name may be.
const MaxName = 255

// Find returns the name in a directory.
func (n *Names[V]) Find(parent NameID, name string) (NameID, bool) {
	h := n.hash(parent, name)
	p := n.part(h)
	at, ok := n.slot(p, h, parent, name)
	if !ok {
		return 0, false
	}
	return p.id(at), true
}

// Add adds a name, of at most MaxName bytes, that is not there.
func (n *Names[V]) Add(parent NameID, name string, v V) NameID {
	if len(name) > MaxName {
		panic("spill: the name is too long")
	}
	id := NameID(n.list.Len())
	n.list.Append(named[V]{parent: parent, text: n.text.Append(name), length: uint8(len(name)), value: v})
	h := n.hash(parent, name)
	p := n.part(h)
	p.room(n.s)
	p.insert(h, id)
	return id
}

// Replace makes another name with the same directory and component, which Find returns from now on, and returns it. What is in the old one keeps it as its directory.
func (n *Names[V]) Replace(old NameID, v V) NameID {
	e := *n.list.At(int(old))
	e.value = v
	id := NameID(n.list.Len())
	n.list.Append(e)
	name := string(n.Name(id))
	h := n.hash(e.parent, name)
	p := n.part(h)
	if at, ok := n.slot(p, h, e.parent, name); ok {
		p.set(at, h, id)
	}
	return id
}

// Forget drops the table, so that Find finds nothing any more.
func (n *Names[V]) Forget() {
	for i := range n.parts {
		n.s.free(n.parts[i].b)
		n.parts[i] = tablePart{}
	}
}

func (n *Names[V]) hash(parent NameID, name string) uint32 {
	h := maphash.String(n.seed, name) ^ uint64(parent)*0x9e3779b97f4a7c15
	h *= 0xff51afd7ed558ccd
	return uint32(h >> 32)
}

const (
	tableParts = 16
	slotSize   = 8
	minSlots   = 32
)

// tablePart is a hash table with open addressing of the names whose hashes have the same highest bits. A slot has a hash and, 0 when it is free, the number after that
// of the name: only a name with the right hash is looked at.
type tablePart struct {
	b    []byte
	mask uint32 // of the slots, whose number is a power of two
	used int
}

func (n *Names[V]) part(h uint32) *tablePart { return &n.parts[h>>28] }

func (n *Names[V]) slot(p *tablePart, h uint32, parent NameID, name string) (at uint32, ok bool) {
	if p.used == 0 {
		return 0, false
	}
	for at = h & p.mask; ; at = (at + 1) & p.mask {
		slot := binary.NativeEndian.Uint64(p.b[at*slotSize:])
		if uint32(slot) == 0 {
			return at, false
		}
		if uint32(slot>>32) != h {
			continue
		}
		e := n.list.At(int(uint32(slot) - 1))
		if e.parent == parent && string(n.text.At(e.text, int(e.length))) == name {
			return at, true
		}
	}
}

func (p *tablePart) id(at uint32) NameID {
	return NameID(uint32(binary.NativeEndian.Uint64(p.b[at*slotSize:])) - 1)
}

func (p *tablePart) set(at, h uint32, id NameID) {
	binary.NativeEndian.PutUint64(p.b[at*slotSize:], uint64(h)<<32|uint64(id+1))
}

// insert adds a name that is not there.
func (p *tablePart) insert(h uint32, id NameID) {
	at := h & p.mask
	for uint32(binary.NativeEndian.Uint64(p.b[at*slotSize:])) != 0 {
		at = (at + 1) & p.mask
	}
	p.set(at, h, id)
	p.used++
}

// room makes room for one more name: at least a fifth of the slots stays free.
func (p *tablePart) room(s *Space) {
	n := len(p.b) / slotSize
	if p.used+1 <= n/5*4 {
		return
	}
	old := p.b
	size := max(minSlots, 2*n)
	*p = tablePart{b: s.alloc(size * slotSize), mask: uint32(size - 1)}
	for at := 0; at < len(old); at += slotSize {
		if slot := binary.NativeEndian.Uint64(old[at:]); uint32(slot) != 0 {
			p.insert(uint32(slot>>32), NameID(uint32(slot)-1))
		}
	}
	s.free(old)
}
