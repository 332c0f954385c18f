package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/check"
	"ply/internal/registry/content"
	"ply/internal/registry/migrate"
)

// reference starts Debian's docker-registry, with further lines of settings, and returns its root directory.
func reference(t *testing.T, settings ...string) (root, url string) {
	t.Helper()
	root = t.TempDir()
	for range 5 { // the port may be taken meanwhile
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		config := filepath.Join(t.TempDir(), "config.yml")
		text := "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: " + root + "}, delete: {enabled: true}}\nhttp: {addr: '" + addr + "'}\n" + strings.Join(settings, "\n") + "\n"
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "docker-registry", "serve", config)
		cmd.Stderr = t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-done
			done <- nil
		})
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if resp, err := http.Get("http://" + addr + "/v2/"); err == nil { //nolint:noctx // it is near
				resp.Body.Close()
				return root, "http://" + addr
			}
			select {
			case err := <-done:
				done <- err
				deadline = time.Time{}
			default:
			}
		}
	}
	t.Fatal("docker-registry does not start")
	return "", ""
}

// oldClient pushes to a docker-registry, which has one way only.
type oldClient struct{ *client }

func (c oldClient) image(repo, tag string, layers ...[]byte) (string, error) {
	list := make([]string, len(layers))
	for i, l := range layers {
		r, err := c.want("POST", "/v2/"+repo+"/blobs/uploads/", nil, nil, 202)
		if err != nil {
			return "", err
		}
		at := strings.TrimPrefix(r.header.Get("Location"), c.url)
		if _, err := c.want("PUT", at+"&digest="+string(content.SHA256.Of(l)), l, nil, 201); err != nil {
			return "", err
		}
		list[i] = describe("application/vnd.oci.image.layer.v1.tar", l)
	}
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	doc := `{"schemaVersion":2,"mediaType":"` + mediaType + `","config":` + list[0] + `,"layers":[` + strings.Join(list[1:], ",") + `]}`
	_, err := c.want("PUT", "/v2/"+repo+"/manifests/"+tag, []byte(doc), []string{"Content-Type: " + mediaType}, 201)
	return doc, err
}

// images pushes images and returns their manifests by REPOSITORY:TAG.
func pushAll(t *testing.T, push func(repo, tag string, layers ...[]byte) (string, error), repos, tags, size int) map[string]string {
	t.Helper()
	all := map[string]string{}
	base := random(size)
	for r := range repos {
		for n := range tags {
			repo, tag := fmt.Sprintf("team/r%d", r), fmt.Sprintf("v%d", n)
			doc, err := push(repo, tag, random(100), base, random(size))
			if err != nil {
				t.Fatal(err)
			}
			all[repo+":"+tag] = doc
		}
	}
	return all
}

