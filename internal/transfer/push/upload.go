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

// singleSize is up to which size a blob goes in the request that also ends its upload.
const singleSize = 1 << 20

// upload sends a blob, going on where a connection broke off. When form has no digest it gets digest and size; else what is
// read must have them: errs.DataLoss says that it had not, and then the registry was not told to keep it.
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
		if !remote.Temporary(err) || u.up == nil && remote.Unreachable(err) {
			u.giveUp(ctx)
			return err
		}
		if u.hashed > before {
			try = 0
		}
		try++
		if err := l.remote.Wait(ctx, err, try); err != nil {
			return err
		}
	}
}

// upload is one blob on its way, over any number of connections.
type upload struct {
	l      *layerPush
	src    source
	up     *remote.Upload
	hash   hash.Hash
	hashed int64 // bytes of the blob that hash has seen
	ended  bool  // hash has seen all of it
	srcErr error // of the last read
}

func (u *upload) giveUp(ctx context.Context) {
	if u.up != nil {
		u.up.Cancel(ctx)
	}
}

// attempt sends what the registry has not got yet and ends the upload.
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
	defer body.shut() // before r is closed and the hash is looked at: a transport may read on after its request has failed
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
	// A request of known length ends without the read that would say EOF.
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

func (u *upload) isSingle() bool { return u.src.size >= 0 && u.src.size <= singleSize }

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

// see hashes bytes that start at an offset, those that were not hashed before.
func (u *upload) see(p []byte, at int64) {
	if skip := u.hashed - at; skip > 0 {
		p = p[min(skip, int64(len(p))):]
	}
	u.hash.Write(p)
	u.hashed += int64(len(p))
}

// check compares what was read with the form, or completes the form.
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

// position finds where the upload stands, or starts a new one.
func (u *upload) position(ctx context.Context) (int64, error) {
	if u.up != nil {
		at, err := u.up.Offset(ctx)
		if err == nil && at <= u.hashed && !u.isSingle() {
			return at, nil
		}
		if err != nil && remote.Temporary(err) {
			return 0, err
		}
		u.up = nil // it is gone, or speaks of bytes that we never sent
	}
	if u.l.begun != nil {
		u.up, u.l.begun = u.l.begun, nil
		return 0, nil
	}
	var err error
	u.up, _, err = u.l.dst.StartUpload(ctx, "", oci.Reference{})
	return 0, err
}

// gate is a reader that can be shut while somebody else still reads.
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
