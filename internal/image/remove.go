package image

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// usage says which container uses an image. It is found out before the transaction.
type usage struct {
	by      string // short ID of a container; "" = none
	running bool   // by is running
	unknown bool   // the record of by is damaged, so it may use the image or not
}

// remover removes names and images in one transaction. Its rules and texts are docker's; see Remove.
type remover struct {
	tx      *meta.Tx
	c       *catalog
	use     map[oci.ImageID]usage
	records map[oci.ImageID]string // short ID of a container of the image, from the records: it may be newer than use
	unknown string                 // short ID of a container whose record is damaged; "" = none
	out     []Removed
	events  []removal
	chains  []oci.Chain   // of deleted images
	blobs   []oci.Digest  // their configs and manifests
	orphans []oci.ImageID // images of indexes that were removed
	missing oci.ImageID   // an image that is not in use; the transaction is then repeated
}

// removal is an event to publish.
type removal struct {
	action string
	id     oci.ImageID
}

// Remove removes a name of an image, or the image.
//
// If ref is a name and the image has other names, Remove removes only that name. If ref is the only name of the image (besides
// digests in the same repository), or its ID, Remove removes the image. If a container uses the image, the result is
// errs.Conflict; with Force, the names are removed and the image stays. If ref is the ID of an image with several names, the
// result is errs.Conflict without Force.
//
// Parents without a name that nothing needs are removed too, unless NoPrune is set. When Remove returns, the blobs and layers
// that nothing needs are deleted. A container whose record is damaged counts as a user of every image. A name whose record is damaged
// is removed with Force. In the result, an image is followed by the chain IDs of its layers that no image has any
// more, as docker prints them.
func (s *Service) Remove(ctx context.Context, ref string, opts RemoveOptions) ([]Removed, error) {
	if len(opts.Platforms) > 0 {
		return removePlatforms(ctx, s, ref, opts)
	}
	r, err := s.removing(ctx, func(tx *meta.Tx) ([]oci.ImageID, error) {
		m, err := resolve(tx, ref)
		if opts.Force && errors.Is(err, errs.DataLoss) {
			return nil, nil
		}
		return []oci.ImageID{m.id}, err
	}, func(r *remover) error {
		m, err := resolve(r.tx, ref)
		if opts.Force && errors.Is(err, errs.DataLoss) && !m.name.IsZero() {
			return r.dropName(m.name)
		}
		if err != nil {
			return err
		}
		if m.name.IsZero() {
			return r.byID(m.id, opts.Force, !opts.NoPrune)
		}
		return r.byName(m.id, m.name, ref, opts.Force, !opts.NoPrune)
	})
	if err != nil {
		return nil, err
	}
	_, err = s.finish(ctx, r)
	return r.out, err
}

// removing finds out which containers use the images that pick returns and their ancestors. Then it runs do in one transaction.
// If do needs another image, because the records have changed in between, removing starts again.
func (s *Service) removing(ctx context.Context, pick func(*meta.Tx) ([]oci.ImageID, error), do func(*remover) error) (*remover, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		var ids, about []oci.ImageID
		err := s.st.Meta.View(func(tx *meta.Tx) (err error) {
			ids, err = pick(tx)
			if err != nil {
				return err
			}
			about = ids
			ids = withAncestors(tx, slices.Concat(withSiblings(tx, ids), madeOfStacks(tx)))
			return nil
		})
		if err != nil {
			return nil, err
		}
		r := &remover{use: s.usage(ids)}
		err = s.st.Meta.Update(func(tx *meta.Tx) error {
			r.tx, r.c = tx, readCatalog(tx)
			r.records, r.unknown = containersByImage(tx)
			err := r.dropStacks(about)
			if err == nil {
				err = do(r)
			}
			if err == nil {
				err = r.dropOrphans()
			}
			if r.missing != "" {
				return errs.New(errs.Unavailable, "image %s: changed while it was removed", r.missing.Short())
			}
			return err
		})
		if r.missing == "" {
			return r, err
		}
	}
}

// withAncestors returns images and the images from which they were made.
func withAncestors(tx *meta.Tx, ids []oci.ImageID) []oci.ImageID {
	seen := map[oci.ImageID]bool{}
	var all []oci.ImageID
	for _, id := range ids {
		for id != "" && !seen[id] {
			seen[id] = true
			all = append(all, id)
			rec, err := tx.Images.Get(id)
			if err != nil {
				break
			}
			id = rec.Parent
		}
	}
	return all
}

