package image

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
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

// stackLayer is one layer of a stack.
type stackLayer struct {
	diff, chain string
	size        int64
	createdBy   string
}

// stackOf asks the engine for the layers of an image and for the instructions that made them.
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
				l.createdBy = steps[i].Comment // the comment of an import names its source
			}
		}
		s.layers = append(s.layers, l)
	}
	return s, nil
}

// layerSteps returns the history entries of n layers, bottom first; h is newest first. The history does not say which entries made a
// layer. An entry with a size did, and one without a size did not when its instruction changes only the configuration. When this
// does not leave n entries, the layers get the entries that have a size, in order.
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

// metadataStep reports whether an instruction changes only the configuration.
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

// showLayers prints the layers of each image, bottom first. Without refs it prints those of all images.
func showLayers(ctx context.Context, inv *command.Invocation, refs []string, noTrunc bool) error {
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	listed := len(refs) == 0
	if listed {
		list, err := listImages(ctx, api, nil, false, false)
		if err != nil {
			return err
		}
		for _, im := range list {
			refs = append(refs, im.ID)
		}
	}
	first := true
	return command.Each(ctx, refs, func(ref string) error {
		s, err := stackOf(ctx, api, ref)
		if listed && client.IsNotFound(err) {
			return nil // it was removed after the list was made
		}
		if err != nil {
			return err
		}
		if !first {
			fmt.Fprintln(inv.Out)
		}
		first = false
		return s.write(inv.Out, noTrunc)
	})
}

// write prints one image and its layers.
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
	fmt.Fprintf(w, "%s  %s  %d %s  %s\n", name, id(s.id), len(s.layers), format.Plural("layer", len(s.layers)), format.Size(s.total))
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
	return format.Columns(w, 4, rows)
}
