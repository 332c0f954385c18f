// Package blobs is the contract for the bytes of the registry: content by its digest, shared by all repositories, and the uploads
// that it arrives by. Package directory implements it in files, package s3 in a bucket that replicas share; blobstest is the suite
// that every implementation passes.
//
// Invariants: bytes that can be opened by a digest have that digest, are durable, and never change. An upload becomes visible
// completely or not at all. Who may read what is not known here: see package metadata.
package blobs

import (
	"context"
	"io"
	"time"

	"ply/internal/registry/content"
)

// Session says what an upload is. Its ID is chosen by NewID.
type Session struct {
	ID         string
	Repository content.Repository
	Owner      string // who began it; "" = anonymous
	Algorithm  content.Algorithm
	Started    time.Time
}

// Store keeps blobs. Safe for concurrent use. The class of an error is errs.NotFound when there is no such blob or upload,
// errs.Exhausted when there is no room, and errs.Unavailable when the store cannot be reached.
type Store interface {
	// Stat returns the size of a blob in bytes.
	Stat(ctx context.Context, d content.Digest) (int64, error)
	// Open opens a blob and returns its size in bytes. The caller closes it. A reader that is an *os.File can be sent by the kernel.
	Open(ctx context.Context, d content.Digest) (io.ReadSeekCloser, int64, error)
	// Remove removes a blob. Removing one that does not exist is no error.
	Remove(ctx context.Context, d content.Digest) error
	// Walk calls visit for every blob, in no order. Stored is when its bytes were stored the last time.
	Walk(ctx context.Context, visit func(d content.Digest, size int64, stored time.Time) error) error

	// Begin starts an upload. The caller holds it until it calls Store, Cancel or Close.
	Begin(ctx context.Context, s Session) (Upload, error)
	// Resume returns an upload that was closed. The error's class is errs.Conflict while someone else holds it.
	Resume(ctx context.Context, id string) (Upload, error)
	// Expire cancels the uploads that no one has held since before, and returns how many.
	Expire(ctx context.Context, before time.Time) (int, error)

	// Ping reports whether the store can be written to.
	Ping(ctx context.Context) error
	io.Closer
}

// Upload is a blob that is being received. It is not safe for concurrent use.
type Upload interface {
	Session() Session
	// Offset returns how many bytes were received.
	Offset() int64
	// Append receives r, of which size bytes are announced; -1 means that the size is unknown. After an error, of r or of the store,
	// what came before it is kept. A *SourceError is an error of r.
	Append(ctx context.Context, r io.Reader, size int64) error
	// Store makes the bytes a blob, durable when it returns, and ends the upload. The error's class is errs.Invalid when they have
	// another digest; that ends the upload, too. Storing what exists is no error.
	Store(ctx context.Context, d content.Digest) (size int64, err error)
	// Cancel ends the upload.
	Cancel(ctx context.Context) error
	// Close lets others resume the upload. Without an error they find all bytes that were appended. After Store or Cancel it does nothing.
	Close() error
}

// Source reads bytes at offsets.
type Source interface {
	io.ReaderAt
	io.Closer
}

// Follower is an Upload whose bytes can be read while it is being received.
type Follower interface {
	// Follow returns a reader of the bytes that were appended so far and will be. It stays valid when the upload ends. The caller
	// closes it.
	Follow() (Source, error)
}
