package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// point is a measurement of curves at x: of each curve the values measured there, none where the curve has no point.
type point struct {
	x    float64
	took [][]float64
}

// The largest contexts and Dockerfiles that Docker's builders take part in: they need minutes for a hundred thousand files, and have at most 125 layers.
const (
	dockerFiles = 10_000
	dockerSteps = 100
)

// buildFiles measures how the time of a build grows with the files of the context, and draws it.
func (w *world) buildFiles() ([]row, error) {
	dir, err := w.contextOf("files", 0, "FROM scratch\nCOPY src /src\n")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var points []point
	had := 0
	for _, n := range []int{100, 1000, 10_000, 100_000, 1_000_000} {
		if err := addFiles(dir, had, n); err != nil {
			return nil, err
		}
		had = n
		time.Sleep(3 * time.Second) // the time of a file that was just written proves nothing, so it is read again
		rounds, dockerRounds := 1, 1
		if n <= 10_000 {
			rounds, dockerRounds = 3, 1
		}
		if n > dockerFiles {
			dockerRounds = 0
		}
		p, err := w.curve(n, dir, rounds, 3, dockerRounds)
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	rows, err := w.drawBuilds("build-files.svg", "COPY of n files of 1 KB", "files", points)
	if err != nil {
		return nil, err
	}
	peak, err := status(w.ply.pid, "VmHWM")
	return append(rows, row{what: "plyd at its largest while it built contexts of up to 1,000,000 files", ply: peak, unit: "MB", budget: "<= 150 MB", met: peak <= 150}), err
}

// buildDepth measures how the time of a build grows with the steps of the Dockerfile, and draws it.
func (w *world) buildDepth() ([]row, error) {
	var points []point
	for _, n := range []int{1, 3, 10, 30, 100, 300} {
		dir, err := w.contextOf("depth", 0, steps(n))
		if err != nil {
			return nil, err
		}
		rounds, dockerRounds := 1, 1
		if n <= 30 {
			rounds = 3
		}
		if n > dockerSteps {
			dockerRounds = 0
		}
		p, err := w.curve(n, dir, rounds, 3, dockerRounds)
		if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return w.drawBuilds("build-steps.svg", "n small RUN", "steps", points)
}

// curve measures a build without the cache and, after it, with the cache.
func (w *world) curve(n int, dir string, rounds, cachedRounds, dockerRounds int) (point, error) {
	first, err := w.each(rounds, dockerRounds, func(b builder, _ int) (float64, error) { return b.build("curve", dir, "--no-cache") })
	if err != nil {
		return point{}, err
	}
	again, err := w.each(cachedRounds, dockerRounds, func(b builder, _ int) (float64, error) { return b.build("curve", dir) })
	p := point{float64(n), slices.Concat(first, again)}
	fmt.Fprintf(os.Stderr, "bench:   %d: %.3g\n", n, p.took)
	return p, err
}

// drawBuilds draws the points of curve, and prints them as a table of medians in seconds.
func (w *world) drawBuilds(file, title, axis string, points []point) ([]row, error) {
	var names []string
	for _, kind := range []string{"", ", cached"} {
		for _, b := range w.builders() {
			names = append(names, b.name+kind)
		}
	}
	printPoints(axis, names, points)
	return nil, draw(filepath.Join("docs", file), title+": seconds", axis, names, len(names)/2, points)
}

// printPoints prints the medians of points as a table.
func printPoints(axis string, names []string, points []point) {
	fmt.Printf("\n| %s | %s |\n|%s\n", axis, strings.Join(names, " | "), strings.Repeat(" --- |", len(names)+1))
	for _, p := range points {
		fmt.Printf("| %.0f |", p.x)
		for _, v := range p.took {
			if len(v) == 0 {
				fmt.Print(" – |")
				continue
			}
			fmt.Printf(" %.3g |", median(v))
		}
		fmt.Println()
	}
	fmt.Println()
}
