package server

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/blobs/directory"
	"ply/internal/registry/blobs/s3"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/bolt"
)

// The control socket is below the root, which only its owner can enter. By it commands get a copy of the file of metadata, which this
// process keeps locked, and change it.
const (
	controlSocket = "control"
	snapshotPath  = "/metadata"
	maxSocketPath = 107 // bytes, of Linux
)

// openControl serves the control socket of a registry whose metadata is a file.
func (s *Server) openControl(meta metadata.Store) error {
	file, ok := meta.(*bolt.Store)
	if !ok {
		return nil
	}
	path := filepath.Join(s.o.Root, controlSocket)
	if len(path) > maxSocketPath {
		s.o.Log.Warn("the root has too long a name for a socket: commands cannot reach it while it serves", "path", path)
		return nil
	}
	// Whoever holds the lock of the database is the only one that serves this root.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var c net.ListenConfig
	l, err := c.Listen(context.Background(), "unix", path)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+snapshotPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", snapshotDone)
		if err := bolt.Snapshot(file, w); err != nil {
			s.o.Log.Error("copy of the metadata", "err", err)
			return
		}
		w.Header().Set(snapshotDone, "yes")
	})
	mux.HandleFunc("POST "+retentionPath, s.controlRetention)
	mux.HandleFunc("POST "+documentsPath, s.controlDocuments)
	s.control = s.newHTTP(mux)
	s.work.Go(func() { _ = s.control.Serve(l) }) // ends when it is closed
	return nil
}

// snapshotDone is a trailer: a copy without it is not complete.
const snapshotDone = "Snapshot-Done"

// Snapshot writes a copy of the metadata of a root that another process serves into a file. The error's class is errs.Unavailable when
// none does.
func Snapshot(ctx context.Context, root string, to *os.File) (err error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", filepath.Join(root, controlSocket))
		},
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://registry"+snapshotPath, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return errs.New(errs.Unavailable, "%s: the registry does not answer at its control socket: %w", root, err)
	}
	defer errs.Close(&err, resp.Body)
	if _, err := io.Copy(to, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || resp.Trailer.Get(snapshotDone) == "" {
		return errs.New(errs.Unavailable, "%s: the copy of the metadata is not complete", root)
	}
	return to.Sync()
}

// Stores are the stores of a registry, opened by a command.
type Stores struct {
	Metadata metadata.Store
	Blobs    blobs.Store
	// Served reports that another process serves the registry, and that this is a copy of its metadata as it was, for reading only.
	Served bool

	temporary string // directory; "" = none
}

// Close closes the stores.
func (s *Stores) Close() error {
	err := errors.Join(s.Blobs.Close(), s.Metadata.Close())
	if s.temporary != "" {
		err = errors.Join(err, os.RemoveAll(s.temporary))
	}
	return err
}

// OpenForReading opens the stores that the options name. When another process has locked the metadata, it opens a copy of them.
func OpenForReading(ctx context.Context, o Options) (_ *Stores, err error) {
	if o.Database == "" {
		if _, err := os.Stat(filepath.Join(o.Root, "metadata.db")); err != nil {
			return nil, errs.New(errs.NotFound, "%s is not the root of a registry: %w", o.Root, err)
		}
	}
	meta, bytes, err := OpenStores(ctx, o)
	if err == nil {
		return &Stores{Metadata: meta, Blobs: bytes}, nil
	}
	if o.Database != "" || !errors.Is(err, errs.Unavailable) {
		return nil, err
	}
	s := &Stores{Served: true}
	if s.temporary, err = os.MkdirTemp("", "ply-registry-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(s.temporary))
		}
	}()
	f, err := os.OpenFile(filepath.Join(s.temporary, "metadata.db"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(Snapshot(ctx, o.Root, f), f.Close()); err != nil {
		return nil, err
	}
	file, err := bolt.Open(f.Name())
	if err != nil {
		return nil, err
	}
	s.Metadata = file
	if o.S3 == nil {
		s.Blobs = directory.OpenServed(durable.OS, o.Root)
		return s, nil
	}
	remote := *o.S3
	remote.Uploads = file
	if s.Blobs, err = s3.Open(ctx, remote); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return s, nil
}
