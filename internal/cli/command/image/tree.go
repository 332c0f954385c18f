package image

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/docker/go-units"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/wire"
)

// node is one stack of layers in the tree. Its children are the stacks with one more layer.
type node struct {
	label    string // ID shown
	virtual  int64
	tags     []string
	children []*node
	byChain  map[string]*node
	images   []string
}

// child returns the child for a chain ID, which it adds when it is new.
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

// showTree prints the tree of layers of the images that f selects: one line per stack of layers, indented below the stack without its top layer.
// A stack that is an image shows the ID of the image, any other stack its chain ID; commands take both.
func showTree(ctx context.Context, w io.Writer, api *client.Client, f *imagesFlags) error {
	q := url.Values{"listed": {"1"}, "history": {"0"}}
	if f.all {
		q.Set("all", "1")
	}
	if err := f.filters.Query(q); err != nil {
		return err
	}
	var roots []*wire.Layer
	err := api.Do(ctx, client.Request{Path: "/images/tree", Query: q}, &roots)
	var nodes []*node
	switch {
	case err == nil:
		nodes = nodesOf(roots)
	case client.IsAbsent(err): // an engine of docker has no such request
		list, err := listImages(ctx, api, f.filters, f.all, true)
		if err != nil {
			return err
		}
		if nodes, err = assemble(ctx, api, list); err != nil {
			return err
		}
	default:
		return err
	}
	var b strings.Builder
	writeTree(&b, nodes, "", f.noTrunc)
	_, err = io.WriteString(w, b.String())
	return err
}

// nodesOf returns the nodes of an answer of the engine.
func nodesOf(layers []*wire.Layer) []*node {
	nodes := make([]*node, len(layers))
	for i, l := range layers {
		nodes[i] = &node{label: l.ChainID, virtual: l.VirtualSize, tags: l.Tags, images: l.Images, children: nodesOf(l.Children)}
	}
	return nodes
}

// assemble makes the nodes of a list of images from what the engine says about each of them.
func assemble(ctx context.Context, api *client.Client, list []wire.Image) ([]*node, error) {
	root := &node{}
	for _, p := range parts(list) {
		s, err := stackOf(ctx, api, p.id)
		if client.IsNotFound(err) {
			continue // it was removed after the list was made
		}
		if err != nil {
			return nil, err
		}
		if p.names != nil {
			s.tags = p.names
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
		if len(s.tags) > 0 { // the first ID is shown: that of a tagged image, when there is one
			n.images = append([]string{s.id}, n.images...)
		} else {
			n.images = append(n.images, s.id)
		}
		n.tags = append(n.tags, s.tags...)
	}
	return root.children, nil
}

// part is an image of a list, or an image of an index in it.
type part struct {
	id    string
	names []string // nil = its own
}

// parts returns the images of a list. Those of an index are named with their platforms.
func parts(list []wire.Image) (all []part) {
	for _, img := range list {
		var of []part
		for _, m := range img.Manifests {
			if m.ImageData == nil || m.ImageData.Image == "" {
				continue
			}
			p := part{id: m.ImageData.Image}
			for _, t := range img.RepoTags {
				p.names = append(p.names, t+" ("+m.ImageData.Platform.String()+")")
			}
			of = append(of, p)
		}
		if len(of) < 2 {
			of = []part{{id: img.ID}}
		}
		all = append(all, of...)
	}
	return all
}

// writeTree prints the lines of nodes and of their children.
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
