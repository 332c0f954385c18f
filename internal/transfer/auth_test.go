package transfer_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

var (
	good  = transfer.Credentials{Username: remotetest.User, Password: remotetest.Password}
	wrong = transfer.Credentials{Username: remotetest.User, Password: "wrong"}
)

// Pull, push and login at a registry with Basic authentication.
func TestBasicAuthentication(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{Htpasswd: true})
	img := remotetest.Make(t, oci.FormatDocker, transfertest.Files(1, 100), transfertest.Files(2, 2_000_000))
	remotetest.Put(t, "http://"+reg.Addr, "r", "1", img, remotetest.User, remotetest.Password)
	w := transfertest.New(t, transfertest.Options{})
	_, err := w.Pull(reg.Addr+"/r:1", transfer.PullOptions{})
	transfertest.WantClass(t, err, errs.Unauthorized, "no basic auth credentials. Run 'ply login "+reg.Addr+"'")
	_, err = w.Pull(reg.Addr+"/r:1", transfer.PullOptions{Credentials: wrong})
	transfertest.WantClass(t, err, errs.Unauthorized, "pull access denied for "+reg.Addr+"/r, repository does not exist or may require 'ply login'")
	if _, err := w.Pull(reg.Addr+"/r:1", transfer.PullOptions{Credentials: good}); err != nil {
		t.Fatal(err)
	}
	w.Holds(reg.Addr+"/r:1", img)
	w.Tag(reg.Addr+"/r:1", reg.Addr+"/copy:1")
	l := w.MustPush(reg.Addr+"/copy:1", good)
	if !l.HasPushed(reg.Addr+"/copy:1", img.Manifest) || !l.Has(transfer.LayerMounted, img.Layers[1].DiffID.Short(), "r") {
		t.Errorf("push:\n%s", l.Text())
	}
	testLogin(t, w, reg.Addr, "")
	if strings.Contains(w.Log.String(), remotetest.Password) {
		t.Error("password in log")
	}
}

// Pull, push and login at a registry with a token server.
func TestTokenAuthentication(t *testing.T) {
	tokens := remotetest.StartToken(t)
	reg := remotetest.Start(t, remotetest.Options{Token: tokens})
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 100), transfertest.Files(2, 2_000_000))
	w := transfertest.New(t, transfertest.Options{})
	w.Make(reg.Addr+"/a/b:1", oci.FormatOCI, img)
	w.MustPush(reg.Addr+"/a/b:1", good)
	if got := tokens.Asked(); len(got) != 1 || got[0] != "repository:a/b:pull,push" {
		t.Errorf("push asked for tokens %q, want one", got)
	}
	w.Tag(reg.Addr+"/a/b:1", reg.Addr+"/c:1")
	l := w.MustPush(reg.Addr+"/c:1", good)
	if !l.Has(transfer.LayerMounted, img.Layers[0].DiffID.Short(), "a/b") {
		t.Errorf("mount:\n%s", l.Text())
	}
	if got := strings.Join(tokens.Asked(), "\n"); !strings.Contains(got, "repository:a/b:pull repository:c:pull,push") && !strings.Contains(got, "repository:c:pull,push repository:a/b:pull") {
		t.Errorf("mount asked for %q", got)
	}
	other := transfertest.New(t, transfertest.Options{})
	_, err := other.Pull(reg.Addr+"/c:1", transfer.PullOptions{})
	transfertest.WantClass(t, err, errs.Unauthorized, "pull access denied for "+reg.Addr+"/c, repository does not exist or may require 'ply login': unauthorized: authentication required")
	_, err = other.Pull(reg.Addr+"/c:1", transfer.PullOptions{Credentials: wrong})
	transfertest.WantClass(t, err, errs.Unauthorized, "incorrect username or password")
	before := len(tokens.Asked())
	if _, err := other.Pull(reg.Addr+"/c:1", transfer.PullOptions{Credentials: good}); err != nil {
		t.Fatal(err)
	}
	if n := len(tokens.Asked()) - before; n != 1 {
		t.Errorf("pull asked for %d tokens, want 1", n)
	}
	third := transfertest.New(t, transfertest.Options{})
	if _, err := third.Pull(reg.Addr+"/c:1", transfer.PullOptions{Credentials: transfer.Credentials{IdentityToken: tokens.Identity}}); err != nil {
		t.Errorf("pull with identity token: %v", err)
	}
	testLogin(t, w, reg.Addr, tokens.Identity)
}

func testLogin(t *testing.T, w *transfertest.World, addr, identity string) {
	t.Helper()
	for _, form := range []string{addr, "http://" + addr + "/v1/", "https://" + addr} {
		good := good
		good.ServerAddress = form
		token, err := w.Remote.Login(t.Context(), good)
		if err != nil || token != identity {
			t.Errorf("login at %s: %q, %v", form, token, err)
		}
	}
	bad := wrong
	bad.ServerAddress = addr
	_, err := w.Remote.Login(t.Context(), bad)
	transfertest.WantClass(t, err, errs.Unauthorized, "unauthorized: incorrect username or password")
	bad.ServerAddress = "a b"
	_, err = w.Remote.Login(t.Context(), bad)
	transfertest.WantClass(t, err, errs.Invalid, "not a registry's host")
	bad.ServerAddress = remotetest.FreeAddr(t)
	_, err = w.Remote.Login(t.Context(), bad)
	transfertest.WantClass(t, err, errs.Unavailable, "connection refused")
}

