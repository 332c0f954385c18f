package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"ply/internal/dockerroot"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
)

// importImages imports the images, each after the one that it was made from.
func (r *run) importImages(ctx context.Context) error {
	all, problems := r.root.Images(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, p := range problems {
		r.problem(p)
	}
	for _, img := range parentsFirst(all) {
		if err := r.importImage(ctx, img); err != nil {
			return err
		}
	}
	return nil
}

// parentsFirst sorts images so that each comes after its parent, and else by name.
func parentsFirst(all []dockerroot.Image) []*dockerroot.Image {
	byID := map[oci.ImageID]*dockerroot.Image{}
	for i := range all {
		byID[all[i].ID] = &all[i]
	}
	depths := map[oci.ImageID]int{} // parents that form a circle end at the one that is met again
	depth := func(img *dockerroot.Image) int {
		var line []*dockerroot.Image
		for i := img; i != nil; i = byID[i.Parent] {
			if _, known := depths[i.ID]; known {
				break
			}
			depths[i.ID] = 0
			line = append(line, i)
		}
		for _, i := range slices.Backward(line) {
			if byID[i.Parent] != nil {
				depths[i.ID] = depths[i.Parent] + 1
			}
		}
		return depths[img.ID]
	}
	type sorted struct {
		*dockerroot.Image
		depth int
	}
	list := make([]sorted, len(all))
	for i := range all {
		list[i] = sorted{&all[i], depth(&all[i])}
	}
	slices.SortStableFunc(list, func(a, b sorted) int {
		if a.depth != b.depth {
			return a.depth - b.depth
		}
		return strings.Compare(a.Title(), b.Title())
	})
	out := make([]*dockerroot.Image, len(list))
	for i, s := range list {
		out[i] = s.Image
	}
	return out
}

// importImage imports one image, or the names of it that are missing.
func (r *run) importImage(ctx context.Context, img *dockerroot.Image) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	o := Object{Kind: dockerroot.KindImage, Name: img.Title(), ID: string(img.ID)}
	naming := r.imageNames(img)
	o.Note = strings.Join(naming.notes, "; ")
	if _, _, err := r.to.Images.Find(string(img.ID)); err == nil && naming.complete {
		r.images[img.ID] = true
		if o.State = Present; naming.clash {
			o.State = Conflict
		}
		r.report(o)
		return nil
	}
	if _, err := image.CheckConfig(img.Config); err != nil {
		return r.done(ctx, o, err)
	}
	if !r.o.DryRun {
		var err error
		if img.Target.Digest != "" {
			naming, err = r.load(ctx, img)
		} else {
			naming, err = r.put(ctx, img)
		}
		if err != nil {
			return r.done(ctx, o, err)
		}
		o.Note = strings.Join(naming.notes, "; ")
	}
	r.images[img.ID] = true
	if naming.clash {
		o.State = Conflict
		r.report(o)
		return nil
	}
	return r.done(ctx, o, nil)
}

// naming says what becomes of the names of an image.
type naming struct {
	names    []oci.Reference // that it gets, or has
	complete bool            // it has all of them
	notes    []string        // what is to be said about the others
	clash    bool            // a name is left out
}

// imageNames returns the names that an image gets, as far as others do not have them now.
func (r *run) imageNames(img *dockerroot.Image) naming {
	n := naming{complete: true}
	for _, name := range img.Names {
		as, err := r.imageName(img.ID, name)
		if err != nil {
			n.notes, n.clash = append(n.notes, err.Error()), true
			continue
		}
		if as.String() != name.String() {
			n.notes = append(n.notes, fmt.Sprintf("its name %s is %s here", name.Familiar(), as.Familiar()))
		}
		n.names = append(n.names, as)
		if id, found, err := r.to.Images.Find(as.String()); err != nil || id != img.ID || found.IsZero() {
			n.complete = false
		}
	}
	return n
}

// imageName returns what a name of an image becomes here.
func (r *run) imageName(id oci.ImageID, n oci.Reference) (oci.Reference, error) {
	look := func(ref oci.Reference) placed {
		have, _, err := r.to.Images.Find(ref.String())
		switch {
		case errors.Is(err, errs.NotFound):
			return absent
		case err == nil && have == id:
			return same
		}
		return other
	}
	if n.Digest() != "" || look(n) != other { // a digest means one image only
		return n, nil
	}
	if r.o.Prefix != "" {
		name := n.Name()
		at := strings.LastIndex(name, "/") + 1
		if as, err := oci.ParseReference(name[:at] + r.o.Prefix + name[at:] + ":" + n.Tag()); err == nil && look(as) != other {
			return as, nil
		}
	}
	return n, errs.New(errs.Conflict, "the name %s is that of another image here, and stays so: %w", n.Familiar(), r.taken(dockerroot.KindImage, n.Familiar()))
}

