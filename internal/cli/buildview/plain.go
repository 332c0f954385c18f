package buildview

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/docker/go-units"

	"ply/internal/wire"
)

// plain prints the instructions of the image in their order, as the classic builder did, with the image after each of them. What other
// stages do meanwhile is printed when it happens, with the name of the operation before every line.
type plain struct {
	o     Options
	model *model

	current string           // vertex of the instruction whose turn it is
	held    map[string]*line // output of an instruction before its turn, or an unfinished line of another operation
	midline bool             // the output of the current instruction has not ended its line
	ended   map[string]bool  // operations whose end was printed
}

// line is output that is not printed yet.
type line struct {
	data  []byte
	other bool // its operation is no instruction of the image, or had too much output to wait
}

// maxHeld is how much output of an instruction waits for its turn, in bytes. An instruction with more prints it with its name.
const maxHeld = 1 << 20

func newPlain(o Options) *plain {
	return &plain{o: o, model: newModel(), held: map[string]*line{}, ended: map[string]bool{}}
}

func (p *plain) Show(e *wire.BuildEvents) error {
	var b bytes.Buffer
	p.model.apply(e)
	for i := range e.Vertexes {
		p.vertex(&b, p.model.vertex(e.Vertexes[i].Digest))
	}
	for _, s := range e.Statuses {
		p.status(&b, s)
	}
	for i := range e.Logs {
		p.log(&b, &e.Logs[i])
	}
	for i := range e.Steps {
		p.step(&b, &e.Steps[i])
	}
	_, err := p.o.Out.Write(b.Bytes())
	return err
}

// fresh begins a new line.
func (p *plain) fresh(b *bytes.Buffer) {
	if p.midline {
		b.WriteByte('\n')
		p.midline = false
	}
}

// title is the name of an operation at the beginning of its lines: "[build 2/3]", or all of it.
func title(v *vertex) string {
	name := clean(v.Name)
	if strings.HasPrefix(name, "[internal]") {
		return name
	}
	if end := strings.IndexByte(name, ']'); strings.HasPrefix(name, "[") && end > 0 {
		return name[:end+1]
	}
	return name
}

func (p *plain) vertex(b *bytes.Buffer, v *vertex) {
	if v.Completed == nil || v.step != nil || p.ended[v.Digest] {
		return
	}
	p.ended[v.Digest] = true
	if l := p.held[v.Digest]; l != nil && len(l.data) > 0 {
		p.lines(b, v, []byte("\n"))
	}
	internal := strings.HasPrefix(v.Name, "[internal]") || !strings.HasPrefix(v.Name, "[")
	switch {
	case v.Error != "":
		p.fresh(b)
		fmt.Fprintf(b, "%s ERROR: %s\n", clean(v.Name), clean(v.Error))
	case internal && v.took(*v.Completed).Seconds() < 1 && p.miss(v) == "":
	case v.Cached:
		p.fresh(b)
		fmt.Fprintf(b, "%s CACHED\n", clean(v.Name))
	default:
		p.fresh(b)
		fmt.Fprintf(b, "%s DONE %s\n", clean(v.Name), seconds(v.took(*v.Completed)))
		if miss := p.miss(v); miss != "" {
			fmt.Fprintf(b, "%s not in the cache: %s\n", title(v), miss)
		}
	}
}

// miss returns why an operation was executed, if that is asked for.
func (p *plain) miss(v *vertex) string {
	if !p.o.Explain || v.Cached {
		return ""
	}
	return clean(v.Miss)
}

func (p *plain) status(b *bytes.Buffer, s *wire.BuildStatus) {
	v := p.model.vertex(s.Vertex)
	switch {
	case s.Container != "":
		if v.step != nil && s.Vertex == p.current {
			p.fresh(b)
			fmt.Fprintf(b, " ---> Running in %s\n", short(s.Container))
		}
	case s.Completed != nil && s.Total > 0:
		p.fresh(b)
		fmt.Fprintf(b, "%s: %s done\n", shortName(clean(s.Name)), units.HumanSize(float64(s.Total)))
	}
}

func (p *plain) log(b *bytes.Buffer, l *wire.BuildLog) {
	v := p.model.vertex(l.Vertex)
	if l.Vertex == p.current {
		b.Write(l.Data)
		if len(l.Data) > 0 {
			p.midline = l.Data[len(l.Data)-1] != '\n'
		}
		return
	}
	h := p.held[l.Vertex]
	if h == nil {
		h = &line{}
		p.held[l.Vertex] = h
	}
	h.other = h.other || v.step == nil || v.step.State == wire.StepDone || len(h.data)+len(l.Data) > maxHeld
	if h.other {
		p.lines(b, v, l.Data)
		return
	}
	h.data = append(h.data, l.Data...)
}

// lines prints output of an operation that is not the current one, and keeps its last line until it ends.
func (p *plain) lines(b *bytes.Buffer, v *vertex, data []byte) {
	h := p.held[v.Digest]
	h.data = append(h.data, data...)
	for {
		i := bytes.IndexByte(h.data, '\n')
		if i < 0 {
			return
		}
		p.fresh(b)
		fmt.Fprintf(b, "%s %s\n", title(v), h.data[:i])
		h.data = h.data[i+1:]
	}
}

func (p *plain) step(b *bytes.Buffer, s *wire.BuildInstruction) {
	switch s.State {
	case wire.StepStarted:
		p.fresh(b)
		text, _, _ := strings.Cut(s.Text, "\n")
		fmt.Fprintf(b, "Step %d/%d : %s\n", s.Index, s.Total, clean(text))
		p.current = s.Vertex
		if s.Vertex == "" {
			return
		}
		v := p.model.vertex(s.Vertex)
		if i, ok := v.byID["container"]; ok {
			p.status(b, v.statuses[i])
		}
		if h := p.held[s.Vertex]; h != nil && !h.other {
			b.Write(h.data)
			p.midline = len(h.data) > 0 && h.data[len(h.data)-1] != '\n'
			delete(p.held, s.Vertex)
		}
	case wire.StepDone:
		p.fresh(b)
		v := p.model.byDigest[s.Vertex]
		if !s.Base && s.Cached {
			b.WriteString(" ---> Using cache\n")
		} else if !s.Base && v != nil && v.Completed != nil {
			fmt.Fprintf(b, " ---> Executed in %s\n", seconds(v.took(*v.Completed)))
			if miss := p.miss(v); miss != "" {
				fmt.Fprintf(b, " ---> Not in the cache: %s\n", miss)
			}
		}
		if s.Image != "" {
			fmt.Fprintf(b, " ---> %s\n", short(s.Image))
		}
	}
}

func (p *plain) Close(done *wire.BuildDone) error {
	defer p.model.close()
	var b bytes.Buffer
	p.fresh(&b)
	for _, v := range p.model.order { // unfinished lines, and those of steps whose turn did not come
		if h := p.held[v.Digest]; h != nil && len(h.data) > 0 {
			p.lines(&b, v, []byte("\n"))
		}
	}
	if done != nil && done.Error == nil && len(done.Images) > 0 {
		fmt.Fprintf(&b, "Successfully built %s\n", short(done.Images[len(done.Images)-1]))
		for _, t := range done.Tags {
			fmt.Fprintf(&b, "Successfully tagged %s\n", t)
		}
	}
	if _, err := p.o.Out.Write(b.Bytes()); err != nil {
		return err
	}
	return printWarnings(p.o.Out, p.model.warnings)
}
