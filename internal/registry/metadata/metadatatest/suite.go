// Package metadatatest is the conformance suite of package metadata. Every implementation runs it.
package metadatatest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Run tests an implementation. Open returns a new, empty store, which the suite closes.
func Run(t *testing.T, open func(t *testing.T) metadata.Store) {
	for name, test := range map[string]func(*fixture){
		"manifests":        testManifests,
		"missing":          testMissing,
		"conditions":       testConditions,
		"tags":             testTags,
		"catalogue":        testCatalogue,
		"referrers":        testReferrers,
		"links":            testLinks,
		"delete":           testDelete,
		"collectLinks":     testCollectLinks,
		"collectManifests": testCollectManifests,
		"loose":            testLoose,
		"touch":            testTouch,
		"graph":            testGraph,
		"lock":             testLock,
		"concurrent":       testConcurrent,
		"prefixes":         testPrefixes,
		"fixed":            testFixed,
		"documents":        testDocuments,
		"swap":             testSwap,
		"sweep":            testSweep,
		"uploads":          testUploads,
		"hostile":          testHostile,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			test(&fixture{t, s, t.Context()})
		})
	}
}

type fixture struct {
	*testing.T
	metadata.Store
	ctx context.Context
}

const (
	imageType = "application/vnd.oci.image.manifest.v1+json"
	indexType = "application/vnd.oci.image.index.v1+json"
)

func blob(s string) content.Digest { return content.SHA256.Of([]byte(s)) }

