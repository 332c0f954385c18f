package registry

import (
	"net/http"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

// TestRegistryRestarts: docker-registry dies amid a pull and amid a push and comes back.
func TestRegistryRestarts(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, files(1, 24<<20))
	reg := remotetest.Start(t, remotetest.Options{})
	remotetest.Put(t, "http://"+reg.Addr, "r", "1", img, "", "")
	restart := func(action, status string, do func(l *lines) error) {
		t.Helper()
		once := make(chan struct{}, 1)
		once <- struct{}{}
		l := &lines{}
		broken := make(chan struct{})
		l.on = func(p transfer.Progress) {
			if p.Action == status && p.Current > 0 {
				select {
				case <-once:
					reg.Stop()
					close(broken)
				default:
				}
			}
		}
		result := make(chan error, 1)
		go func() { result <- do(l) }()
		select {
		case <-broken:
			reg = remotetest.Start(t, remotetest.Options{Dir: reg.Dir, Addr: reg.Addr})
		case err := <-result:
			result <- err
		}
		if err := <-result; err != nil {
			t.Fatalf("%s: %v\n%s", action, err, l.text())
		}
	}
	w := newWorld(t, Options{DownloadAttempts: 50}, store.Options{Retain: store.RetainAlways})
	w.c.retry.base, w.c.retry.max = 20*time.Millisecond, 100*time.Millisecond
	name := reg.Addr + "/r:1"
	restart("pull", "Downloading", func(l *lines) error {
		return w.c.Pull(t.Context(), ref(t, name), transfer.PullOptions{}, l.sink)
	})
	w.holds(name, img)
	w.c.work.Wait()
	// Into another registry, so that nothing can be mounted.
	old := reg
	reg = remotetest.Start(t, remotetest.Options{})
	old.Stop()
	to := reg.Addr + "/copy:1"
	w.tag(name, to)
	restart("push", "Pushing", func(l *lines) error {
		return w.c.Push(t.Context(), ref(t, to), transfer.PushOptions{}, l.sink)
	})
	other := newWorld(t, Options{})
	other.mustPull(to)
	other.holds(to, img)
}

// TestPushFaults: the registry refuses for a while.
func TestPushFaults(t *testing.T) {
	faults := map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"503 on everything": func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		},
		"429 on uploads": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				return false
			}
			w.Header().Set("Retry-After", "1")
			remotetest.Refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "slow down")
			return true
		},
		"reset on manifest": func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			cutOff(w, true)
			return true
		},
		"uploads are forgotten": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPatch {
				return false
			}
			remotetest.Refuse(w, http.StatusInternalServerError, "UNKNOWN", "oops")
			return true
		},
	}
	img := remotetest.Make(t, oci.FormatOCI, files(1, 2_000_000), files(2, 100))
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := remotetest.StartFake(t, false)
			var n atomic.Int64
			reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				return n.Load() < 3 && fault(w, r) && n.Add(1) > 0
			}
			w := newWorld(t, Options{})
			to := reg.Addr() + "/r:1"
			w.made(to, oci.FormatOCI, img)
			l := w.mustPush(to, transfer.Credentials{})
			_, data := reg.Manifest("r", "1")
			if !l.has(digestLine("1", data)) {
				t.Errorf("push:\n%s", l.text())
			}
		})
	}
}

// TestSkopeoReads: what we push, another client reads and verifies.
func TestSkopeoReads(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	for _, format := range []oci.Format{oci.FormatDocker, oci.FormatOCI} {
		w := newWorld(t, Options{})
		name := reg.Addr + "/s/" + string(format) + ":1"
		w.made(name, format, remotetest.Make(t, oci.FormatOCI, files(1, 2_000_000), files(2, 100)))
		w.mustPush(name, transfer.Credentials{})
		out, err := exec.CommandContext(t.Context(), "skopeo", "copy", "--src-tls-verify=false", "docker://"+name, "dir:"+t.TempDir()).CombinedOutput()
		if err != nil {
			t.Errorf("skopeo copy: %v\n%s", err, out)
		}
	}
}

// TestLoopbackTLS: a registry on loopback with a certificate that nobody knows is spoken to in TLS all the same.
func TestLoopbackTLS(t *testing.T) {
	reg := remotetest.StartFake(t, true)
	img := remotetest.Make(t, oci.FormatOCI, files(1, 100))
	reg.Add("r", "1", img)
	w := newWorld(t, Options{})
	w.mustPull(reg.Addr() + "/r:1")
	w.holds(reg.Addr()+"/r:1", img)
}

// TestMirrorAndHubDown says what each of them answered.
func TestMirrorAndHubDown(t *testing.T) {
	n := remotetest.NewNet(t)
	reg := remotetest.StartFake(t, false)
	n.Name("mirror.test", "203.0.113.7")
	n.At("203.0.113.7:80", reg.Addr())
	w := newWorld(t, Options{Mirrors: []string{"http://mirror.test"}, Dial: n.Dial, Lookup: n.Lookup})
	_, err := w.pull("nothere", transfer.PullOptions{})
	wantClass(t, err, errs.Unavailable, "registry-1.docker.io", "no such host", "mirror http://mirror.test: manifest unknown")
}
