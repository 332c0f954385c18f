package logfile

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ply/internal/container/shim"
	"ply/internal/errs"
)

func subject(config map[string]string) *Subject {
	return &Subject{
		ContainerID: strings.Repeat("ab", 32), ContainerName: "/web", ContainerEntrypoint: "sh", ContainerArgs: []string{"-c", "true"},
		ContainerImageID: "sha256:" + strings.Repeat("cd", 32), ContainerImageName: "busybox", ContainerCreated: time.Unix(1, 0),
		ContainerEnv: []string{"A=1", "AB=2", "odd", "EMPTY="}, ContainerLabels: map[string]string{"app": "shop", "app.tier": "back", "x": "<y>"},
		Config: config, DaemonName: "docker", Host: "box",
	}
}

func TestAttributes(t *testing.T) {
	type opts = map[string]string
	for _, c := range []struct{ opts, want opts }{
		{nil, nil},
		{opts{"labels": "app,none"}, opts{"app": "shop"}},
		{opts{"labels-regex": "^app", "labels": "x"}, opts{"app": "shop", "app.tier": "back", "x": "<y>"}},
		{opts{"env": "A,odd,EMPTY"}, opts{"A": "1", "EMPTY": ""}},
		{opts{"env-regex": "^A"}, opts{"A": "1", "AB": "2"}},
		{opts{"labels": "none", "tag": ""}, nil},
		{opts{"tag": "{{.ImageName}}/{{.Name}}/{{.ID}}/{{.ImageID}}/{{.DaemonName}}/{{.Hostname}}/{{.Command}}"}, opts{"tag": "busybox/web/abababababab/sha256:cdcdc/docker/box/sh -c true"}},
		{opts{"tag": "{{.FullID}}"}, opts{"tag": strings.Repeat("ab", 32)}},
		{opts{"tag": `{{index .ContainerLabels "app"}} {{if .ContainerArgs}}{{join .ContainerArgs "+" | upper}}{{end}} {{json .ContainerEnv}} {{with .Name}}{{printf "%5s" .}}{{end}}`},
			opts{"tag": `shop -C+TRUE ["A=1","AB=2","odd","EMPTY="]   web`}},
	} {
		got, err := Attributes(c.opts, subject(c.opts))
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("Attributes(%v) = %v, %v, want %v", c.opts, got, err, c.want)
		}
	}
}

// A template or a label that would make plyd or the log large is refused, soon.
func TestHostileAttributes(t *testing.T) {
	double := func(f string) string {
		return `{{"xxxxxxxx\\\""` + strings.Repeat(" | "+f, (maxTagText-20)/(len(f)+3)) + "}}"
	}
	for name, tag := range map[string]string{
		"loop": `{{range 1000000000}}{{end}}`, "recursion": `{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`, "block": `{{block "a" .}}{{end}}`,
		"loop in a condition": `{{if .Name}}{{range 1000000000}}{{end}}{{end}}`,
		"printf":              double(`printf "%[1]s%[1]s"`), "json": double("json"), "js": double("js"), "html": double("html"), "print": `{{print (js .Name)}}`,
		"wide": strings.Repeat(`{{printf "%99999d" 1}}`, 10), "star": `{{printf "%*d" 99999999 1}}`, "pad": strings.Repeat(`{{pad "x" 9999 6000}}`, 20),
		"long": strings.Repeat("x", maxTagText+1), "field": "{{.Nothing}}", "unknown": "{{env}}",
		"doubled": `{{$a := "xxxxxxxxxxxxxxxx"}}` + strings.Repeat(`{{$a = print $a $a}}`, 20),
	} {
		if got, err := Attributes(map[string]string{"tag": tag}, subject(nil)); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %d attributes, %v, want Invalid", name, len(got), err)
		}
	}
	s := subject(nil)
	s.ContainerLabels["app"] = strings.Repeat("x", maxAttributes)
	if _, err := Attributes(map[string]string{"labels": "app"}, s); !errors.Is(err, errs.Invalid) {
		t.Errorf("a large label: %v, want Invalid", err)
	}
	s.ContainerLabels["app"] = strings.Repeat("x", maxAttributes-100)
	if _, err := Attributes(map[string]string{"labels": "app"}, s); err != nil {
		t.Errorf("the largest label: %v", err)
	}
}

