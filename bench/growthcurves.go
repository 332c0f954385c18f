package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"
)

// The most containers and images that Docker takes part with in the curves: more would take it minutes.
const (
	dockerListed  = 200
	dockerStarted = 50
)

// growing measures something of each engine while it fills: grow brings the engine to n, and measure returns the values of each curve there. Docker stops at limit.
func (w *world) growing(counts []int, limit int, grow func(e engine, had, n int) error, measure func(e engine, n int) ([][]float64, error)) (curves [][]point, err error) {
	for i, e := range w.both() {
		had := 0
		for k, n := range counts {
			if i > 0 && n > limit {
				break
			}
			if err := grow(e, had, n); err != nil {
				return nil, err
			}
			had = n
			values, err := measure(e, n)
			if err != nil {
				return nil, err
			}
			for c, v := range values {
				if len(curves) <= c {
					curves = append(curves, make([]point, len(counts)))
				}
				p := &curves[c][k]
				if p.took == nil {
					*p = point{float64(n), make([][]float64, len(w.both()))}
				}
				p.took[i] = v
			}
		}
	}
	return curves, nil
}

// drawGrowth draws curves of both engines, each in a file of its own, and prints them as tables of medians in seconds.
func (w *world) drawGrowth(axis string, titles, files []string, curves [][]point) error {
	var names []string
	for _, e := range w.both() {
		names = append(names, e.name)
	}
	for i, points := range curves {
		fmt.Printf("\n%s, seconds:\n", titles[i])
		printPoints(axis, names, points)
		if err := draw(filepath.Join("docs", files[i]), titles[i]+": seconds", axis, names, 0, points); err != nil {
			return err
		}
	}
	return nil
}

// listRounds is how often a list is measured at each point.
func (w *world) listRounds() int { return max(w.rounds, 5) }

// containerCurve measures how the time of ps -a grows with the containers, and draws it.
func (w *world) containerCurve() ([]row, error) {
	curves, err := w.growing([]int{1, 10, 50, 100, 200, 500, 1000}, dockerListed, func(e engine, had, n int) error {
		c := e.client()
		for ; had < n; had++ {
			if _, err := create(c, "p"+strconv.Itoa(had), "bridge"); err != nil {
				return err
			}
		}
		return nil
	}, func(e engine, _ int) ([][]float64, error) {
		return commandsOf(e, w.listRounds(), []string{"ps", "-a"}, []string{"system", "df"})
	})
	if err != nil {
		return nil, err
	}
	return nil, w.drawGrowth("containers", []string{"ps -a with n containers", "system df with n containers"}, []string{"growth-ps.svg", "growth-df.svg"}, curves)
}

// imageCurve measures how the time of images grows with the images, and draws it.
func (w *world) imageCurve() ([]row, error) {
	archive := filepath.Join(w.dir, "images.tar")
	defer os.Remove(archive)
	curves, err := w.growing([]int{1, 10, 50, 100, 200, 500, 1000}, dockerListed, func(e engine, _, n int) error {
		if err := writeImages(archive, filepath.Join(w.cache, "small.tar"), n); err != nil {
			return err
		}
		_, _, err := e.cmd("load", "-q", "-i", archive)
		return err
	}, func(e engine, _ int) ([][]float64, error) { return commandsOf(e, w.listRounds(), []string{"images"}) })
	if err != nil {
		return nil, err
	}
	return nil, w.drawGrowth("images", []string{"images with n images"}, []string{"growth-images.svg"}, curves)
}

// nameCurve measures how the time of a look-up of a name grows with the containers that run on the network, and draws it.
func (w *world) nameCurve() ([]row, error) {
	ids := map[string][]string{}
	curves, err := w.growing([]int{1, 10, 50, 100, 200}, dockerStarted, func(e engine, had, n int) error {
		c := e.client()
		if had == 0 {
			if err := post(c, "/networks/create", map[string]any{"Name": "curve"}, nil); err != nil {
				return err
			}
		}
		more := make([]string, n-had)
		var g errgroup.Group
		g.SetLimit(8)
		for k := range more {
			g.Go(func() (err error) {
				if more[k], err = create(c, fmt.Sprintf("name%d", had+k), "curve"); err == nil {
					err = post(c, "/containers/"+more[k]+"/start", nil, nil)
				}
				return err
			})
		}
		err := g.Wait()
		ids[e.name] = append(ids[e.name], more...)
		return err
	}, func(e engine, n int) ([][]float64, error) {
		_, pid, err := e.cmd("inspect", "-f", "{{.State.Pid}}", ids[e.name][0])
		if err != nil {
			return nil, err
		}
		took, err := resolve(pid, n, 2000)
		if err != nil {
			return nil, err
		}
		slices.Sort(took)
		return [][]float64{took, took[len(took)*99/100 : len(took)*99/100+1]}, nil
	})
	for _, e := range w.both() {
		if list := ids[e.name]; len(list) > 0 {
			_, _, _ = e.cmd(append([]string{"rm", "-f"}, list...)...) // the end of the run removes what is left
		}
	}
	if err != nil {
		return nil, err
	}
	return nil, w.drawGrowth("containers that run on the network", []string{"look-up of a name, median", "look-up of a name, p99"}, []string{"growth-names.svg", "growth-names-p99.svg"}, curves)
}
