package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/compress"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/safepath"
	"ply/internal/store/blob"
	"ply/internal/store/layer"
	"ply/internal/transfer"
)

// smallFile is the size up to which a file is kept in memory. It may still be a layer.
const smallFile = 32 << 10

// fileCost is what a file or link takes in memory besides its name and content, in bytes.
const fileCost = 256

// maxLinks bounds how many links find follows.
const maxLinks = 10

// maxLayers bounds the large files of an archive. Each of them may need an open file until the end of the archive.
const maxLayers = 2048

// maxWriters bounds the writers of the driver that wait until the layers below are committed, because a writer needs megabytes of
// memory. Further layers are written to a file first.
const maxWriters = 4

// file is one regular file of an archive that was read. It is in memory, in a writer of the driver, or in a file on disk.
type file struct {
	name   string
	digest oci.Digest // of the bytes in the archive
	size   int64      // of the bytes in the archive
	data   []byte     // the content, when it is in memory

	writer layer.Writer   // has the uncompressed tar
	spill  durable.File   // has the uncompressed tar when there is no writer; the file has no name on disk
	diffID oci.DiffID     // of the uncompressed tar; "" for a file in memory whose diffID was not needed yet
	codec  compress.Codec // how the layer is compressed in the archive
	blob   *blob.Writer   // has the compressed form; nil when that is not kept
	bad    error          // why the file is not a valid layer; nil = none known
}

// abort discards what was not committed.
func (f *file) abort() {
	if f.writer != nil {
		_ = f.writer.Abort() // a temporary file that stays is removed by the next start
		f.writer = nil
	}
	if f.spill != nil {
		_ = f.spill.Close()
		f.spill = nil
	}
	if f.blob != nil {
		_ = f.blob.Abort()
		f.blob = nil
	}
}

// intake reads an archive once. The entries may be in any order.
type intake struct {
	a       *Archive
	files   map[string]*file
	links   map[string]string
	entries int
	memory  int64
	layers  int
	waiting []*file // files with a writer that is not committed; some may have lost it since
	guard   guard
	show    transfer.Sink                                             // gets the progress of layers
	inner   func(io.Reader) (*compress.Reader, compress.Codec, error) // decompresses a layer
	buf     []byte
	early   *early
}

func (a *Archive) newIntake(show transfer.Sink) *intake {
	return &intake{
		a: a, files: map[string]*file{}, links: map[string]string{}, show: show,
		guard: newGuard(a.st.Root, a.opts.Limits.Reserve), buf: make([]byte, 256<<10),
	}
}

// abort discards every layer that was not committed.
func (in *intake) abort() {
	for _, f := range in.files {
		f.abort()
	}
}

// read reads the whole archive, which may be compressed.
func (in *intake) read(ctx context.Context, r io.Reader) error {
	zr, _, err := compress.NewReader(ctx, &interruptible{ctx, r})
	if err != nil {
		return errs.New(errs.Invalid, "archive: %w", err)
	}
	defer zr.Close()
	in.inner = func(r io.Reader) (*compress.Reader, compress.Codec, error) { return zr.Inner(ctx, r) }
	tr := tar.NewReader(zr)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return outerError(ctx, err)
		}
		if in.entries++; in.entries > in.a.opts.Limits.Entries {
			return errs.New(errs.Invalid, "archive: has more than %d entries", in.a.opts.Limits.Entries)
		}
		if err := in.entry(ctx, h, tr); err != nil {
			return err
		}
	}
	// Read padding after the end of the archive, so that the client can send all of its stream, but not without a limit.
	_, _ = io.CopyN(io.Discard, zr, 16<<20)
	if in.entries == 0 {
		return errs.New(errs.Invalid, "archive: is empty")
	}
	return nil
}

func outerError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.New(errs.Invalid, "archive: ends in the middle").WithHint("It was cut off: copy or save it again.")
	}
	return errs.New(errs.Invalid, "archive: %w", err)
}

func (in *intake) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	name, err := safepath.Clean(h.Name)
	if err != nil {
		return errs.New(errs.Invalid, "archive: %w", err)
	}
	name = strings.Clone(name) // it is kept, and may be a part of a PAX header of 1 MiB
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg:
		return in.regular(ctx, name, h.Size, r)
	case tar.TypeSymlink:
		target := path.Join(path.Dir(name), h.Linkname)
		if path.IsAbs(h.Linkname) || target == ".." || strings.HasPrefix(target, "../") || len(h.Linkname) > 4096 {
			return errs.New(errs.Invalid, "archive: link %q leaves the archive: it points to %q", clip(name), clip(h.Linkname))
		}
		return in.link(name, strings.Clone(target))
	case tar.TypeLink:
		target, err := safepath.Clean(h.Linkname)
		if err != nil {
			return errs.New(errs.Invalid, "archive: link %q leaves the archive: %w", clip(name), err)
		}
		return in.link(name, strings.Clone(target))
	}
	return errs.New(errs.Invalid, "archive: entry %q is neither file, directory nor link (type %q)", clip(name), h.Typeflag)
}

