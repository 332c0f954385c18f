package push

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"sync"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
)

// singleSize is the largest blob, in bytes, that is sent in the request that ends its upload.
const singleSize = 1 << 20

// upload sends a blob. After a broken connection it continues where the registry's copy ends. If form has no digest, upload sets
// its digest and size. Else the bytes must have that digest and size: if they do not, upload returns errs.DataLoss and does not
// complete the upload, so that the registry discards the bytes.
func (l *layerPush) upload(ctx context.Context, src source, form *meta.LayerBlob) error {
	u := &upload{l: l, src: src, hash: sha256.New()}
	l.say(transfer.LayerPushing, 0, src.total)
	for try := 1; ; {
		before := u.hashed
		err := u.attempt(ctx, form)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if u.srcErr != nil {
			err = u.srcErr
		}
		if !remote.Temporary(err) || u.up == nil && remote.Unreachable(err) && !l.answered.Load() {
			u.giveUp(ctx)
			return err
		}
		if u.hashed > before {
			try = 0
		}
		try++
		if err := l.remote.Outlast(ctx, err, try, func(seconds int) { l.say(transfer.Retrying, int64(seconds), 0) }); err != nil {
			return err
		}
	}
}

// upload is the state of sending one blob, over any number of connections.
type upload struct {
	l      *layerPush
	src    source
	up     *remote.Upload // nil before the first attempt and after the registry has forgotten the upload
	hash   hash.Hash
	hashed int64 // the number of bytes, from the start of the blob, that were hashed
	ended  bool  // all bytes were hashed
	srcErr error // error of src in this attempt
}

// giveUp tells the registry to forget the upload.
func (u *upload) giveUp(ctx context.Context) {
	if u.up != nil {
		u.up.Cancel(ctx)
	}
}

// attempt sends the bytes that the registry does not have yet and completes the upload.
func (u *upload) attempt(ctx context.Context, form *meta.LayerBlob) error {
	u.srcErr = nil
	at, err := u.position(ctx)
	if err != nil {
		return err
	}
	r, err := u.src.open(ctx, at)
	if err != nil {
		u.srcErr = err
		return err
	}
	defer r.Close()
	body := &gate{}
	defer body.shut() // a transport may read on after its request has failed, but not after r is closed
	body.r = readFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		u.see(p[:n], at)
		at += int64(n)
		if errors.Is(err, io.EOF) {
			u.ended = true
		} else if err != nil {
			u.srcErr = err
		}
		u.l.count(at, u.src.total)
		return n, err
	})
	if u.isSingle() {
		return u.single(ctx, body, form)
	}
	length := int64(-1)
	if u.src.size >= 0 {
		length = u.src.size - at
	}
	if length != 0 {
		err := u.up.Patch(ctx, body, length)
		body.shut()
		if err != nil {
			return err
		}
	}
	// When the length is known, the transport does not read until EOF.
	u.ended = u.ended || u.hashed == u.src.size
	if !u.ended || u.srcErr != nil {
		return errs.New(errs.Unavailable, "upload ended early: %w", errors.Join(u.srcErr, io.ErrUnexpectedEOF))
	}
	d, err := u.check(form)
	if err != nil {
		return err
	}
	return u.up.Commit(ctx, d, nil)
}

// isSingle reports whether the blob is sent in one request.
func (u *upload) isSingle() bool { return u.src.size >= 0 && u.src.size <= singleSize }

// single sends the blob in the request that completes the upload.
func (u *upload) single(ctx context.Context, body io.Reader, form *meta.LayerBlob) error {
	data, err := io.ReadAll(io.LimitReader(body, singleSize+1))
	if err != nil {
		return err
	}
	d, err := u.check(form)
	if err != nil {
		return err
	}
	return u.up.Commit(ctx, d, data)
}

// see hashes the bytes of p, which start at an offset of the blob, as far as they were not hashed before.
func (u *upload) see(p []byte, at int64) {
	if skip := u.hashed - at; skip > 0 {
		p = p[min(skip, int64(len(p))):]
	}
	u.hash.Write(p)
	u.hashed += int64(len(p))
}

// check compares the bytes that were read with the form. If the form has no digest, check sets its digest and size.
func (u *upload) check(form *meta.LayerBlob) (oci.Digest, error) {
	d := oci.DigestOfHash(u.hash)
	if form.Digest == "" {
		form.Digest, form.Size = d, u.hashed
	}
	if form.Digest != d || form.Size != u.hashed {
		u.srcErr = errs.New(errs.DataLoss, "blob %s: content has digest %s", form.Digest, d)
		return "", u.srcErr
	}
	return d, nil
}

// position returns how many bytes the registry has of the upload. It starts an upload when there is none that can be continued.
func (u *upload) position(ctx context.Context) (int64, error) {
	if u.up != nil {
		at, err := u.up.Offset(ctx)
		if err == nil && at <= u.hashed && !u.isSingle() {
			return at, nil
		}
		if err != nil && remote.Temporary(err) {
			return 0, err
		}
		u.up = nil // the registry has forgotten it, or claims to have more bytes than were sent
	}
	if u.l.begun != nil {
		u.up, u.l.begun = u.l.begun, nil
		return 0, nil
	}
	var err error
	u.up, _, err = u.l.dst.StartUpload(ctx, "", oci.Reference{})
	return 0, err
}

// gate is a reader that can be shut while another goroutine reads: Read fails after shut has returned.
type gate struct {
	mu     sync.Mutex
	r      io.Reader
	closed bool
}

func (g *gate) Read(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return 0, io.ErrClosedPipe
	}
	return g.r.Read(p)
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
