// Package metadata is the contract for what the registry knows about its content: which repositories there are, their manifests
// and tags, and which blobs each may read. Package bolt implements it in a file, package postgres in a database that
// replicas share; metadatatest is the suite that every implementation passes.
//
// Invariants, which every method keeps in one transaction: a tag points at a manifest of its repository. A manifest was stored
// when everything that it refers to was there, unless the writer allowed otherwise. A repository exists as long as it has a
// manifest. What a method reports as done is durable. What a method reports as failed with errs.Unavailable may have been done.
//
// A blob is linked to the repositories that may read it. Its bytes are shared and belong to package blobs. Who stores bytes and
// links them, or removes bytes that no repository links, holds the lock of the digest (Store.Lock); so no link is made to bytes
// that are being removed. When several processes share a database, its locks hold between them.
package metadata

import (
	"context"
	"io"
	"time"

	"ply/internal/registry/content"
)

// Manifest is what is known about a manifest of a repository, except for its bytes.
type Manifest struct {
	Digest       content.Digest
	MediaType    string
	Size         int64 // bytes
	ArtifactType string
	Subject      content.Digest    // "" = none
	Annotations  map[string]string // nil unless there is a subject
	Pushed       time.Time         // the last time
}

// Tag is a tag of a repository.
type Tag struct {
	Name    content.Tag
	Digest  content.Digest
	Updated time.Time
}

// Link is the right of a repository to read a blob.
type Link struct {
	Repository content.Repository
	Digest     content.Digest
	Size       int64     // bytes
	Linked     time.Time // the last time
}

// HeldLink is a link with whether a manifest of its repository refers to it.
type HeldLink struct {
	Link
	Held bool
}

// Condition restricts a change to a state of the tag that it changes. The zero value restricts nothing.
type Condition struct {
	Absent bool             // there must be no such tag
	OneOf  []content.Digest // when not nil, the tag must exist and point at one of these
	Any    bool             // the tag must exist
}

// Write is a manifest to store.
type Write struct {
	Repository content.Repository
	Digest     content.Digest
	Payload    []byte
	Parsed     *content.Manifest
	Tags       []content.Tag
	Fixed      []content.Tag // those of Tags that may not move: when they exist, they must point at this manifest
	Condition  Condition     // on every tag
	Missing    bool          // the manifest may refer to what is not in the repository
}

// MissingError is the error of a write whose manifest refers to something that is not in its repository. Its class is
// errs.NotFound.
type MissingError struct {
	Blobs     []content.Digest
	Manifests []content.Digest
}

// Node is a manifest in the graph of a repository.
type Node struct {
	Digest   content.Digest
	Tagged   bool
	Children []content.Digest // manifests and blobs that it refers to
	Subject  content.Digest   // "" = none
	Size     int64            // bytes
	Pushed   time.Time
}

// Document is a small record of another part of the registry, such as a cache or a queue, which the database only keeps. The key is
// text without NUL, of 1 to 1000 bytes. Documents of different kinds are independent of each other.
type Document struct {
	Key   string
	Value []byte // nil = there is none
}

// CopiesKind is the kind of the documents that note what was copied from another registry, by repository, a space and the digest. What
// such a manifest refers to may not be here yet.
const CopiesKind = "proxy-uses"

// Store is one database. Safe for concurrent use. The class of an error is errs.NotFound when the repository, manifest, tag or
// link does not exist, and errs.Unavailable when the database cannot be reached.
type Store interface {
	Reader
	Writer
	Collector
	Documents
	Uploads
	io.Closer
	// Ping reports whether the database answers.
	Ping(ctx context.Context) error
	// Lock locks the bytes of a blob against everyone else who locks them, until release is called. What is done under the lock uses
	// the context that it returns, which ends when the lock can no longer be held.
	Lock(ctx context.Context, d content.Digest) (held context.Context, release func(), err error)
}

// Uploads keeps the state of uploads, for blob stores that have no place for it that several processes can share. A state has at
// most MaxUploadState bytes.
type Uploads interface {
	// CreateUpload keeps the state of a new upload, which the caller holds. The error's class is errs.Exhausted when there are too
	// many.
	CreateUpload(ctx context.Context, id string, state []byte) (Hold, error)
	// HoldUpload returns the state of an upload, which the caller holds then. The error's class is errs.NotFound when there is no such
	// upload, and errs.Conflict while someone else holds it.
	HoldUpload(ctx context.Context, id string) ([]byte, Hold, error)
	UploadExists(ctx context.Context, id string) (bool, error)
	// OldUploads lists the uploads that no one holds and no one has held since before.
	OldUploads(ctx context.Context, before time.Time, limit int) ([]string, error)
}

// Limits of uploads.
const (
	MaxUploadState = 8 << 20
	MaxUploads     = 100_000 // at the same time
)

// Hold is the right to change an upload. It ends when its process dies. The error's class is errs.Conflict when someone else holds
// the upload since.
type Hold interface {
	// Save keeps a new state of the upload.
	Save(ctx context.Context, state []byte) error
	// Release keeps the last state of the upload and lets others hold it.
	Release(ctx context.Context, state []byte) error
	// Delete removes the upload.
	Delete(ctx context.Context) error
}

