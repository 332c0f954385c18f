package server

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"ply/internal/registry/auth"
)

// A registry that requires a login lets nobody in before there is a user, and the first user is its admin. There is no user that nobody made.
func TestLoginRequired(t *testing.T) {
	o := Options{Root: t.TempDir(), Required: true}
	s, address, _ := start(t, o)
	c := newClient(address)
	defer c.http.CloseIdleConnections()
	if s.IsOpen() {
		t.Error("it is open")
	}
	for _, r := range [][2]string{{"GET", "/v2/"}, {"GET", "/v2/_catalog"}, {"POST", "/v2/a/blobs/uploads/"}, {"GET", "/v2/a/manifests/x"}, {"DELETE", "/v2/a/manifests/x"}, {"GET", "/metrics"}} {
		got, err := c.want(r[0], r[1], nil, nil, 401)
		if err != nil {
			t.Error(err)
		}
		if challenge := got.header.Get("WWW-Authenticate"); strings.HasPrefix(r[1], "/v2/") && !strings.HasPrefix(challenge, `Bearer realm="`) {
			t.Errorf("%s %s: challenge %q", r[0], r[1], challenge)
		}
	}
	for _, login := range [][]string{withPassword("admin", "admin"), withPassword("admin", ""), withPassword("root", "root")} {
		if _, err := c.want("GET", "/v2/", nil, login, 401); err != nil {
			t.Error(err)
		}
	}
	if r, err := c.want("POST", "/sign-in", []byte("name=admin&password=admin"), []string{"Content-Type: application/x-www-form-urlencoded"}, 403); err != nil || r.header.Get("Set-Cookie") != "" {
		t.Errorf("a sign-in: %v, %v", r.header, err)
	}
	users, end, err := OpenUsers(t.Context(), o)
	must(t, err)
	users.Cost = bcrypt.MinCost
	first, err := users.Add("alice", "alice", nil)
	must(t, errors.Join(err, end.Close()))
	if !first {
		t.Error("alice is not the first user")
	}
	eventually(t, func() error {
		_, err := c.want("GET", "/metrics", nil, basic("alice"), 200)
		return err
	})
	_, err = c.want("POST", "/v2/any/blobs/uploads/", nil, basic("alice"), 202)
	must(t, err)
}

// With the setting, callers are asked to log in by Basic, and not for tokens.
func TestBasicChallenge(t *testing.T) {
	_, c := closed(t, map[string][]auth.Grant{"reader": {{Subject: "reader", Pattern: "a", Role: auth.Reader}}}, Options{Basic: true})
	for _, path := range []string{"/v2/", "/v2/a/tags/list", "/v1/search?q=x"} {
		r, err := c.want("GET", path, nil, nil, 401)
		must(t, err)
		if got := r.header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Basic realm="`) {
			t.Errorf("%s: challenge %q", path, got)
		}
	}
	_, err := c.want("GET", "/v2/", nil, basic("reader"), 200)
	must(t, err)
}
