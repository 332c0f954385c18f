package bolt

import (
	"bytes"
	"context"

	"ply/internal/errs"
	"ply/internal/registry/metadata"
)

// Document returns the value of a document.
func (s *Store) Document(_ context.Context, kind, k string) (value []byte, err error) {
	return value, s.view(func(t *tx) error {
		v := t.get(bucketDocuments, key(kind, k))
		if v == nil {
			return errs.New(errs.NotFound, "document %s %s does not exist", kind, k)
		}
		value = bytes.Clone(v)
		return nil
	})
}

// Documents lists documents of a kind, or the kinds.
func (s *Store) Documents(_ context.Context, kind, after string, limit int) (docs []metadata.Document, err error) {
	if limit <= 0 {
		return nil, nil
	}
	return docs, s.view(func(t *tx) error {
		if kind == "" {
			docs = documentKinds(t, after, limit)
			return nil
		}
		return t.scan(bucketDocuments, key(kind, ""), key(kind, after), func(k, v []byte) (bool, error) {
			docs = append(docs, metadata.Document{Key: behind(k), Value: bytes.Clone(v)})
			return len(docs) < limit, nil
		})
	})
}

func documentKinds(t *tx, after string, limit int) (kinds []metadata.Document) {
	c := t.t.Bucket(bucketDocuments).Cursor()
	next := func(kind string) []byte { return []byte(kind + "\x01") } // behind all keys of a kind
	for k, _ := c.Seek(next(after)); k != nil && len(kinds) < limit; {
		kind, _, _ := bytes.Cut(k, []byte(separator))
		if string(kind) > after {
			kinds = append(kinds, metadata.Document{Key: string(kind)})
		}
		k, _ = c.Seek(next(string(kind)))
	}
	return kinds
}

// PutDocuments stores and removes documents.
func (s *Store) PutDocuments(ctx context.Context, kind string, docs ...metadata.Document) error {
	return s.update(ctx, func(t *tx) error {
		for _, d := range docs {
			if err := t.putDocument(kind, d.Key, d.Value); err != nil {
				return err
			}
		}
		return nil
	})
}

// SwapDocument stores or removes a document that has a known value.
func (s *Store) SwapDocument(ctx context.Context, kind, k string, old, value []byte) error {
	return s.update(ctx, func(t *tx) error {
		v := t.get(bucketDocuments, key(kind, k))
		if (v == nil) != (old == nil) || !bytes.Equal(v, old) {
			return errs.New(errs.Precondition, "document %s %s has changed", kind, k)
		}
		return t.putDocument(kind, k, value)
	})
}

func (t *tx) putDocument(kind, k string, value []byte) error {
	if value == nil {
		return t.delete(bucketDocuments, key(kind, k))
	}
	return t.put(bucketDocuments, key(kind, k), value)
}
