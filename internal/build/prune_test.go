package build_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"ply/internal/build"
	"ply/internal/errs"
	"ply/internal/filter"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/transfer/transfertest"
)

func TestSpaceLimit(t *testing.T) {
	for _, c := range []struct {
		space             build.Space
		total, free, want int64
	}{
		{build.Space{}, 100, 10, 0},
		{build.Space{Reserved: 30}, 100, 10, 30},
		{build.Space{MaxUsed: 60}, 100, 10, 60},
		{build.Space{MinFree: 10}, 100, 10, math.MaxInt64},
		{build.Space{MinFree: 25}, 100, 10, 85},
		{build.Space{MinFree: 500}, 100, 10, 0},
		{build.Space{MinFree: 500, Reserved: 20}, 100, 10, 20},
		{build.Space{MaxUsed: 60, MinFree: 25}, 100, 10, 60},
		{build.Space{MaxUsed: 90, MinFree: 25}, 100, 10, 85},
		{build.Space{MaxUsed: 10, Reserved: 50}, 100, 10, 50},
	} {
		if got := max(c.space.Limit(c.total, c.free), 0); got != c.want {
			t.Errorf("%+v of %d with %d free: %d, want %d", c.space, c.total, c.free, got, c.want)
		}
	}
}

// filled returns a world whose cache has n results of 1,000 bytes that no image has, the first used the longest time ago.
func filled(t *testing.T, n int) *world {
	t.Helper()
	w := newWorld(t)
	for i := range n {
		w.must(input{file: "FROM scratch\nCOPY a /\n", context: map[string]string{"a": fmt.Sprintf("%01000d", i)}, tags: []string{"x"}, exports: exports("image")})
	}
	if _, err := w.images.Remove(t.Context(), "x", image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.images.Prune(t.Context(), image.PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := len(w.entries()); got != n {
		t.Fatalf("%d results in the cache, want %d", got, n)
	}
	return w
}

// entries returns the IDs in the cache, the one that was used last at the end.
func (w *world) entries() (ids []oci.Digest) {
	w.t.Helper()
	list, err := w.builder.Cache(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range list {
		ids = append(ids, e.ID)
	}
	return ids
}

// A prune by space takes what was not used for the longest time, and no more than it must.
func TestPruneBySpace(t *testing.T) {
	w := filled(t, 5)
	before := w.entries()
	got, err := w.builder.Prune(t.Context(), build.PruneOptions{All: true, Space: build.Space{MaxUsed: 3500}})
	if err != nil || len(got.Entries) != 2 || got.Entries[0] != before[0] || got.Entries[1] != before[1] || got.Freed == 0 {
		t.Errorf("%+v, %v, of %v", got, err, before)
	}
	if got, err := w.builder.Prune(t.Context(), build.PruneOptions{All: true, Space: build.Space{MaxUsed: 10, Reserved: 2000}}); err != nil || len(got.Entries) != 1 {
		t.Errorf("with reserved space: %+v, %v", got, err)
	}
	if got, err := w.builder.Prune(t.Context(), build.PruneOptions{All: true, Space: build.Space{MinFree: 1}}); err != nil || len(got.Entries) != 0 {
		t.Errorf("with enough free space: %+v, %v", got, err)
	}
	if got, err := w.builder.Prune(t.Context(), build.PruneOptions{All: true, Unused: time.Hour}); err != nil || len(got.Entries) != 0 {
		t.Errorf("of results that were used just now: %+v, %v", got, err)
	}
	if got, err := w.builder.Prune(t.Context(), build.PruneOptions{All: true, Space: build.Space{MinFree: math.MaxInt64}}); err != nil || len(got.Entries) != 2 {
		t.Errorf("with too little free space: %+v, %v", got, err)
	}
}

// What a build is using stays, and is listed as in use.
func TestPruneSparesBuilds(t *testing.T) {
	w := filled(t, 3)
	list, err := w.builder.Cache(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	chain := w.chainOf(list[0].ID)
	lease := w.store.Lease()
	lease.Layer(chain)
	list, err = w.builder.Cache(t.Context())
	if err != nil || !list[0].InUse || list[1].InUse {
		t.Errorf("%+v, %v", list, err)
	}
	got, err := w.builder.Prune(t.Context(), build.PruneOptions{All: true})
	if err != nil || len(got.Entries) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := w.store.Layers.Stat(t.Context(), chain); err != nil {
		t.Errorf("the layer of the build: %v", err)
	}
	lease.Release()
	if got, err = w.builder.Prune(t.Context(), build.PruneOptions{All: true, Filters: filter.Args{"inuse": {"false"}}}); err != nil || len(got.Entries) != 1 {
		t.Errorf("afterwards: %+v, %v", got, err)
	}
}

// What a failed step left can be entered until results of its age go: no build before that takes it away.
func TestPruneTakesFailedStepsByAge(t *testing.T) {
	w := filled(t, 2)
	failed := func() oci.ImageID {
		raw, err := image.EncodeConfig(oci.Config{OS: "linux", Architecture: "amd64", RootFS: oci.RootFS{Type: "layers"}, Author: t.Name() + time.Now().String()})
		if err != nil {
			t.Fatal(err)
		}
		lease := w.store.Lease()
		defer lease.Release()
		id, err := w.images.Put(t.Context(), lease, image.PutOptions{Config: raw, Step: meta.StepFailed})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	there := func(id oci.ImageID) bool {
		_, err := w.images.Get(t.Context(), string(id))
		return err == nil
	}
	prune := func(o build.PruneOptions, results int) {
		t.Helper()
		if got, err := w.builder.Prune(t.Context(), o); err != nil || len(got.Entries) != results {
			t.Fatalf("%+v: %+v, %v", o, got, err)
		}
	}
	old := failed()
	w.must(input{file: "FROM scratch\nCOPY a /\n", context: map[string]string{"a": "newer"}, exports: exports("cacheonly")})
	for _, o := range []build.PruneOptions{
		{All: true, Space: build.Space{MaxUsed: 1 << 30}}, {All: true, Unused: time.Hour}, {All: true, Filters: filter.Args{"until": {"1h"}}}, {All: true, Filters: filter.Args{"id": {"abc"}}},
	} {
		if prune(o, 0); !there(old) {
			t.Fatalf("%+v removed what a failed step left", o)
		}
	}
	if prune(build.PruneOptions{All: true, Space: build.Space{MaxUsed: 500}}, 2); !there(old) {
		t.Error("older results went, and with them what a failed step left")
	}
	young := failed()
	if prune(build.PruneOptions{All: true, Space: build.Space{MinFree: math.MaxInt64}}, 1); there(old) || !there(young) {
		t.Errorf("by age: the old one is there: %v, the young one: %v", there(old), there(young))
	}
	if prune(build.PruneOptions{}, 0); there(young) {
		t.Error("a prune of everything left what a failed step left")
	}
}

func TestPruneFilters(t *testing.T) {
	w := filled(t, 2)
	list, err := w.builder.Cache(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		filters filter.Args
		want    int
	}{
		{filter.Args{"id": {"abc"}}, 0}, {filter.Args{"type": {"source.local"}}, 0}, {filter.Args{"until": {"1h"}}, 0}, {filter.Args{"inuse": {"true"}}, 0}, {filter.Args{"shared": {"true"}}, 0},
		{filter.Args{"label": {"x"}}, 0}, {filter.Args{"parent": {"x"}}, 0},
		{filter.Args{"id": {"^sha256:" + list[0].ShortID()}}, 1}, {filter.Args{"type": {"regular"}, "private": {"true"}}, 1},
	} {
		got, err := w.builder.Prune(t.Context(), build.PruneOptions{All: true, Filters: c.filters})
		if err != nil || len(got.Entries) != c.want {
			t.Errorf("%v: %+v, %v", c.filters, got, err)
		}
	}
	_, err = w.builder.Prune(t.Context(), build.PruneOptions{Filters: filter.Args{"colour": {"red"}}})
	transfertest.WantClass(t, err, errs.Invalid, "invalid filter 'colour'")
	_, err = w.builder.Prune(t.Context(), build.PruneOptions{Filters: filter.Args{"until": {"1h"}, "unused-for": {"1h"}}})
	transfertest.WantClass(t, err, errs.Invalid, "conflicting filters: until and unused-for")
}

// The policy applies behind builds, rule by rule; a filter that nothing knows is refused at the start.
func TestPolicy(t *testing.T) {
	if _, err := build.New(build.Options{Policy: []build.PruneOptions{{Filters: filter.Args{"colour": {"red"}}}}}); err == nil || !strings.Contains(err.Error(), "builder.gc.policy: rule 1") {
		t.Errorf("an unknown filter: %v", err)
	}
	for name, c := range map[string]struct {
		policy []build.PruneOptions
		kept   int // of two results of one byte
	}{
		"nothing":          {[]build.PruneOptions{}, 2},
		"the default":      {nil, 2},
		"in vain":          {[]build.PruneOptions{{Unused: time.Hour}, {Filters: filter.Args{"until": {"1h"}}}}, 2},
		"by a second rule": {[]build.PruneOptions{{Unused: time.Hour}, {All: true, Space: build.Space{MaxUsed: 1}}}, 1},
	} {
		w := newWorldWith(t, func(o *build.Options) { o.Policy = c.policy })
		w.must(input{file: sample, context: sampleFiles, exports: exports("cacheonly")})
		w.builder.Settle()
		if got := len(w.entries()); got != c.kept {
			t.Errorf("%s: %d results are kept", name, got)
		}
	}
}

func (w *world) chainOf(id oci.Digest) oci.Chain {
	w.t.Helper()
	var step meta.Step
	err := w.store.Meta.View(func(tx *meta.Tx) (err error) {
		step, err = tx.Steps.Get(id)
		return err
	})
	if err != nil || len(step.Outputs) == 0 {
		w.t.Fatal(step, err)
	}
	return step.Outputs[0].Chain
}
