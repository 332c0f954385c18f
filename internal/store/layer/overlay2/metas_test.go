package overlay2

import (
	"fmt"
	"testing"

	"ply/internal/oci"
	"ply/internal/store/layer/tree"
)

func TestMetasAreBounded(t *testing.T) {
	var m metas
	of := func(n, names int) *tree.Meta {
		d := &tree.Meta{DiffID: oci.DiffID(fmt.Sprint(n))}
		for range names {
			d.Implied = append(d.Implied, make(tree.Name, 1000))
			d.Links = append(d.Links, tree.Link{Name: make(tree.Name, 500), Target: make(tree.Name, 500)})
		}
		return d
	}
	for n := range 1000 {
		d := of(n, 100)
		m.keep(d)
		m.keep(d)
		if m.kept[d.DiffID] != d || m.total > maxMetas {
			t.Fatalf("after %d: kept %v, %d bytes", n, m.kept[d.DiffID] != nil, m.total)
		}
	}
	if len(m.kept) < maxMetas/300_000 {
		t.Errorf("only %d are kept", len(m.kept))
	}
	m.keep(of(1, maxMetas/1000))
	if m.kept["1"] != nil {
		t.Error("one that is heavier than the bound is kept")
	}
	for id := range m.kept {
		m.forget(id)
	}
	if m.total != 0 {
		t.Errorf("nothing weighs %d bytes", m.total)
	}
}