// Reader reads the database. Lists are in the order of bytes; they start behind after and have at most limit entries.
type Reader interface {
	// Payload returns a manifest with its bytes, which the caller must not change.
	Payload(ctx context.Context, repo content.Repository, d content.Digest) (Manifest, []byte, error)
	Manifest(ctx context.Context, repo content.Repository, d content.Digest) (Manifest, error)
	Tag(ctx context.Context, repo content.Repository, tag content.Tag) (Tag, error)
	// Tags lists the names of tags. It fails when the repository does not exist.
	Tags(ctx context.Context, repo content.Repository, after content.Tag, limit int) ([]content.Tag, error)
	Repositories(ctx context.Context, after content.Repository, limit int) ([]content.Repository, error)
	// Referrers lists the manifests whose subject is the given one, which need not exist.
	Referrers(ctx context.Context, repo content.Repository, subject, after content.Digest, limit int) ([]Manifest, error)
	Link(ctx context.Context, repo content.Repository, d content.Digest) (Link, error)
	// Holders lists the repositories that a blob is linked to.
	Holders(ctx context.Context, d content.Digest, after content.Repository, limit int) ([]content.Repository, error)
	// Touch keeps a manifest or a link from being collected for the grace time, as if it had just been pushed. It is called before a
	// client is told that the object exists, because the client may go on to refer to it. An object that does not exist is no error.
	// It may be forgotten when the database is restarted.
	Touch(ctx context.Context, repo content.Repository, d content.Digest) error
}

// Writer changes the database.
type Writer interface {
	// PutManifest stores a manifest and points the tags at it. It fails with a *MissingError, with errs.Precondition when the
	// condition does not hold, and with errs.Conflict when a fixed tag points at another manifest.
	PutManifest(ctx context.Context, w Write) error
	// DeleteManifest removes a manifest and its tags.
	DeleteManifest(ctx context.Context, repo content.Repository, d content.Digest) error
	DeleteTag(ctx context.Context, repo content.Repository, tag content.Tag, c Condition) error
	// DeleteRepository removes the manifests, tags and links of a repository.
	DeleteRepository(ctx context.Context, repo content.Repository) error
	// PutLink links a blob whose bytes are stored. The caller holds the lock of the digest, or knows another link (see Mount).
	PutLink(ctx context.Context, l Link) error
	// Mount links a blob that another repository has a link to; it fails with errs.NotFound when that link does not exist.
	Mount(ctx context.Context, from, to content.Repository, d content.Digest) error
	DeleteLink(ctx context.Context, repo content.Repository, d content.Digest) error
}

// Collector is what a collection needs.
type Collector interface {
	// Now returns the time of the clock that the times in the database are of.
	Now(ctx context.Context) (time.Time, error)
	// Sweep lets one collection run at a time, until release is called or the returned context ends. The error's class is
	// errs.Conflict while another one runs.
	Sweep(ctx context.Context) (held context.Context, release func(), err error)
	// Links lists links in the order of their repositories and digests.
	Links(ctx context.Context, after Link, limit int) ([]HeldLink, error)
	// Graph returns the manifests of a repository as they are at one moment.
	Graph(ctx context.Context, repo content.Repository) ([]Node, error)
	// Loose lists manifests that have no tag, are in no index, whose subject does not exist, and that were not pushed since before: what
	// CollectManifest removes unless it was touched. It looks at some of the manifests behind after, in the order of their digests. Next
	// is where the next call goes on, "" at the end.
	Loose(ctx context.Context, repo content.Repository, before time.Time, after content.Digest) (loose []content.Digest, next content.Digest, err error)
	// CollectLink removes a link that no manifest of the repository needs and that was neither made nor touched since before. It
	// reports whether it did.
	CollectLink(ctx context.Context, repo content.Repository, d content.Digest, before time.Time) (bool, error)
	// CollectManifest removes a manifest that has no tag, is in no index, whose subject does not exist, and that was neither pushed
	// nor touched since before. It reports whether it did.
	CollectManifest(ctx context.Context, repo content.Repository, d content.Digest, before time.Time) (bool, error)
}

// Documents keeps the records of other parts of the registry.
type Documents interface {
	Document(ctx context.Context, kind, key string) ([]byte, error)
	// Documents lists documents in the order of the bytes of their keys, from behind after, limit at most. With the kind "" it lists the
	// kinds that there are, as keys.
	Documents(ctx context.Context, kind, after string, limit int) ([]Document, error)
	// PutDocuments stores and removes documents in one transaction: one without a value is removed. Removing one that does not exist
	// is no error.
	PutDocuments(ctx context.Context, kind string, docs ...Document) error
	// SwapDocument stores or removes a document as PutDocuments does, if its value is old. Otherwise the error's class is
	// errs.Precondition.
	SwapDocument(ctx context.Context, kind, key string, old, value []byte) error
}