// The records have docker's form, and are read again with their attributes, also the longest.
func TestAttributesOfRecords(t *testing.T) {
	l := newLog(t, JSONFile)
	l.Attributes = map[string]string{"b": "2 ü", "a": "<&>"}
	write := func(l shim.Log, text string) {
		t.Helper()
		w, err := Create(l)
		if err != nil {
			t.Fatal(err)
		}
		s := w.Stream(shim.Stdout)
		_, _ = s.Write([]byte(text)) // never fails
		_ = s.Close()                // never fails
		if n, err := w.Lost(); n > 0 || err != nil {
			t.Fatal(n, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(l, "one\n")
	data, err := os.ReadFile(l.Path)
	if want := `{"log":"one\n","stream":"stdout","attrs":{"a":"\u003c\u0026\u003e","b":"2 ü"},"time":"`; err != nil || !strings.HasPrefix(string(data), want) {
		t.Errorf("%s, %v, want %s", data, err, want)
	}
	l.Attributes = map[string]string{"a": strings.Repeat("x", maxAttributes-100)}
	write(l, strings.Repeat("\x01", maxPiece-1)+"\n")
	l.Attributes = nil
	write(l, "three\n")
	var got []string
	if err := Read(t.Context(), l, ReadOptions{Stdout: true, Tail: -1}, one(func(m Message) error {
		got = append(got, strconv.Itoa(len(m.Line))+" "+m.Details())
		return nil
	})); err != nil || len(got) != 3 || got[0] != "4 a=%3C%26%3E,b=2+%C3%BC" || !strings.HasPrefix(got[1], strconv.Itoa(maxPiece)+" a=xxx") || got[2] != "6 " {
		t.Errorf("%d records, first %.60q, %v", len(got), got, err)
	}
}

// In the mode non-blocking a disk that does not take anything stops no one. What does not fit is counted, the rest is written in order.
func TestNonBlocking(t *testing.T) {
	l := newLog(t, JSONFile)
	l.Buffer = 100
	w, err := Create(l)
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream(shim.Stdout)
	print := func(from, to int) {
		for i := from; i < to; i++ {
			_, _ = s.Write([]byte("line " + strconv.Itoa(1000+i) + "\n")) // ten bytes; never fails
		}
	}
	w.mu.Lock() // as a write that does not return
	print(0, 1)
	for { // until the first record is on its way
		w.ring.mu.Lock()
		n := len(w.ring.queue)
		w.ring.mu.Unlock()
		if n == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	print(1, 100)
	w.mu.Unlock()
	if n, err := w.Lost(); n != 89 || !errors.Is(err, errFull) {
		t.Errorf("lost %d, %v, want 89: 10 of 99 fit", n, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	var last time.Time
	if err := Read(t.Context(), l, ReadOptions{Stdout: true, Tail: -1}, one(func(m Message) error {
		if !m.Time.After(last) {
			t.Errorf("%q at %v, after %v", m.Line, m.Time, last)
		}
		last, lines = m.Time, append(lines, string(m.Line))
		return nil
	})); err != nil || len(lines) != 11 || lines[0] != "line 1000\n" || lines[10] != "line 1010\n" {
		t.Errorf("%q %v", lines, err)
	}
	// A record that is larger than the buffer fits alone.
	l = shim.Log{Driver: JSONFile, Path: filepath.Join(t.TempDir(), "log"), MaxFiles: 1, Buffer: 1}
	if w, err = Create(l); err != nil {
		t.Fatal(err)
	}
	s = w.Stream(shim.Stdout)
	print(0, 1)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Lost(); n != 0 || err != nil {
		t.Errorf("lost %d, %v", n, err)
	}
}
