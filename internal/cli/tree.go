package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/docker/go-units"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/wire"
)

// stack is an image with its layers, bottom first.
type stack struct {
	id     string
	tags   []string
	total  int64
	layers []stackLayer
}

type stackLayer struct {
	diff, chain string
	size        int64
	createdBy   string
}

// stackOf asks for an image's layers and what made them.
func stackOf(ctx context.Context, api *client.Client, ref string) (*stack, error) {
	var d wire.ImageDetail
	if err := api.Do(ctx, client.Request{Path: "/images/" + ref + "/json"}, &d); err != nil {
		return nil, err
	}
	var h []wire.HistoryItem
	if err := api.Do(ctx, client.Request{Path: "/images/" + d.ID + "/history"}, &h); err != nil {
		return nil, err
	}
	s := &stack{id: d.ID, total: d.Size, tags: slices.DeleteFunc(d.RepoTags, func(t string) bool { return t == "<none>:<none>" })}
	steps := layerSteps(h, len(d.RootFS.Layers))
	var chain oci.Chain
	for i, diff := range d.RootFS.Layers {
		dd, err := oci.ParseDigest(diff)
		if err != nil {
			return nil, errs.New(errs.Invalid, "image %s: layer %d: %w", d.ID, i, err)
		}
		chain = append(chain, oci.DiffID(dd))
		l := stackLayer{diff: diff, chain: string(chain.ID())}
		if steps[i] != nil {
			l.size, l.createdBy = steps[i].Size, steps[i].CreatedBy
			if l.createdBy == "" {
				l.createdBy = steps[i].Comment // an import says there where it came from
			}
		}
		s.layers = append(s.layers, l)
	}
	return s, nil
}

// layerSteps assigns history entries (newest first) to n layers, bottom first. Entries that made no layer are told by
// their size and words; where that does not give n entries, those with a size are taken in order.
func layerSteps(h []wire.HistoryItem, n int) []*wire.HistoryItem {
	var sized, likely []*wire.HistoryItem
	for i := len(h) - 1; i >= 0; i-- {
		e := &h[i]
		if e.Size > 0 {
			sized = append(sized, e)
		}
		if e.Size > 0 || !metadataStep(e.CreatedBy) {
			likely = append(likely, e)
		}
	}
	out := make([]*wire.HistoryItem, n)
	from := likely
	if len(likely) != n {
		from = sized
	}
	if len(h) == n {
		from = nil
		for i := len(h) - 1; i >= 0; i-- {
			from = append(from, &h[i])
		}
	}
	copy(out, from)
	return out
}

// metadataStep reports an instruction that changes only the configuration.
func metadataStep(by string) bool {
	if _, rest, ok := strings.Cut(by, "#(nop) "); ok {
		by = strings.TrimSpace(rest)
		return !strings.HasPrefix(by, "ADD ") && !strings.HasPrefix(by, "COPY ")
	}
	word, _, _ := strings.Cut(by, " ")
	switch word {
	case "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "MAINTAINER", "ARG", "USER", "VOLUME", "STOPSIGNAL", "HEALTHCHECK", "SHELL", "ONBUILD":
		return true
	}
	return false
}

// layerView answers `images inspect`: the layers of each image, top last; all images when none is named.
func (a *App) layerView(ctx context.Context, refs []string, noTrunc bool) error {
	api, err := a.engine(ctx)
	if err != nil {
		return err
	}
	listed := len(refs) == 0
	if listed {
		list, err := listImages(ctx, api, nil, false)
		if err != nil {
			return err
		}
		for _, im := range list {
			refs = append(refs, im.ID)
		}
	}
	first := true
	return each(ctx, refs, func(ref string) error {
		s, err := stackOf(ctx, api, ref)
		if listed && client.IsNotFound(err) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		if !first {
			fmt.Fprintln(a.Out)
		}
		first = false
		return s.write(a.Out, noTrunc)
	})
}

func (s *stack) write(w io.Writer, noTrunc bool) error {
	name := strings.Join(s.tags, ", ")
	if name == "" {
		name = "<none>"
	}
	id := func(d string) string {
		if noTrunc {
			return d
		}
		return format.ShortID(d)
	}
	fmt.Fprintf(w, "%s  %s  %d %s  %s\n", name, id(s.id), len(s.layers), plural("layer", len(s.layers)), format.Size(s.total))
	rows := [][]string{{"#", "LAYER", "SIZE", "VIRTUAL SIZE", "CREATED BY"}}
	var virtual int64
	for i, l := range s.layers {
		virtual += l.size
		by := strings.ReplaceAll(l.createdBy, "\t", " ")
		if !noTrunc {
			by = format.Ellipsis(by, 60)
		}
		rows = append(rows, []string{fmt.Sprint(i + 1), id(l.diff), format.Size(l.size), format.Size(virtual), by})
	}
	return writeColumns(w, 4, rows)
}

// node is one stack of layers in the tree.
type node struct {
	label    string // ID shown
	virtual  int64
	tags     []string
	children []*node
	byChain  map[string]*node
	images   []string
}

func (n *node) child(chain string) *node {
	if c, ok := n.byChain[chain]; ok {
		return c
	}
	c := &node{label: chain}
	if n.byChain == nil {
		n.byChain = map[string]*node{}
	}
	n.byChain[chain] = c
	n.children = append(n.children, c)
	return c
}

// layerTree answers `images --tree`: one line per stack of layers, indented below the stack it stands on. A stack that is
// an image shows the image's ID, others the ID of the stack.
func (a *App) layerTree(ctx context.Context, api *client.Client, list []wire.Image, noTrunc bool) error {
	root := &node{}
	for i := range list {
		s, err := stackOf(ctx, api, list[i].ID)
		if client.IsNotFound(err) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		n, virtual := root, int64(0)
		for _, l := range s.layers {
			n = n.child(l.chain)
			virtual += l.size
			n.virtual = max(n.virtual, virtual)
		}
		if n == root {
			n = root.child(s.id) // an image without layers
		}
		if len(s.tags) > 0 { // the ID shown is that of a tagged image, when there is one
			n.images = append([]string{s.id}, n.images...)
		} else {
			n.images = append(n.images, s.id)
		}
		n.tags = append(n.tags, s.tags...)
	}
	var b strings.Builder
	writeTree(&b, root.children, "", noTrunc)
	_, err := io.WriteString(a.Out, b.String())
	return err
}

func writeTree(b *strings.Builder, nodes []*node, prefix string, noTrunc bool) {
	for i, n := range nodes {
		branch, below := "├─", "│ "
		if i == len(nodes)-1 {
			branch, below = "└─", "  "
		}
		id := n.label
		if len(n.images) > 0 {
			id = n.images[0]
		}
		if !noTrunc {
			id = format.ShortID(id)
		}
		fmt.Fprintf(b, "%s%s%s Virtual Size: %s", prefix, branch, id, units.CustomSize("%.4g %s", float64(n.virtual), 1000, []string{"B", "kB", "MB", "GB", "TB", "PB"}))
		if len(n.tags) > 0 {
			fmt.Fprintf(b, " Tags: %s", strings.Join(n.tags, ", "))
		}
		b.WriteByte('\n')
		writeTree(b, n.children, prefix+below, noTrunc)
	}
}
