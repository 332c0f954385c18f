package s3

import (
	"context"
	"crypto/rand"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

const stateVersion = 1

// stateRecord is what another replica needs in order to resume an upload.
type stateRecord struct {
	Repository content.Repository `json:"repository"`
	Owner      string             `json:"owner,omitempty"`
	Algorithm  content.Algorithm  `json:"algorithm"`
	Started    time.Time          `json:"started"`
	Offset     int64              `json:"offset"`
	Hash       []byte             `json:"hash,omitempty"` // of the bytes so far, as the hash function encodes itself
	Multipart  string             `json:"multipart,omitempty"`
	PartSize   int64              `json:"partSize,omitempty"` // of each part
	Parts      []string           `json:"parts,omitempty"`    // their entity tags
	Tail       string             `json:"tail,omitempty"`     // object with the bytes after the parts
	TailSize   int64              `json:"tailSize,omitempty"`
	Complete   bool               `json:"complete,omitempty"` // the parts have become one object
}

// upload is an upload that this process holds.
type upload struct {
	s     *Store
	id    string
	hold  metadata.Hold
	state stateRecord // what is in the bucket; Offset and Hash are set when it is saved
	saved []byte      // the last state that was kept

	offset int64
	hash   hash.Hash
	spool  *spool // the bytes after the parts; nil = they are in the tail
	ended  bool
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func (u *upload) what() string  { return "upload " + u.id }
func (u *upload) Offset() int64 { return u.offset }
func (u *upload) data() string  { return u.s.uploadKey(u.id, "data") }

func (u *upload) Session() blobs.Session {
	return blobs.Session{ID: u.id, Repository: u.state.Repository, Owner: u.state.Owner, Algorithm: u.state.Algorithm, Started: u.state.Started}
}

// Begin starts an upload.
func (s *Store) Begin(ctx context.Context, b blobs.Session) (blobs.Upload, error) {
	if !blobs.IsID(b.ID) {
		return nil, errs.New(errs.Internal, "upload %q: not an ID", b.ID)
	}
	u := &upload{s: s, id: b.ID, hash: b.Algorithm.New(), spool: &spool{s: s},
		state: stateRecord{Repository: b.Repository, Owner: b.Owner, Algorithm: b.Algorithm, Started: b.Started}}
	var err error
	if u.saved, err = u.encode(); err != nil {
		return nil, err
	}
	u.hold, err = s.o.Uploads.CreateUpload(ctx, b.ID, u.saved)
	return u, err
}

// Resume returns an upload.
func (s *Store) Resume(ctx context.Context, id string) (blobs.Upload, error) {
	if !blobs.IsID(id) {
		return nil, errs.New(errs.NotFound, "upload %q does not exist", id)
	}
	state, hold, err := s.o.Uploads.HoldUpload(ctx, id)
	if err != nil {
		return nil, err
	}
	u := &upload{s: s, id: id, hold: hold, saved: state}
	if err := u.decode(state); err != nil {
		return nil, errors.Join(err, hold.Release(context.WithoutCancel(ctx), state))
	}
	return u, nil
}

func (u *upload) decode(state []byte) error {
	if err := record.Unmarshal(u.what(), state, stateVersion, &u.state); err != nil {
		return err
	}
	a, err := content.ParseAlgorithm(string(u.state.Algorithm))
	if err != nil {
		return err
	}
	u.offset, u.hash = u.state.Offset, a.New()
	if len(u.state.Hash) > 0 {
		if err := u.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(u.state.Hash); err != nil { //nolint:forcetypeassert // the standard library's are
			return errs.New(errs.DataLoss, "%s: its state is damaged: %w", u.what(), err)
		}
	}
	if u.offset != int64(len(u.state.Parts))*u.state.PartSize+u.state.TailSize && !u.state.Complete {
		return errs.New(errs.DataLoss, "%s: its state is damaged", u.what())
	}
	if u.state.Tail == "" {
		u.spool = &spool{s: u.s}
	}
	return nil
}

func (u *upload) encode() ([]byte, error) {
	h, err := u.hash.(encoding.BinaryMarshaler).MarshalBinary() //nolint:forcetypeassert // the standard library's are
	if err != nil {
		return nil, err
	}
	u.state.Offset, u.state.Hash = u.offset, h
	return record.Marshal(stateVersion, u.state)
}

// save keeps the state when no bytes are only here.
func (u *upload) save(ctx context.Context) error {
	b, err := u.encode()
	if err != nil {
		return err
	}
	if err := u.hold.Save(ctx, b); err != nil {
		return err
	}
	u.saved = b
	return nil
}

// Append receives bytes.
func (u *upload) Append(ctx context.Context, r io.Reader, size int64) error {
	if u.state.Complete {
		return errs.New(errs.Conflict, "%s: is complete", u.what())
	}
	if err := u.load(ctx); err != nil {
		return err
	}
	if u.state.Multipart == "" {
		u.state.PartSize = u.partSize(size)
	}
	buf := buffers.Get().(*[]byte) //nolint:forcetypeassert // the pool has nothing else
	defer buffers.Put(buf)
	for {
		if u.spool.size >= u.state.PartSize {
			if err := u.sendPart(ctx); err != nil {
				return err
			}
		}
		n, rerr := r.Read((*buf)[:min(int64(len(*buf)), u.state.PartSize-u.spool.size)])
		if n > 0 {
			w, err := u.spool.Write((*buf)[:n])
			u.hash.Write((*buf)[:w])
			u.offset += int64(w)
			if err != nil {
				return classify(u.what(), err)
			}
		}
		if errors.Is(rerr, io.EOF) {
			return nil
		}
		if rerr != nil {
			return &blobs.SourceError{Err: rerr}
		}
		if err := ctx.Err(); err != nil {
			return &blobs.SourceError{Err: err}
		}
	}
}

// partSize returns the size of the parts of an upload of which size bytes are announced, -1 when it is unknown.
func (u *upload) partSize(size int64) int64 {
	if size < 0 {
		return max(unknownPart/defaultPart*u.s.o.PartSize, u.spool.size)
	}
	// As many bytes again may follow in a later chunk.
	return max(u.s.o.PartSize, 2*(u.offset+size)/maxParts+1, u.spool.size)
}

// load reads the tail, so that more can be appended to it.
func (u *upload) load(ctx context.Context) (err error) {
	if u.spool != nil {
		return nil
	}
	p := &spool{s: u.s}
	if err := u.s.read(ctx, u.state.Tail, u.state.TailSize, p); err != nil {
		return errors.Join(classify(u.what(), err), p.close())
	}
	u.spool = p
	return nil
}

// read copies an object of a known size.
func (s *Store) read(ctx context.Context, key string, size int64, w io.Writer) error {
	o := &object{ctx: ctx, s: s, key: key, size: -1}
	if err := o.open(); err != nil {
		return err
	}
	n, err := io.Copy(w, o)
	if err == nil && n != size {
		err = errs.New(errs.DataLoss, "object %s has %d bytes of %d", key, n, size)
	}
	return errors.Join(err, o.Close())
}

// sendPart makes the spool the next part.
func (u *upload) sendPart(ctx context.Context) error {
	if len(u.state.Parts) == maxParts-1 {
		return errs.New(errs.Exhausted, "%s: more than %d bytes in parts of %d are not possible", u.what(), u.offset, u.state.PartSize).
			WithHint("Announce the size of the blob, or push it at once.")
	}
	if u.state.Multipart == "" {
		try, cancel := limit(ctx, 0)
		id, err := u.s.client.NewMultipartUpload(try, u.s.o.Bucket, u.data(), minio.PutObjectOptions{ContentType: "application/octet-stream"})
		cancel()
		if err != nil {
			return fail(ctx, u.what(), err)
		}
		u.state.Multipart = id
	}
	etag, err := u.putPart(ctx)
	if err != nil {
		return err
	}
	old := u.state.Tail
	u.state.Parts, u.state.Tail, u.state.TailSize = append(u.state.Parts, etag), "", 0
	u.spool.reset()
	if err := u.save(ctx); err != nil {
		return err
	}
	return u.forget(ctx, old)
}

// putPart sends the spool as a part, whose hash the server checks.
func (u *upload) putPart(ctx context.Context) (string, error) {
	sum, err := u.spool.sha256()
	if err != nil {
		return "", classify(u.what(), err)
	}
	try, cancel := limit(ctx, u.spool.size)
	defer cancel()
	p, err := u.s.client.PutObjectPart(try, u.s.o.Bucket, u.data(), u.state.Multipart, len(u.state.Parts)+1, u.spool.reader(), u.spool.size,
		minio.PutObjectPartOptions{Sha256Hex: sum, DisableContentSha256: true})
	return p.ETag, u.lost(fail(ctx, u.what(), err))
}

// lost replaces the error of an upload whose parts the server has forgotten: it cannot go on.
func (u *upload) lost(err error) error {
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.DataLoss, "%s: the S3 server has lost its parts", u.what()).WithHint("Begin the upload again.")
	}
	return err
}

