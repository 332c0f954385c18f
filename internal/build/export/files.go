package export

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Part is the file system of one platform.
type Part struct {
	Platform   oci.Platform
	Tree       *tree.Tree // nil = empty
	Predicates []Predicate
	Epoch      *time.Time // of its files; nil = they keep their times
}

// directory is Files of several parts.
type directory struct {
	parts []*mounted
	flat  bool // the parts share one directory
}

// mounted is a part at its place.
type mounted struct {
	Part
	prefix string // "" or a directory
	extra  []extra
	now    time.Time
}

// extra is a file that the image does not have.
type extra struct {
	name string
	data []byte
}

// Directory returns the files of the platforms: each in a directory of its own, named as linux_amd64, when there are several or Split says so. asIndex says that the
// result is one for several platforms, even when it has only one. now is the time of files that have no other.
func (o *Output) Directory(ctx context.Context, parts []Part, asIndex bool, now time.Time) (Files, error) {
	split := asIndex
	if o.Split != nil {
		split = *o.Split
	}
	d := &directory{flat: !split && len(parts) > 1}
	for _, p := range parts {
		if o.Epoch != nil {
			p.Epoch = o.Epoch
		}
		m := &mounted{Part: p, now: now}
		if split {
			m.prefix = platformDir(p.Platform)
		}
		if err := m.attest(ctx, o.Prefix, asIndex && !split); err != nil {
			return nil, err
		}
		d.parts = append(d.parts, m)
	}
	if split {
		slices.SortFunc(d.parts, func(a, b *mounted) int { return cmp.Compare(a.prefix, b.prefix) })
	}
	return d, nil
}

// platformDir returns the name of the directory of a platform.
func platformDir(p oci.Platform) string { return strings.ReplaceAll(p.String(), "/", "_") }

// attest adds the attestations as files. Their subjects are the files.
func (m *mounted) attest(ctx context.Context, prefix string, named bool) error {
	if len(m.Predicates) == 0 {
		return nil
	}
	subjects := []subject{}
	err := m.walkTree(ctx, func(e *tree.Entry) error {
		if !e.Info.IsRegular() {
			return nil
		}
		f, err := e.Open()
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, &interruptible{ctx: ctx, r: f})
		subjects = append(subjects, subject{e.Rel, digestSet(oci.DigestOfHash(h))})
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return err
	}
	for _, p := range m.Predicates {
		data, err := json.MarshalIndent(statement{statementType, p.Type, subjects, p.Data}, "", "  ")
		if err != nil {
			return errs.New(errs.Internal, "attestation: %w", err)
		}
		name := prefix + p.File
		if named {
			ext := path.Ext(name)
			name = strings.TrimSuffix(name, ext) + "." + platformDir(m.Platform) + ext
		}
		m.extra = append(m.extra, extra{name, data})
	}
	slices.SortFunc(m.extra, func(a, b extra) int { return cmp.Compare(a.name, b.name) })
	return nil
}

func (m *mounted) walkTree(ctx context.Context, visit func(*tree.Entry) error) error {
	if m.Tree == nil {
		return nil
	}
	return m.Tree.Walk("/", tree.WalkOptions{Context: ctx}, func(e *tree.Entry) error {
		if e.Rel == "" {
			return nil
		}
		return visit(e)
	})
}

// time returns the time that a file gets.
func (m *mounted) time(t time.Time) time.Time {
	if m.Epoch != nil {
		return *m.Epoch
	}
	return t
}

// walk visits the part in order, its attestations among the files.
func (m *mounted) walk(ctx context.Context, visit func(name string, info tree.Info) error) error {
	if m.prefix != "" {
		if err := visit(m.prefix, tree.Info{Mode: unix.S_IFDIR | 0o755, Time: m.time(m.now)}); err != nil {
			return err
		}
	}
	left := m.extra
	before := func(name string) error {
		for len(left) > 0 && (name == "" || left[0].name < name) {
			if err := visit(path.Join(m.prefix, left[0].name), tree.Info{Mode: unix.S_IFREG | 0o600, Size: int64(len(left[0].data)), Time: m.time(m.now)}); err != nil {
				return err
			}
			left = left[1:]
		}
		return nil
	}
	err := m.walkTree(ctx, func(e *tree.Entry) error {
		top, _, _ := strings.Cut(e.Rel, "/")
		if err := before(top); err != nil {
			return err
		}
		if len(left) > 0 && left[0].name == e.Rel {
			return errs.New(errs.Conflict, "cannot overwrite %s of the image with an attestation", e.Rel).WithHint("Give the output an attestation-prefix.")
		}
		e.Info.Time = m.time(e.Info.Time)
		return visit(path.Join(m.prefix, e.Rel), e.Info)
	})
	if err != nil {
		return err
	}
	return before("")
}

