package bolt

import (
	"bytes"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"ply/internal/record"
	"ply/internal/registry/content"
)

// tx is a transaction with the keys and records of the registry.
type tx struct {
	t       *bbolt.Tx
	visited int // keys, by scans
}

const separator = "\x00"

// key joins the parts of a key.
func key[A, B ~string](a A, b B) []byte { return []byte(string(a) + separator + string(b)) }

func key3[A, B, C ~string](a A, b B, c C) []byte {
	return []byte(string(a) + separator + string(b) + separator + string(c))
}

// behind returns the part of a key after its last separator.
func behind(k []byte) string { return string(k[bytes.LastIndexByte(k, 0)+1:]) }

func (t *tx) get(bucket, k []byte) []byte { return t.t.Bucket(bucket).Get(k) }
func (t *tx) has(bucket, k []byte) bool   { return t.t.Bucket(bucket).Get(k) != nil }
func (t *tx) put(bucket, k, v []byte) error {
	return t.t.Bucket(bucket).Put(k, v)
}
func (t *tx) delete(bucket, k []byte) error { return t.t.Bucket(bucket).Delete(k) }

// mark puts a key of an index, which has no value.
func (t *tx) mark(bucket, k []byte) error { return t.put(bucket, k, []byte{}) }

func (t *tx) putRecord(bucket, k []byte, version int, v any) error {
	b, err := record.Marshal(version, v)
	if err != nil {
		return err
	}
	return t.put(bucket, k, b)
}

// any reports whether a key has the prefix.
func (t *tx) any(bucket, prefix []byte) bool {
	k, _ := t.t.Bucket(bucket).Cursor().Seek(prefix)
	return k != nil && bytes.HasPrefix(k, prefix)
}

// scan calls visit for the keys with a prefix that are greater than after, until visit returns false or an error. Keys and values
// are valid during the transaction only, and visit must not change the bucket.
func (t *tx) scan(bucket, prefix, after []byte, visit func(k, v []byte) (bool, error)) error {
	c := t.t.Bucket(bucket).Cursor()
	from := prefix
	if bytes.Compare(after, from) > 0 {
		from = after
	}
	k, v := c.Seek(from)
	if k != nil && after != nil && bytes.Equal(k, after) {
		k, v = c.Next()
	}
	for ; k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		t.visited++
		if more, err := visit(k, v); err != nil || !more {
			return err
		}
	}
	return nil
}

// keys returns copies of the keys with a prefix.
func (t *tx) keys(bucket, prefix []byte) (keys [][]byte) {
	_ = t.scan(bucket, prefix, nil, func(k, _ []byte) (bool, error) {
		keys = append(keys, bytes.Clone(k))
		return true, nil
	})
	return keys
}

func (t *tx) manifest(repo content.Repository, d content.Digest) (r manifestRecord, ok bool, err error) {
	v := t.get(bucketManifests, key(repo, d))
	if v == nil {
		return r, false, nil
	}
	return r, true, record.Unmarshal("manifest "+string(repo)+"@"+string(d), v, manifestVersion, &r)
}

// loose reports whether nothing needs a manifest that was pushed before.
func (t *tx) loose(repo content.Repository, d content.Digest, r manifestRecord, before time.Time) bool {
	return r.Pushed.Before(before) && !t.any(bucketTagged, key3(repo, d, "")) && !t.any(bucketReferences, key3(repo, d, "")) &&
		(r.Subject == "" || !t.has(bucketManifests, key(repo, r.Subject)))
}

func (t *tx) tag(repo content.Repository, tag content.Tag) (r tagRecord, ok bool, err error) {
	v := t.get(bucketTags, key(repo, tag))
	if v == nil {
		return r, false, nil
	}
	return r, true, record.Unmarshal("tag "+string(repo)+":"+string(tag), v, tagVersion, &r)
}

func (t *tx) link(repo content.Repository, d content.Digest) (r linkRecord, ok bool, err error) {
	v := t.get(bucketLinks, key(repo, d))
	if v == nil {
		return r, false, nil
	}
	return r, true, record.Unmarshal("link of "+string(repo)+" to "+string(d), v, linkVersion, &r)
}

// splitLink returns the repository and the digest of a key.
func splitLink(k []byte) (content.Repository, content.Digest) {
	repo, d, _ := strings.Cut(string(k), separator)
	return content.Repository(repo), content.Digest(d)
}
