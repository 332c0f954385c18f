package store

import (
	"errors"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/gc"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
)

// node is one object of the graph that a collection walks. Exactly one field is set.
type node struct {
	image     oci.ImageID     // record of an image
	container oci.ContainerID // record of a container
	step      oci.Digest      // record of a build step
	index     oci.Digest      // record of an index
	record    oci.DiffID      // record of a layer
	blob      oci.Digest      // file in the blob store
	layer     layer.Key       // object of the layer driver
}

// graph is who needs what, as the records say in one transaction:
//
//	image ──────► config and manifests (blobs), layers (driver objects and records)
//	container ──► config of its image (a blob), layers, layers of the images that it mounts
//	step ───────► layers
//	index ──────► its bytes, and the manifests and content of attestations (blobs); its images are roots themselves
//	record ─────► compressed forms of the layer (blobs)
//
// An image needs no name to be kept: untagged images stay until they are removed.
type graph struct {
	tx   *meta.Tx
	keys func(oci.Chain) []layer.Key // the driver's objects of a chain; nil leaves them out
}

// roots are the records that nothing else has to refer to.
func (g graph) roots() []node {
	var roots []node
	for id := range g.tx.Images.Keys() {
		roots = append(roots, node{image: id})
	}
	for id := range g.tx.Containers.Keys() {
		roots = append(roots, node{container: id})
	}
	for id := range g.tx.Steps.Keys() {
		roots = append(roots, node{step: id})
	}
	for id := range g.tx.Indexes.Keys() {
		roots = append(roots, node{index: id})
	}
	return roots
}

// references returns what an object needs. errs.DataLoss when its record is damaged: what it needs is then unknown, so
// nothing may be collected.
func (g graph) references(n node) ([]node, error) {
	switch {
	case n.image != "":
		img, err := g.tx.Images.Get(n.image)
		if err != nil {
			return nil, stopped(err)
		}
		refs := []node{{blob: oci.Digest(n.image)}}
		for _, m := range img.Manifests {
			refs = append(refs, node{blob: m.Digest})
		}
		return append(refs, g.chain(img.Chain)...), nil
	case n.container != "":
		c, err := meta.As[containerNeeds](g.tx.Containers).Get(n.container)
		if err != nil {
			return nil, stopped(err)
		}
		refs := g.chain(c.Chain)
		for _, m := range c.Mounts {
			refs = append(refs, g.chain(m.Chain)...)
		}
		if c.Image != "" {
			refs = append(refs, node{blob: oci.Digest(c.Image)})
		}
		return refs, nil
	case n.step != "":
		step, err := g.tx.Steps.Get(n.step)
		if err != nil {
			return nil, nil // a cache finds nothing through a damaged record, so nothing needs its layers
		}
		var refs []node
		for _, o := range step.Outputs {
			refs = append(refs, g.chain(o.Chain)...)
		}
		return refs, nil
	case n.index != "":
		rec, err := g.tx.Indexes.Get(n.index)
		if err != nil {
			return nil, stopped(err)
		}
		refs := []node{{blob: n.index}}
		for _, a := range rec.Artifacts {
			refs = append(refs, node{blob: a.Digest})
		}
		for _, b := range rec.Blobs {
			refs = append(refs, node{blob: b})
		}
		return refs, nil
	case n.record != "":
		rec, err := g.tx.Layers.Get(n.record)
		if errors.Is(err, errs.NotFound) {
			return nil, nil // the layer has no compressed form
		}
		if err != nil {
			return nil, stopped(err)
		}
		refs := make([]node, len(rec.Blobs))
		for i, b := range rec.Blobs {
			refs[i] = node{blob: b.Digest}
		}
		return refs, nil
	}
	return nil, nil // a blob or an object of the driver needs nothing else
}

// containerNeeds is the part of a container's record that this package reads.
type containerNeeds struct {
	Image  oci.ImageID `json:"image"`
	Chain  oci.Chain   `json:"chain"`
	Mounts []struct {
		Chain oci.Chain `json:"Chain"` // of an image that it mounts
	} `json:"mounts"`
}

// stopped returns the error of a collection that found a damaged record.
func stopped(err error) error {
	return errs.New(errs.DataLoss, "collection: stopped, nothing is removed: %v", err).WithHint("Run ply system check --repair, or remove the damaged object by force.")
}

func (g graph) chain(c oci.Chain) []node {
	var refs []node
	for _, d := range c {
		refs = append(refs, node{record: d})
	}
	if g.keys != nil {
		for _, k := range g.keys(c) {
			refs = append(refs, node{layer: k})
		}
	}
	return refs
}

// live returns every object that can be reached from the roots.
func (g graph) live() (map[node]struct{}, error) { return gc.Mark(g.roots(), g.references) }
