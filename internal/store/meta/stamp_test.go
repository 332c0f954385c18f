package meta

import (
	"encoding/json"
	"errors"
	"testing"

	"ply/internal/oci"
)

// stampOf returns the stamp of the images and names in a new View.
func stampOf(t *testing.T, db *DB) (stamp uint64) {
	t.Helper()
	view(t, db, func(tx *Tx) {
		var ok bool
		if stamp, ok = tx.Stamp("images", "names"); !ok {
			t.Error("a View that begins now has no stamp")
		}
	})
	return stamp
}

// The stamp of kinds of records changes with each update that writes or deletes one of them, and with no other.
func TestStamp(t *testing.T) {
	db := mustOpen(t, newPath(t))
	const image = oci.ImageID("sha256:aa")
	was := stampOf(t, db)
	for _, c := range []struct {
		what    string
		changes bool
		f       func(*Tx) error
	}{
		{"a new image", true, func(tx *Tx) error { return tx.Images.Put(image, Image{}) }},
		{"the same image", true, func(tx *Tx) error { return tx.Images.Put(image, Image{Parent: "sha256:bb"}) }},
		{"a volume", false, func(tx *Tx) error { return tx.Volumes.Put("v", Volume{}) }},
		{"nothing", false, func(*Tx) error { return nil }},
		{"a name", true, func(tx *Tx) error { return tx.Names.Put("docker.io/library/a:latest", Name{Image: image}) }},
		{"a name as it is stored", true, func(tx *Tx) error {
			return tx.Raw("names").Put("docker.io/library/b:latest", json.RawMessage(`{"version":1}`))
		}},
		{"the last image and a volume", true, func(tx *Tx) error { return errors.Join(tx.Volumes.Delete("v"), tx.Images.Delete(image)) }},
	} {
		update(t, db, func(tx *Tx) error {
			if _, ok := tx.Stamp("images"); ok {
				t.Errorf("%s: an Update has a stamp", c.what)
			}
			return c.f(tx)
		})
		now := stampOf(t, db)
		if (now != was) != c.changes {
			t.Errorf("%s: stamp %d, it was %d", c.what, now, was)
		}
		was = now
	}
}

// A View never has the stamp of a state that it does not see: neither one that began before an update, nor one after an update that failed.
func TestStampOfAnotherState(t *testing.T) {
	db := mustOpen(t, newPath(t))
	was := stampOf(t, db)
	put := func(tx *Tx) error { return tx.Images.Put("sha256:aa", Image{}) }
	view(t, db, func(tx *Tx) {
		update(t, db, put)
		if s, ok := tx.Stamp("images", "names"); ok && s != was {
			t.Errorf("a View of before has the stamp %d of after", s)
		}
		if tx.Images.Has("sha256:aa") {
			t.Fatal("a View of before sees the update")
		}
	})
	after := stampOf(t, db)
	if after == was {
		t.Error("the stamp is the same after the update")
	}
	failed := errors.New("no")
	if err := db.Update(func(tx *Tx) error { return errors.Join(put(tx), failed) }); !errors.Is(err, failed) {
		t.Fatal(err)
	}
	if now := stampOf(t, db); now != after {
		t.Errorf("stamp %d after an update that failed, it was %d", now, after)
	}
}