func (s *Service) usage(ids []oci.ImageID) map[oci.ImageID]usage {
	m := make(map[oci.ImageID]usage, len(ids))
	for _, id := range ids {
		var u usage
		for _, c := range s.users(id) {
			running := s.opts.Running != nil && s.opts.Running(c)
			if u.by == "" || running {
				u = usage{by: oci.ContainerID(c).Short(), running: running}
			}
			if running {
				break
			}
		}
		m[id] = u
	}
	return m
}

// finish publishes the events and frees what nothing needs any more.
func (s *Service) finish(ctx context.Context, r *remover) (freed int64, err error) {
	for _, e := range r.events {
		s.Publish(e.action, e.id, "")
	}
	if len(r.chains)+len(r.blobs) == 0 {
		return 0, nil
	}
	// The records are removed already, so the space is freed even if the client has gone.
	freed, err = s.st.Reclaim(context.WithoutCancel(ctx), r.chains, r.blobs)
	if err != nil {
		s.opts.Log.Warn("space of removed images not freed yet", "err", err)
	}
	return freed, nil
}

func (r *remover) used(id oci.ImageID) usage {
	u, ok := r.use[id]
	if !ok {
		r.missing = id
	}
	if u.by == "" {
		u.by = r.records[id]
	}
	if u.by == "" && r.unknown != "" {
		u.by, u.unknown = r.unknown, true
	}
	return u
}

// containersByImage returns the short ID of a container that was made from each image or mounts it, and that of a container whose record is damaged. It reads the
// field of the records of containers that package store reads too.
func containersByImage(tx *meta.Tx) (m map[oci.ImageID]string, unknown string) {
	m = map[oci.ImageID]string{}
	type image struct {
		Image  oci.ImageID `json:"image"`
		Mounts []struct {
			Image oci.ImageID `json:"Image"`
		} `json:"mounts"`
	}
	for id, c := range meta.As[image](tx.Containers).All() {
		switch {
		case c.Err != nil:
			unknown = id.Short()
		case c.Value.Image != "":
			m[c.Value.Image] = id.Short()
		}
		for _, mounted := range c.Value.Mounts {
			if mounted.Image != "" && m[mounted.Image] == "" {
				m[mounted.Image] = id.Short()
			}
		}
	}
	return m, unknown
}

// mayBeUsed returns the error for an image that a container with a damaged record may need.
func mayBeUsed(what string, u usage) error {
	return errs.New(errs.Conflict, "conflict: unable to remove %s - the record of container %s is damaged, and it may use the image", what, u.by).
		WithHint("Run ply system check --repair, or remove that container by force (rm -f).")
}

// dropName removes a name whose record is damaged.
func (r *remover) dropName(name oci.Reference) error {
	r.out = append(r.out, Removed{Untagged: name.Familiar()})
	return r.tx.Names.Delete(name.String())
}

func (r *remover) byName(id oci.ImageID, name oci.Reference, typed string, force, prune bool) error {
	if u := r.used(id); !force && u.by != "" && singleReference(r.c.names[id].all()) {
		if u.unknown {
			return mayBeUsed(strconv.Quote(typed), u)
		}
		return errs.New(errs.Conflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
			typed, u.by, id.Short())
	}
	if err := r.untag(id, name); err != nil {
		return err
	}
	if name.Tag() != "" && !slices.ContainsFunc(r.c.names[id].tags, sameRepository(name)) {
		// The digests of a repository are removed with its last tag.
		for _, d := range slices.Clone(r.c.names[id].digests) {
			if sameRepository(name)(d) {
				if err := r.untag(id, d); err != nil {
					return err
				}
			}
		}
	}
	if r.c.names[id].count() > 0 {
		return nil
	}
	return r.delete(id, force, prune, true)
}

func sameRepository(name oci.Reference) func(oci.Reference) bool {
	return func(o oci.Reference) bool { return o.Name() == name.Name() }
}

func (r *remover) byID(id oci.ImageID, force, prune bool) error {
	names := r.c.names[id].all()
	if singleReference(names) {
		if err := r.conflict(id, false, !force); err != nil {
			return err
		}
		for _, n := range names {
			if err := r.untag(id, n); err != nil {
				return err
			}
		}
	}
	return r.delete(id, force, prune, false)
}

