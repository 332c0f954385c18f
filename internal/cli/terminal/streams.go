package terminal

import (
	"errors"
	"io"
	"os"
)

// Streams are the standard streams of one command line, and their terminals. A terminal is nil where the stream is not one.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer

	InTerm, OutTerm, ErrTerm *Term
}

// Process returns the streams of this process.
func Process() Streams {
	return Streams{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		InTerm: Of(os.Stdin), OutTerm: Of(os.Stdout), ErrTerm: Of(os.Stderr),
	}
}

// OutSize returns the function that asks for the size of the output's terminal, for progress and for tables that redraw
// themselves. It is nil when the output is not a terminal.
func (s *Streams) OutSize() func() (width, height int) { return sizeOf(s.OutTerm) }

// ErrSize is OutSize for the error output.
func (s *Streams) ErrSize() func() (width, height int) { return sizeOf(s.ErrTerm) }

func sizeOf(t *Term) func() (width, height int) {
	if t == nil {
		return nil
	}
	return t.Size
}

// CheckTTY refuses to attach an input that is not a terminal to a container with a terminal, as docker does.
func (s *Streams) CheckTTY(attachStdin, tty bool) error {
	if tty && attachStdin && s.InTerm == nil {
		return errors.New("the input device is not a TTY")
	}
	return nil
}
