package image

import (
	"context"
	"errors"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// minStack is how many digits of a chain ID are needed to name a stack of layers: those that the tree shows. A shorter word could be meant as a name.
const minStack = 12

// view reads records to which a reference leads. When the reference leads nowhere but is the chain ID of the lower layers of an image, as the tree shows it, view
// makes the image that they were and reads again.
func view(ctx context.Context, s *Service, ref string, read func(*meta.Tx) error) error {
	err := s.st.Meta.View(read)
	if !errors.Is(err, errs.NotFound) {
		return err
	}
	made, merr := makeStack(ctx, s, ref)
	switch {
	case merr != nil:
		return merr
	case !made:
		return err
	}
	return s.st.Meta.View(read)
}

// stack is the lower part of the layers of an image.
type stack struct {
	id     oci.ChainID
	chain  oci.Chain
	of     oci.ImageID
	above  int // layers of the image above these
	format oci.Format
}

// makeStack makes the image that a stack of layers was, with the config that the history of an image with these layers implies. made is false when ref is no
// chain ID of a stack.
func makeStack(ctx context.Context, s *Service, ref string) (made bool, err error) {
	prefix := strings.TrimPrefix(ref, "sha256:")
	if len(prefix) < minStack || !isHex(prefix) {
		return false, nil
	}
	var found []stack
	if err := s.st.Meta.View(func(tx *meta.Tx) (err error) {
		found, err = stacks(tx, prefix)
		return err
	}); err != nil || len(found) == 0 {
		return false, err
	}
	lease := s.st.Lease()
	defer lease.Release()
	lease.Layer(found[0].chain)
	for _, f := range found {
		cfg, _, cerr := s.config(f.of)
		if cerr != nil || len(cfg.RootFS.DiffIDs) < len(f.chain) {
			err = errors.Join(err, cerr) // another image may have these layers, too
			continue
		}
		raw, eerr := EncodeConfig(implied(cfg, len(f.chain)))
		if eerr != nil {
			return false, eerr
		}
		_, err = s.Put(ctx, lease, PutOptions{Config: raw, Format: f.format, Step: meta.StepOfStack})
		return err == nil, err
	}
	return false, err
}

// stacks returns the images of which the lower layers have a chain ID that begins with prefix, nearest first. errs.Invalid when there are several such IDs.
func stacks(tx *meta.Tx, prefix string) (found []stack, err error) {
	for id, rec := range tx.Images.All() {
		if rec.Err != nil {
			continue
		}
		chain := rec.Value.Chain
		for i, c := range chain.IDs() {
			if !hasHexPrefix(string(c), prefix) {
				continue
			}
			if len(found) > 0 && found[0].id != c {
				return nil, ambiguous(prefix)
			}
			found = append(found, stack{c, slices.Clone(chain[:i+1]), id, len(chain) - i - 1, rec.Value.Format})
		}
	}
	slices.SortStableFunc(found, func(a, b stack) int { return a.above - b.above })
	return found, nil
}

// resolveStack finds an image that has exactly the layers of a chain ID, of which prefix is the beginning. One with a name goes first. It returns "" when none
// has them.
func resolveStack(tx *meta.Tx, prefix string) (oci.ImageID, error) {
	if len(prefix) < minStack {
		return "", nil
	}
	found, err := stacks(tx, prefix)
	if err != nil {
		return "", err
	}
	var ids []oci.ImageID
	for _, f := range found {
		if f.above == 0 {
			ids = append(ids, f.of)
		}
	}
	for _, id := range ids {
		if namesOf(tx, id).count() > 0 {
			return id, nil
		}
	}
	if len(ids) == 0 {
		return "", nil
	}
	return ids[0], nil
}

// dropStacks removes the images that were made of stacks of layers and have neither a name nor a container: a removal of other images shall free what they need, and
// the next reference makes them again. Those in keep are what the removal is about.
func (r *remover) dropStacks(keep []oci.ImageID) error {
	for id, rec := range r.c.images {
		if rec.Step != meta.StepOfStack || r.c.names[id].count() > 0 || slices.Contains(keep, id) || r.used(id).by != "" {
			continue
		}
		if err := r.tx.Images.Delete(id); err != nil {
			return err
		}
		delete(r.c.images, id)
		r.chains, r.blobs = append(r.chains, rec.Chain), append(r.blobs, oci.Digest(id))
	}
	return nil
}

// madeOfStacks returns the images that were made of stacks of layers.
func madeOfStacks(tx *meta.Tx) (ids []oci.ImageID) {
	for id, rec := range tx.Images.All() {
		if rec.Value.Step == meta.StepOfStack {
			ids = append(ids, id)
		}
	}
	return ids
}
