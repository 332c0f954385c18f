package buildview

import (
	"errors"
	"io"
	"os"
)

// maxMemory is how much of an output is held in memory, in bytes. The rest goes to a file without a name.
const maxMemory = 1 << 20

// spool keeps the whole output of a command until it is known whether it is needed. It keeps what it can when there is no place for more.
type spool struct {
	mem  []byte
	file *os.File
	size int64
	last byte
	lost bool
}

func (s *spool) write(p []byte) {
	if len(p) == 0 || s.lost {
		return
	}
	s.size += int64(len(p))
	s.last = p[len(p)-1]
	if s.file == nil && len(s.mem)+len(p) <= maxMemory {
		s.mem = append(s.mem, p...)
		return
	}
	if s.file == nil {
		f, err := os.CreateTemp("", "ply-build-")
		if err == nil {
			s.file = f
			err = os.Remove(f.Name())
		}
		if err != nil {
			s.lost = true
			return
		}
	}
	if _, err := s.file.Write(p); err != nil {
		s.lost = true
	}
}

// copyTo writes the output to w.
func (s *spool) copyTo(w io.Writer) error {
	_, err := w.Write(s.mem)
	if err == nil && s.file != nil {
		if _, err = s.file.Seek(0, io.SeekStart); err == nil {
			_, err = io.Copy(w, s.file)
		}
	}
	if s.lost {
		_, werr := io.WriteString(w, "\n[the rest of the output was not kept: no space in the directory for temporary files; `ply build logs` has it]\n")
		err = errors.Join(err, werr)
	}
	return err
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close() // it has no name
	}
	s.mem, s.file = nil, nil
}