// singleReference reports whether there is at most one tag, and all names are in one repository.
func singleReference(names []oci.Reference) bool {
	tags := 0
	for _, n := range names {
		if n.Digest() == "" {
			tags++
		}
		if n.Name() != names[0].Name() {
			return false
		}
	}
	return tags <= 1
}

// conflict returns an error if an image cannot be deleted: because others were made from it, because a container of it is
// running, and, if names or stopped are set, because it has names or a stopped container.
func (r *remover) conflict(id oci.ImageID, names, stopped bool) error {
	const format = "conflict: unable to delete %s (%s) - %s"
	u := r.used(id)
	switch {
	case r.hasChildren(id):
		return errs.New(errs.Conflict, format, id.Short(), "cannot be forced", "image has dependent child images")
	case u.running:
		return errs.New(errs.Conflict, format, id.Short(), "cannot be forced", "image is being used by running container "+u.by)
	case names && r.c.names[id].count() > 0:
		return errs.New(errs.Conflict, format, id.Short(), "must be forced", "image is referenced in multiple repositories")
	case stopped && u.unknown:
		return mayBeUsed(id.Short(), u)
	case stopped && u.by != "":
		return errs.New(errs.Conflict, format, id.Short(), "must be forced", "image is being used by stopped container "+u.by)
	}
	return nil
}

// hasChildren reports whether an image was made from this one. Images of build steps do not count: they are a cache.
func (r *remover) hasChildren(id oci.ImageID) bool {
	for child, rec := range r.c.images {
		if rec.Parent == id && (rec.Step == "" || r.c.names[child].count() > 0) {
			return true
		}
	}
	return false
}

// delete removes an image and, with prune, its parents that nothing needs then. With quiet, it is no error that the image is
// still needed.
func (r *remover) delete(id oci.ImageID, force, prune, quiet bool) error {
	rec, ok := r.c.images[id]
	if !ok {
		return nil
	}
	if err := r.conflict(id, !force, !force); err != nil {
		needed := r.c.names[id].count() > 0 || r.hasChildren(id) || r.used(id).by != ""
		if quiet && needed {
			return nil
		}
		return err
	}
	for _, n := range r.c.names[id].all() {
		if err := r.untag(id, n); err != nil {
			return err
		}
	}
	if r.used(id).by != "" {
		return nil // a stopped container needs it for its next start
	}
	if err := r.tx.Images.Delete(id); err != nil {
		return err
	}
	delete(r.c.images, id)
	r.chains = append(r.chains, rec.Chain)
	r.blobs = append(r.blobs, oci.Digest(id))
	for _, m := range rec.Manifests {
		r.blobs = append(r.blobs, m.Digest)
	}
	r.out = append(r.out, Removed{Deleted: id})
	r.events = append(r.events, removal{"delete", id})
	r.dropLayers(rec.Chain)
	if !prune || rec.Parent == "" || r.c.images[rec.Parent].Step != "" || len(r.c.damaged) > 0 {
		return nil // images of build steps are removed with the build cache; a damaged record may name that parent too
	}
	return r.delete(rec.Parent, false, true, true)
}

// dropLayers adds the chain IDs of layers that no image has any more to the result, top layer first.
func (r *remover) dropLayers(chain oci.Chain) {
	ids := chain.IDs()
	keep := 0
	for _, rec := range r.c.images {
		n := 0
		for n < len(chain) && n < len(rec.Chain) && rec.Chain[n] == chain[n] {
			n++
		}
		keep = max(keep, n)
	}
	for i := len(chain) - 1; i >= keep; i-- {
		r.out = append(r.out, Removed{Deleted: oci.ImageID(ids[i])})
	}
}

func (r *remover) untag(id oci.ImageID, name oci.Reference) error {
	rec, readErr := r.tx.Names.Get(name.String())
	if err := r.tx.Names.Delete(name.String()); err != nil {
		return err
	}
	if readErr == nil && rec.Index != "" {
		if err := r.dropIndex(rec.Index); err != nil {
			return err
		}
	}
	n := r.c.names[id]
	same := func(o oci.Reference) bool { return o.String() == name.String() }
	// The slices are cloned because callers iterate over the old ones.
	n.tags = slices.DeleteFunc(slices.Clone(n.tags), same)
	n.digests = slices.DeleteFunc(slices.Clone(n.digests), same)
	r.out = append(r.out, Removed{Untagged: name.Familiar()})
	r.events = append(r.events, removal{"untag", id})
	return nil
}
