// Package cachetransfer reads and writes caches in the formats of BuildKit: a manifest that lists layers and a config of media type
// application/vnd.buildkit.cacheconfig.v0, whose records say which step has which layers; or the same records inside the config of an image (inline cache).
//
// A record is known by a digest of an operation and by links to the records of its inputs. Package buildkitkey computes these digests.
//
// Invariants: what is read is hostile: its size, its numbers and its depth are bounded, and a cache that contradicts itself is an error. A record says what
// its author wants, as an image does: only the digests of the layers are checked, so who takes results from a cache trusts those who may write to it. What is
// written is sorted, so that equal builds give equal bytes.
package cachetransfer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
)

// MediaType is that of a config.
const MediaType = "application/vnd.buildkit.cacheconfig.v0"

// DiffID is the annotation of a layer with its diffID.
const DiffID = "containerd.io/uncompressed"

// createdAt is the annotation of a layer with the time at which it was made.
const createdAt = "buildkit/createdat"

// Limits of what is read.
const (
	MaxConfig  = 4 << 20 // bytes
	maxRecords = 50_000
	maxLayers  = 50_000
	maxLinks   = 200_000
	maxChain   = 1000 // layers of one result
)

// config is the JSON of a cache.
type config struct {
	Layers  []configLayer  `json:"layers,omitempty"`
	Records []configRecord `json:"records,omitempty"`
}

type configLayer struct {
	Blob   oci.Digest `json:"blob,omitempty"`
	Parent int        `json:"parent,omitempty"` // -1 = none
}

type configRecord struct {
	Layers []configResult  `json:"layers,omitempty"`
	Chains []configChain   `json:"chains,omitempty"`
	Digest string          `json:"digest,omitempty"`
	Inputs [][]configInput `json:"inputs,omitempty"`
}

type configResult struct {
	Layer   int       `json:"layer"` // with those below it
	Created time.Time `json:"createdAt"`
}

type configChain struct {
	Layers  []int     `json:"layers"`
	Created time.Time `json:"createdAt"`
}

type configInput struct {
	Selector string `json:"selector,omitempty"`
	Link     int    `json:"link"`
}

// Result is the layers that a record stands for, the bottom layer first.
type Result struct {
	Layers  []oci.Descriptor // with the annotation DiffID
	Created time.Time
}

// Chain returns the diffIDs, as the annotations of the layers state them.
func (r *Result) Chain() oci.Chain {
	var chain oci.Chain
	for _, l := range r.Layers {
		chain = append(chain, oci.DiffID(l.Annotations[DiffID]))
	}
	return chain
}

// Cache is a cache that was read. Safe for concurrent use.
type Cache struct {
	records  []record
	byDigest map[oci.Digest][]int
	layers   []layer
}

type record struct {
	digest oci.Digest
	inputs [][]link

	newest *candidate // of the results whose layers the manifest has; nil = none
	once   sync.Once
	result *Result // made of newest when it is asked for: all results of a cache together can be much larger than the cache
}

// candidate is a result, as numbers of layers.
type candidate struct {
	created time.Time
	top     int   // with those below it
	chain   []int // nil = top says it
}

// layer is a layer of the config.
type layer struct {
	desc   oci.Descriptor
	parent int
	depth  int  // the number of layers with those below it; 0 = it was not looked at
	here   bool // the manifest has it and those below it
	err    error
}

type link struct {
	selector oci.Digest
	record   int
}

// Len returns the number of records.
func (c *Cache) Len() int { return len(c.records) }

func invalid(format string, args ...any) error {
	return errs.New(errs.Invalid, "build cache: "+format, args...)
}

// Decode reads a config. Layers are those of its manifest. A result whose layers the manifest does not have is left out.
func Decode(data []byte, layers []oci.Descriptor) (*Cache, error) {
	if len(data) > MaxConfig {
		return nil, invalid("its config has %d bytes, the limit is %d", len(data), MaxConfig)
	}
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, invalid("%v", err)
	}
	return decode(&c, layers)
}

// DecodeInline reads the records in the config of an image, whose layers are given with their diffIDs.
func DecodeInline(data []byte, layers []oci.Descriptor) (*Cache, error) {
	if len(data) > MaxConfig {
		return nil, invalid("its records have %d bytes, the limit is %d", len(data), MaxConfig)
	}
	var c config
	if err := json.Unmarshal(data, &c.Records); err != nil {
		return nil, invalid("%v", err)
	}
	for i, l := range layers {
		c.Layers = append(c.Layers, configLayer{Blob: l.Digest, Parent: i - 1})
	}
	return decode(&c, layers)
}