func (in *intake) link(name, target string) error {
	if err := in.fresh(name); err != nil {
		return err
	}
	if isControl(name) {
		return errs.New(errs.Invalid, "archive: %s is a link", name)
	}
	if in.memory += int64(len(name)+len(target)) + fileCost; in.memory > in.a.opts.Limits.Metadata {
		return in.tooMuch()
	}
	in.links[name] = target
	return nil
}

// fresh refuses a second entry with the same name: readers of archives differ in which of the two they take.
func (in *intake) fresh(name string) error {
	_, link := in.links[name]
	if in.files[name] != nil || link {
		return errs.New(errs.Invalid, "archive: holds %q twice", clip(name))
	}
	return nil
}

func (in *intake) tooMuch() error {
	return errs.New(errs.Invalid, "archive: manifests, configs and small files exceed %d bytes", in.a.opts.Limits.Metadata)
}

// isControl reports whether a file is one of those that list the others.
func isControl(name string) bool {
	return name == fileManifest || name == fileRepositories || name == fileIndex || name == fileLayout
}

func (in *intake) regular(ctx context.Context, name string, size int64, r io.Reader) error {
	if err := in.fresh(name); err != nil {
		return err
	}
	head := make([]byte, min(size, 512))
	if _, err := io.ReadFull(r, head); err != nil {
		return outerError(ctx, err)
	}
	r = io.MultiReader(bytes.NewReader(head), r)
	f := &file{name: name, size: size}
	in.files[name] = f
	json := isJSON(head)
	if isControl(name) && (!json || size > oci.MaxConfig) {
		return errs.New(errs.Invalid, "archive: %s is not JSON of at most %d bytes", name, oci.MaxConfig)
	}
	if json && size <= oci.MaxConfig || size <= smallFile && in.memory+size <= in.a.opts.Limits.Metadata {
		if in.memory += size + int64(len(name)) + fileCost; in.memory > in.a.opts.Limits.Metadata {
			return in.tooMuch()
		}
		data, err := io.ReadAll(r)
		if err == nil && int64(len(data)) != size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return outerError(ctx, err)
		}
		f.data, f.digest = data, oci.DigestOf(data)
		return nil
	}
	if in.layers++; in.layers > maxLayers {
		return errs.New(errs.Invalid, "archive: has more than %d layers", maxLayers)
	}
	return in.layer(ctx, f, head, r)
}

// isJSON reports whether a file begins as a JSON object or array and is not a tar whose first name begins with a bracket.
func isJSON(head []byte) bool {
	if len(head) >= 262 && string(head[257:262]) == "ustar" {
		return false
	}
	head = bytes.TrimLeft(head, " \t\r\n")
	return len(head) > 0 && (head[0] == '{' || head[0] == '[')
}

// layer reads a file that may be a layer into its target and hashes it. If the file is not a valid layer, layer sets f.bad, which
// matters only if an image has the file as a layer. It returns an error when the load cannot go on.
func (in *intake) layer(ctx context.Context, f *file, head []byte, r io.Reader) error {
	outer := &faultReader{r: &interruptible{ctx, r}}
	raw := sha256.New()
	hashed := io.TeeReader(&progressReader{r: outer, show: in.show, state: transfer.LayerLoading, id: shortName(f.name), total: f.size}, raw)
	src := hashed
	to, err := in.target(ctx, f)
	if err != nil {
		return err
	}
	if compress.Sniff(head) != compress.None && !in.a.st.Retention.None() {
		if f.blob, err = in.a.st.Blobs.Create(); err != nil {
			return err
		}
		src = io.TeeReader(hashed, in.guard.writer(f.blob))
	}
	fatal := func(err error) error {
		if outer.err != nil || ctx.Err() != nil {
			return outerError(ctx, outer.err)
		}
		return fmt.Errorf("layer %s: %w", clip(f.name), err)
	}
	if err := in.unpack(f, src, to); err != nil {
		if outer.err != nil || !errors.Is(err, errs.Invalid) {
			return fatal(err)
		}
		f.abort()
		f.bad, src = err, hashed
	}
	if f.writer != nil {
		f.writer.End() // it may wait long for the layers below
	}
	// Bytes that the decompressor or the driver did not read belong to the digest too.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, src, in.buf); err != nil {
		return fatal(err)
	}
	f.digest = oci.DigestOfHash(raw)
	if f.codec == compress.None && f.bad == nil {
		f.diffID = oci.DiffID(f.digest)
	}
	return in.early.commit(ctx, f)
}

