package solver

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"strconv"

	"ply/internal/build/fileop"
	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/oci"
)

func itoa(n int) string { return strconv.Itoa(n) }

// keyFormat changes when keys are made in another way. Results of another format are not found, and are pruned with time.
const keyFormat = "ply build key 1"

// key is a digest under construction.
type key struct{ h hash.Hash }

func newKey(kind string) key {
	k := key{sha256.New()}
	k.text(keyFormat)
	k.text(kind)
	return k
}

// text adds a text with its length, so that two texts cannot be read as one.
func (k key) text(s string) {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
	_, _ = k.h.Write(n[:]) // never fails
	_, _ = io.WriteString(k.h, s)
}

func (k key) sum() oci.Digest { return oci.DigestOfHash(k.h) }

// outputKey is the key of one output of a result.
func outputKey(id oci.Digest, index int) oci.Digest {
	k := newKey("output")
	k.text(string(id))
	k.text(itoa(index))
	return k.sum()
}

// SourceKey is the key of a source that is identified by words, such as the commit of a repository.
func SourceKey(words ...string) oci.Digest {
	k := newKey("source")
	for _, w := range words {
		k.text(w)
	}
	return k.sum()
}

// keys are the keys of a vertex.
type keys struct {
	main    oci.Digest
	parts   []Part
	content func() (oci.Digest, error) // the key by content; nil when it cannot differ from main
	second  oci.Digest                 // what content returned
}

func (k *keys) byContent() (oci.Digest, error) {
	var err error
	if k.second == "" {
		k.second, err = k.content()
	}
	return k.second, err
}

// all returns the keys under which a new result is saved. The content of an input that has a key was computed when the main key was not found.
func (k *keys) all() []oci.Digest {
	if k.second != "" && k.second != k.main {
		return []oci.Digest{k.main, k.second}
	}
	return []oci.Digest{k.main}
}

// keys computes the keys of a vertex.
func (j *Job) keys(v *ops.Vertex, ins []*Result) (*keys, error) {
	op, err := encode(v)
	if err != nil {
		return nil, err
	}
	use := uses(v, len(ins))
	sums := make([]string, len(ins))
	several := false
	for i, in := range ins {
		switch {
		case in == nil:
			sums[i] = "empty"
		case in.Key != "":
			sums[i] = string(in.Key)
			several = several || use[i].byContent
		default:
			if sums[i], err = j.contentOf(in, use[i].selections); err != nil {
				return nil, err
			}
		}
	}
	k := &keys{}
	k.parts = append(k.parts, Part{"the instruction", string(op)})
	if t := j.latest(); !t.IsZero() {
		epoch := strconv.FormatInt(t.Unix(), 10)
		sums = append(sums, "epoch "+epoch)
		k.parts = append(k.parts, Part{"SOURCE_DATE_EPOCH", epoch})
	}
	if x, is := v.Op.(*ops.Exec); is && x.Network == ops.NetworkDefault && j.o.Network != "" {
		sums = append(sums, "network "+j.o.Network)
		k.parts = append(k.parts, Part{"the network", j.o.Network})
	}
	for i, in := range v.Inputs {
		name := "nothing"
		if !in.IsZero() {
			name = Title(in.Vertex.Name)
		}
		k.parts = append(k.parts, Part{fmt.Sprintf("input %d (%s)", i+1, name), sums[i]})
	}
	k.main = join(op, sums)
	if several {
		k.content = func() (oci.Digest, error) {
			second := append([]string(nil), sums...)
			for i, in := range ins {
				if in != nil && in.Key != "" && use[i].byContent {
					var err error
					if second[i], err = j.contentOf(in, use[i].selections); err != nil {
						return "", err
					}
				}
			}
			return join(op, second), nil
		}
	}
	return k, nil
}

func join(op oci.Digest, sums []string) oci.Digest {
	k := newKey("vertex")
	k.text(string(op))
	for _, s := range sums {
		k.text(s)
	}
	return k.sum()
}

// encode returns the digest of an operation without what must not be in a key.
func encode(v *ops.Vertex) (oci.Digest, error) {
	k := newKey("operation")
	k.text(fmt.Sprintf("%T", v.Op))
	k.text(v.Platform.String())
	var plain any = v.Op
	switch op := v.Op.(type) {
	case *ops.Exec:
		copied := *op
		copied.Proxy = ops.Proxy{}
		plain = copied
	case *ops.Files:
		for _, a := range op.Actions {
			k.text(fmt.Sprintf("%T", a.Do))
		}
	}
	data, err := json.Marshal(plain)
	if err != nil {
		return "", errs.New(errs.Internal, "key of %s: %w", v.Name, err)
	}
	k.text(string(data))
	return k.sum(), nil
}

// use is what a vertex does with an input.
type use struct {
	byContent  bool // the input counts by the content of the selections
	selections []tree.Selection
}

// uses returns how a vertex uses each of its inputs.
func uses(v *ops.Vertex, n int) []use {
	out := make([]use, n)
	changed := make([]bool, n)
	switch op := v.Op.(type) {
	case *ops.Exec:
		for _, m := range op.Mounts {
			if m.Input < 0 || m.Kind != ops.MountBind {
				continue
			}
			byContent := m.ReadOnly
			if m.ByContent != nil {
				byContent = *m.ByContent && m.ReadOnly
			}
			changed[m.Input] = changed[m.Input] || !byContent
			out[m.Input].selections = append(out[m.Input].selections, tree.Selection{Src: "/" + m.Selector, Follow: true})
		}
	case *ops.Files:
		for _, a := range op.Actions {
			if a.Base >= 0 && a.Base < n {
				changed[a.Base] = true
			}
			c, ok := a.Do.(*ops.Copy)
			if ok && a.From >= 0 && a.From < n {
				out[a.From].selections = append(out[a.From].selections, fileop.Selects(c))
			}
			for _, i := range owners(a.Do) {
				if i.Input >= 0 && i.Input < n {
					changed[i.Input] = true
				}
			}
		}
	}
	for i := range out {
		out[i].byContent = !changed[i] && len(out[i].selections) > 0
		if len(out[i].selections) == 0 {
			out[i].selections = []tree.Selection{{Src: "/"}}
		}
	}
	return out
}

// owners returns the owners that an action names.
func owners(do ops.FileAction) (list []ops.Identity) {
	var o *ops.Owner
	switch do := do.(type) {
	case *ops.Copy:
		o = do.Owner
	case *ops.MakeFile:
		o = do.Owner
	case *ops.MakeDir:
		o = do.Owner
	case *ops.Symlink:
		o = do.Owner
	}
	if o == nil {
		return nil
	}
	for _, i := range []*ops.Identity{o.User, o.Group} {
		if i != nil && i.Name != "" {
			list = append(list, *i)
		}
	}
	return list
}

// contentOf returns the digest of what selections take from a result.
func (j *Job) contentOf(r *Result, selections []tree.Selection) (string, error) {
	t, err := j.Tree(j.ctx, r)
	if err != nil {
		return "", err
	}
	if t == nil {
		return "content of nothing", nil
	}
	d, err := t.Digest(j.ctx, selections)
	return "content " + string(d), err
}
