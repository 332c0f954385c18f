package goclient

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	dockerapi "github.com/docker/docker/api"
	"github.com/docker/docker/api/types/versions"
	mobyclient "github.com/moby/moby/client"
)

// imageName names an image of a registry that plyd does not have yet. It has busybox, and CMD is its shell.
var imageName = flag.String("image", "", "name of an image with busybox in a registry")

// library is one of docker's client libraries.
type library struct {
	name   string
	newest string // version of the API that it speaks
	open   func(host, fixed string, a *conns) (engine, error)
}

var libraries = []library{
	{"docker", dockerapi.DefaultVersion, newDocker},
	{"moby", mobyclient.MaxAPIVersion, newMoby},
}

// limit is how long one call may take on a busy machine.
const limit = 2 * time.Minute

// session is a client of the engine, in a test.
type session struct {
	*testing.T
	engine
	conns    *conns
	label    string // of its containers
	parallel bool   // calls do not wait for the end of those before them
}

func TestMain(m *testing.M) {
	flag.Parse()
	if *imageName == "" || !strings.HasPrefix(os.Getenv("DOCKER_HOST"), "unix://") {
		fmt.Fprintln(os.Stderr, "want -image, and DOCKER_HOST with a path: see test/e2e/testdata/clients/go_clients.txtar")
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// eachLibrary runs a test with each library.
func eachLibrary(t *testing.T, test func(s *session)) {
	for _, l := range libraries {
		t.Run(l.name, func(t *testing.T) { test(open(t, l, "")) })
	}
}

// open returns a client that has dialed once, and negotiated its version unless that is fixed.
func open(t *testing.T, l library, fixed string) *session {
	t.Helper()
	host := os.Getenv("DOCKER_HOST")
	a := &conns{path: strings.TrimPrefix(host, "unix://"), open: map[*conn]bool{}}
	e, err := l.open(host, fixed, a)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{T: t, engine: e, conns: a, label: strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())}
	t.Cleanup(func() {
		for _, name := range must(s, func(ctx context.Context) ([]string, error) { return s.names(ctx, s.label) }) {
			s.do(func(ctx context.Context) error { return s.remove(ctx, strings.TrimPrefix(name, "/")) })
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// do makes a call that must succeed.
func (s *session) do(call func(ctx context.Context) error) {
	s.Helper()
	if err := s.try(call); err != nil {
		s.Fatal(err)
	}
}

func (s *session) try(call func(ctx context.Context) error) error {
	s.Helper()
	if !s.parallel {
		s.conns.count(s.T)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return call(s.conns.traced(ctx))
}

// must makes a call that must succeed, and returns its result.
func must[T any](s *session, call func(ctx context.Context) (T, error)) (result T) {
	s.Helper()
	s.do(func(ctx context.Context) (err error) {
		result, err = call(ctx)
		return err
	})
	return result
}

// run creates a container and starts it.
func (s *session) run(name string, binds []string, cmd ...string) (id string) {
	s.Helper()
	id = s.made(name, spec{cmd: cmd, binds: binds})
	s.do(func(ctx context.Context) error { return s.start(ctx, id) })
	return id
}

// made creates a container of the image. Its name is unique.
func (s *session) made(name string, p spec) (id string) {
	s.Helper()
	s.pulled()
	p.label = s.label
	if p.image == "" {
		p.image = *imageName
	}
	return must(s, func(ctx context.Context) (string, error) { return s.create(ctx, s.label+"-"+name, p) })
}

// pulled pulls the image if plyd does not have it.
func (s *session) pulled() {
	s.Helper()
	err := s.try(func(ctx context.Context) error { _, err := s.imageID(ctx, *imageName); return err })
	if errdefs.IsNotFound(err) {
		must(s, func(ctx context.Context) (string, error) { return text(s.pull(ctx, *imageName)) })
	} else if err != nil {
		s.Fatal(err)
	}
}

// text reads a stream to its end.
func text(r io.ReadCloser, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

// archive is a tar of files with their contents.
func archive(files ...string) io.Reader {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}
		if err := errors.Join(w.WriteHeader(h), func() error { _, err := io.WriteString(w, files[i+1]); return err }()); err != nil {
			panic(err) // a buffer takes everything
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return &b
}

// A client negotiates the highest version that both sides know, keeps one that is fixed, and is refused with one that plyd does not know.
func TestVersions(t *testing.T) {
	for _, l := range libraries {
		t.Run(l.name, func(t *testing.T) {
			s := open(t, l, "")
			api := must(s, s.ping)
			want := l.newest
			if versions.LessThan(api, want) {
				want = api
			}
			var oldest string
			s.do(func(ctx context.Context) (err error) { api, oldest, err = s.server(ctx); return err })
			if s.version() != want {
				t.Errorf("the client speaks %s, plyd %s, and they agree on %s", l.newest, api, s.version())
			}
			if versions.LessThan(api, "1.51") || !versions.LessThan(oldest, api) {
				t.Errorf("plyd speaks %s to %s", oldest, api)
			}
			if n := s.conns.count(t); n != 1 {
				t.Errorf("%d connections", n)
			}
			old := open(t, l, "1.44")
			must(old, func(ctx context.Context) ([]string, error) { return old.names(ctx, "none") })
			if old.version() != "1.44" {
				t.Errorf("a fixed version became %s", old.version())
			}
		})
		t.Run(l.name+" of the future", func(t *testing.T) {
			a := &conns{path: strings.TrimPrefix(os.Getenv("DOCKER_HOST"), "unix://"), open: map[*conn]bool{}}
			e, err := l.open(os.Getenv("DOCKER_HOST"), "1.99", a)
			if err != nil {
				t.Fatal(err)
			}
			defer e.close()
			if _, err := e.names(a.traced(t.Context()), "none"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "client version 1.99 is too new") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// An image comes from a registry, is saved, and is the base of a build: long answers, one connection.
func TestImages(t *testing.T) {
	eachLibrary(t, func(s *session) {
		if err := s.try(func(ctx context.Context) error { return s.removeImage(ctx, *imageName) }); err != nil && !errdefs.IsNotFound(err) {
			s.Fatal(err)
		}
		for _, want := range []string{"Downloaded newer image", "Image is up to date"} {
			out := must(s, func(ctx context.Context) (string, error) { return text(s.pull(ctx, *imageName)) })
			if !strings.Contains(out, want) {
				s.Errorf("pull says %s, want %q", out, want)
			}
		}
		err := s.try(func(ctx context.Context) error { _, err := text(s.pull(ctx, *imageName+"-missing")); return err })
		if !errdefs.IsNotFound(err) {
			s.Errorf("pull of a tag that is not there: %v", err)
		}
		if out := must(s, func(ctx context.Context) (string, error) { return text(s.save(ctx, *imageName)) }); !strings.Contains(out, "manifest.json") {
			s.Errorf("%d bytes were saved, without a manifest", len(out))
		}
		tag := strings.ToLower(s.label) + ":1"
		dockerfile := "FROM " + *imageName + "\nCOPY word /word\nRUN cat /word /word >/words\nCMD cat /words\n"
		out := must(s, func(ctx context.Context) (string, error) {
			return text(s.build(ctx, archive("Dockerfile", dockerfile, "word", "twice\n"), tag))
		})
		if !strings.Contains(out, "Successfully tagged "+tag) {
			s.Errorf("build says %s", out)
		}
		out = must(s, func(ctx context.Context) (string, error) {
			return text(s.build(ctx, archive("Dockerfile", "FROM "+*imageName+"\nRUN exit 7\n"), tag+"-not"))
		})
		if !strings.Contains(out, `"errorDetail":{"code":7,`) {
			s.Errorf("a build that fails says %s", out)
		}
		id := s.made("built", spec{image: tag})
		s.do(func(ctx context.Context) error { return s.start(ctx, id) })
		must(s, func(ctx context.Context) (int64, error) { return s.wait(ctx, id, "not-running", nothing) })
		if o, _ := s.output(id); o != "twice\ntwice\n" {
			s.Errorf("the image that was built says %q", o)
		}
		s.do(func(ctx context.Context) error { return s.remove(ctx, id) })
		s.do(func(ctx context.Context) error { return s.removeImage(ctx, tag) })
		if n := s.conns.count(s.T); n != 1 {
			s.Errorf("%d connections", n)
		}
	})
}

func nothing() error { return nil }

// output returns what a container has printed.
func (s *session) output(id string) (stdout, stderr string) {
	s.Helper()
	s.do(func(ctx context.Context) error {
		r, err := s.logs(ctx, id, false)
		if err != nil {
			return err
		}
		defer r.Close()
		stdout, stderr, err = split(r)
		return err
	})
	return stdout, stderr
}

// A program attaches to a container before its start, waits for its end, talks to it, and sees its events as they happen and later.
func TestContainer(t *testing.T) {
	eachLibrary(t, func(s *session) {
		s.parallel = true
		since := fmt.Sprint(time.Now().Unix())
		s.pulled()
		name := s.label + "-talks"
		live := make(chan []string, 1)
		go func() {
			var got []string
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			_ = s.events(s.conns.traced(ctx), since, "", func(action, of string) { // it ends with its context
				if of == name {
					got = append(got, action)
				}
				if of == name && action == "destroy" {
					cancel()
				}
			})
			live <- got
		}()
		id := s.made("talks", spec{cmd: []string{"sh", "-c", "cat; echo of the errors >&2; exit 3"}, stdin: true})
		stream := must(s, func(ctx context.Context) (*stream, error) { return s.attach(ctx, id) })
		started, code := make(chan struct{}), make(chan int64, 1)
		go func() {
			defer close(code)
			code <- must(s, func(ctx context.Context) (int64, error) {
				return s.wait(ctx, id, "next-exit", func() error {
					defer close(started)
					return s.try(func(ctx context.Context) error { return s.start(ctx, id) })
				})
			})
		}()
		<-started
		stdout, stderr, err := stream.talk("to the container\n")
		if err != nil || stdout != "to the container\n" || stderr != "of the errors\n" {
			s.Errorf("the container says %q and %q, %v", stdout, stderr, err)
		}
		if c, ok := <-code; !ok || c != 3 {
			s.Errorf("exit code %d", c)
		}
		if o, e := s.output(id); o != stdout || e != stderr {
			s.Errorf("its logs are %q and %q", o, e)
		}
		if st := must(s, func(ctx context.Context) (string, error) { return s.status(ctx, id) }); st != "exited" {
			s.Errorf("its status is %q", st)
		}
		if names := must(s, func(ctx context.Context) ([]string, error) { return s.names(ctx, s.label) }); !slices.Equal(names, []string{"/" + name}) {
			s.Errorf("containers with the label: %q", names)
		}
		s.do(func(ctx context.Context) error { return s.remove(ctx, id) })
		if err := s.try(func(ctx context.Context) error { _, err := s.status(ctx, id); return err }); !errdefs.IsNotFound(err) {
			s.Errorf("inspect of a removed container: %v", err)
		}
		want := []string{"create", "attach", "start", "die", "destroy"}
		if got := <-live; !slices.Equal(got, want) {
			s.Errorf("events as they happened: %q, want %q", got, want)
		}
		var later []string
		s.do(func(ctx context.Context) error {
			return s.events(ctx, since, fmt.Sprint(time.Now().Unix()+1), func(action, of string) {
				if of == name {
					later = append(later, action)
				}
			})
		})
		if !slices.Equal(later, want) {
			s.Errorf("events later: %q, want %q", later, want)
		}
		// Four at the same time: the events, the stream, and start while wait goes on.
		if n := s.conns.count(s.T); n > 4 {
			s.Errorf("%d connections", n)
		}
	})
}

// The streams of a container that runs, and the files that go into it and out of it.
func TestStreams(t *testing.T) {
	eachLibrary(t, func(s *session) {
		id := s.run("prints", nil, "sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done")
		s.do(func(ctx context.Context) error {
			r, err := s.logs(ctx, id, true)
			if err != nil {
				return err
			}
			defer r.Close()
			b := make([]byte, 0, 4096)
			for !bytes.Contains(b, []byte("line 1\n")) || !bytes.Contains(b, []byte("line 10\n")) {
				n, err := r.Read(b[len(b):cap(b)])
				if b = b[:len(b)+n]; err != nil || len(b) == cap(b) {
					return fmt.Errorf("follow: %q, %w", b, err)
				}
			}
			return nil
		})
		for _, live := range []bool{true, false} {
			s.do(func(ctx context.Context) error {
				r, err := s.stats(ctx, id, live)
				if err != nil {
					return err
				}
				defer r.Close()
				d := json.NewDecoder(r)
				for range map[bool]int{true: 2, false: 1}[live] {
					var sample struct {
						ID  string
						CPU struct {
							Usage struct {
								Total uint64 `json:"total_usage"`
							} `json:"cpu_usage"`
						} `json:"cpu_stats"`
						PIDs struct{ Current int } `json:"pids_stats"`
					}
					if err := d.Decode(&sample); err != nil || sample.ID != id || sample.CPU.Usage.Total == 0 || sample.PIDs.Current == 0 {
						return fmt.Errorf("stats: %+v, %w", sample, err)
					}
				}
				return nil
			})
		}
		execID := must(s, func(ctx context.Context) (string, error) {
			return s.exec(ctx, id, "sh", "-c", "tr a-z A-Z; echo wrong >&2; exit 5")
		})
		stream := must(s, func(ctx context.Context) (*stream, error) { return s.attachExec(ctx, execID) })
		if o, e, err := stream.talk("loud"); err != nil || o != "LOUD" || e != "wrong\n" {
			s.Errorf("exec says %q and %q, %v", o, e, err)
		}
		if code := must(s, func(ctx context.Context) (int, error) { return s.exitCode(ctx, execID) }); code != 5 {
			s.Errorf("the exit code of exec is %d", code)
		}
		large := strings.Repeat("0123456789abcdef", 1<<16)
		s.do(func(ctx context.Context) error { return s.copyTo(ctx, id, "/tmp", archive("large", large)) })
		if size := must(s, func(ctx context.Context) (int64, error) { return s.size(ctx, id, "/tmp/large") }); size != int64(len(large)) {
			s.Errorf("%d bytes arrived", size)
		}
		back := must(s, func(ctx context.Context) (string, error) { return text(s.copyFrom(ctx, id, "/tmp/large")) })
		r := tar.NewReader(strings.NewReader(back))
		if _, err := r.Next(); err != nil {
			s.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != large {
			s.Errorf("%d bytes came back, %v", len(b), err)
		}
		s.do(func(ctx context.Context) error { return s.kill(ctx, id) })
		if code := must(s, func(ctx context.Context) (int64, error) { return s.wait(ctx, id, "not-running", nothing) }); code != 137 {
			s.Errorf("exit code %d after a kill", code)
		}
	})
}

// Containers of a network reach each other by an alias, and share a volume. What is in use stays.
func TestNetworksAndVolumes(t *testing.T) {
	eachLibrary(t, func(s *session) {
		name := s.label
		s.do(func(ctx context.Context) error { return s.createNetwork(ctx, name) })
		s.do(func(ctx context.Context) error { return s.createVolume(ctx, name) })
		serves := s.run("serves", []string{name + ":/www"}, "sh", "-c", "echo shared >/www/word; exec httpd -f -p 80 -h /www")
		asks := s.run("asks", []string{name + ":/data:ro"}, "sleep", "1000")
		s.do(func(ctx context.Context) error { return s.connect(ctx, name, serves) })
		s.do(func(ctx context.Context) error { return s.connect(ctx, name, asks) })
		if n := must(s, func(ctx context.Context) (int, error) { return s.members(ctx, name) }); n != 2 {
			s.Errorf("%d containers in the network", n)
		}
		if n := must(s, func(ctx context.Context) (int, error) { return s.volumes(ctx, name) }); n != 1 {
			s.Errorf("%d volumes of the name", n)
		}
		execID := must(s, func(ctx context.Context) (string, error) {
			return s.exec(ctx, asks, "sh", "-c", "until wget -qO- http://"+s.label+"-serves/word; do sleep 0.1; done; cat /data/word")
		})
		stream := must(s, func(ctx context.Context) (*stream, error) { return s.attachExec(ctx, execID) })
		if o, e, err := stream.talk(""); err != nil || o != "shared\nshared\n" {
			s.Errorf("the neighbour says %q and %q, %v", o, e, err)
		}
		if err := s.try(func(ctx context.Context) error { return s.removeVolume(ctx, name) }); !errdefs.IsConflict(err) {
			s.Errorf("remove a volume in use: %v", err)
		}
		if err := s.try(func(ctx context.Context) error { return s.removeNetwork(ctx, name) }); !errdefs.IsPermissionDenied(err) && !errdefs.IsConflict(err) {
			s.Errorf("remove a network in use: %v", err)
		}
		for _, id := range []string{serves, asks} {
			s.do(func(ctx context.Context) error { return s.remove(ctx, id) })
		}
		s.do(func(ctx context.Context) error { return s.removeNetwork(ctx, name) })
		s.do(func(ctx context.Context) error { return s.removeVolume(ctx, name) })
		if n := s.conns.count(s.T); n != 2 { // one of them the stream
			s.Errorf("%d connections", n)
		}
	})
}

// The other commands that docker has for containers, images, networks, volumes and the system, one after the other on one connection.
func TestOtherCommands(t *testing.T) {
	eachLibrary(t, func(s *session) {
		name := strings.ToLower(s.label)
		s.do(func(ctx context.Context) error { return s.createNetwork(ctx, name) })
		s.do(func(ctx context.Context) error { return s.createVolume(ctx, name) })
		id := s.run("works", nil, "sh", "-c", "exec sleep 1000")
		s.do(func(ctx context.Context) error { return s.copyTo(ctx, id, "/", archive("added", "added")) })
		s.do(func(ctx context.Context) error { return s.connect(ctx, name, id) })
		o := object{
			container: id, file: "/added", renamed: s.label + "-renamed", network: name, volume: name,
			made: name + "-made:1", pushed: *imageName + "-" + name, imported: name + "-imported:1", label: "none",
		}
		for _, c := range s.commands(o) {
			if err := s.try(c.call); err != nil {
				s.Errorf("%s: %v", c.name, err)
			}
			if n := s.conns.count(s.T); n != 1 {
				s.Fatalf("%d connections after %s", n, c.name)
			}
		}
		if names := must(s, func(ctx context.Context) ([]string, error) { return s.names(ctx, s.label) }); !slices.Equal(names, []string{"/" + o.renamed}) {
			s.Errorf("the container is renamed to %q", names)
		}
		if n := must(s, func(ctx context.Context) (int, error) { return s.members(ctx, name) }); n != 0 {
			s.Errorf("%d containers in the network after disconnect", n)
		}
		saved := must(s, func(ctx context.Context) (string, error) { return text(s.save(ctx, o.made)) })
		for _, image := range []string{o.made, o.pushed, o.imported} {
			s.do(func(ctx context.Context) error { return s.removeImage(ctx, image) })
		}
		out := must(s, func(ctx context.Context) (string, error) { return text(s.load(ctx, strings.NewReader(saved))) })
		if !strings.Contains(out, "Loaded image: "+o.made) {
			s.Errorf("load says %s", out)
		}
		s.do(func(ctx context.Context) error { return s.removeImage(ctx, o.made) })
		s.do(func(ctx context.Context) error { return s.remove(ctx, id) })
		s.do(func(ctx context.Context) error { return s.removeNetwork(ctx, name) })
		s.do(func(ctx context.Context) error { return s.removeVolume(ctx, name) })
		if n := s.conns.count(s.T); n != 2 { // load's answer begins while the archive is read, and is the last one of its connection
			s.Errorf("%d connections", n)
		}
	})
}

// A connection serves one call after another: after errors, HEAD, answers without a body and long ones. Only a stream that is left and a hijacked one cost
// a connection.
func TestConnectionsAreReused(t *testing.T) {
	eachLibrary(t, func(s *session) {
		runs := s.run("runs", nil, "sh", "-c", "echo here; exec sleep 1000")
		over := s.run("over", nil, "sh", "-c", "exit 4")
		must(s, func(ctx context.Context) (int64, error) { return s.wait(ctx, over, "not-running", nothing) })
		ok := func(err error) bool { return err == nil }
		fails := func(err error) bool { return err != nil }
		calls := []struct {
			name string
			want func(error) bool
			call func(ctx context.Context) error
		}{
			{"ping", ok, func(ctx context.Context) error { _, err := s.ping(ctx); return err }},
			{"version", ok, func(ctx context.Context) error { _, _, err := s.server(ctx); return err }},
			{"list", ok, func(ctx context.Context) error { _, err := s.names(ctx, s.label); return err }},
			{"inspect", ok, func(ctx context.Context) error { _, err := s.status(ctx, runs); return err }},
			{"inspect nothing", errdefs.IsNotFound, func(ctx context.Context) error { _, err := s.status(ctx, "nothing"); return err }},
			{"start what runs", ok, func(ctx context.Context) error { return s.start(ctx, runs) }},
			{"stop what is over", ok, func(ctx context.Context) error { return s.stop(ctx, over) }},
			{"start nothing", errdefs.IsNotFound, func(ctx context.Context) error { return s.start(ctx, "nothing") }},
			{"kill what is over", errdefs.IsConflict, func(ctx context.Context) error { return s.kill(ctx, over) }},
			{"create with a name in use", errdefs.IsConflict, func(ctx context.Context) error {
				_, err := s.create(ctx, s.label+"-runs", spec{image: *imageName})
				return err
			}},
			{"create with a bad name", errdefs.IsInvalidArgument, func(ctx context.Context) error { _, err := s.create(ctx, "!", spec{image: *imageName}); return err }},
			{"create of no image", errdefs.IsNotFound, func(ctx context.Context) error {
				_, err := s.create(ctx, s.label+"-none", spec{image: "nothing"})
				return err
			}},
			{"exec in what is over", errdefs.IsConflict, func(ctx context.Context) error { _, err := s.exec(ctx, over, "true"); return err }},
			{"exec", ok, func(ctx context.Context) error { _, err := s.exec(ctx, runs, "true"); return err }},
			{"HEAD of a file", ok, func(ctx context.Context) error { _, err := s.size(ctx, runs, "/bin/busybox"); return err }},
			{"HEAD of no file", errdefs.IsNotFound, func(ctx context.Context) error { _, err := s.size(ctx, runs, "/nothing"); return err }},
			{"HEAD of no container", errdefs.IsNotFound, func(ctx context.Context) error { _, err := s.size(ctx, "nothing", "/"); return err }},
			{"copy to", ok, func(ctx context.Context) error { return s.copyTo(ctx, runs, "/tmp", archive("word", "word")) }},
			{"copy to no directory", errdefs.IsNotFound, func(ctx context.Context) error { return s.copyTo(ctx, runs, "/nothing", archive("word", "word")) }},
			{"copy what is no tar", fails, func(ctx context.Context) error {
				return s.copyTo(ctx, runs, "/tmp", strings.NewReader(strings.Repeat("no tar", 500)))
			}},
			{"copy from", ok, func(ctx context.Context) error { _, err := text(s.copyFrom(ctx, runs, "/bin")); return err }},
			{"copy no file", errdefs.IsNotFound, func(ctx context.Context) error { _, err := text(s.copyFrom(ctx, runs, "/nothing")); return err }},
			{"logs", ok, func(ctx context.Context) error { _, err := text(s.logs(ctx, runs, false)); return err }},
			{"logs to the end", ok, func(ctx context.Context) error { _, err := text(s.logs(ctx, over, true)); return err }},
			{"logs of nothing", errdefs.IsNotFound, func(ctx context.Context) error { _, err := text(s.logs(ctx, "nothing", true)); return err }},
			{"stats", ok, func(ctx context.Context) error { _, err := text(s.stats(ctx, runs, false)); return err }},
			{"wait for what is over", ok, func(ctx context.Context) error { _, err := s.wait(ctx, over, "not-running", nothing); return err }},
			{"wait for nothing", errdefs.IsNotFound, func(ctx context.Context) error { _, err := s.wait(ctx, "nothing", "", nothing); return err }},
			{"events of the past", ok, func(ctx context.Context) error {
				return s.events(ctx, "1", fmt.Sprint(time.Now().Unix()-1), func(_, _ string) {})
			}},
			{"save", ok, func(ctx context.Context) error { _, err := text(s.save(ctx, *imageName)); return err }},
			{"save no image", errdefs.IsNotFound, func(ctx context.Context) error { _, err := text(s.save(ctx, "nothing")); return err }},
			{"pull nothing", errdefs.IsNotFound, func(ctx context.Context) error { _, err := text(s.pull(ctx, *imageName+"-missing")); return err }},
			{"remove an image in use", errdefs.IsConflict, func(ctx context.Context) error { return s.removeImage(ctx, *imageName) }},
			{"build of a bad Dockerfile", ok, func(ctx context.Context) error { return s.failedBuild(ctx, "Dockerfile", "BAD instruction\n") }},
			{"build without a Dockerfile", ok, func(ctx context.Context) error { return s.failedBuild(ctx, "word", "word") }},
			{"build of no tar", fails, func(ctx context.Context) error {
				_, err := text(s.build(ctx, strings.NewReader(strings.Repeat("no tar", 500)), "bad"))
				return err
			}},
			{"network of no name", errdefs.IsNotFound, func(ctx context.Context) error { return s.removeNetwork(ctx, "nothing") }},
			{"network that ply keeps", fails, func(ctx context.Context) error { return s.removeNetwork(ctx, "bridge") }},
			{"volume of no name", errdefs.IsNotFound, func(ctx context.Context) error { return s.removeVolume(ctx, "nothing") }},
			{"volumes", ok, func(ctx context.Context) error { _, err := s.volumes(ctx, "nothing"); return err }},
		}
		for range 3 {
			for _, c := range calls {
				if err := s.try(c.call); !c.want(err) {
					s.Errorf("%s: %v", c.name, err)
				}
				if n := s.conns.count(s.T); n != 1 {
					s.Fatalf("%d connections after %s", n, c.name)
				}
			}
		}
		left := []struct {
			name string
			call func(ctx context.Context, cancel func()) error
		}{
			{"logs", func(ctx context.Context, _ func()) error { return first(s.logs(ctx, runs, true)) }},
			{"stats", func(ctx context.Context, _ func()) error { return first(s.stats(ctx, runs, true)) }},
			{"a file", func(ctx context.Context, _ func()) error { return first(s.copyFrom(ctx, runs, "/bin/busybox")) }},
			{"an image", func(ctx context.Context, _ func()) error { return first(s.save(ctx, *imageName)) }},
			{"logs, cancelled", func(ctx context.Context, cancel func()) error {
				r, err := s.logs(ctx, runs, true)
				if err != nil {
					return err
				}
				defer r.Close()
				time.AfterFunc(50*time.Millisecond, cancel)
				if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
					return fmt.Errorf("the end of the logs: %w", err)
				}
				return nil
			}},
			{"wait, cancelled", func(ctx context.Context, cancel func()) error {
				_, err := s.wait(ctx, runs, "not-running", func() error { cancel(); return nil })
				if !errors.Is(err, context.Canceled) {
					return fmt.Errorf("the end of wait: %w", err)
				}
				return nil
			}},
			{"events, cancelled", func(ctx context.Context, cancel func()) error {
				time.AfterFunc(50*time.Millisecond, cancel)
				if err := s.events(ctx, "", "", func(_, _ string) {}); !errors.Is(err, context.Canceled) {
					return fmt.Errorf("the end of the events: %w", err)
				}
				return nil
			}},
			{"attach", func(ctx context.Context, _ func()) error {
				r, err := s.attach(ctx, runs)
				if err != nil {
					return err
				}
				return r.conn.Close()
			}},
			{"attach to nothing", func(ctx context.Context, _ func()) error {
				if _, err := s.attach(ctx, "nothing"); err == nil {
					return errors.New("no error")
				}
				return nil
			}},
			{"exec", func(ctx context.Context, _ func()) error {
				id, err := s.exec(ctx, runs, "true")
				if err != nil {
					return err
				}
				r, err := s.attachExec(ctx, id)
				if err != nil {
					return err
				}
				_, _, err = r.talk("")
				return err
			}},
		}
		for _, c := range left {
			before := s.conns.count(s.T)
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			if err := c.call(s.conns.traced(ctx), cancel); err != nil {
				s.Errorf("%s: %v", c.name, err)
			}
			cancel()
			must(s, s.ping)
			must(s, s.ping)
			if n := s.conns.count(s.T); n != before+1 {
				s.Errorf("%s: %d connections became %d", c.name, before, n)
			}
		}
	})
}

// failedBuild builds what can not be built. The error is in the stream.
func (s *session) failedBuild(ctx context.Context, files ...string) error {
	out, err := text(s.build(ctx, archive(files...), "bad"))
	if err == nil && !strings.Contains(out, `"errorDetail"`) {
		err = fmt.Errorf("no error: %s", out)
	}
	return err
}

// first reads the beginning of a stream and leaves it.
func first(r io.ReadCloser, err error) error {
	if err != nil {
		return err
	}
	_, err = r.Read(make([]byte, 1))
	return errors.Join(err, r.Close())
}
