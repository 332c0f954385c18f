package dockerfile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"ply/internal/build/dockerfile"
	"ply/internal/errs"
)

// build builds a Dockerfile with a few base images.
func build(text string, options map[string]string) (*dockerfile.Output, *solver, error) {
	s := &solver{
		locals: map[string]map[string]string{"dockerfile": {"Dockerfile": text}},
		images: map[string]string{"docker.io/library/alpine:latest": "", "docker.io/library/onbuild:latest": onbuild, "docker.io/library/full:latest": full},
	}
	out, err := dockerfile.Build(context.Background(), dockerfile.Request{Options: options}, s)
	return out, s, err
}

// No text makes the front end panic, and an error is the user's.
func FuzzBuild(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range txtar.Parse(data).Files {
			if strings.HasSuffix(file.Name, "ockerfile") {
				f.Add(string(file.Data), "")
			}
		}
	}
	f.Add("FROM alpine\n", "frontend.outline")
	f.Add("FROM alpine\n# check=skip=all\nRUN x", "frontend.targets")
	f.Add("FROM alpine as x\n", "frontend.lint")
	f.Fuzz(func(t *testing.T, text, request string) {
		options := map[string]string{}
		if request != "" {
			options["requestid"] = request
		}
		out, _, err := build(text, options)
		if errors.Is(err, errs.Internal) {
			t.Fatal(err)
		}
		if err != nil {
			if dockerfile.Format(err) == "" {
				t.Fatal("an error without a message")
			}
			return
		}
		for _, img := range out.Images {
			if img.Graph == nil || len(img.Steps) == 0 || img.Steps[0].Name != "FROM" {
				t.Fatalf("an image without a graph or steps: %v", img.Steps)
			}
		}
		if len(out.File.Data) != len(text) && !bytes.HasPrefix(out.File.Data, []byte("#")) && request == "" {
			t.Fatalf("the text has %d bytes, and %d without its comments", len(text), len(out.File.Data))
		}
	})
}

