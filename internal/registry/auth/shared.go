package auth

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/metadata"
)

// Documents keeps personal access tokens, and for registries of several replicas, which have no root in common, the users and the keys
// that sign tokens.
type Documents interface {
	// Document returns a value. The error's class is errs.NotFound when there is none.
	Document(ctx context.Context, kind, key string) ([]byte, error)
	// SwapDocument stores a value if the old one is there; nil = none. Otherwise the error's class is errs.Precondition.
	SwapDocument(ctx context.Context, kind, key string, old, value []byte) error
	// Documents lists documents in the order of the bytes of their keys, from behind after, limit at most.
	Documents(ctx context.Context, kind, after string, limit int) ([]metadata.Document, error)
}

const (
	documentKind  = "auth"
	usersDocument = "users"
	keysDocument  = "token-keys"

	documentTimeout = 5 * time.Second
	maxSwaps        = 50 // tries of a change while others change the same
)

// document returns a value, nil when there is none.
func document(docs Documents, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), documentTimeout)
	defer cancel()
	b, err := docs.Document(ctx, documentKind, key)
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	return b, err
}

func swap(docs Documents, key string, old, value []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), documentTimeout)
	defer cancel()
	return docs.SwapDocument(ctx, documentKind, key, old, value)
}

// OpenSharedUsers reads the users that replicas share. The error's class is errs.DataLoss when they are damaged.
func OpenSharedUsers(docs Documents) (*Users, error) {
	u := &Users{docs: docs}
	b, t, err := u.fetch()
	if err != nil {
		return nil, err
	}
	u.value, u.now, u.checked = b, t, time.Now()
	return u, nil
}

func (u *Users) fetch() ([]byte, *table, error) {
	b, err := document(u.docs, usersDocument)
	if err != nil {
		return nil, nil, err
	}
	if b == nil {
		return nil, &table{}, nil
	}
	var r usersRecord
	if err := record.Unmarshal("users", b, usersVersion, &r); err != nil {
		return nil, nil, err
	}
	return b, newTable(r), nil
}

// shared returns the users of a database. The caller has set checked, so one request asks while others go on with what is known.
func (u *Users) shared() *table {
	b, t, err := u.fetch()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.failed = err; err == nil && t.closed && !bytes.Equal(b, u.value) {
		u.value, u.now = b, t
	}
	return u.now
}

// changeShared applies edit to the newest value.
func (u *Users) changeShared(edit func(*usersRecord) error) error {
	for range maxSwaps {
		old, t, err := u.fetch()
		if err != nil {
			return err
		}
		r, err := t.edited(edit)
		if err != nil {
			return err
		}
		b, err := record.Marshal(usersVersion, r)
		if err != nil {
			return err
		}
		if err := swap(u.docs, usersDocument, old, b); !errors.Is(err, errs.Precondition) {
			u.mu.Lock()
			u.checked = time.Time{}
			u.mu.Unlock()
			return err
		}
	}
	return errs.New(errs.Conflict, "the users are being changed by others").WithHint("Try again.")
}

// edited returns the record of the table after edit.
func (t *table) edited(edit func(*usersRecord) error) (usersRecord, error) {
	r := t.record.clone()
	err := edit(&r)
	slices.SortFunc(r.Users, func(a, b User) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(r.Groups, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(r.Namespaces, func(a, b Namespace) int { return strings.Compare(a.Name, b.Name) })
	return r, err
}

// clone returns a copy that can be changed.
func (r *usersRecord) clone() usersRecord {
	c := usersRecord{Users: slices.Clone(r.Users), Grants: slices.Clone(r.Grants), Groups: slices.Clone(r.Groups), Namespaces: slices.Clone(r.Namespaces)}
	for i, g := range c.Groups {
		c.Groups[i].Members, c.Groups[i].Claims = slices.Clone(g.Members), slices.Clone(g.Claims)
	}
	return c
}

// reload reads the keys that replicas share. The caller holds the mutex or is the only one.
func (s *signer) reload() error {
	b, err := document(s.docs, keysDocument)
	if err != nil {
		return err
	}
	var r keysRecord
	if b != nil {
		if err := record.Unmarshal("keys of tokens", b, keysVersion, &r); err != nil {
			return err
		}
	}
	if err := checkKeys("keys of tokens", r.Keys); err != nil {
		return err
	}
	s.value, s.keys, s.loaded = b, r.Keys, time.Now()
	return nil
}

// storeShared makes keys those of all replicas. When another replica has changed them meanwhile, its keys are taken over.
func (s *signer) storeShared(keys []Key) error {
	b, err := record.Marshal(keysVersion, keysRecord{keys})
	if err != nil {
		return err
	}
	err = swap(s.docs, keysDocument, s.value, b)
	if errors.Is(err, errs.Precondition) {
		return s.reload()
	}
	if err == nil {
		s.value, s.keys = b, keys
	}
	return err
}