func (c *client) has(t *testing.T, images map[string]string) {
	t.Helper()
	for name, want := range images {
		repo, tag, _ := strings.Cut(name, ":")
		if doc, err := c.pull(repo, tag); err != nil || doc != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A docker-registry that serves is copied to replicas that serve; a copy that is interrupted goes on, a second one brings what is new,
// and what was deleted goes.
func TestMigrateDockerRegistry(t *testing.T) {
	root, url := reference(t)
	source := oldClient{newClient(url)}
	defer source.http.CloseIdleConnections()
	images := pushAll(t, source.image, 3, 3, 20_000)
	child := images["team/r0:v0"]
	index := `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[` +
		strings.TrimSuffix(describe("application/vnd.oci.image.manifest.v1+json", []byte(child)), "}") + `,"platform":{"os":"linux","architecture":"amd64"}}]}`
	if _, err := source.want("PUT", "/v2/team/r0/manifests/list", []byte(index), []string{"Content-Type: application/vnd.docker.distribution.manifest.list.v2+json"}, 201); err != nil {
		t.Fatal(err)
	}
	images["team/r0:list"] = index

	o := replicas(t)
	s, at := replica(t, o)
	target := newClient(at)
	defer target.http.CloseIdleConnections()
	d, err := migrate.OpenDistribution(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	problems := 0
	c := &migrate.Copier{From: d, Metadata: s.repositories.Metadata, Blobs: s.repositories.Blobs, Problem: func(err error) {
		problems++
		t.Log(err)
	}}
	ctx, cancel := context.WithCancel(t.Context())
	var once sync.Once
	go func() {
		for ctx.Err() == nil {
			if l, err := s.repositories.Metadata.Repositories(t.Context(), "", 1); err == nil && len(l) > 0 {
				once.Do(cancel)
			}
			time.Sleep(time.Millisecond)
		}
	}()
	first, err := c.Run(ctx)
	if err == nil {
		t.Errorf("the first run was not interrupted: %+v", first)
	}
	once.Do(cancel)
	second, err := c.Run(t.Context())
	if err != nil || problems != 0 {
		t.Fatalf("second run: %+v, %v, %d problems", second, err, problems)
	}
	if first.Blobs == 0 || first.Blobs+second.Blobs != 19 || second.Blobs == 19 { // 9 configs, 9 layers and a base
		t.Errorf("copied %d and then %d blobs, want 19", first.Blobs, second.Blobs)
	}
	target.has(t, images)

	if images["team/new:v1"], err = source.image("team/new", "v1", random(10)); err != nil {
		t.Fatal(err)
	}
	if images["team/r1:v1"], err = source.image("team/r1", "v1", random(10)); err != nil { // the tag moves
		t.Fatal(err)
	}
	gone := string(content.SHA256.Of([]byte(images["team/r2:v2"])))
	if _, err := source.want("DELETE", "/v2/team/r2/manifests/"+gone, nil, nil, 202); err != nil {
		t.Fatal(err)
	}
	delete(images, "team/r2:v2")
	c.Delete = true
	third, err := c.Run(t.Context())
	if err != nil || third.Blobs != 2 || third.Deleted < 1 {
		t.Errorf("third run: %+v, %v", third, err)
	}
	target.has(t, images)
	if _, err := target.want("GET", "/v2/team/r2/manifests/v2", nil, nil, 404); err != nil {
		t.Error(err)
	}
	if again, err := c.Run(t.Context()); err != nil || again.Blobs+again.Links+again.Manifests+again.Tags+again.Deleted != 0 {
		t.Errorf("a run without changes: %+v, %v", again, err)
	}

	// What is damaged, hostile or missing is reported, deletes nothing, and does not keep the rest.
	if images["team/last:v1"], err = source.image("team/last", "v1", random(10)); err != nil {
		t.Fatal(err)
	}
	repos := filepath.Join(root, "docker/registry/v2/repositories/team")
	outside := filepath.Join(t.TempDir(), "secret")
	if err := errors.Join(
		os.WriteFile(outside, []byte(gone), 0o600),
		os.MkdirAll(filepath.Join(repos, "r0/_manifests/tags/bad/current"), 0o700),
		os.WriteFile(filepath.Join(repos, "r0/_manifests/tags/bad/current/link"), []byte("sha256:../../../etc"), 0o600),
		os.MkdirAll(filepath.Join(repos, "r0/_manifests/tags/out/current"), 0o700),
		os.Symlink(outside, filepath.Join(repos, "r0/_manifests/tags/out/current/link")),
		os.RemoveAll(filepath.Join(repos, "r1/_manifests/tags/v0")),
	); err != nil {
		t.Fatal(err)
	}
	problems = 0
	if r, err := c.Run(t.Context()); !errors.Is(err, errs.Precondition) || problems != 2 || r.Problems != 2 {
		t.Errorf("a damaged source: %+v, %v, %d problems", r, err, problems)
	}
	target.has(t, images)
}

// A root that serves is copied into another root and backed up; what was there when the copy began is whole, and the check finds nothing
// in any of them.
func TestMigrateAndBackUpWhileServing(t *testing.T) {
	root := t.TempDir()
	_, url, stop := start(t, Options{Root: root})
	c := newClient(url)
	push := func(repo, tag string, layers ...[]byte) (string, error) { return c.image(repo, tag, "", layers...) }
	images := pushAll(t, push, 3, 2, 10_000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	later := map[string]string{}
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			time.Sleep(10 * time.Millisecond)
			tag := fmt.Sprintf("n%d", n)
			doc, err := c.image("busy", tag, "", random(1000))
			if err != nil {
				t.Error(err)
				return
			}
			later["busy:"+tag] = doc
		}
	})
	to, backup := t.TempDir(), filepath.Join(t.TempDir(), "backup")
	copyOnce := func(want bool) {
		t.Helper()
		from, err := OpenForReading(t.Context(), Options{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		meta, bytes, err := OpenStores(t.Context(), Options{Root: to})
		if err != nil {
			t.Fatal(err)
		}
		defer meta.Close()
		if from.Served != want {
			t.Errorf("served = %v", from.Served)
		}
		m := &migrate.Copier{From: migrate.Stores{Metadata: from.Metadata, Bytes: from.Blobs}, Metadata: meta, Blobs: bytes, Delete: true, Problem: func(err error) { t.Error(err) }}
		if r, err := m.Run(t.Context()); err != nil || r.Manifests == 0 && want {
			t.Errorf("%+v, %v", r, err)
		}
	}
	copyOnce(true)
	r, err := Backup(t.Context(), Options{Root: root}, backup)
	if err != nil || r.Blobs < 10 {
		t.Errorf("backup: %+v, %v", r, err)
	}
	if _, err := Backup(t.Context(), Options{Root: root}, filepath.Join(root, "inside")); !errors.Is(err, errs.Invalid) {
		t.Errorf("a backup into itself: %v", err)
	}
	examine := func(root string) {
		t.Helper()
		s, err := OpenForReading(t.Context(), Options{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		k := check.Checker{Metadata: s.Metadata, Blobs: s.Blobs, Found: func(f check.Finding) { t.Errorf("%s: %s", root, f) }}
		if r, err := k.Run(t.Context()); err != nil || r.Manifests < 6 {
			t.Errorf("%s: %+v, %v", root, r, err)
		}
	}
	examine(root)
	cancel()
	wg.Wait()
	c.http.CloseIdleConnections()
	again, err := Backup(t.Context(), Options{Root: root}, backup)
	if err != nil || again.Blobs > len(later) {
		t.Errorf("a second backup: %+v, %v", again, err)
	}
	stop()
	copyOnce(false)
	for name, doc := range later {
		images[name] = doc
	}
	for _, dir := range []string{to, backup} {
		examine(dir)
		_, url, stop := start(t, Options{Root: dir})
		c := newClient(url)
		c.has(t, images)
		c.http.CloseIdleConnections()
		stop()
	}
	if len(later) == 0 {
		t.Error("nothing was pushed meanwhile")
	}
	if _, err := OpenForReading(t.Context(), Options{Root: t.TempDir()}); !errors.Is(err, errs.NotFound) {
		t.Errorf("a directory that is no root: %v", err)
	}
}