// Dockerfiles that would grow, nest or multiply are refused before they use memory.
func TestHostileDockerfilesAreBounded(t *testing.T) {
	lines := func(n int, format string) string {
		var b strings.Builder
		b.WriteString("FROM alpine\n")
		for i := range n {
			b.WriteString(strings.ReplaceAll(format, "#", fmt.Sprint(i)) + "\n")
		}
		return b.String()
	}
	kilo := strings.Repeat("x", 1000)
	for name, c := range map[string]struct{ text, want string }{
		"doubling":          {lines(64, "ENV A=aaaaaaaa$A$A"), "may grow beyond"},
		"doubling arg":      {lines(64, "ARG A=aaaaaaaa$A$A"), "may grow beyond"},
		"doubling global":   {"ARG A=aaaaaaaa\n" + strings.Repeat("ARG A=$A$A\n", 64) + "FROM $A\n", "may grow beyond"},
		"repeating":         {lines(8, "ENV A=${A:-aaaaaaaaaaaaaaaa} A=${A//a/$A$A}"), "may grow beyond"},
		"computed name":     {lines(64, "ENV N=A $N=aaaaaaaa$A$A"), "may grow beyond"},
		"copies":            {lines(1, "ENV A="+kilo+kilo) + strings.Repeat("LABEL a=$A$A$A$A$A$A$A$A$A$A$A$A$A$A$A$A$A$A$A$A\n", 4000), "may grow beyond"},
		"environment":       {lines(1, "ENV A="+strings.Repeat(kilo, 30)) + strings.Repeat("RUN x\n", 4000), "may grow beyond"},
		"heredoc":           {"FROM alpine\nENV A=" + kilo + "\nCOPY <<EOF /x\n" + strings.Repeat("$A\n", 300_000) + "EOF\n", "may grow beyond"},
		"ports":             {lines(200, "EXPOSE 1-65535"), "may grow beyond"},
		"ports by variable": {lines(1, "ENV P=1-65535") + strings.Repeat("EXPOSE $P\n", 1000), "may grow beyond"},
		"triggers":          {"FROM alpine AS a\n" + strings.Repeat("ONBUILD ENV A=aaaaaaaa$A$A\n", 64) + "FROM a\n", "may grow beyond"},
		"instructions":      {lines(5000, "RUN #"), "more than 4096 instructions"},
		"stages":            {lines(300, "FROM alpine AS s#"), "more than 256 stages"},
		"nesting":           {"FROM alpine\nENV A=" + strings.Repeat("${A:-", 10000) + "\n", "nested deeper"},
		"nesting in quotes": {"FROM alpine\nENV A=" + strings.Repeat(`${A:-"}"`, 7000) + "\\\n" + strings.Repeat(`${A:-"}"`, 7000) + "\n", "nested deeper"},
		"nesting in run":    {"FROM alpine\nRUN " + strings.Repeat("${A:-", 10000) + "\n", "nested deeper"},
		"nesting on lines":  {"FROM alpine\nENV A=" + strings.Repeat("${A:-\\\n", 10000) + "\n", "nested deeper"},
		"nesting in body":   {"FROM alpine\nCOPY <<EOF /x\n" + strings.Repeat("${A:-\n", 10000) + "EOF\n", "nested deeper"},
		"nesting trigger":   {"FROM alpine\nONBUILD ENV A=" + strings.Repeat("${A:-", 100) + "\nFROM alpine", "nested deeper"},
		"size":              {"FROM alpine\n" + strings.Repeat("#"+kilo+"\n", 1100), "larger than 1048576 bytes"},
		"nul":               {"FROM alpine\nRUN a\x00b\n", "holds a NUL"},
		"variable":          {"FROM alpine\nENV A=$" + kilo + "\n", "longer than 255 bytes"},
		"argument":          {"FROM alpine\nARG " + kilo + "\n", "longer than 255 bytes"},
		"stage":             {"FROM alpine AS a" + kilo + "\n", "longer than 255 bytes"},
		"unknown variables": {lines(1500, "ENV "+strings.Repeat("K", 200)+"#=$"+strings.Repeat("U", 250)+"#"), "too many variables"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := build(c.text, nil)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("err = %.300v, want %s", err, c.want)
			}
			if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 1024 {
				t.Errorf("allocated %d MiB", n)
			}
			e, ok := errors.AsType[*dockerfile.Error](err)
			if !ok || e.File.Name != "Dockerfile" {
				t.Errorf("%T without the Dockerfile", err)
			}
		})
	}
}

// What real Dockerfiles do stays below the limits.
func TestLargeDockerfilesAreBuilt(t *testing.T) {
	script := strings.Repeat("for i in $LIST; do echo ${i:-none} \"$A\" ${B%%.*}; done; ", 200)
	for name, text := range map[string]string{
		"steps":   "FROM alpine\n" + strings.Repeat("RUN true\nENV A=$A:b\nCOPY a /\n", 300),
		"path":    "FROM full\n" + strings.Repeat("ENV PATH=$PATH:/opt/something/bin\n", 200),
		"script":  "FROM full\n" + strings.Repeat("RUN "+script+"\n", 20),
		"heredoc": "FROM alpine\nENV A=1\nCOPY <<EOF /x\n" + strings.Repeat("text $A ${A:-2}\n", 20_000) + "EOF\n",
		"stages":  "FROM alpine AS s0\n" + strings.Repeat("FROM s0\nRUN a\n", 200),
		"ports":   "FROM alpine\nEXPOSE 10000-20000\n" + strings.Repeat("ENV A=1\n", 100),
		"nesting": "FROM alpine\nENV A=${A:-${B:-${C:-${D:-${E:-x}}}}}\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := build(text, nil); err != nil {
				t.Fatalf("%.500v", err)
			}
		})
	}
}
