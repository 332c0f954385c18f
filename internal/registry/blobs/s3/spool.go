package s3

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"syscall"

	"ply/internal/errs"
)

// spool has the bytes of an upload that are in no part yet: the first of them in memory, all of them in a file when there are more.
type spool struct {
	s     *Store
	small []byte
	file  *os.File // nil = everything is in small
	size  int64
}

const maxSmall = 128 << 10 // bytes

// Write appends.
func (p *spool) Write(b []byte) (int, error) {
	if p.file == nil && p.size+int64(len(b)) <= maxSmall {
		p.small = append(p.small, b...)
		p.size += int64(len(b))
		return len(b), nil
	}
	if p.file == nil {
		f, err := p.s.temporary()
		if err != nil {
			return 0, full(err)
		}
		if _, err := f.Write(p.small); err != nil {
			return 0, errors.Join(full(err), f.Close())
		}
		p.file, p.small = f, nil
	}
	n, err := p.file.WriteAt(b, p.size)
	p.size += int64(n)
	return n, full(err)
}

func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errs.New(errs.Exhausted, "the disk for parts of uploads is full: %w", err)
	}
	return err
}

// reader returns a reader of everything.
func (p *spool) reader() *io.SectionReader {
	if p.file == nil {
		return io.NewSectionReader(bytes.NewReader(p.small), 0, p.size)
	}
	return io.NewSectionReader(p.file, 0, p.size)
}

// sha256 returns the digits of the hash of everything.
func (p *spool) sha256() (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, p.reader()); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// reset removes everything.
func (p *spool) reset() {
	p.small, p.size = p.small[:0], 0 // what is in the file is overwritten
}

func (p *spool) close() error {
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}