// forget removes an object that the state no longer names; "" = none. What stays is removed by Expire.
func (u *upload) forget(ctx context.Context, key string) error {
	if key == "" {
		return nil
	}
	return u.s.remove(ctx, key)
}

// Store makes the upload a blob.
func (u *upload) Store(ctx context.Context, d content.Digest) (int64, error) {
	h := u.hash
	if d.Algorithm() != u.state.Algorithm {
		var err error
		if h, err = u.sum(ctx, d.Algorithm()); err != nil {
			return 0, err
		}
	}
	if got := d.Algorithm().Sum(h); got != d {
		return 0, errors.Join(errs.New(errs.Invalid, "blob %s: the %d bytes of the upload have digest %s", d, u.offset, got), u.Cancel(ctx))
	}
	if size, err := u.s.Stat(ctx, d); err != nil && !errors.Is(err, errs.NotFound) {
		return 0, err
	} else if err != nil || size != u.offset {
		if err := u.publish(ctx, d); err != nil {
			return 0, err
		}
	}
	if err := u.Cancel(ctx); err != nil {
		_ = u.Close() // The blob is there. What cannot be removed now expires.
	}
	return u.offset, nil
}

// publish gives the bytes of the upload their name.
func (u *upload) publish(ctx context.Context, d content.Digest) error {
	key := u.s.key(d)
	switch {
	case len(u.state.Parts) == 0 && u.spool != nil:
		sum := d.Hex()
		if d.Algorithm() != content.SHA256 {
			var err error
			if sum, err = u.spool.sha256(); err != nil {
				return classify(u.what(), err)
			}
		}
		return u.s.put(ctx, key, u.spool.reader(), sum)
	case len(u.state.Parts) == 0:
		return u.lost(u.s.copy(ctx, u.state.Tail, key, u.offset))
	}
	if err := u.complete(ctx); err != nil {
		return err
	}
	return u.lost(u.s.copy(ctx, u.data(), key, u.offset))
}