func descriptor(mediaType string, d content.Digest) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1}`, mediaType, d)
}

// Image returns an image with a config and layers that are named by their content.
func image(subject content.Digest, names ...string) string {
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = descriptor("application/x", blob(n))
	}
	s := ""
	if subject != "" {
		s = `,"subject":` + descriptor(imageType, subject) + `,"annotations":{"k":"v"}`
	}
	return `{"schemaVersion":2,"mediaType":"` + imageType + `","config":` + list[0] + `,"layers":[` + strings.Join(list[1:], ",") + `]` + s + `}`
}

func index(children ...content.Digest) string {
	list := make([]string, len(children))
	for i, c := range children {
		list[i] = descriptor(imageType, c)
	}
	return `{"schemaVersion":2,"mediaType":"` + indexType + `","manifests":[` + strings.Join(list, ",") + `]}`
}

func (f *fixture) write(repo content.Repository, doc string, tags ...content.Tag) metadata.Write {
	f.Helper()
	m, err := content.ParseManifest([]byte(doc), "")
	if err != nil {
		f.Fatal(err)
	}
	return metadata.Write{Repository: repo, Digest: blob(doc), Payload: []byte(doc), Parsed: m, Tags: tags}
}

func (f *fixture) put(repo content.Repository, doc string, tags ...content.Tag) content.Digest {
	f.Helper()
	w := f.write(repo, doc, tags...)
	f.ok(f.PutManifest(f.ctx, w))
	return w.Digest
}

func (f *fixture) link(repo content.Repository, names ...string) {
	f.Helper()
	for _, n := range names {
		f.ok(f.PutLink(f.ctx, metadata.Link{Repository: repo, Digest: blob(n), Size: int64(len(n))}))
	}
}

func (f *fixture) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) fails(err, class error, what string) {
	f.Helper()
	if !errors.Is(err, class) {
		f.Errorf("%s: %v, want %v", what, err, class)
	}
}

func (f *fixture) tags(repo content.Repository) []content.Tag {
	f.Helper()
	tags, err := f.Tags(f.ctx, repo, "", 1000)
	if err != nil && !errors.Is(err, errs.NotFound) {
		f.Fatal(err)
	}
	return tags
}

func testManifests(f *fixture) {
	f.link("a", "config", "layer")
	doc := image("", "config", "layer")
	d := f.put("a", doc, "v1", "v2")
	m, payload, err := f.Payload(f.ctx, "a", d)
	if err != nil || string(payload) != doc || m.MediaType != imageType || m.Size != int64(len(doc)) || m.Digest != d || m.Pushed.IsZero() {
		f.Errorf("Payload = %+v, %q, %v", m, payload, err)
	}
	if m2, err := f.Manifest(f.ctx, "a", d); err != nil || m2.Size != m.Size {
		f.Errorf("Manifest = %+v, %v", m2, err)
	}
	for _, tag := range []content.Tag{"v1", "v2"} {
		if got, err := f.Tag(f.ctx, "a", tag); err != nil || got.Digest != d {
			f.Errorf("Tag = %+v, %v", got, err)
		}
	}
	_, _, err = f.Payload(f.ctx, "b", d)
	f.fails(err, errs.NotFound, "the manifest in another repository")
	_, err = f.Tag(f.ctx, "a", "v3")
	f.fails(err, errs.NotFound, "a tag that is not there")
	// The same bytes in two repositories are independent of each other.
	f.link("b", "config", "layer")
	f.put("b", doc, "v1")
	f.ok(f.DeleteManifest(f.ctx, "a", d))
	if _, p, err := f.Payload(f.ctx, "b", d); err != nil || string(p) != doc {
		f.Errorf("after the deletion in another repository: %q, %v", p, err)
	}
	f.ok(f.Ping(f.ctx))
}

func testMissing(f *fixture) {
	var missing *metadata.MissingError
	f.link("a", "config")
	err := f.PutManifest(f.ctx, f.write("a", image("", "config", "layer"), "v1"))
	if !errors.As(err, &missing) || !slices.Equal(missing.Blobs, []content.Digest{blob("layer")}) {
		f.Errorf("a missing layer: %v", err)
	}
	err = f.PutManifest(f.ctx, f.write("a", index(blob("child"))))
	if !errors.As(err, &missing) || !slices.Equal(missing.Manifests, []content.Digest{blob("child")}) {
		f.Errorf("a missing child: %v", err)
	}
	if repos, err := f.Repositories(f.ctx, "", 10); err != nil || len(repos) != 0 {
		f.Errorf("after refusals: %v, %v", repos, err)
	}
	w := f.write("a", image("", "config", "layer"), "v1")
	w.Missing = true
	f.ok(f.PutManifest(f.ctx, w))
	// A layer that another repository has is missing, too.
	f.link("b", "layer", "config")
	err = f.PutManifest(f.ctx, f.write("c", image("", "config", "layer")))
	f.fails(err, errs.NotFound, "blobs of another repository")
	// A subject may be missing, and the child of an index may be a blob.
	f.link("c", "config")
	f.put("c", image(blob("nothing"), "config"))
	f.put("c", index(blob("config")))
	foreign := `{"schemaVersion":2,"config":` + descriptor("application/x", blob("config")) + `,"layers":[` +
		descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", blob("elsewhere")) + `]}`
	f.put("c", foreign)
}

func testConditions(f *fixture) {
	f.link("a", "1", "2")
	one, two := f.put("a", image("", "1"), "t"), blob(image("", "2"))
	try := func(c metadata.Condition, tag content.Tag) error {
		w := f.write("a", image("", "2"), tag)
		w.Condition = c
		return f.PutManifest(f.ctx, w)
	}
	f.fails(try(metadata.Condition{Absent: true}, "t"), errs.Precondition, "absent, but it exists")
	f.fails(try(metadata.Condition{OneOf: []content.Digest{two}}, "t"), errs.Precondition, "another digest")
	f.fails(try(metadata.Condition{OneOf: []content.Digest{}}, "t"), errs.Precondition, "none of nothing")
	f.fails(try(metadata.Condition{Any: true}, "new"), errs.Precondition, "any, but it is absent")
	if got, _ := f.Tag(f.ctx, "a", "t"); got.Digest != one {
		f.Errorf("a refused write moved the tag to %s", got.Digest)
	}
	f.ok(try(metadata.Condition{OneOf: []content.Digest{two, one}}, "t"))
	f.ok(try(metadata.Condition{Absent: true}, "new"))
	f.ok(try(metadata.Condition{Any: true}, "new"))
	f.fails(f.DeleteTag(f.ctx, "a", "t", metadata.Condition{OneOf: []content.Digest{one}}), errs.Precondition, "deletion of another digest")
	f.ok(f.DeleteTag(f.ctx, "a", "t", metadata.Condition{OneOf: []content.Digest{two}}))
}

func testTags(f *fixture) {
	f.link("a", "1")
	_, err := f.Tags(f.ctx, "a", "", 10)
	f.fails(err, errs.NotFound, "tags of no repository")
	f.put("a", image("", "1"))
	if tags, err := f.Tags(f.ctx, "a", "", 10); err != nil || len(tags) != 0 {
		f.Errorf("no tags: %v, %v", tags, err)
	}
	var want []content.Tag
	for i := range 30 {
		tag := content.Tag(fmt.Sprintf("v%02d", i))
		want = append(want, tag)
	}
	want = append(want, "V1", "_x", "v0", "v1.0", "v1-0")
	f.put("a", image("", "1"), want...)
	slices.Sort(want)
	if got := f.tags("a"); !slices.Equal(got, want) {
		f.Errorf("tags = %v, want %v", got, want)
	}
	var paged []content.Tag
	for last := content.Tag(""); ; {
		page, err := f.Tags(f.ctx, "a", last, 7)
		f.ok(err)
		paged = append(paged, page...)
		if len(page) < 7 {
			break
		}
		last = page[6]
	}
	if !slices.Equal(paged, want) {
		f.Errorf("in pages: %v", paged)
	}
	if page, _ := f.Tags(f.ctx, "a", "v15x", 1); len(page) != 1 || page[0] != "v16" {
		f.Errorf("behind a tag that does not exist: %v", page)
	}
	if page, _ := f.Tags(f.ctx, "a", "", 0); len(page) != 0 {
		f.Errorf("a page of nothing: %v", page)
	}
}

func testCatalogue(f *fixture) {
	for _, r := range []content.Repository{"b", "a/b", "a", "a-b", "a0"} {
		f.link(r, "1")
		if repos, err := f.Repositories(f.ctx, "", 100); err != nil || slices.Contains(repos, r) {
			f.Errorf("a repository without a manifest is listed: %v, %v", repos, err)
		}
		f.put(r, image("", "1"))
	}
	want := []content.Repository{"a", "a-b", "a/b", "a0", "b"}
	if repos, err := f.Repositories(f.ctx, "", 100); err != nil || !slices.Equal(repos, want) {
		f.Errorf("catalogue = %v, %v", repos, err)
	}
	if repos, _ := f.Repositories(f.ctx, "a-b", 2); !slices.Equal(repos, want[2:4]) {
		f.Errorf("second page = %v", repos)
	}
	f.ok(f.DeleteManifest(f.ctx, "a", blob(image("", "1"))))
	if repos, _ := f.Repositories(f.ctx, "", 100); !slices.Equal(repos, want[1:]) {
		f.Errorf("after the last manifest went: %v", repos)
	}
	_, err := f.Tags(f.ctx, "a", "", 1)
	f.fails(err, errs.NotFound, "tags of a repository without a manifest")
}

func testReferrers(f *fixture) {
	f.link("a", "1", "2", "3")
	subject := f.put("a", image("", "1"))
	var want []content.Digest
	for _, n := range []string{"2", "3"} {
		want = append(want, f.put("a", image(subject, "1", n)))
	}
	slices.Sort(want)
	list, err := f.Referrers(f.ctx, "a", subject, "", 10)
	var got []content.Digest
	for _, m := range list {
		got = append(got, m.Digest)
		if m.ArtifactType != "application/x" || m.Annotations["k"] != "v" || m.Subject != subject {
			f.Errorf("referrer %+v", m)
		}
	}
	if err != nil || !slices.Equal(got, want) {
		f.Errorf("referrers = %v, %v; want %v", got, err, want)
	}
	if page, _ := f.Referrers(f.ctx, "a", subject, want[0], 1); len(page) != 1 || page[0].Digest != want[1] {
		f.Errorf("second page = %v", page)
	}
	if list, err := f.Referrers(f.ctx, "none", subject, "", 10); err != nil || len(list) != 0 {
		f.Errorf("of another repository: %v, %v", list, err)
	}
	f.ok(f.DeleteManifest(f.ctx, "a", want[0]))
	f.ok(f.DeleteManifest(f.ctx, "a", subject))
	if list, _ := f.Referrers(f.ctx, "a", subject, "", 10); len(list) != 1 {
		f.Errorf("after deletions: %v", list)
	}
}

func testLinks(f *fixture) {
	f.link("a", "x")
	l, err := f.Link(f.ctx, "a", blob("x"))
	if err != nil || l.Size != 1 || l.Linked.IsZero() || l.Repository != "a" || l.Digest != blob("x") {
		f.Errorf("Link = %+v, %v", l, err)
	}
	_, err = f.Link(f.ctx, "b", blob("x"))
	f.fails(err, errs.NotFound, "in another repository")
	f.fails(f.Mount(f.ctx, "c", "b", blob("x")), errs.NotFound, "a mount from where it is not")
	f.ok(f.Mount(f.ctx, "a", "b", blob("x")))
	if l, err := f.Link(f.ctx, "b", blob("x")); err != nil || l.Size != 1 {
		f.Errorf("after the mount: %+v, %v", l, err)
	}
	if h, err := f.Holders(f.ctx, blob("x"), "", 10); err != nil || !slices.Equal(h, []content.Repository{"a", "b"}) {
		f.Errorf("holders = %v, %v", h, err)
	}
	f.ok(f.DeleteLink(f.ctx, "a", blob("x")))
	f.fails(f.DeleteLink(f.ctx, "a", blob("x")), errs.NotFound, "a second deletion")
	_, err = f.Link(f.ctx, "a", blob("x"))
	f.fails(err, errs.NotFound, "after the deletion")
	if _, err := f.Link(f.ctx, "b", blob("x")); err != nil {
		f.Errorf("the other repository: %v", err)
	}
	f.link("c", "y", "z")
	var all []string
	for last := (metadata.Link{}); ; {
		page, err := f.Links(f.ctx, last, 1)
		f.ok(err)
		if len(page) == 0 {
			break
		}
		last = page[0].Link
		all = append(all, string(last.Repository))
	}
	if strings.Join(all, " ") != "b c c" {
		f.Errorf("links in pages: %v", all)
	}
}

func testDelete(f *fixture) {
	f.link("a", "1", "2")
	one, two := f.put("a", image("", "1"), "x", "y"), f.put("a", image("", "2"), "z")
	f.ok(f.DeleteTag(f.ctx, "a", "x", metadata.Condition{}))
	f.fails(f.DeleteTag(f.ctx, "a", "x", metadata.Condition{}), errs.NotFound, "a second deletion of a tag")
	if _, err := f.Manifest(f.ctx, "a", one); err != nil {
		f.Errorf("the manifest of a deleted tag: %v", err)
	}
	f.ok(f.DeleteManifest(f.ctx, "a", one))
	f.fails(f.DeleteManifest(f.ctx, "a", one), errs.NotFound, "a second deletion of a manifest")
	if got := f.tags("a"); !slices.Equal(got, []content.Tag{"z"}) {
		f.Errorf("tags = %v", got)
	}
	f.put("a", image("", "1"), "z") // the tag moves
	f.ok(f.DeleteManifest(f.ctx, "a", two))
	if got := f.tags("a"); !slices.Equal(got, []content.Tag{"z"}) {
		f.Errorf("the tag that moved away went with its old manifest: %v", got)
	}
	f.ok(f.DeleteRepository(f.ctx, "a"))
	f.fails(f.DeleteRepository(f.ctx, "a"), errs.NotFound, "a second deletion of a repository")
	if links, err := f.Links(f.ctx, metadata.Link{}, 10); err != nil || len(links) != 0 {
		f.Errorf("links of a deleted repository: %v, %v", links, err)
	}
}

var later = func() time.Time { return time.Now().Add(time.Hour) }

func testCollectLinks(f *fixture) {
	f.link("a", "used", "unused")
	d := f.put("a", image("", "used"))
	links, err := f.Links(f.ctx, metadata.Link{}, 10)
	f.ok(err)
	for _, l := range links {
		if l.Held != (l.Digest == blob("used")) {
			f.Errorf("link %+v", l)
		}
	}
	collect := func(name string, before time.Time, want bool) {
		f.Helper()
		if done, err := f.CollectLink(f.ctx, "a", blob(name), before); err != nil || done != want {
			f.Errorf("CollectLink(%s) = %v, %v; want %v", name, done, err, want)
		}
	}
	collect("unused", time.Now().Add(-time.Hour), false)
	collect("used", later(), false)
	collect("unused", later(), true)
	collect("unused", later(), false)
	f.ok(f.DeleteManifest(f.ctx, "a", d))
	collect("used", later(), true)
}

func testCollectManifests(f *fixture) {
	f.link("a", "1", "2", "3", "4")
	child := f.put("a", image("", "1"))
	top := f.put("a", index(child), "tag")
	referrer := f.put("a", image(child, "2"))
	free := f.put("a", image("", "3"))
	orphan := f.put("a", image(blob("nothing"), "4"))
	collect := func(d content.Digest, before time.Time, want bool) {
		f.Helper()
		if done, err := f.CollectManifest(f.ctx, "a", d, before); err != nil || done != want {
			f.Errorf("CollectManifest = %v, %v; want %v", done, err, want)
		}
	}
	loose := func(before time.Time, want ...content.Digest) {
		f.Helper()
		slices.Sort(want)
		var got []content.Digest
		for after := content.Digest(""); ; {
			some, next, err := f.Loose(f.ctx, "a", before, after)
			f.ok(err)
			got = append(got, some...)
			if after = next; next == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			f.Errorf("loose = %v, want %v", got, want)
		}
	}
	loose(later(), free, orphan)
	loose(time.Now().Add(-time.Hour))
	collect(top, later(), false)
	collect(child, later(), false)
	collect(referrer, later(), false)
	collect(free, time.Now().Add(-time.Hour), false)
	collect(free, later(), true)
	collect(orphan, later(), true)
	loose(later())
	f.ok(f.DeleteTag(f.ctx, "a", "tag", metadata.Condition{}))
	loose(later(), top)
	collect(child, later(), false)
	collect(top, later(), true)
	loose(later(), child)
	collect(child, later(), true)
	loose(later(), referrer)
	collect(referrer, later(), true)
	if repos, err := f.Repositories(f.ctx, "", 10); err != nil || len(repos) != 0 {
		f.Errorf("after the last manifest: %v, %v", repos, err)
	}
}

// Manifests that nothing needs are listed in parts, each of them once.
func testLoose(f *fixture) {
	f.link("a", "config")
	want := make([]content.Digest, 600)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < len(want); i += 8 {
				write := f.write("a", image("", "config")+strings.Repeat(" ", i))
				if err := f.PutManifest(f.ctx, write); err != nil {
					f.Error(err)
					return
				}
				want[i] = write.Digest
			}
		})
	}
	wg.Wait()
	kept := f.put("a", index(want[0], want[1]), "tag")
	want = want[2:]
	slices.Sort(want)
	var got []content.Digest
	for after := content.Digest(""); ; {
		some, next, err := f.Loose(f.ctx, "a", later(), after)
		f.ok(err)
		got = append(got, some...)
		if next == "" {
			break
		}
		if next <= after {
			f.Fatalf("after %s comes %s", after, next)
		}
		after = next
	}
	if !slices.Equal(got, want) {
		f.Errorf("%d manifests, want %d; the tagged one is %s", len(got), len(want), kept)
	}
}

// What a client was told to exist is kept for the grace time.
func testTouch(f *fixture) {
	f.link("a", "1", "2")
	d := f.put("a", image("", "1"))
	time.Sleep(20 * time.Millisecond)
	before := time.Now()
	f.ok(f.Touch(f.ctx, "a", blob("2")))
	f.ok(f.Touch(f.ctx, "a", d))
	f.ok(f.Touch(f.ctx, "a", blob("nothing")))
	f.ok(f.Touch(f.ctx, "b", d))
	if done, err := f.CollectLink(f.ctx, "a", blob("2"), before); err != nil || done {
		f.Errorf("a touched link: %v, %v", done, err)
	}
	if done, err := f.CollectManifest(f.ctx, "a", d, before); err != nil || done {
		f.Errorf("a touched manifest: %v, %v", done, err)
	}
	if done, err := f.CollectLink(f.ctx, "a", blob("2"), later()); err != nil || !done {
		f.Errorf("after the grace time: %v, %v", done, err)
	}
}

func testGraph(f *fixture) {
	f.link("a", "1", "2")
	f.link("a/b", "1")
	child := f.put("a", image("", "1", "2"))
	top := f.put("a", index(child), "tag")
	referrer := f.put("a", image(top, "1"))
	f.put("a/b", image("", "1"))
	nodes, err := f.Graph(f.ctx, "a")
	f.ok(err)
	got := map[content.Digest]metadata.Node{}
	for _, n := range nodes {
		got[n.Digest] = n
	}
	if len(got) != 3 || len(got[child].Children) != 2 || got[child].Tagged || !got[top].Tagged || !slices.Equal(got[top].Children, []content.Digest{child}) ||
		got[referrer].Subject != top || got[referrer].Pushed.IsZero() {
		f.Errorf("graph = %+v", nodes)
	}
}

func testLock(f *fixture) {
	held, release, err := f.Lock(f.ctx, blob("x"))
	f.ok(err)
	f.ok(held.Err())
	_, other, err := f.Lock(f.ctx, blob("y"))
	f.ok(err)
	other()
	ctx, cancel := context.WithTimeout(f.ctx, 50*time.Millisecond)
	defer cancel()
	if _, _, err := f.Lock(ctx, blob("x")); err == nil {
		f.Error("a second lock was given")
	}
	f.ok(f.PutLink(held, metadata.Link{Repository: "a", Digest: blob("x"), Size: 1}))
	release()
	_, release, err = f.Lock(f.ctx, blob("x"))
	f.ok(err)
	release()
	var wg sync.WaitGroup
	inside, counter := 0, 0
	for range 8 {
		wg.Go(func() {
			for range 20 {
				_, release, err := f.Lock(f.ctx, blob("z"))
				if err != nil {
					f.Error(err)
					return
				}
				inside++
				if inside != 1 {
					f.Error("two hold one lock")
				}
				counter++
				inside--
				release()
			}
		})
	}
	wg.Wait()
	if counter != 160 {
		f.Errorf("counter = %d", counter)
	}
}

func testSweep(f *fixture) {
	held, release, err := f.Sweep(f.ctx)
	f.ok(err)
	f.ok(held.Err())
	_, _, err = f.Sweep(f.ctx)
	f.fails(err, errs.Conflict, "a second collection")
	release()
	_, release, err = f.Sweep(f.ctx)
	f.ok(err)
	release()
	now, err := f.Now(f.ctx)
	f.ok(err)
	f.link("a", "x")
	l, err := f.Link(f.ctx, "a", blob("x"))
	f.ok(err)
	if d := l.Linked.Sub(now); d < -time.Millisecond || d > time.Minute {
		f.Errorf("linked %v after now", d)
	}
}

func testUploads(f *fixture) {
	h, err := f.CreateUpload(f.ctx, "one", []byte("state 1"))
	f.ok(err)
	_, _, err = f.HoldUpload(f.ctx, "one")
	f.fails(err, errs.Conflict, "a held upload")
	if _, err := f.CreateUpload(f.ctx, "one", nil); err == nil {
		f.Error("a second upload of one ID")
	}
	f.ok(h.Save(f.ctx, []byte("state 2")))
	_, _, err = f.HoldUpload(f.ctx, "one")
	f.fails(err, errs.Conflict, "a held upload after it was saved")
	if ids, err := f.OldUploads(f.ctx, later(), 10); err != nil || len(ids) != 0 {
		f.Errorf("a held upload is old: %v, %v", ids, err)
	}
	f.ok(h.Release(f.ctx, []byte("state \x00 3")))
	state, h, err := f.HoldUpload(f.ctx, "one")
	f.ok(err)
	if string(state) != "state \x00 3" {
		f.Errorf("state = %q", state)
	}
	f.ok(h.Release(f.ctx, state))
	h, err = f.CreateUpload(f.ctx, "two", nil)
	f.ok(err)
	f.ok(h.Release(f.ctx, nil))
	if ids, err := f.OldUploads(f.ctx, time.Now().Add(-time.Hour), 10); err != nil || len(ids) != 0 {
		f.Errorf("young uploads are old: %v, %v", ids, err)
	}
	ids, err := f.OldUploads(f.ctx, later(), 10)
	slices.Sort(ids)
	if err != nil || !slices.Equal(ids, []string{"one", "two"}) {
		f.Errorf("old uploads = %v, %v", ids, err)
	}
	if ids, err := f.OldUploads(f.ctx, later(), 1); err != nil || len(ids) != 1 {
		f.Errorf("one old upload = %v, %v", ids, err)
	}
	_, h, err = f.HoldUpload(f.ctx, "one")
	f.ok(err)
	f.ok(h.Delete(f.ctx))
	_, _, err = f.HoldUpload(f.ctx, "one")
	f.fails(err, errs.NotFound, "an upload that was deleted")
	for id, want := range map[string]bool{"one": false, "two": true, "../\x00": false} {
		if ok, err := f.UploadExists(f.ctx, id); ok != want || err != nil {
			f.Errorf("UploadExists(%q) = %v, %v", id, ok, err)
		}
	}
	_, _, err = f.HoldUpload(f.ctx, "../\x00")
	f.fails(err, errs.NotFound, "an upload that no one began")
}

// Texts that JSON can have and databases may not.
func testHostile(f *fixture) {
	f.link("a", "1")
	subject := f.put("a", image("", "1"))
	doc := `{"schemaVersion":2,"mediaType":"` + imageType + `","artifactType":"x\u0000'y\ud800","config":` + descriptor("application/x", blob("1")) +
		`,"layers":[],"subject":` + descriptor(imageType, subject) + `,"annotations":{"\u0000":"\u0000\\"}}`
	d := f.put("a", doc, "t")
	m, payload, err := f.Payload(f.ctx, "a", d)
	if err != nil || string(payload) != doc || !strings.HasPrefix(m.ArtifactType, "x\x00'y") || m.Annotations["\x00"] != "\x00\\" {
		f.Errorf("Payload = %+v, %q, %v", m, payload, err)
	}
	if list, err := f.Referrers(f.ctx, "a", subject, "", 10); err != nil || len(list) != 1 || list[0].Annotations["\x00"] != "\x00\\" {
		f.Errorf("referrers = %+v, %v", list, err)
	}
}

// Writers that share transactions get their own answers, and a refusal among them spoils nothing.
func testConcurrent(f *fixture) {
	f.link("a", "1")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				tag := content.Tag(fmt.Sprintf("t%d-%d", i, j))
				w := f.write("a", image("", "1"), tag)
				if err := f.PutManifest(f.ctx, w); err != nil {
					f.Errorf("%s: %v", tag, err)
				}
				w.Condition.Absent = true
				if err := f.PutManifest(f.ctx, w); !errors.Is(err, errs.Precondition) {
					f.Errorf("%s again: %v", tag, err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(f.tags("a")); n != 80 {
		f.Errorf("%d tags of 80", n)
	}
	// Of several writers that all want a tag to be absent, one wins.
	var mu sync.Mutex
	won := 0
	for range 8 {
		wg.Go(func() {
			w := f.write("a", image("", "1"), "one")
			w.Condition.Absent = true
			if f.PutManifest(f.ctx, w) == nil {
				mu.Lock()
				won++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if won != 1 {
		f.Errorf("%d writers won", won)
	}
}

// A repository whose name starts with that of another one is another repository.
func testPrefixes(f *fixture) {
	for _, r := range []content.Repository{"a", "a/b", "a0", "aa"} {
		f.link(r, "1")
		f.put(r, image("", "1"), "t")
	}
	f.ok(f.DeleteRepository(f.ctx, "a"))
	for _, r := range []content.Repository{"a/b", "a0", "aa"} {
		if got := f.tags(r); len(got) != 1 {
			f.Errorf("%s lost its tags: %v", r, got)
		}
		if _, err := f.Link(f.ctx, r, blob("1")); err != nil {
			f.Error(err)
		}
	}
}

func testFixed(f *fixture) {
	f.link("a", "config", "layer")
	first, second := image("", "config"), image("", "config", "layer")
	fixed := func(doc string, tags ...content.Tag) error {
		w := f.write("a", doc, tags...)
		w.Fixed = []content.Tag{"v1"}
		return f.PutManifest(f.ctx, w)
	}
	f.ok(fixed(first, "v1", "latest"))
	f.ok(fixed(first, "v1"))
	f.fails(fixed(second, "latest", "v1"), errs.Conflict, "moving a fixed tag")
	if got, err := f.Tag(f.ctx, "a", "latest"); err != nil || got.Digest != blob(first) {
		f.Errorf("a refused write moved another tag: %+v, %v", got, err)
	}
	f.put("a", second, "latest")
	if nodes, err := f.Graph(f.ctx, "a"); err != nil || len(nodes) != 2 || nodes[0].Size+nodes[1].Size != int64(len(first)+len(second)) {
		f.Errorf("sizes in the graph: %+v, %v", nodes, err)
	}
}

func testDocuments(f *fixture) {
	kinds := func(want string) {
		f.Helper()
		list := []string{}
		for after := ""; ; {
			docs, err := f.Documents(f.ctx, "", after, 1)
			f.ok(err)
			if len(docs) == 0 {
				break
			}
			after = docs[0].Key
			list = append(list, after)
		}
		if strings.Join(list, " ") != want {
			f.Errorf("kinds = %q, want %q", list, want)
		}
	}
	kinds("")
	_, err := f.Document(f.ctx, "queue", "a")
	f.fails(err, errs.NotFound, "a document that is not there")
	doc := func(k, v string) metadata.Document { return metadata.Document{Key: k, Value: []byte(v)} }
	f.ok(f.PutDocuments(f.ctx, "queue", doc("b", "2"), doc("a", "1"), doc("a b/c:d", "3"), doc("é", "4"), doc("empty", "")))
	f.ok(f.PutDocuments(f.ctx, "queues", doc("x", "other")))
	f.ok(f.PutDocuments(f.ctx, "que", doc("x", "y")))
	kinds("que queue queues")
	f.ok(f.PutDocuments(f.ctx, "que", metadata.Document{Key: "x"}))
	kinds("queue queues")
	list := func(kind string) (s string) {
		f.Helper()
		for after := ""; ; {
			docs, err := f.Documents(f.ctx, kind, after, 2)
			f.ok(err)
			for _, d := range docs {
				s += d.Key + "=" + string(d.Value) + " "
			}
			if len(docs) < 2 {
				return s
			}
			after = docs[1].Key
		}
	}
	if got := list("queue"); got != "a=1 a b/c:d=3 b=2 empty= é=4 " {
		f.Errorf("Documents = %q", got)
	}
	f.ok(f.PutDocuments(f.ctx, "queue", doc("a", "5"), metadata.Document{Key: "b"}, metadata.Document{Key: "none"}))
	if got := list("queue") + list("queues") + list("que"); got != "a=5 a b/c:d=3 empty= é=4 x=other " {
		f.Errorf("after changes: %q", got)
	}
	if v, err := f.Document(f.ctx, "queue", "a"); err != nil || string(v) != "5" {
		f.Errorf("Document = %q, %v", v, err)
	}
}

func testSwap(f *fixture) {
	one, two := []byte("1"), []byte("2")
	f.fails(f.SwapDocument(f.ctx, "q", "k", one, two), errs.Precondition, "a document that is not there")
	f.ok(f.SwapDocument(f.ctx, "q", "k", nil, one))
	f.fails(f.SwapDocument(f.ctx, "q", "k", nil, two), errs.Precondition, "a document that is there")
	f.fails(f.SwapDocument(f.ctx, "q", "k", two, one), errs.Precondition, "another value")
	f.ok(f.SwapDocument(f.ctx, "q", "k", one, two))
	f.ok(f.SwapDocument(f.ctx, "q", "k", two, nil))
	_, err := f.Document(f.ctx, "q", "k")
	f.fails(err, errs.NotFound, "a document that was removed")
	// Of several who swap at the same time, one succeeds.
	var wg sync.WaitGroup
	won := make(chan string, 8)
	for i := range 8 {
		wg.Go(func() {
			if f.SwapDocument(f.ctx, "q", "race", nil, []byte(fmt.Sprint(i))) == nil {
				won <- fmt.Sprint(i)
			}
		})
	}
	wg.Wait()
	close(won)
	v, err := f.Document(f.ctx, "q", "race")
	if first := <-won; err != nil || string(v) != first || len(won) != 0 {
		f.Errorf("the value is %q (%v), the winner %q, and %d more", v, err, first, len(won))
	}
}