// The registry accepts a token for six requests only. The pull gets new tokens and succeeds.
func TestTokenExpiresDuringPull(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 100), transfertest.Files(2, 20<<20), transfertest.Files(3, 200_000))
	reg := remotetest.StartFake(t, false)
	reg.Add("r", "1", img)
	var issued, uses atomic.Int64
	reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			uses.Store(0)
			fmt.Fprintf(w, `{"access_token":"t%d"}`, issued.Add(1))
			return true
		}
		if r.Header.Get("Authorization") == fmt.Sprintf("Bearer t%d", issued.Load()) && uses.Add(1) <= 6 {
			return false
		}
		w.Header().Set("Www-Authenticate", `Bearer realm="`+reg.URL+`/token",service="s, with a comma"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	w := transfertest.New(t, transfertest.Options{})
	w.MustPull(reg.Addr() + "/r:1")
	w.Holds(reg.Addr()+"/r:1", img)
	if issued.Load() < 3 {
		t.Errorf("%d tokens were issued", issued.Load())
	}
}

func TestMalformedAnswersOfTokenServers(t *testing.T) {
	cases := map[string]struct {
		answer string
		want   string
	}{
		"no JSON":    {"<html>", "not the JSON of a token"},
		"no token":   {`{"expires_in":60}`, "holds no token"},
		"line break": {`{"token":"a\r\nX-Evil: 1"}`, "not well formed"},
		"endless":    {`{"token":"` + strings.Repeat("a", 2<<20) + `"}`, "longer than"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			reg := remotetest.StartFake(t, false)
			reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/token" {
					fmt.Fprint(w, c.answer)
					return true
				}
				w.Header().Set("Www-Authenticate", `Bearer realm="`+reg.URL+`/token"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			w := transfertest.New(t, transfertest.Options{})
			_, err := w.Pull(reg.Addr()+"/r:1", transfer.PullOptions{})
			transfertest.WantClass(t, err, errs.Invalid, c.want)
		})
	}
}

func TestSearch(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	all := []map[string]any{
		{"name": "mhk/ubuntu", "description": "a\x1b[31mred\nline", "star_count": 3, "is_official": true},
		{"name": "library/other", "star_count": 1},
	}
	reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v1/search" {
			return false
		}
		if r.URL.Query().Get("q") != "ubuntu" {
			t.Errorf("query %q", r.URL.RawQuery)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"num_results": 2, "results": all})
		return true
	}
	w := transfertest.New(t, transfertest.Options{})
	got, err := w.Remote.Search(t.Context(), reg.Addr()+"/ubuntu", 0, nil, transfer.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	want := []transfer.SearchResult{
		{Name: reg.Addr() + "/mhk/ubuntu", Description: "a[31mred line", Stars: 3, Official: true},
		{Name: reg.Addr() + "/library/other", Stars: 1},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for filter, n := range map[string]int{"is-official=true": 1, "is-official=false": 1, "stars=2": 1, "stars=4": 0, "is-automated=true": 0} {
		k, v, _ := strings.Cut(filter, "=")
		got, err := w.Remote.Search(t.Context(), reg.Addr()+"/ubuntu", 5, map[string][]string{k: {v}}, transfer.Credentials{})
		if err != nil || len(got) != n {
			t.Errorf("%s: %d results, %v, want %d", filter, len(got), err, n)
		}
	}
	_, err = w.Remote.Search(t.Context(), reg.Addr()+"/ubuntu", 5, map[string][]string{"x": {"1"}}, transfer.Credentials{})
	transfertest.WantClass(t, err, errs.Invalid, "invalid filter 'x'")
	_, err = w.Remote.Search(t.Context(), "ubuntu", 101, nil, transfer.Credentials{})
	transfertest.WantClass(t, err, errs.Invalid, "outside the range of [1, 100]")
	real := remotetest.Start(t, remotetest.Options{})
	_, err = w.Remote.Search(t.Context(), real.Addr+"/x", 5, nil, transfer.Credentials{})
	transfertest.WantClass(t, err, errs.Unimplemented, "registry "+real.Addr+": cannot be searched")
}

// A mirror may be below a path. When all mirrors fail, the hub itself is asked.
func TestMirrorBelowAPath(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 100))
	reg := remotetest.StartFake(t, false)
	reg.Add("library/x", "latest", img)
	reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		path, ok := strings.CutPrefix(r.URL.Path, "/hub")
		if !ok {
			http.NotFound(w, r)
			return true
		}
		r.URL.Path = path
		return false
	}
	n := remotetest.NewNet(t)
	w := transfertest.New(t, transfertest.Options{Remote: remote.Options{Mirrors: []string{"http://" + remotetest.FreeAddr(t), reg.URL + "/hub/"}}})
	w.MustPull("x")
	w.Holds("x", img)

	down := transfertest.New(t, transfertest.Options{Remote: remote.Options{Mirrors: []string{"http://mirror.test"}, Dial: n.Dial, Lookup: n.Lookup}})
	_, err := down.Pull("x", transfer.PullOptions{})
	transfertest.WantClass(t, err, errs.Unavailable, "registry-1.docker.io", "no such host")
}
