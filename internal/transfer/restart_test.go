package transfer_test

import (
	"os/exec"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// docker-registry is killed during a pull and during a push, and starts again.
func TestRegistryRestarts(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 24<<20))
	reg := remotetest.Start(t, remotetest.Options{})
	remotetest.Put(t, "http://"+reg.Addr, "r", "1", img, "", "")
	restart := func(action string, state transfer.State, do func(l *transfertest.Lines) error) {
		t.Helper()
		once := make(chan struct{}, 1)
		once <- struct{}{}
		l := &transfertest.Lines{}
		broken := make(chan struct{})
		l.On = func(p transfer.Progress) {
			if p.State == state && p.Current > 0 {
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
			t.Fatalf("%s: %v\n%s", action, err, l.Text())
		}
	}
	retry := remote.Retry{Base: 20 * time.Millisecond, Max: 100 * time.Millisecond, GiveUp: time.Minute, MaxAfter: 3 * time.Second}
	w := transfertest.New(t, transfertest.Options{Store: store.Options{Retain: store.RetainAlways}, Remote: remote.Options{Attempts: 50, Retry: retry}})
	name := reg.Addr + "/r:1"
	restart("pull", transfer.LayerDownloading, func(l *transfertest.Lines) error {
		return w.Puller.Pull(t.Context(), transfertest.Ref(t, name), transfer.PullOptions{}, l.Sink)
	})
	w.Holds(name, img)
	w.AwaitRetention()
	// Push to another registry, where no layer can be mounted.
	old := reg
	reg = remotetest.Start(t, remotetest.Options{})
	old.Stop()
	to := reg.Addr + "/copy:1"
	w.Tag(name, to)
	restart("push", transfer.LayerPushing, func(l *transfertest.Lines) error {
		return w.Pusher.Push(t.Context(), transfertest.Ref(t, to), transfer.PushOptions{}, l.Sink)
	})
	other := transfertest.New(t, transfertest.Options{})
	other.MustPull(to)
	other.Holds(to, img)
}

// skopeo reads and verifies an image that was pushed.
func TestSkopeoReadsWhatWasPushed(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	for _, format := range []oci.Format{oci.FormatDocker, oci.FormatOCI} {
		w := transfertest.New(t, transfertest.Options{})
		name := reg.Addr + "/s/" + string(format) + ":1"
		w.Make(name, format, remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 2_000_000), transfertest.Files(2, 100)))
		w.MustPush(name, transfer.Credentials{})
		out, err := exec.CommandContext(t.Context(), "skopeo", "copy", "--src-tls-verify=false", "docker://"+name, "dir:"+t.TempDir()).CombinedOutput()
		if err != nil {
			t.Errorf("skopeo copy: %v\n%s", err, out)
		}
	}
}

// A registry on loopback may have a certificate that nobody trusts.
func TestUntrustedCertificateOnLoopback(t *testing.T) {
	reg := remotetest.StartFake(t, true)
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 100))
	reg.Add("r", "1", img)
	w := transfertest.New(t, transfertest.Options{})
	w.MustPull(reg.Addr() + "/r:1")
	w.Holds(reg.Addr()+"/r:1", img)
}

// When the mirror and the hub fail, the error has the answers of both.
func TestErrorWhenMirrorAndHubFail(t *testing.T) {
	n := remotetest.NewNet(t)
	reg := remotetest.StartFake(t, false)
	n.Name("mirror.test", "203.0.113.7")
	n.At("203.0.113.7:80", reg.Addr())
	w := transfertest.New(t, transfertest.Options{Remote: remote.Options{Mirrors: []string{"http://mirror.test"}, Dial: n.Dial, Lookup: n.Lookup}})
	_, err := w.Pull("nothere", transfer.PullOptions{})
	transfertest.WantClass(t, err, errs.Unavailable, "registry-1.docker.io", "no such host", "mirror http://mirror.test: manifest unknown")
}