// Walk implements Files.
func (d *directory) Walk(ctx context.Context, visit func(name string, info tree.Info) error) error {
	if d.flat {
		return d.walkFlat(ctx, visit)
	}
	for _, m := range d.parts {
		if err := m.walk(ctx, visit); err != nil {
			return err
		}
	}
	return nil
}

// maxFlat bounds the files of several platforms in one directory. Their names are held in memory to be sorted.
const maxFlat = 1 << 20

func (d *directory) walkFlat(ctx context.Context, visit func(name string, info tree.Info) error) error {
	type found struct {
		tree.Info
		from *mounted
	}
	all := map[string]found{}
	for _, m := range d.parts {
		err := m.walk(ctx, func(name string, info tree.Info) error {
			have, ok := all[name]
			switch {
			case ok && !(have.IsDir() && info.IsDir()):
				return errs.New(errs.Conflict, "cannot overwrite %s from %s with %s when split option is disabled", name, have.from.Platform, m.Platform)
			case ok:
				return nil
			case len(all) == maxFlat:
				return errs.New(errs.Exhausted, "more than %d files of several platforms in one directory", maxFlat).WithHint("Use platform-split=true.")
			}
			all[name] = found{info, m}
			return nil
		})
		if err != nil {
			return err
		}
	}
	// A slash sorts before everything, so that a directory comes right before its content.
	names := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return cmp.Compare(strings.ReplaceAll(a, "/", "\x00"), strings.ReplaceAll(b, "/", "\x00"))
	})
	for _, n := range names {
		if err := visit(n, all[n].Info); err != nil {
			return err
		}
	}
	return nil
}

// Open implements Files.
func (d *directory) Open(name string) (io.ReadCloser, error) {
	err := error(&os.PathError{Op: "open", Path: name, Err: os.ErrNotExist})
	for _, m := range d.parts {
		rel := name
		if m.prefix != "" {
			var ok bool
			if rel, ok = strings.CutPrefix(name, m.prefix+"/"); !ok {
				continue
			}
		}
		for _, x := range m.extra {
			if x.name == rel {
				return io.NopCloser(bytes.NewReader(x.data)), nil
			}
		}
		if m.Tree == nil {
			continue
		}
		f, openErr := openIn(m.Tree, rel)
		if openErr == nil || !errors.Is(openErr, os.ErrNotExist) {
			return f, openErr
		}
	}
	return nil, err
}

// openIn opens a regular file of a tree. Errors: os.ErrNotExist also for anything else.
func openIn(t *tree.Tree, name string) (io.ReadCloser, error) {
	var f *os.File
	err := t.Walk(name, tree.WalkOptions{Depth: 1}, func(e *tree.Entry) (err error) {
		if e.Rel != "" || !e.Info.IsRegular() {
			return &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
		}
		f, err = e.Open()
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// WriteTar writes files as a tar. Sockets are left out. A later name of a file is a hard link to the first.
func WriteTar(ctx context.Context, files Files, w io.Writer) error {
	tw := tar.NewWriter(w)
	e := entries{tw: tw, links: map[any]string{}, buf: make([]byte, 256<<10)}
	err := files.Walk(ctx, func(name string, info tree.Info) error {
		return e.write(ctx, name, info, func() (io.ReadCloser, error) { return files.Open(name) })
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// entries writes files into a tar.
type entries struct {
	tw    *tar.Writer
	links map[any]string // the first name of a file with several
	buf   []byte
}

func (e *entries) write(ctx context.Context, name string, info tree.Info, open func() (io.ReadCloser, error)) (err error) {
	h := &tar.Header{
		Name: name, Mode: int64(info.Mode & 0o7777), Uid: int(info.UID), Gid: int(info.GID), ModTime: info.Time, Format: tar.FormatPAX,
	}
	for _, k := range slices.Sorted(maps.Keys(info.Xattrs)) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = info.Xattrs[k]
	}
	if id, ok := info.HardLink(); ok {
		if first := e.links[id]; first != "" {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return e.tw.WriteHeader(h)
		}
		e.links[id] = name
	}
	switch info.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, info.Link, 0o777
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, info.Size
	default:
		return nil // a socket is of use only to the process that has it open
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(info.Rdev)), int64(unix.Minor(info.Rdev))
	}
	if err := e.tw.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := open()
	if err != nil {
		return err
	}
	defer errs.Close(&err, f)
	n, err := io.CopyBuffer(struct{ io.Writer }{e.tw}, &interruptible{ctx: ctx, r: io.LimitReader(f, info.Size)}, e.buf)
	if err == nil && n != info.Size {
		err = errs.New(errs.DataLoss, "%s became shorter while it was read", name)
	}
	return err
}