// complete makes one object of the parts and what follows them.
func (u *upload) complete(ctx context.Context) error {
	if u.state.Complete {
		return nil
	}
	list := make([]minio.CompletePart, len(u.state.Parts), len(u.state.Parts)+1)
	for i, etag := range u.state.Parts {
		list[i] = minio.CompletePart{PartNumber: i + 1, ETag: etag}
	}
	switch {
	case u.spool == nil:
		try, cancel := context.WithTimeout(ctx, copyTimeout)
		p, err := u.s.client.CopyObjectPart(try, u.s.o.Bucket, u.state.Tail, u.s.o.Bucket, u.data(), u.state.Multipart, len(list)+1, 0, u.state.TailSize, nil)
		cancel()
		if err != nil {
			return u.lost(fail(ctx, u.what(), err))
		}
		list = append(list, p)
	case u.spool.size > 0:
		etag, err := u.putPart(ctx)
		if err != nil {
			return err
		}
		list = append(list, minio.CompletePart{PartNumber: len(list) + 1, ETag: etag})
	}
	try, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	_, err := u.s.client.CompleteMultipartUpload(try, u.s.o.Bucket, u.data(), u.state.Multipart, list, minio.PutObjectOptions{})
	err = fail(ctx, u.what(), err)
	if errors.Is(err, errs.NotFound) || err == nil { // a first attempt, whose answer was lost, may have completed it
		var size int64
		if size, err = u.s.stat(ctx, u.data()); err == nil && size != u.offset {
			err = errs.New(errs.DataLoss, "%s: has %d bytes at the S3 server, not %d", u.what(), size, u.offset)
		}
	}
	if err != nil {
		return u.lost(err)
	}
	u.state.Complete = true
	return u.save(ctx)
}

// sum reads the bytes again, for a digest of another algorithm than the upload was begun for.
func (u *upload) sum(ctx context.Context, a content.Algorithm) (hash.Hash, error) {
	h := a.New()
	switch {
	case len(u.state.Parts) > 0:
		if err := u.complete(ctx); err != nil {
			return nil, err
		}
		return h, u.s.read(ctx, u.data(), u.offset, h)
	case u.spool == nil:
		return h, u.s.read(ctx, u.state.Tail, u.offset, h)
	}
	_, err := io.Copy(h, u.spool.reader())
	return h, classify(u.what(), err)
}

// Cancel ends the upload.
func (u *upload) Cancel(ctx context.Context) error {
	if u.ended {
		return nil
	}
	// The state goes last: an upload that is not removed completely can be cancelled again.
	if u.state.Multipart != "" {
		err := u.s.abort(ctx, u.data(), u.state.Multipart)
		if u.state.Complete {
			err = u.s.remove(ctx, u.data())
		}
		if err != nil {
			return err
		}
	}
	if err := u.forget(ctx, u.state.Tail); err != nil {
		return err
	}
	if err := u.hold.Delete(ctx); err != nil {
		return err
	}
	u.ended = true
	if u.spool != nil {
		return u.spool.close()
	}
	return nil
}

