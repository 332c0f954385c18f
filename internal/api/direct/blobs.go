package direct

import (
	"context"
	"io"
	"os"

	"ply/internal/build"
	"ply/internal/build/cachetransfer"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/wire"
)

var _ build.CacheDirs = (*Session)(nil)

// CacheDir implements build.CacheDirs.
func (s *Session) CacheDir(_ context.Context, name string) (cachetransfer.Dir, error) {
	return &blobDir{s, name}, nil
}

// blobDir is a directory of the client with blobs, which it opens one by one.
type blobDir struct {
	s    *Session
	name string
}

// Open implements cachetransfer.Dir.
func (d *blobDir) Open(ctx context.Context, digest oci.Digest) (io.ReadCloser, error) {
	q, r, done, err := d.s.ask(ctx, wire.BuildWant{Kind: wire.WantBlob, Name: d.name, Digest: string(digest), Stream: !d.s.conn.CarriesFiles()})
	if err != nil {
		return nil, err
	}
	defer done()
	if r.file != nil {
		if st, err := r.file.Stat(); err != nil || !st.Mode().IsRegular() {
			closeFiles([]*os.File{r.file})
			return nil, errs.New(errs.Invalid, "the client sent something that is not a file")
		}
		return r.file, nil
	}
	return d.s.streamOf(ctx, q, r)
}

// Write implements cachetransfer.Dir.
func (d *blobDir) Write(ctx context.Context, desc oci.Descriptor, r io.Reader) error {
	o, err := d.s.output(ctx, wire.BuildWant{Kind: wire.WantPutBlob, Name: d.name, Digest: string(desc.Digest)})
	if err != nil || o == nil {
		return err
	}
	if _, err := io.Copy(o, r); err != nil {
		o.fail()
		return err
	}
	return o.Close()
}