// target returns where to write a layer: a writer of the driver when the layers below are there, or while few writers wait; else a
// file.
func (in *intake) target(ctx context.Context, f *file) (w io.Writer, err error) {
	if in.early.ready(f.name) || in.writers() < maxWriters {
		f.writer, err = in.a.st.Layers.Create(ctx)
		in.waiting = append(in.waiting, f)
		return f.writer, err
	}
	fsys := in.a.st.FS
	if f.spill, err = fsys.OpenFile(durable.TempName(in.a.st.Root), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	return f.spill, fsys.Remove(f.spill.Name())
}

// writers returns how many writers of the driver wait.
func (in *intake) writers() int {
	in.waiting = slices.DeleteFunc(in.waiting, func(f *file) bool { return f.writer == nil })
	return len(in.waiting)
}

// unpack decompresses a layer into its target.
func (in *intake) unpack(f *file, src io.Reader, w io.Writer) error {
	zr, codec, err := in.inner(src)
	if err != nil {
		return err
	}
	defer zr.Close()
	f.codec = codec
	to := in.guard.writer(w)
	var diff hash.Hash
	if codec != compress.None {
		diff = sha256.New()
		to = io.MultiWriter(to, diff)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{to}, io.LimitReader(zr, in.a.opts.Limits.Layer+1), in.buf)
	switch {
	case err != nil:
		return err
	case n > in.a.opts.Limits.Layer:
		return errs.New(errs.Invalid, "unpacks to more than %d bytes", in.a.opts.Limits.Layer)
	case diff != nil:
		f.diffID = oci.DiffID(oci.DigestOfHash(diff))
	}
	return nil
}

// shortName returns the name of a layer in the progress, where its digest is not known yet: 12 hex digits of its path, or 12
// characters of its base name.
func shortName(name string) string {
	for part := range strings.SplitSeq(name, "/") {
		base, _, _ := strings.Cut(part, ".")
		if oci.IsHex64(base) {
			return base[:12]
		}
	}
	base := path.Base(name)
	return base[:min(len(base), 12)]
}

// find returns a file by its path in the archive. It follows links. It returns nil when there is no such file.
func (in *intake) find(name string) (*file, error) {
	name, err := safepath.Clean(name)
	if err != nil {
		return nil, errs.New(errs.Invalid, "archive: %w", err)
	}
	for range maxLinks {
		if f := in.files[name]; f != nil {
			return f, nil
		}
		target, ok := in.links[name]
		if !ok {
			return nil, nil //nolint:nilnil // the file is absent, which is no error
		}
		name = target
	}
	return nil, errs.New(errs.Invalid, "archive: too many links from %q", clip(name))
}

// document is find for a file that must exist and be in memory.
func (in *intake) document(name string) (*file, error) {
	f, err := in.find(name)
	if err == nil && (f == nil || f.data == nil) {
		err = errs.New(errs.Invalid, "archive: has no %q", clip(name))
	}
	return f, err
}

// blobFile returns a blob of an OCI layout. errs.Invalid when its content has another digest. nil when the archive does not have
// it.
func (in *intake) blobFile(d oci.Digest) (*file, error) {
	f, err := in.find(blobDir + d.Hex())
	if err != nil || f == nil {
		return nil, err
	}
	if f.digest != d {
		return nil, errs.New(errs.Invalid, "archive: blob %s has other content, %s", d, f.digest)
	}
	return f, nil
}

// faultReader keeps the error with which reading the archive failed, to distinguish it from errors of the content.
type faultReader struct {
	r   io.Reader
	err error
}

func (f *faultReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// progressReader reports how much was read of a layer.
type progressReader struct {
	r              io.Reader
	show           transfer.Sink
	state          transfer.State
	id             string
	current, total int64
	shown          int64
}

// progressStep is the number of bytes between two reports.
const progressStep = 1 << 20

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.current += int64(n)
	if n > 0 && (p.current-p.shown >= progressStep || p.current == p.total) {
		p.shown = p.current
		p.show(transfer.Progress{State: p.state, Layer: p.id, Current: p.current, Total: p.total})
	}
	return n, err
}

// guard makes writes fail before the file system is full, because other programs need space too.
type guard struct {
	dir     string
	reserve int64
	written int64
}

// guardStep is the number of bytes between two looks at the free space.
const guardStep = 32 << 20

func newGuard(dir string, reserve int64) guard {
	var s unix.Statfs_t
	if reserve == 0 && unix.Statfs(dir, &s) == nil {
		total, free := int64(s.Blocks)*s.Bsize, int64(s.Bavail)*s.Bsize
		reserve = min(max(1<<30, total/20), free/2)
	}
	return guard{dir: dir, reserve: reserve}
}

func (g *guard) writer(w io.Writer) io.Writer { return &guardedWriter{g, w} }

type guardedWriter struct {
	g *guard
	w io.Writer
}

func (w *guardedWriter) Write(p []byte) (int, error) {
	w.g.written += int64(len(p))
	if w.g.written >= guardStep {
		w.g.written = 0
		var s unix.Statfs_t
		if err := unix.Statfs(w.g.dir, &s); err == nil && int64(s.Bavail)*s.Bsize < w.g.reserve {
			return 0, errs.New(errs.Exhausted, "data root %s: less than %d bytes free", w.g.dir, w.g.reserve).
				WithHint("Free some space, for example with `ply system prune`.")
		}
	}
	return w.w.Write(p)
}