const closeTime = time.Minute

// Close lets others resume the upload, at any replica. When its last bytes cannot be kept, it is resumed from what was kept before.
func (u *upload) Close() error {
	if u.ended {
		return nil
	}
	u.ended = true
	// The request may be over, but the bytes are to be kept.
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	old := u.state.Tail
	err := u.keepTail(ctx)
	if err == nil {
		var b []byte
		if b, err = u.encode(); err == nil {
			u.saved = b
		}
	}
	released := u.hold.Release(ctx, u.saved)
	if err == nil && released == nil && old != u.state.Tail {
		err = u.forget(ctx, old)
	}
	err = errors.Join(err, released)
	if u.spool != nil {
		err = errors.Join(err, u.spool.close())
	}
	return err
}

// keepTail writes the spool to the bucket.
func (u *upload) keepTail(ctx context.Context) error {
	if u.spool == nil || u.spool.size == u.state.TailSize || u.state.Complete {
		return nil
	}
	sum, err := u.spool.sha256()
	if err != nil {
		return classify(u.what(), err)
	}
	key := u.s.uploadKey(u.id, fmt.Sprintf("%d-%s", u.offset, rand.Text()))
	if err := u.s.put(ctx, key, u.spool.reader(), sum); err != nil {
		return err
	}
	u.state.Tail, u.state.TailSize = key, u.spool.size
	return nil
}

const expirePage = 100

// Expire cancels old uploads, and removes what replicas left that died.
func (s *Store) Expire(ctx context.Context, before time.Time) (n int, all error) {
	for {
		ids, err := s.o.Uploads.OldUploads(ctx, before, expirePage)
		if err != nil {
			return n, errors.Join(all, err)
		}
		progress := false
		for _, id := range ids {
			err := s.expire(ctx, id)
			if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Conflict) {
				continue // it is not old any more
			}
			if err == nil {
				n++
				progress = true
			}
			all = errors.Join(all, err)
		}
		if len(ids) < expirePage || !progress {
			return n, errors.Join(all, s.leftovers(ctx, before))
		}
	}
}

// expire cancels an upload. Of one whose state is damaged it removes the state; the rest is left over then.
func (s *Store) expire(ctx context.Context, id string) error {
	state, hold, err := s.o.Uploads.HoldUpload(ctx, id)
	if err != nil {
		return err
	}
	u := &upload{s: s, id: id, hold: hold, saved: state}
	if u.decode(state) != nil {
		return hold.Delete(ctx)
	}
	if err := u.Cancel(ctx); err != nil {
		return errors.Join(err, u.Close())
	}
	return nil
}

// leftovers removes objects and parts that belong to no upload any more.
func (s *Store) leftovers(ctx context.Context, before time.Time) (all error) {
	prefix := s.o.Prefix + "uploads/"
	unknown := func(key string) (bool, error) {
		id, _, _ := strings.Cut(strings.TrimPrefix(key, prefix), "/")
		if !blobs.IsID(id) {
			return false, nil // of someone else
		}
		exists, err := s.o.Uploads.UploadExists(ctx, id)
		return !exists, err
	}
	err := s.list(ctx, prefix, func(o minio.ObjectInfo) error {
		if !o.LastModified.Before(before) {
			return nil
		}
		gone, err := unknown(o.Key)
		if err == nil && gone {
			err = s.remove(ctx, o.Key)
		}
		all = errors.Join(all, err)
		return nil
	})
	all = errors.Join(all, err)
	for keyMarker, idMarker := "", ""; ; {
		r, err := s.client.ListMultipartUploads(ctx, s.o.Bucket, prefix, keyMarker, idMarker, "", 1000)
		if err != nil {
			return errors.Join(all, fail(ctx, "uploads", err))
		}
		for _, m := range r.Uploads {
			if !m.Initiated.Before(before) {
				continue
			}
			gone, err := unknown(m.Key)
			if err == nil && gone {
				err = s.abort(ctx, m.Key, m.UploadID)
			}
			all = errors.Join(all, err)
		}
		if !r.IsTruncated || r.NextKeyMarker == keyMarker && r.NextUploadIDMarker == idMarker {
			return all
		}
		keyMarker, idMarker = r.NextKeyMarker, r.NextUploadIDMarker
	}
}