// put records an image of overlay2 after its layers. Meanwhile others may have taken its names.
func (r *run) put(ctx context.Context, img *dockerroot.Image) (n naming, err error) {
	lease := r.to.Store.Lease()
	defer lease.Release()
	lease.Layer(img.Chain)
	if err := r.layers(ctx, img); err != nil {
		return n, err
	}
	n = r.imageNames(img)
	put := image.PutOptions{Config: img.Config, Format: oci.FormatDocker, Names: n.names, Parent: img.Parent}
	id, err := r.to.Images.Put(ctx, lease, put)
	if err == nil {
		r.to.Images.Publish("load", id, "")
	}
	return n, err
}

// layers imports the layers of an image that are not here, several at a time. Each is committed after the one below it.
func (r *run) layers(ctx context.Context, img *dockerroot.Image) error {
	ids := img.Chain.IDs()
	var total int64
	for i, id := range ids {
		if err := r.bad[id]; err != nil {
			return err
		}
		total += r.root.LayerSize(img.Chain[:i+1])
	}
	var mu sync.Mutex
	var done int64
	read := func(n int) {
		mu.Lock()
		done += int64(n)
		now := done
		mu.Unlock()
		r.progress(dockerroot.KindImage, img.Title(), min(now, total), total)
	}
	g, ctx := errgroup.WithContext(ctx)
	// The lower layers take their slots first, so a layer that waits for the one below waits for one that works.
	g.SetLimit(min(runtime.GOMAXPROCS(0), 4))
	below := make(chan struct{})
	close(below)
	for i := range img.Chain {
		chain := img.Chain[:i+1]
		if ctx.Err() != nil {
			break
		}
		if _, err := r.to.Store.Layers.Stat(ctx, chain); err == nil {
			read(int(r.root.LayerSize(chain)))
			continue
		}
		under, over := below, make(chan struct{})
		below = over
		g.Go(func() error {
			err := r.layer(ctx, chain, under, read)
			if err == nil {
				close(over)
				return nil
			}
			if errors.Is(err, errs.DataLoss) || errors.Is(err, errs.Invalid) {
				err = errs.New(errs.DataLoss, "layer %s: %w", chain.Top().Short(), err)
				mu.Lock()
				r.bad[chain.ID()] = err
				mu.Unlock()
			}
			return err
		})
	}
	return g.Wait()
}

// layerBuffer is how many bytes of a layer are copied at a time.
const layerBuffer = 256 << 10

// layer imports the top layer of a chain. It commits it when under is closed.
func (r *run) layer(ctx context.Context, chain oci.Chain, under <-chan struct{}, read func(n int)) (err error) {
	tar, err := r.root.Layer(ctx, chain)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	w, err := r.to.Store.Layers.Create(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	n, err := io.CopyBuffer(counting{w, read}, io.LimitReader(tar, oci.MaxLayerSize+1), make([]byte, layerBuffer))
	if err != nil {
		return err
	}
	if n > oci.MaxLayerSize {
		return errs.New(errs.DataLoss, "it has more than %d bytes", int64(oci.MaxLayerSize))
	}
	w.End()
	select {
	case <-under:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	info, err := w.Commit(ctx, chain.Parent(), chain.Top())
	if err != nil {
		return err
	}
	return r.to.Store.RecordLayer(info, nil)
}

// counting tells how many bytes were written.
type counting struct {
	io.Writer
	read func(n int)
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.read(n)
	return n, err
}

// load imports an image of containerd's store as archives: one without a name, and one with the names that others do not have when the layers are here.
func (r *run) load(ctx context.Context, img *dockerroot.Image) (n naming, err error) {
	lease := r.to.Store.Lease()
	defer lease.Release()
	if err := r.archive(ctx, lease, img, nil); err != nil {
		return n, err
	}
	n = r.imageNames(img)
	if len(n.names) > 0 {
		err = r.archive(ctx, lease, img, n.names)
	}
	return n, err
}

// archive imports an image of containerd's store with names, without the layers that are here, which the lease protects.
func (r *run) archive(ctx context.Context, lease *store.Lease, img *dockerroot.Image, names []oci.Reference) error {
	have := func(chain oci.Chain) bool {
		lease.Layer(chain)
		_, err := r.to.Store.Layers.Stat(ctx, chain)
		return err == nil
	}
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := r.root.Archive(ctx, img, names, have, counting{pw, func() func(int) {
			var done int64
			return func(n int) { done += int64(n); r.progress(dockerroot.KindImage, img.Title(), done, 0) }
		}()})
		_ = pw.CloseWithError(err) // never fails
		written <- err
	}()
	err := r.to.Archive.Load(ctx, pr, transfer.LoadOptions{Quiet: true}, transfer.Discard)
	_ = pr.CloseWithError(io.ErrClosedPipe) // never fails; the writer ends when the load has
	if werr := <-written; werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		return werr // the cause of err
	}
	return err
}
