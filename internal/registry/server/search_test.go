package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"ply/internal/registry/auth"
)

// Searches find what the caller may pull, best matches first, in pages.
func TestSearch(t *testing.T) {
	_, c := closed(t, map[string][]auth.Grant{
		"root": {{Subject: "root", Pattern: "**", Role: auth.Admin}}, "reader": {{Subject: "reader", Pattern: "team/**", Role: auth.Reader}},
	}, Options{})
	for _, repo := range []string{"team/my-nginx", "team/nginx", "team/nginx-extra", "secret/nginx", "team/redis"} {
		if _, err := c.imageAs("root", repo, "v1", []byte("data")); err != nil {
			t.Fatal(err)
		}
	}
	search := func(user, query string) (string, int) {
		t.Helper()
		r, err := c.want("GET", "/v1/search?"+query, nil, basic(user), 200)
		var a struct {
			Query      string
			NumResults int `json:"num_results"`
			Results    []struct {
				Name        string
				Description *string
				StarCount   *int `json:"star_count"`
			}
		}
		if err == nil {
			err = json.Unmarshal(r.body, &a)
		}
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, res := range a.Results {
			names = append(names, res.Name)
			if res.Description == nil || res.StarCount == nil {
				t.Errorf("a result lacks fields that docker reads: %s", r.body)
			}
		}
		return strings.Join(names, " "), a.NumResults
	}
	for _, q := range []struct {
		user, query, want string
		n                 int
	}{
		{"reader", "q=nginx", "team/nginx team/nginx-extra team/my-nginx", 3},
		{"root", "q=NGINX&n=2", "secret/nginx team/nginx", 4},
		{"root", "q=nginx&n=2&page=2", "team/nginx-extra team/my-nginx", 4},
		{"root", "q=nginx&n=2&page=3", "", 4},
		{"root", "q=nginx&page=9223372036854775807", "", 4},
		{"reader", "q=team/redis", "team/redis", 1},
		{"reader", "q=", "team/my-nginx team/nginx team/nginx-extra team/redis", 4},
	} {
		if got, n := search(q.user, q.query); got != q.want || n != q.n {
			t.Errorf("%s by %q = %s (%d), want %s (%d)", q.query, q.user, got, n, q.want, q.n)
		}
	}
	// A client without credentials is asked for them, or for a token, which it gets without them.
	r, err := c.want("GET", "/v1/search?q=nginx", nil, nil, 401)
	if err != nil || !strings.Contains(r.header.Get("WWW-Authenticate"), `Bearer realm="`) || !strings.Contains(r.header.Get("WWW-Authenticate"), `scope="registry:catalog:*"`) {
		t.Errorf("challenge: %v, %v", r.header, err)
	}
	for user, want := range map[string]string{"": `"num_results":0`, "reader": `"num_results":3`} {
		token, err := c.token(user, "registry:catalog:*")
		if err != nil {
			t.Fatal(err)
		}
		if r, err := c.want("GET", "/v1/search?q=nginx", nil, bearer(token), 200); err != nil || !strings.Contains(string(r.body), want) {
			t.Errorf("with a token of %q: %s, %v", user, r.body, err)
		}
	}
	for _, bad := range []string{"n=0", "n=x", "page=-1", "q=" + strings.Repeat("x", 256)} {
		if _, err := c.want("GET", "/v1/search?"+bad, nil, basic("reader"), 400); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.want("GET", "/v1/search?q=nginx", nil, []string{"Authorization: Basic cm9vdDp3cm9uZw=="}, 401); err != nil {
		t.Error(err)
	}
	if r, err := c.want("GET", "/v1/_ping", nil, nil, 200); err != nil || !strings.Contains(string(r.body), `"standalone":true`) {
		t.Errorf("ping: %s, %v", r.body, err)
	}
	for path, status := range map[string]int{"/v1/other": 404, "/v1/search": 405} {
		method := "GET"
		if status == 405 {
			method = "POST"
		}
		if _, err := c.want(method, path, nil, nil, status); err != nil {
			t.Error(fmt.Errorf("%s: %w", path, err))
		}
	}
}