func decode(c *config, layers []oci.Descriptor) (*Cache, error) {
	if len(c.Records) > maxRecords || len(c.Layers) > maxLayers {
		return nil, invalid("it has %d records and %d layers, the limits are %d and %d", len(c.Records), len(c.Layers), maxRecords, maxLayers)
	}
	known := map[oci.Digest]oci.Descriptor{}
	for _, l := range layers {
		if _, err := oci.ParseDigest(l.Annotations[DiffID]); err == nil {
			known[l.Digest] = l
		}
	}
	out := &Cache{records: make([]record, len(c.Records)), byDigest: map[oci.Digest][]int{}, layers: c.measure(known)}
	links := 0
	for i := range c.Records {
		r := &c.Records[i]
		rec := &out.records[i]
		digest, err := oci.ParseDigest(r.Digest)
		if err != nil {
			if strings.HasPrefix(r.Digest, "random:") {
				continue // the source of another session: nothing can be equal to it
			}
			return nil, invalid("record %d: %v", i, err)
		}
		rec.digest = digest
		for _, in := range r.Inputs {
			list := make([]link, 0, len(in))
			for _, l := range in {
				if l.Link < 0 || l.Link >= len(c.Records) {
					return nil, invalid("record %d refers to record %d", i, l.Link)
				}
				list = append(list, link{oci.Digest(l.Selector), l.Link})
			}
			if links += len(in); links > maxLinks || len(in) == 0 {
				return nil, invalid("record %d has an input without a link, or there are more than %d links", i, maxLinks)
			}
			rec.inputs = append(rec.inputs, list)
		}
		if rec.newest, err = newest(r, out.layers); err != nil {
			return nil, invalid("record %d: %w", i, err)
		}
		out.byDigest[digest] = append(out.byDigest[digest], i)
	}
	return out, out.checkLoops()
}

// measure returns the layers, each looked at once.
func (c *config) measure(known map[oci.Digest]oci.Descriptor) []layer {
	const open = -1
	layers := make([]layer, len(c.Layers))
	var path []int
	for i := range layers {
		at := i
		for path = path[:0]; at >= 0 && at < len(layers) && layers[at].depth == 0; at = c.Layers[at].Parent {
			layers[at].depth = open
			path = append(path, at)
		}
		below := layer{here: true}
		switch {
		case at == -1:
		case at < 0 || at >= len(layers):
			below.err = fmt.Errorf("there is no layer %d", at)
		case layers[at].depth == open:
			below.err = fmt.Errorf("layer %d lies on itself", at)
		default:
			below = layers[at]
		}
		for _, n := range slices.Backward(path) {
			desc, ok := known[c.Layers[n].Blob]
			below = layer{desc: desc, parent: c.Layers[n].Parent, depth: below.depth + 1, here: below.here && ok, err: below.err}
			if below.err == nil && below.depth > maxChain {
				below.err = fmt.Errorf("a result has more than %d layers", maxChain)
			}
			layers[n] = below
		}
	}
	return layers
}

// newest returns the newest result of a record; nil when there is none.
func newest(r *configRecord, layers []layer) (best *candidate, err error) {
	take := func(x candidate, here bool) error {
		if y := x.created.UTC().Year(); y < 0 || y > 9999 {
			return fmt.Errorf("a result is of the year %d", y)
		}
		if here && (best == nil || best.created.Before(x.created)) {
			best = &x
		}
		return nil
	}
	for _, l := range r.Layers {
		if l.Layer < 0 || l.Layer >= len(layers) {
			return nil, fmt.Errorf("there is no layer %d", l.Layer)
		}
		top := &layers[l.Layer]
		if top.err != nil {
			return nil, top.err
		}
		if err := take(candidate{created: l.Created, top: l.Layer}, top.here); err != nil {
			return nil, err
		}
	}
	for _, l := range r.Chains {
		if len(l.Layers) > maxChain {
			return nil, fmt.Errorf("a result has more than %d layers", maxChain)
		}
		here := len(l.Layers) > 0
		for _, n := range l.Layers {
			if n < 0 || n >= len(layers) {
				return nil, fmt.Errorf("there is no layer %d", n)
			}
			here = here && layers[n].desc.Digest != ""
		}
		if err := take(candidate{created: l.Created, chain: l.Layers}, here); err != nil {
			return nil, err
		}
	}
	return best, nil
}

