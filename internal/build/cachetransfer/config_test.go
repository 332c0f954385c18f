package cachetransfer

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/oci"
)

func digestOf(text string) oci.Digest { return oci.DigestOf([]byte(text)) }

// layersOf returns descriptors of layers with these names.
func layersOf(names ...string) (list []oci.Descriptor) {
	for _, n := range names {
		list = append(list, oci.Descriptor{MediaType: oci.MediaTypeOCILayerGzip, Digest: digestOf(n), Size: 1, Annotations: map[string]string{DiffID: string(digestOf("diff " + n))}})
	}
	return list
}

// configOf returns a config with a line of layers, each on the one before it, and records in JSON.
func configOf(records string, names ...string) string {
	var list []string
	for i, n := range names {
		list = append(list, fmt.Sprintf(`{"blob":%q,"parent":%d}`, digestOf(n), i-1))
	}
	return fmt.Sprintf(`{"layers":[%s],"records":[%s]}`, strings.Join(list, ","), records)
}

const stamp = `"createdAt":"2026-01-02T03:04:05Z"`

// A result has its layers with those below them, and the newest result whose layers the manifest has counts.
func TestResults(t *testing.T) {
	rec := func(results string) string { return fmt.Sprintf(`{"digest":%q,%s}`, digestOf("r"), results) }
	for _, c := range []struct{ name, record, want string }{
		{"one layer", rec(`"layers":[{"layer":0,` + stamp + `}]`), "a"},
		{"with those below", rec(`"layers":[{"layer":2,` + stamp + `}]`), "a b c"},
		{"a chain", rec(`"chains":[{"layers":[2,0],` + stamp + `}]`), "c a"},
		{"the newest", rec(`"layers":[{"layer":0,` + stamp + `},{"layer":1,"createdAt":"2026-02-01T00:00:00Z"},{"layer":2,"createdAt":"2025-02-01T00:00:00Z"}]`), "a b"},
		{"not in the manifest", rec(`"layers":[{"layer":3,` + stamp + `}]`), ""},
		{"below not in the manifest", rec(`"layers":[{"layer":4,` + stamp + `}]`), ""},
		{"an older one that is there", rec(`"layers":[{"layer":4,"createdAt":"2027-02-01T00:00:00Z"},{"layer":0,` + stamp + `}]`), "a"},
		{"a chain not in the manifest", rec(`"chains":[{"layers":[0,3],` + stamp + `}]`), ""},
		{"an empty chain", rec(`"chains":[{"layers":[],` + stamp + `}]`), ""},
		{"none", rec(`"layers":[]`), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache, err := Decode([]byte(configOf(c.record, "a", "b", "c", "absent", "e")), layersOf("a", "b", "c", "e"))
			if err != nil {
				t.Fatal(err)
			}
			found, err := cache.Match(digestOf("r"), nil)
			if err != nil || len(found) != 1 {
				t.Fatal(found, err)
			}
			r := cache.Result(found)
			var want oci.Chain
			for n := range strings.FieldsSeq(c.want) {
				want = append(want, oci.DiffID(digestOf("diff "+n)))
			}
			if got := r.chainOrNil(); fmt.Sprint(got) != fmt.Sprint(want) || r != cache.Result(found) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
}

func (r *Result) chainOrNil() oci.Chain {
	if r == nil {
		return nil
	}
	return r.Chain()
}

// A config that contradicts itself, or leads nowhere, is refused.
func TestDecodeRefuses(t *testing.T) {
	d := digestOf("r")
	rec := func(rest string) string { return fmt.Sprintf(`{"digest":%q,%s}`, d, rest) }
	link := func(n int) string { return fmt.Sprintf(`{"digest":%q,"inputs":[[{"link":%d}]]}`, d, n) }
	many := func(n int, text string) string { return strings.TrimSuffix(strings.Repeat(text+",", n), ",") }
	long := make([]string, maxChain+1)
	for i := range long {
		long[i] = fmt.Sprint("l", i)
	}
	for _, c := range []struct{ name, config, want string }{
		{"no JSON", "x", "invalid character"},
		{"another type", `{"records":7}`, "cannot unmarshal"},
		{"too large", strings.Repeat(" ", MaxConfig+1), "the limit is"},
		{"many records", configOf(many(maxRecords+1, "{}")), "the limits are"},
		{"digest", configOf(`{"digest":"sha256:x"}`), "record 0"},
		{"no digest", configOf(`{}`), "record 0"},
		{"link to itself", configOf(link(0)), "depends on itself"},
		{"links in a circle", configOf(link(1) + "," + link(2) + "," + link(0)), "depends on itself"},
		{"link to nothing", configOf(link(1)), "refers to record 1"},
		{"link below nothing", configOf(link(-1)), "refers to record -1"},
		{"input without a link", configOf(rec(`"inputs":[[]]`)), "without a link"},
		{"many links", configOf(rec(`"inputs":[[`+many(maxLinks+1, `{"link":1}`)+`]]`) + `,` + rec(`"inputs":[]`)), "more than"},
		{"result without a layer", configOf(rec(`"layers":[{"layer":1}]`), "a"), "no layer 1"},
		{"result below all layers", configOf(rec(`"layers":[{"layer":-1}]`), "a"), "no layer -1"},
		{"chain without a layer", configOf(rec(`"chains":[{"layers":[0,9]}]`), "a"), "no layer 9"},
		{"deep result", configOf(rec(fmt.Sprintf(`"layers":[{"layer":%d}]`, maxChain)), long...), "more than 1000 layers"},
		{"long chain", configOf(rec(`"chains":[{"layers":[`+many(maxChain+1, "0")+`]}]`), "a"), "more than 1000 layers"},
		{"layer on itself", `{"layers":[{"blob":"` + string(d) + `","parent":0}],"records":[` + rec(`"layers":[{"layer":0}]`) + `]}`, "lies on itself"},
		{"layers in a circle", `{"layers":[{"parent":1},{"parent":2},{"parent":0}],"records":[` + rec(`"layers":[{"layer":1}]`) + `]}`, "lies on itself"},
		{"layer on nothing", `{"layers":[{"parent":7}],"records":[` + rec(`"layers":[{"layer":0}]`) + `]}`, "no layer 7"},
		{"layer below nothing", `{"layers":[{"parent":-2}],"records":[` + rec(`"layers":[{"layer":0}]`) + `]}`, "no layer -2"},
		{"time without an end", configOf(rec(`"layers":[{"layer":0,"createdAt":"9999-12-31T23:59:59-23:00"}]`), "a"), "year 10000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Decode([]byte(c.config), layersOf("a")); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	// The longest ones that are allowed.
	if _, err := Decode([]byte(configOf(rec(fmt.Sprintf(`"layers":[{"layer":%d}]`, maxChain-1)), long[:maxChain]...)), layersOf(long...)); err != nil {
		t.Errorf("a result of %d layers: %v", maxChain, err)
	}
}

// Many results that share deep layers take time and memory for what they are written with, not for what they expand to.
func TestManyDeepResults(t *testing.T) {
	names := make([]string, maxChain)
	for i := range names {
		names[i] = fmt.Sprint("l", i)
	}
	var records []string
	for i := range 20_000 {
		records = append(records, fmt.Sprintf(`{"digest":%q,"layers":[{"layer":%d}]}`, digestOf(fmt.Sprint(i)), maxChain-1))
	}
	data := []byte(configOf(strings.Join(records, ","), names...))
	if len(data) > MaxConfig {
		t.Fatalf("%d bytes", len(data))
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	c, err := Decode(data, layersOf(names...))
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the cache takes %d MB", grown>>20)
	}
	found, err := c.Match(digestOf("7"), nil)
	if err != nil || len(c.Result(found).Layers) != maxChain {
		t.Error(found, err)
	}
}

// A record stands for an operation only with the inputs that it names.
func TestMatch(t *testing.T) {
	base, other, run := digestOf("base"), digestOf("other"), digestOf("run")
	records := fmt.Sprintf(`{"digest":%q},{"digest":%q},{"digest":%q,"inputs":[[{"link":0,"selector":"s"},{"link":1}]],"layers":[{"layer":0,%s}]}`, base, other, run, stamp)
	c, err := Decode([]byte(configOf(records, "a")), layersOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	content := func(d oci.Digest) func() (oci.Digest, error) { return func() (oci.Digest, error) { return d, nil } }
	for _, x := range []struct {
		name   string
		output oci.Digest
		inputs []Input
		want   int
	}{
		{"input with its selector", run, []Input{{Records: []int{0}, Selector: "s"}}, 1},
		{"input with another selector", run, []Input{{Records: []int{0}, Selector: "t"}}, 0},
		{"input without its selector", run, []Input{{Records: []int{0}}}, 0},
		{"another input", run, []Input{{Records: []int{1}}}, 1},
		{"no input", run, nil, 0},
		{"two inputs", run, []Input{{Records: []int{1}}, {Records: []int{1}}}, 0},
		{"content", run, []Input{{Content: content(other)}}, 1},
		{"content of a link with a selector", run, []Input{{Content: content(base)}}, 0},
		{"other content", run, []Input{{Content: content(run)}}, 0},
		{"unknown content", run, []Input{{Content: content("")}}, 0},
		{"input that does not count by content", run, []Input{{}}, 0},
		{"another operation", digestOf("x"), []Input{{Records: []int{1}}}, 0},
	} {
		found, err := c.Match(x.output, x.inputs)
		if err != nil || len(found) != x.want {
			t.Errorf("%s: %v, %v, want %d", x.name, found, err, x.want)
		}
	}
}

// No config makes Decode panic, and what it accepts leads to layers of its manifest only.
func FuzzDecode(f *testing.F) {
	layers := layersOf("a", "b")
	d := digestOf("r")
	f.Add([]byte(configOf(fmt.Sprintf(`{"digest":%q,"layers":[{"layer":1,%s}]},{"digest":%q,"inputs":[[{"link":0}]],"chains":[{"layers":[1,0],%s}]}`, d, stamp, d, stamp), "a", "b")), false)
	f.Add([]byte(fmt.Sprintf(`[{"digest":%q,"layers":[{"layer":1}]},{"digest":"random:x"},{"digest":%q,"inputs":[[{"link":1}],[{"link":0,"selector":"s"}]]}]`, d, d)), true)
	f.Add([]byte(`{"layers":[{"parent":1},{"parent":0}],"records":[{"digest":"`+d+`","layers":[{"layer":0}]}]}`), false)
	f.Add([]byte(`[]`), true)
	f.Add([]byte(`{"layers":[{"blob":"x","parent":-5}]}`), false)
	f.Fuzz(func(t *testing.T, data []byte, inline bool) {
		decode := Decode
		if inline {
			decode = DecodeInline
		}
		c, err := decode(data, layers)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("class of %v", err)
			}
			return
		}
		for n := range c.Len() {
			r := c.Result([]int{n})
			if r == nil {
				continue
			}
			for _, l := range r.Layers {
				if l.Digest != layers[0].Digest && l.Digest != layers[1].Digest {
					t.Errorf("a layer that the manifest does not have: %+v", l)
				}
			}
			if len(r.Layers) == 0 || len(r.Layers) > maxChain {
				t.Errorf("a result of %d layers", len(r.Layers))
			}
			if _, err := json.Marshal(r.Created.UTC()); err != nil {
				t.Error(err)
			}
		}
		if _, err := c.Match(d, []Input{{Records: []int{0, 1}, Content: func() (oci.Digest, error) { return d, nil }}}); err != nil {
			t.Error(err)
		}
	})
}
