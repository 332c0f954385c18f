package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/bolt"
)

// manifestNumber returns the bytes of a manifest like those that prepare makes.
func manifestNumber(n int) []byte {
	config, layer := content.SHA256.Of([]byte("config")), content.SHA256.Of([]byte("layer"))
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":6},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":5}],"annotations":{"note":"%d"}}`, manifestType, config, layer, n)
}

// fillManifests adds manifests with the tags of the numbers from had to n to the repository tagged of a root that no process serves. The database is filled
// in memory, and in the order of its keys, which takes a tenth of the time of as many pushes. The files of the blobs are not made.
func fillManifests(root string, had, n int) (err error) {
	memory, err := os.MkdirTemp("/dev/shm", "ply-bench.")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(memory)) }()
	fast, slow := filepath.Join(memory, "metadata.db"), filepath.Join(root, "metadata.db")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if had > 0 {
		if err := copyFile(slow, fast); err != nil {
			return err
		}
	}
	s, err := bolt.Open(fast)
	if err != nil {
		return err
	}
	type item struct {
		digest  content.Digest
		payload []byte
	}
	list := make([]item, 0, n-had)
	for k := had; k < n; k++ {
		b := manifestNumber(k)
		list = append(list, item{content.SHA256.Of(b), b})
	}
	slices.SortFunc(list, func(a, b item) int { return strings.Compare(string(a.digest), string(b.digest)) })
	var g errgroup.Group
	g.SetLimit(512)
	for k, m := range list {
		g.Go(func() error {
			parsed, err := content.ParseManifest(m.payload, "")
			if err != nil {
				return err
			}
			return s.PutManifest(context.Background(), metadata.Write{
				Repository: "tagged", Digest: m.digest, Payload: m.payload, Parsed: parsed, Tags: []content.Tag{content.Tag(tagName(had + k))}, Missing: true,
			})
		})
	}
	if err := errors.Join(g.Wait(), s.Close()); err != nil {
		return err
	}
	return copyFile(fast, slow)
}

// copyFile copies a file and makes the copy durable, so that its writing does not go on during a measurement.
func copyFile(from, to string) (err error) {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Sync(), w.Close())
}

// registryManifests measures what reads, lists and pushes cost against the number of manifests, and draws it. Debian's docker-registry takes part up to
// 10,000: each tag of it is files, which only pushes make.
func (w *world) registryManifests() ([]row, error) {
	const kinds = 3
	names := []string{"ply, GET of a manifest", "ply, page of 1,000 tags", "ply, push of a manifest"}
	sizes := []int{100, 1000, 10_000, 100_000, 1_000_000}
	points := make([]point, len(sizes))
	for i, n := range sizes {
		points[i] = point{x: float64(n), took: make([][]float64, kinds)}
	}
	root := filepath.Join(w.dir, "growing")
	var rows []row
	for i, n := range sizes {
		had := 0
		if i > 0 {
			had = sizes[i-1]
		}
		began := time.Now()
		if err := fillManifests(root, had, n); err != nil {
			return nil, err
		}
		filled := time.Since(began)
		began = time.Now()
		s, err := w.serve(root)
		if err != nil {
			return nil, err
		}
		start := time.Since(began).Seconds()
		took, err := s.costs("tagged", n)
		if err != nil {
			return nil, err
		}
		copy(points[i].took, took)
		memory, err := memoryOf(s.pid)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "bench:   %d manifests: filled in %s, start %.3g s, peak %.0f MB, own %.0f MB\n", n, filled.Round(time.Millisecond), start, memory[0].ply, memory[1].ply)
		w.stopLast()
		if n == sizes[len(sizes)-1] {
			rows = append(rows, row{what: "start of a registry with 1,000,000 manifests", ply: start * 1000, unit: "ms", budget: "–", met: true},
				row{what: "its own memory after these reads and pushes", ply: memory[1].ply, unit: "MB", budget: "<= 60 MB", met: memory[1].ply <= 60})
		}
	}
	if err := os.RemoveAll(root); err != nil {
		return nil, err
	}
	dashed := 0
	if !w.alone {
		if err := w.dockerManifests(points, 10_000); err != nil {
			return nil, err
		}
		for _, n := range names {
			names = append(names, "docker-registry"+strings.TrimPrefix(n, "ply"))
		}
		dashed = kinds
	}
	printPoints("manifests", names, points)
	for k, what := range []string{"GET of a manifest", "page of tags", "push of a manifest"} {
		few, many := median(points[0].took[k]), median(points[len(points)-1].took[k])
		rows = append(rows, row{what: what + ", of 1,000,000 manifests beside 100: times as long", ply: many / few, unit: "", budget: "–", met: true})
	}
	return rows, draw(filepath.Join("docs", "registry-manifests.svg"), "a repository with n manifests: seconds", "manifests", names, dashed, points)
}

// dockerManifests adds the curves of docker-registry to points.
func (w *world) dockerManifests(points []point, most int) error {
	list, err := w.servers()
	if err != nil {
		return err
	}
	s := list[1]
	put, err := s.prepare("growing")
	if err != nil {
		return err
	}
	had := 0
	for i, p := range points {
		points[i].took = append(points[i].took, nil, nil, nil)
		if int(p.x) > most {
			continue
		}
		var g errgroup.Group
		g.SetLimit(registryClients)
		for ; had < int(p.x); had++ {
			tag := tagName(had)
			g.Go(func() error { return put(tag) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		took, err := s.costs("growing", int(p.x))
		if err != nil {
			return err
		}
		copy(points[i].took[len(p.took):], took)
	}
	return nil
}

// costs measures reads, lists and pushes of a repository with the tags of the numbers below n, by one client.
func (s *server) costs(repository string, n int) (took [][]float64, err error) {
	at := "http://" + s.addr + "/v2/" + repository
	measure := func(times int, f func(k int) error) error {
		var list []float64
		for k := range times {
			began := time.Now()
			if err := f(k); err != nil {
				return err
			}
			list = append(list, time.Since(began).Seconds())
		}
		took = append(took, list)
		return nil
	}
	put, err := s.prepare(repository)
	if err != nil {
		return nil, err
	}
	unix.Sync() // what fills wrote is not written meanwhile
	return took, errors.Join(
		measure(300, func(int) error {
			_, _, err := s.send(http.MethodGet, at+"/manifests/"+tagName(rand.IntN(n)), manifestType, nil, http.StatusOK)
			return err
		}),
		measure(30, func(int) error {
			_, _, err := s.send(http.MethodGet, at+"/tags/list?n=1000&last="+tagName(rand.IntN(n)), "", nil, http.StatusOK)
			return err
		}),
		measure(100, func(k int) error { return put(fmt.Sprintf("pushed%d-%d", n, k)) }))
}