// resultOf returns the result of a record, always the same; nil when it has none.
func (c *Cache) resultOf(n int) *Result {
	r := &c.records[n]
	if r.newest == nil {
		return nil
	}
	r.once.Do(func() {
		r.result = &Result{Created: r.newest.created}
		if r.newest.chain != nil {
			for _, n := range r.newest.chain {
				r.result.Layers = append(r.result.Layers, c.layers[n].desc)
			}
			return
		}
		for at := r.newest.top; at != -1; at = c.layers[at].parent {
			r.result.Layers = append(r.result.Layers, c.layers[at].desc)
		}
		slices.Reverse(r.result.Layers)
	})
	return r.result
}

// checkLoops refuses records that depend on themselves.
func (c *Cache) checkLoops() error {
	const open, closed = 1, 2
	state := make([]int8, len(c.records))
	type frame struct{ record, input, link int }
	for start := range c.records {
		stack := []frame{{record: start}}
		for len(stack) > 0 {
			f := &stack[len(stack)-1]
			if f.input == 0 && f.link == 0 {
				if state[f.record] == closed {
					stack = stack[:len(stack)-1]
					continue
				}
				state[f.record] = open
			}
			r := &c.records[f.record]
			if f.input == len(r.inputs) {
				state[f.record] = closed
				stack = stack[:len(stack)-1]
				continue
			}
			to := r.inputs[f.input][f.link].record
			if f.link++; f.link == len(r.inputs[f.input]) {
				f.input, f.link = f.input+1, 0
			}
			switch state[to] {
			case open:
				return invalid("record %d depends on itself", to)
			case 0:
				stack = append(stack, frame{record: to})
			}
		}
	}
	return nil
}

// Input is an input of an operation that is looked for.
type Input struct {
	Records  []int // those that stand for the input
	Selector oci.Digest
	// Content returns the digest of what the operation reads of the input; "" = it is not known. Nil = the input does not count by content.
	Content func() (oci.Digest, error)
}

// Match returns the records of an output of an operation, by its digest (buildkitkey.Output).
func (c *Cache) Match(output oci.Digest, inputs []Input) (found []int, err error) {
	sums := make([]oci.Digest, len(inputs))
	asked := make([]bool, len(inputs))
candidates:
	for _, n := range c.byDigest[output] {
		r := &c.records[n]
		if len(r.inputs) != len(inputs) {
			continue
		}
		for i, list := range r.inputs {
			in := &inputs[i]
			if slices.ContainsFunc(list, func(l link) bool { return l.selector == in.Selector && slices.Contains(in.Records, l.record) }) {
				continue
			}
			if in.Content == nil || !slices.ContainsFunc(list, c.isContent) {
				continue candidates
			}
			if !asked[i] {
				asked[i] = true
				if sums[i], err = in.Content(); err != nil {
					return nil, err
				}
			}
			if sums[i] == "" || !slices.ContainsFunc(list, func(l link) bool { return c.isContent(l) && c.records[l.record].digest == sums[i] }) {
				continue candidates
			}
		}
		found = append(found, n)
	}
	return found, nil
}

// isContent reports whether a link may lead to the digest of content.
func (c *Cache) isContent(l link) bool {
	return l.selector == "" && len(c.records[l.record].inputs) == 0
}

// Result returns the newest result of records; nil when none has one.
func (c *Cache) Result(records []int) *Result {
	best := -1
	for _, n := range records {
		if r := c.records[n].newest; r != nil && (best < 0 || c.records[best].newest.created.Before(r.created)) {
			best = n
		}
	}
	if best < 0 {
		return nil
	}
	return c.resultOf(best)
}

// Writer collects records. Equal records are one.
type Writer struct {
	records []newRecord
	known   map[string]int
}

type newRecord struct {
	digest oci.Digest
	inputs [][]Link
	result *Result
}

// Link is a link to a record of the same Writer.
type Link struct {
	Selector oci.Digest
	Record   int
}

// NewWriter returns an empty writer.
func NewWriter() *Writer { return &Writer{known: map[string]int{}} }

// Add adds a record with its result, or nil. It returns its number.
func (w *Writer) Add(digest oci.Digest, inputs [][]Link, r *Result) int {
	var key strings.Builder
	key.WriteString(string(digest))
	for _, in := range inputs {
		slices.SortFunc(in, func(a, b Link) int {
			return cmp.Or(cmp.Compare(a.Record, b.Record), cmp.Compare(a.Selector, b.Selector))
		})
		fmt.Fprintf(&key, " %v", in)
	}
	if n, ok := w.known[key.String()]; ok {
		if w.records[n].result == nil {
			w.records[n].result = r
		}
		return n
	}
	w.known[key.String()] = len(w.records)
	w.records = append(w.records, newRecord{digest, inputs, r})
	return len(w.records) - 1
}

// Results returns the results of all records.
func (w *Writer) Results() (list []*Result) {
	for i := range w.records {
		if w.records[i].result != nil {
			list = append(list, w.records[i].result)
		}
	}
	return list
}

