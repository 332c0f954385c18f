package server

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"ply/internal/registry/content"
)

// Repositories of a docker-registry that wants a login are copied in both directions with the account of the file, also after it changed, and with a
// wrong account or none they are not.
func TestAccountsAtDockerRegistry(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	users, accounts := filepath.Join(dir, "htpasswd"), filepath.Join(dir, "config.json")
	if err := os.WriteFile(users, []byte("robot:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, upstream := reference(t, "auth: {htpasswd: {realm: upstream, path: "+users+"}}")
	login := []string{"Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("robot:secret"))}
	up := newClient(upstream)
	defer up.http.CloseIdleConnections()
	if _, err := up.want("GET", "/v2/", nil, nil, 401); err != nil {
		t.Fatal(err)
	}
	up.http.Transport = loggedIn{up.http.Transport, login[0]}
	layer := random(200_000)
	doc, err := oldClient{up}.image("team/app", "v1", random(100), layer)
	if err != nil {
		t.Fatal(err)
	}
	account := func(password string) {
		t.Helper()
		host, auth := strings.TrimPrefix(upstream, "http://"), base64.StdEncoding.EncodeToString([]byte("robot:"+password))
		if err := os.WriteFile(accounts, []byte(`{"auths":{"`+host+`":{"auth":"`+auth+`"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Root: t.TempDir(), Proxy: Proxy{Upstreams: []string{"up=" + upstream}}, Replicate: Replicate{Rules: []string{"copied/**=" + upstream}}}
	s, url, _ := start(t, o)
	c := newClient(url)
	defer c.http.CloseIdleConnections()
	refused := func(how string) {
		t.Helper()
		r, err := c.do("GET", "/v2/up/team/app/manifests/v1", nil)
		if err != nil || r.status != http.StatusNotFound || strings.Contains(string(r.body), "secret") || strings.Contains(string(r.body), "wrong") {
			t.Errorf("%s: status %d, %s, %v", how, r.status, r.body, err)
		}
	}
	refused("without an account")
	account("wrong")
	o.Proxy.Credentials = accounts
	if err := s.Reload(o); err != nil {
		t.Fatal(err)
	}
	refused("with a wrong password")
	account("secret")
	if err := s.Reload(o); err != nil {
		t.Fatal(err)
	}
	if got, err := c.pull("up/team/app", "v1"); err != nil || got != doc {
		t.Errorf("with the account: %v", err)
	}
	// And the other way.
	pushed, err := c.image("copied/app", "v2", "", random(100), layer)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		r, err := up.want("GET", "/v2/copied/app/manifests/v2", nil, []string{"Accept: application/vnd.oci.image.manifest.v1+json"}, 200)
		if err == nil && string(r.body) != pushed {
			err = errors.New("another manifest")
		}
		return err
	})
	r, err := up.want("GET", "/v2/copied/app/blobs/"+string(content.SHA256.Of(layer)), nil, nil, 200)
	if err != nil || string(r.body) != string(layer) {
		t.Errorf("the layer: %d bytes, %v", len(r.body), err)
	}
}

// loggedIn adds a header to requests.
type loggedIn struct {
	http.RoundTripper
	header string
}

func (l loggedIn) RoundTrip(r *http.Request) (*http.Response, error) {
	name, value, ok := strings.Cut(l.header, ": ")
	if !ok {
		return nil, fmt.Errorf("header %q", l.header)
	}
	r = r.Clone(r.Context())
	r.Header.Set(name, value)
	return l.RoundTripper.RoundTrip(r)
}

func (l loggedIn) CloseIdleConnections() {
	if t, ok := l.RoundTripper.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}
