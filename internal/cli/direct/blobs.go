package direct

import (
	"io"
	"net"
	"os"
	"path/filepath"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/wire"
)

// blob opens a blob of a directory, or takes one into it.
func (b *running) blob(w *wire.BuildWant, a *wire.BuildAnswer) error {
	dir, ok := b.res.Blobs[w.Name]
	d, err := oci.ParseDigest(w.Digest)
	if err != nil {
		return err
	}
	if !ok {
		return errs.New(errs.NotFound, "no directory of blobs has the name %s", w.Name)
	}
	name := filepath.Join(dir, "blobs", "sha256", d.Hex())
	if w.Kind == wire.WantPutBlob {
		if _, err := os.Stat(name); err == nil {
			a.Has = true
			return nil
		}
		return b.output(w, a, ToFile(name))
	}
	f, err := os.Open(name)
	if os.IsNotExist(err) {
		return errs.New(errs.NotFound, "%s has no blob %s", dir, d)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := b.res.check(f, false); err != nil {
		return err
	}
	if w.Stream || !b.conn.CarriesFiles() {
		return b.stream(a, func(conn net.Conn) error { _, err := io.Copy(conn, f); return err })
	}
	err = b.conn.Send(*a, f)
	a.ID = 0
	return err
}