// Encode returns the config and the layers that its manifest lists.
func (w *Writer) Encode() ([]byte, []oci.Descriptor, error) {
	c, layers := w.config()
	data, err := json.Marshal(c)
	if err != nil {
		return nil, nil, errs.New(errs.Internal, "build cache: %w", err)
	}
	return data, layers, nil
}

// EncodeInline returns the records for the config of an image with these layers. Results that are not made of the image's layers are left out. It is nil when
// no record has a result then.
func (w *Writer) EncodeInline(chain oci.Chain) ([]byte, error) {
	place := map[oci.DiffID]int{}
	for i, d := range chain {
		place[d] = i
	}
	var records []configRecord
	found := false
	for _, n := range w.order() {
		r := w.records[n]
		rec := configRecord{Digest: string(r.digest), Inputs: w.encodeInputs(r.inputs)}
		if r.result != nil {
			own := r.result.Chain()
			indexes, prefix := []int{}, len(own) <= len(chain)
			for i, d := range own {
				at, ok := place[d]
				if !ok {
					indexes = nil
					break
				}
				prefix = prefix && chain[i] == d
				indexes = append(indexes, at)
			}
			switch {
			case len(indexes) == 0:
			case prefix:
				rec.Layers = []configResult{{len(own) - 1, r.result.Created}}
			default:
				rec.Chains = []configChain{{indexes, r.result.Created}}
			}
			found = found || len(indexes) > 0
		}
		records = append(records, rec)
	}
	if !found {
		return nil, nil
	}
	w.renumber(records)
	data, err := json.Marshal(records)
	if err != nil {
		return nil, errs.New(errs.Internal, "build cache: %w", err)
	}
	return data, nil
}

// order returns the numbers of the records in the order in which they are written. It does not depend on the order of Add, except among records that
// differ only further below.
func (w *Writer) order() []int {
	list := make([]int, len(w.records))
	for i := range list {
		list[i] = i
	}
	text := func(n int) string {
		var b strings.Builder
		b.WriteString(string(w.records[n].digest))
		for _, in := range w.records[n].inputs {
			var links []string
			for _, l := range in {
				links = append(links, string(l.Selector)+" "+string(w.records[l.Record].digest))
			}
			slices.Sort(links)
			b.WriteString(" [" + strings.Join(links, ",") + "]")
		}
		return b.String()
	}
	keys := make([]string, len(w.records))
	for i := range keys {
		keys[i] = text(i)
	}
	slices.SortStableFunc(list, func(a, b int) int { return strings.Compare(keys[a], keys[b]) })
	return list
}

// encodeInputs returns the links with the numbers of the Writer.
func (w *Writer) encodeInputs(inputs [][]Link) (out [][]configInput) {
	for _, in := range inputs {
		var list []configInput
		for _, l := range in {
			list = append(list, configInput{string(l.Selector), l.Record})
		}
		out = append(out, list)
	}
	return out
}

// renumber replaces the numbers of the Writer in links by the places in the written list.
func (w *Writer) renumber(records []configRecord) {
	place := make([]int, len(w.records))
	for at, n := range w.order() {
		place[n] = at
	}
	for i := range records {
		for _, in := range records[i].Inputs {
			for j := range in {
				in[j].Link = place[in[j].Link]
			}
			slices.SortFunc(in, func(a, b configInput) int {
				return cmp.Or(cmp.Compare(a.Link, b.Link), cmp.Compare(a.Selector, b.Selector))
			})
		}
	}
}

func (w *Writer) config() (*config, []oci.Descriptor) {
	type place struct {
		blob   oci.Digest
		parent int
	}
	c := &config{}
	places := map[place]int{}
	var layers []oci.Descriptor
	listed := map[oci.Digest]bool{}
	for _, n := range w.order() {
		r := w.records[n]
		rec := configRecord{Digest: string(r.digest), Inputs: w.encodeInputs(r.inputs)}
		if r.result != nil && len(r.result.Layers) > 0 {
			at := -1
			for _, l := range r.result.Layers {
				key := place{l.Digest, at}
				next, ok := places[key]
				if !ok {
					next = len(c.Layers)
					places[key] = next
					c.Layers = append(c.Layers, configLayer{l.Digest, at})
				}
				at = next
				if !listed[l.Digest] {
					listed[l.Digest] = true
					layers = append(layers, l)
				}
			}
			rec.Layers = []configResult{{at, r.result.Created}}
		}
		c.Records = append(c.Records, rec)
	}
	w.renumber(c.Records)
	return c, layers
}
