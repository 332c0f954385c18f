package image

import (
	"bufio"
	"encoding/binary"
	"io"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// Device is a file with content. Its position in the list, from 1, is its number.
type Device struct {
	Tag  string // at most 63 bytes; stored in the image, see Devices
	Size int64
}

const (
	magic            = 0xE0F5E1E2
	featureChunked   = 0x4
	featureDevices   = 0x8
	layoutPlain      = 0 << 1
	layoutInline     = 2 << 1
	layoutChunked    = 4 << 1
	formatExtended   = 1
	chunkIndexes     = 0x20
	maxTag           = 63
	maxDevices       = 16
	maxDeviceBlocks  = 1<<32 - 1
	superSlotsOffset = (superOffset + superSize) / slotSize
)

// Write writes the image of t and returns its length. The bytes depend only on the entries, the devices and the uuid. The
// tree must not be used afterwards.
func (t *Tree) Write(w io.Writer, uuid [16]byte, devices []Device) (size int64, err error) {
	if len(devices) > maxDevices {
		return 0, errs.New(errs.Internal, "index with %d devices", len(devices))
	}
	l, err := t.plan(len(devices))
	if err != nil {
		return 0, err
	}
	s := &stream{w: bufio.NewWriterSize(w, 256<<10)}
	if err := l.super(s, uuid, devices); err != nil {
		return 0, err
	}
	for _, n := range l.order {
		t.space.Visit(int(n))
		in := t.inode(t.node(n).inode)
		if int(in.device) > len(devices) {
			return 0, errs.New(errs.Internal, "content on device %d of %d", in.device, len(devices))
		}
		s.padTo(in.pos)
		l.inode(s, n, in)
	}
	s.padTo(l.end)
	for _, n := range l.data {
		t.space.Visit(int(n))
		in := t.inode(t.node(n).inode)
		s.padTo(int64(in.block) * BlockSize)
		l.content(s, n, in)
	}
	s.padTo(l.blocks * BlockSize)
	if s.err == nil {
		s.err = s.w.Flush()
	}
	return s.pos, s.err
}

var le = binary.LittleEndian

func (l *layout) super(s *stream, uuid [16]byte, devices []Device) error {
	s.padTo(superOffset)
	var b [superSize]byte
	le.PutUint32(b[0:], magic)
	b[12] = 9 // log2 of the block size
	le.PutUint16(b[14:], uint16(l.t.inode(l.t.node(root).inode).nid()))
	le.PutUint64(b[16:], uint64(len(l.order)))
	le.PutUint32(b[36:], uint32(l.blocks))
	copy(b[48:64], uuid[:])
	le.PutUint32(b[80:], featureChunked)
	if len(devices) > 0 {
		le.PutUint32(b[80:], featureChunked|featureDevices)
		le.PutUint16(b[86:], uint16(len(devices)))
		le.PutUint16(b[88:], superSlotsOffset)
	}
	s.write(b[:])
	for _, d := range devices {
		var b [slotSize]byte
		blocks := (d.Size + BlockSize - 1) / BlockSize
		if len(d.Tag) > maxTag || blocks > maxDeviceBlocks {
			return errs.New(errs.Internal, "device %q of %d blocks", d.Tag, blocks)
		}
		copy(b[:], d.Tag)
		le.PutUint32(b[64:], uint32(blocks))
		s.write(b[:])
	}
	return nil
}

func (l *layout) inode(s *stream, n nodeID, in *inode) {
	xattrs := l.xattrsOf(in)
	head := inodeSize + l.xattrSize(in)
	tail, inline := l.tail(in, head)
	var b [inodeSize]byte
	form := uint16(formatExtended | layoutPlain)
	switch {
	case in.chunked():
		form = formatExtended | layoutChunked
		le.PutUint32(b[16:], uint32(chunkIndexes|(in.chunkBits()-9)))
	case inline:
		form = formatExtended | layoutInline
		le.PutUint32(b[16:], ^uint32(0))
	case in.mode&unix.S_IFMT == unix.S_IFCHR, in.mode&unix.S_IFMT == unix.S_IFBLK:
		le.PutUint32(b[16:], encodeDev(in.rdev))
	default:
		le.PutUint32(b[16:], in.block)
	}
	le.PutUint16(b[0:], form)
	if len(xattrs) > 0 {
		le.PutUint16(b[2:], uint16((head-inodeSize-12)/4+1))
	}
	le.PutUint16(b[4:], uint16(in.mode))
	le.PutUint64(b[8:], uint64(in.size))
	le.PutUint32(b[20:], uint32(l.t.node(n).inode))
	le.PutUint32(b[24:], in.uid)
	le.PutUint32(b[28:], in.gid)
	le.PutUint64(b[32:], uint64(in.mtime))
	le.PutUint32(b[40:], in.nsec)
	le.PutUint32(b[44:], in.nlink)
	s.write(b[:])
	s.xattrs(xattrs)
	switch {
	case in.chunked():
		s.padTo(in.pos + int64(align(head, chunkIndex)))
		var c [chunkIndex]byte
		le.PutUint16(c[2:], in.device)
		le.PutUint32(c[4:], uint32(in.offset/BlockSize))
		s.write(c[:])
	case tail > 0:
		l.content(s, n, in)
	}
}

// content writes the blocks of a directory or the target of a link.
func (l *layout) content(s *stream, n nodeID, in *inode) {
	if !in.isDir() {
		s.write(l.t.strings.At(uint32(in.offset), int(in.size)))
		return
	}
	d := dirBlock{s: s}
	l.names(n, func(name []byte, child inodeID) {
		if d.used+direntSize+len(name) > BlockSize {
			d.flush(true)
		}
		l.t.space.Visit(int(child))
		c := l.t.inode(child)
		d.add(name, c.nid(), fileType(c.mode))
	})
	d.flush(false)
}

// dirBlock collects the names of one block: first the entries of fixed size, then the names.
type dirBlock struct {
	s       *stream
	used    int
	entries []byte
	names   []byte
	lengths []uint16
}

func (d *dirBlock) add(name []byte, nid uint64, kind byte) {
	var b [direntSize]byte
	le.PutUint64(b[0:], nid)
	b[10] = kind
	d.entries = append(d.entries, b[:]...)
	d.names = append(d.names, name...)
	d.lengths = append(d.lengths, uint16(len(name)))
	d.used += direntSize + len(name)
}

func (d *dirBlock) flush(pad bool) {
	off := uint16(len(d.entries))
	for i, n := range d.lengths {
		le.PutUint16(d.entries[i*direntSize+8:], off)
		off += n
	}
	d.s.write(d.entries)
	d.s.write(d.names)
	if pad {
		d.s.zeros(BlockSize - d.used)
	}
	d.used, d.entries, d.names, d.lengths = 0, d.entries[:0], d.names[:0], d.lengths[:0]
}

func fileType(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}

// encodeDev packs a device number as the kernel's new_encode_dev does.
func encodeDev(dev uint64) uint32 {
	major, minor := unix.Major(dev), unix.Minor(dev)
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

// stream writes sequentially and keeps the first error.
type stream struct {
	w   *bufio.Writer
	pos int64
	err error
}

func (s *stream) write(b []byte) {
	if s.err == nil {
		_, s.err = s.w.Write(b)
	}
	s.pos += int64(len(b))
}

var zeros [4096]byte

func (s *stream) zeros(n int) {
	for n > 0 {
		k := min(n, len(zeros))
		s.write(zeros[:k])
		n -= k
	}
}

func (s *stream) padTo(pos int64) { s.zeros(int(pos - s.pos)) }

func (s *stream) xattrs(all []diskXattr) {
	if len(all) == 0 {
		return
	}
	s.zeros(12)
	for _, x := range all {
		var h [4]byte
		h[0], h[1] = byte(len(x.name)), x.prefix
		le.PutUint16(h[2:], uint16(len(x.value)))
		s.write(h[:])
		s.write([]byte(x.name))
		s.write([]byte(x.value))
		n := 4 + len(x.name) + len(x.value)
		s.zeros(align(n, 4) - n)
	}
}
