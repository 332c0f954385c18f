package check_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"ply/internal/durable"
	"ply/internal/registry/blobs/directory"
	"ply/internal/registry/check"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/bolt"
	"ply/internal/registry/repository"
)

type world struct {
	*testing.T
	root  string
	store *bolt.Store
	repository.Service
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) open() {
	w.Helper()
	var err error
	w.store, err = bolt.Open(filepath.Join(w.root, "metadata.db"))
	w.ok(err)
	bytes, err := directory.Open(durable.OS, w.root)
	w.ok(err)
	w.Service = repository.Service{Metadata: w.store, Blobs: bytes}
}

func (w *world) blob(repo content.Repository, data string) content.Digest {
	w.Helper()
	d := content.SHA256.Of([]byte(data))
	u, err := w.Begin(w.Context(), repo, "", content.SHA256)
	w.ok(err)
	w.ok(u.Append(w.Context(), strings.NewReader(data), -1))
	w.ok(w.Finish(w.Context(), u, d))
	w.ok(u.Close())
	return d
}

func (w *world) image(repo content.Repository, tag content.Tag, data string) (blob, manifest content.Digest) {
	w.Helper()
	blob = w.blob(repo, data)
	doc := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` +
		fmt.Sprintf(`{"mediaType":"application/x","digest":%q,"size":%d}`, blob, len(data)) + `,"layers":[]}`
	manifest, _, err := w.PutManifest(w.Context(), repository.Push{Repository: repo, Payload: []byte(doc), Tags: []content.Tag{tag}})
	w.ok(err)
	return blob, manifest
}

func (w *world) run(c check.Checker) (check.Report, []string) {
	w.Helper()
	var found []string
	c.Metadata, c.Blobs = w.store, w.Blobs
	c.Found = func(f check.Finding) { found = append(found, f.String()) }
	r, err := c.Run(w.Context())
	w.ok(err)
	slices.Sort(found)
	return r, found
}

func (w *world) file(d content.Digest) string {
	return filepath.Join(w.root, "blobs", "sha256", d.Hex()[:2], d.Hex())
}

// Whatever is damaged is found, nothing else is, and after a repair everything can be pushed again.
func TestRun(t *testing.T) {
	w := &world{T: t, root: t.TempDir()}
	w.open()
	w.image("good", "v1", "good")
	flipped, _ := w.image("a", "flipped", "flipped")
	short, _ := w.image("a", "short", "short")
	gone, _ := w.image("b", "gone", "gone")
	_, lost := w.image("b", "lost", "lost")
	_, dangling := w.image("c", "dangling", "dangling")
	unlinked, incomplete := w.image("d", "incomplete", "incomplete")
	w.image("c", "other", "other")
	if r, found := w.run(check.Checker{Repair: true}); len(found) != 0 || r.Blobs != 8 || r.Bytes == 0 || r.Manifests != 8 || r.Tags != 8 || r.Links != 8 || r.Repositories != 5 {
		t.Errorf("before any damage: %+v, %q", r, found)
	}
	w.ok(os.Chmod(w.file(flipped), 0o600))
	w.ok(os.WriteFile(w.file(flipped), []byte("Flipped"), 0o600))
	w.ok(os.Truncate(w.file(short), 2))
	w.ok(os.Remove(w.file(gone)))
	w.ok(w.store.DeleteLink(t.Context(), "d", unlinked))
	w.ok(w.store.Close())
	db, err := bbolt.Open(filepath.Join(w.root, "metadata.db"), 0o600, nil)
	w.ok(err)
	w.ok(db.Update(func(tx *bbolt.Tx) error {
		if err := tx.Bucket([]byte("payloads")).Put([]byte(lost), []byte("{}")); err != nil {
			return err
		}
		return tx.Bucket([]byte("manifests")).Delete([]byte("c\x00" + string(dangling)))
	}))
	w.ok(db.Close())
	w.open()
	defer func() { w.ok(w.store.Close()) }()

	if _, found := w.run(check.Checker{Quick: true}); strings.Contains(strings.Join(found, "\n"), string(flipped)) {
		t.Errorf("a quick check reads blobs: %q", found)
	}
	r, found := w.run(check.Checker{})
	text := strings.Join(found, "\n")
	for _, want := range []string{
		"damaged blob @" + string(flipped), "damaged blob @" + string(short), "missing blob a@" + string(short), "missing blob b@" + string(gone),
		"lost manifest b@" + string(lost), "dangling tag c:dangling@" + string(dangling), "incomplete image d@" + string(incomplete),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("not found: %s", want)
		}
	}
	if r.Findings != 7 || r.Repaired != 0 || r.Unlinked != 1 {
		t.Errorf("%+v:\n%s", r, text)
	}
	if again, _ := w.run(check.Checker{}); again != r {
		t.Errorf("a check changed something: %+v, then %+v", r, again)
	}
	// The image that is incomplete stays: its blob can be pushed.
	r, found = w.run(check.Checker{Repair: true})
	if r.Findings-r.Repaired < 1 || r.Repaired < 6 {
		t.Errorf("repair: %+v:\n%s", r, strings.Join(found, "\n"))
	}
	for _, data := range []string{"flipped", "short", "gone", "lost", "dangling", "incomplete"} {
		repo := map[string]content.Repository{"flipped": "a", "short": "a", "gone": "b", "lost": "b", "dangling": "c", "incomplete": "d"}[data]
		w.image(repo, content.Tag(data), data)
	}
	if r, found := w.run(check.Checker{}); len(found) != 0 || r.Manifests != 8 {
		t.Errorf("after a repair and pushes: %+v, %q", r, found)
	}
	if _, err := w.store.Tag(t.Context(), "good", "v1"); err != nil {
		t.Error(err)
	}
}

// A manifest that was copied from another registry is whole without its blobs.
func TestCopies(t *testing.T) {
	w := &world{T: t, root: t.TempDir()}
	w.open()
	defer func() { w.ok(w.store.Close()) }()
	for _, repo := range []content.Repository{"up/a", "mine"} {
		blob, manifest := w.image(repo, "v1", string(repo))
		w.ok(w.store.DeleteLink(t.Context(), repo, blob))
		if repo == "up/a" {
			w.ok(w.store.PutDocuments(t.Context(), metadata.CopiesKind, metadata.Document{Key: string(repo) + " " + string(manifest), Value: []byte("{}")}))
		}
	}
	if r, found := w.run(check.Checker{}); len(found) != 1 || r.Findings != 1 || !strings.HasPrefix(found[0], "incomplete image mine@") {
		t.Errorf("%+v, %q", r, found)
	}
}
