package history

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
)

// A log is frames: a line "<kind> <milliseconds> <step> <bytes>", then so many bytes and a newline.
const (
	kindBegin byte = 'b' // the record as it was when the build began
	kindStep  byte = 's' // a step begins; its name
	kindOut   byte = 'o' // what a step printed
	kindErr   byte = 'e' // the same, to standard error
	kindEnd   byte = 'd' // how a step ended
)

type frame struct {
	kind byte
	at   time.Duration // since the build began
	step int
	data []byte
}

// maxFrame bounds what is read of a frame at once. Longer output is several frames.
const maxFrame = 4 << 20

func (f *frame) writeTo(w io.Writer) (total int64, err error) {
	for {
		part := f.data[:min(len(f.data), maxFrame)]
		n, err := fmt.Fprintf(w, "%c %d %d %d\n%s\n", f.kind, f.at.Milliseconds(), f.step, len(part), part)
		total += int64(n)
		f.data = f.data[len(part):]
		if err != nil || len(f.data) == 0 {
			return total, err
		}
	}
}

func readFrame(r *bufio.Reader) (*frame, error) {
	head, err := r.ReadSlice('\n')
	if errors.Is(err, io.EOF) && len(head) == 0 {
		return nil, io.EOF
	}
	bad := errs.New(errs.DataLoss, "the log is damaged")
	if err != nil {
		return nil, bad
	}
	var fields [4]string
	parts := strings.Split(strings.TrimSuffix(string(head), "\n"), " ")
	if len(parts) != len(fields) || len(parts[0]) != 1 {
		return nil, bad
	}
	ms, err1 := strconv.ParseInt(parts[1], 10, 64)
	step, err2 := strconv.Atoi(parts[2])
	size, err3 := strconv.Atoi(parts[3])
	if err1 != nil || err2 != nil || err3 != nil || size < 0 || size > maxFrame || step < 0 || step > maxSteps {
		return nil, bad
	}
	f := &frame{kind: parts[0][0], at: time.Duration(ms) * time.Millisecond, step: step, data: make([]byte, size)}
	if _, err := io.ReadFull(r, f.data); err != nil {
		return nil, bad
	}
	if c, err := r.ReadByte(); err != nil || c != '\n' {
		return nil, bad
	}
	return f, nil
}

// readLog calls visit for the frames of a log. Errors: errs.DataLoss after the last frame that is whole.
func readLog(name string, visit func(*frame) error) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	r := bufio.NewReaderSize(in, 64<<10)
	for {
		f, err := readFrame(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = visit(f)
		}
		if err != nil {
			return err
		}
	}
}

// Line is a part of the log of a build.
type Line struct {
	Step   int // index in Record.Steps
	At     time.Duration
	Stderr bool
	Data   []byte
	Begin  string // not "": the step begins, and this is its name
	End    string // not "": the step has ended, and this says how
}

// Log calls visit for the whole log of a build, in order. It returns the record's ID. While the build runs it ends where the build is.
func (h *History) Log(ctx context.Context, id string, visit func(*Line) error) (string, error) {
	full, err := h.resolve(id)
	if err != nil {
		return "", err
	}
	h.mu.Lock()
	b := h.active[full]
	h.mu.Unlock()
	running := b != nil
	if running {
		b.mu.Lock()
		err := b.flush()
		b.mu.Unlock()
		if err != nil {
			return "", errs.New(errs.Internal, "log of build %s: %w", full, err)
		}
	}
	err = readLog(h.path(full, ".log"), func(f *frame) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		l := Line{Step: f.step, At: f.at}
		switch f.kind {
		case kindStep:
			l.Begin = string(f.data)
		case kindOut, kindErr:
			l.Data, l.Stderr = f.data, f.kind == kindErr
		case kindEnd:
			l.End = string(f.data)
		default:
			return nil
		}
		return visit(&l)
	})
	if os.IsNotExist(err) {
		return full, nil // the build never wrote one
	}
	if running && errors.Is(err, errs.DataLoss) {
		err = nil // the next frame is being written
	}
	if err != nil {
		return full, fmt.Errorf("log of build %s: %w", full, err)
	}
	return full, nil
}

// WriteLog writes the log of a build as text, in the form of the progress that is called plain.
func (h *History) WriteLog(ctx context.Context, id string, w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	last, names, begun := -1, map[int]string{}, map[int]time.Duration{}
	open := map[int]bool{} // the last output of the step did not end with a newline
	turn := func(step int) {
		if last == step {
			return
		}
		if last >= 0 {
			if open[last] {
				fmt.Fprintln(out)
				open[last] = false
			}
			fmt.Fprintln(out)
		}
		last = step
		fmt.Fprintf(out, "#%d %s\n", step+1, names[step])
	}
	_, err := h.Log(ctx, id, func(l *Line) error {
		switch {
		case l.Begin != "":
			names[l.Step], begun[l.Step] = l.Begin, l.At
		case l.End != "":
			turn(l.Step)
			if open[l.Step] {
				fmt.Fprintln(out)
				open[l.Step] = false
			}
			fmt.Fprintf(out, "#%d %s\n", l.Step+1, l.End)
		default:
			turn(l.Step)
			for text := string(l.Data); text != ""; {
				line, rest, whole := strings.Cut(text, "\n")
				if !open[l.Step] {
					fmt.Fprintf(out, "#%d %.3f ", l.Step+1, (l.At - begun[l.Step]).Seconds())
				}
				if _, err := out.WriteString(line); err != nil {
					return err
				}
				if open[l.Step] = !whole; whole {
					fmt.Fprintln(out)
				}
				text = rest
			}
		}
		return nil
	})
	if last >= 0 && open[last] {
		fmt.Fprintln(out)
	}
	return errors.Join(err, out.Flush())
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
