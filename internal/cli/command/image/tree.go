package image

import (
	"context"
	"fmt"
	"io"
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

// showTree prints the tree of layers of a list of images: one line per stack of layers, indented below the stack without its top layer.
// A stack that is an image shows the ID of the image, any other stack its chain ID.
func showTree(ctx context.Context, w io.Writer, api *client.Client, list []wire.Image, noTrunc bool) error {
	root := &node{}
	for _, p := range parts(list) {
		s, err := stackOf(ctx, api, p.id)
		if client.IsNotFound(err) {
			continue // it was removed after the list was made
		}
		if err != nil {
			return err
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
	var b strings.Builder
	writeTree(&b, root.children, "", noTrunc)
	_, err := io.WriteString(w, b.String())
	return err
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
