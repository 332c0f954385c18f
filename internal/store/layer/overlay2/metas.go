package overlay2

import (
	"ply/internal/oci"
	"ply/internal/store/layer/tree"
)

// maxMetas bounds what the descriptions of layers that are kept in memory weigh, in bytes.
const maxMetas = 8 << 20

// metas keeps descriptions of layers, so that they are not read for each mount. The zero value is empty.
type metas struct {
	kept  map[oci.DiffID]*tree.Meta
	total int // their weight
}

// weight returns about how many bytes of memory a description keeps.
func weight(m *tree.Meta) int {
	n := 500
	for _, names := range [][]tree.Name{m.Implied, m.Wiped} {
		for _, name := range names {
			n += 24 + cap(name)
		}
	}
	for _, l := range m.Links {
		n += 48 + cap(l.Name) + cap(l.Target)
	}
	for _, h := range m.Hidden {
		n += 32 + cap(h.Name)
	}
	return n
}

// keep keeps a description. Others go where the bound asks for it, whichever they are; one that is heavier than the bound is not kept.
func (m *metas) keep(d *tree.Meta) {
	m.forget(d.DiffID)
	w := weight(d)
	if w > maxMetas {
		return
	}
	for id := range m.kept {
		if m.total+w <= maxMetas {
			break
		}
		m.forget(id)
	}
	if m.kept == nil {
		m.kept = map[oci.DiffID]*tree.Meta{}
	}
	m.kept[d.DiffID] = d
	m.total += w
}

func (m *metas) forget(id oci.DiffID) {
	if d := m.kept[id]; d != nil {
		m.total -= weight(d)
		delete(m.kept, id)
	}
}
