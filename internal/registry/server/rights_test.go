package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"ply/internal/registry/auth"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
)

// rights by who asks, on the repository team/app. The password of a user is its name.
var matrixUsers = map[string][]auth.Grant{
	"":       nil,
	"other":  nil,
	"reader": {{Subject: "reader", Pattern: "team/*", Role: auth.Reader}},
	"writer": {{Subject: "writer", Pattern: "team/app", Role: auth.Writer}, {Subject: "writer", Pattern: "team/absent", Role: auth.Writer}},
	"keeper": {{Subject: "keeper", Pattern: "team/**", Role: auth.Admin}},
	"team":   nil, // owns the repositories below its name
	"root":   {{Subject: "root", Pattern: "**", Role: auth.Admin}},
}

func may(user, action string) bool {
	switch user {
	case "reader":
		return action == "pull"
	case "writer":
		return action == "pull" || action == "push"
	case "keeper", "team", "root":
		return true
	}
	return false
}

func closed(t *testing.T, users map[string][]auth.Grant, o Options) (s *Server, c *client) {
	t.Helper()
	o.Root = t.TempDir()
	file, end, err := OpenUsers(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	file.Cost = bcrypt.MinCost
	names := []string{}
	for name := range users {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range append([]string{"zz-first"}, names...) { // the first one would be the admin of everything
		if name != "" {
			if _, err := file.Add(name, name, users[name]); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, u, _ := start(t, o)
	c = newClient(u)
	t.Cleanup(c.http.CloseIdleConnections)
	return s, c
}

func basic(user string) []string {
	if user == "" {
		return nil
	}
	return []string{"Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+user))}
}

func (c *client) token(user string, scopes ...string) (string, error) {
	r, err := c.want("GET", auth.TokenPath+"?"+url.Values{"scope": scopes, "service": {"ply-registry"}}.Encode(), nil, basic(user), 200)
	var v struct{ Token string }
	if err == nil {
		err = json.Unmarshal(r.body, &v)
	}
	return v.Token, err
}

func bearer(token string) []string { return []string{"Authorization: Bearer " + token} }

// Every method of every route, by everyone, on a repository that exists and on one that does not: who may not do it learns nothing, and
// who may is let through.
func TestRights(t *testing.T) {
	_, c := closed(t, matrixUsers, Options{})
	doc, err := c.imageAs("root", "team/app", "v1", []byte("config"))
	if err != nil {
		t.Fatal(err)
	}
	blob, manifest := string(content.SHA256.Of([]byte("config"))), string(content.SHA256.Of([]byte(doc)))
	type path struct {
		path    string
		actions map[string]string // by method; "" as the key: of every other method
	}
	paths := []path{
		{"tags/list", map[string]string{"": "pull"}},
		{"manifests/v1", map[string]string{"": "pull", "PUT": "push", "DELETE": "delete"}},
		{"manifests/latest", map[string]string{"": "pull", "PUT": "push", "DELETE": "delete"}},
		{"manifests/" + manifest, map[string]string{"": "pull", "PUT": "push", "DELETE": "delete"}},
		{"blobs/" + blob, map[string]string{"": "pull", "DELETE": "delete"}},
		{"blobs/uploads/", map[string]string{"": "pull", "POST": "push"}},
		{"blobs/uploads/?mount=" + blob + "&from=team/app", map[string]string{"": "pull", "POST": "push"}},
		{"blobs/uploads/" + blobs.NewID(), map[string]string{"": "pull", "GET": "push", "HEAD": "push", "PATCH": "push", "PUT": "push", "DELETE": "push"}},
		{"referrers/" + manifest, map[string]string{"": "pull"}},
		{"_ply/repository", map[string]string{"": "pull", "DELETE": "delete"}},
	}
	cells := 0
	for user := range matrixUsers {
		token, err := c.token(user, "repository:team/app:pull,push,delete", "repository:team/absent:*")
		if err != nil {
			t.Fatal(err)
		}
		narrow, err := c.token(user, "repository:team/else:pull,push,delete", "repository:team/app:")
		if err != nil {
			t.Fatal(err)
		}
		for how, header := range map[string][]string{"basic": basic(user), "token": bearer(token), "narrow token": bearer(narrow)} {
			for _, p := range paths {
				for _, method := range []string{"GET", "HEAD", "PUT", "POST", "PATCH", "OPTIONS", "DELETE"} {
					action := p.actions[method]
					if action == "" {
						action = p.actions[""]
					}
					allowed := may(user, action) && how != "narrow token"
					if allowed && action == "delete" && method == "DELETE" {
						continue // shown below, one deletion after another
					}
					for _, repo := range []string{"team/app", "team/absent"} {
						cells++
						what := fmt.Sprintf("%s %s/%s by %q with %s", method, repo, p.path, user, how)
						r, err := c.do(method, "/v2/"+repo+"/"+p.path, []byte(doc), header...)
						if err != nil {
							t.Fatal(err)
						}
						want := 403
						if user == "" || how == "narrow token" && may(user, action) {
							want = 401
						}
						switch {
						case allowed && (r.status == 401 || r.status == 403 || r.status >= 500):
							t.Errorf("%s: refused with %d %s", what, r.status, r.body)
						case !allowed && r.status != want:
							t.Errorf("%s: %d %s, want %d", what, r.status, r.body, want)
						case !allowed && (r.header.Get("WWW-Authenticate") == "") != (want == 403):
							t.Errorf("%s: %d with the challenge %q", what, r.status, r.header.Get("WWW-Authenticate"))
						case !allowed && method != "HEAD" && !strings.Contains(string(r.body), `"detail":[{"Type":"repository","Name":"`+repo+`","Action":"pull"}`):
							t.Errorf("%s: does not say what was asked for: %s", what, r.body)
						case !allowed && method != "HEAD" && strings.Contains(string(r.body), "team/app") && repo != "team/app":
							t.Errorf("%s: tells about another repository: %s", what, r.body)
						}
					}
				}
			}
		}
	}
	t.Logf("%d cells", cells)
	// Deletions by everyone who may.
	for _, user := range []string{"keeper", "team", "root"} {
		for _, path := range []string{"manifests/v1", "manifests/" + manifest, "blobs/" + blob, "_ply/repository"} {
			if _, err := c.imageAs("root", "team/app", "v1", []byte("config")); err != nil {
				t.Fatal(err)
			}
			if _, err := c.want("DELETE", "/v2/team/app/"+path, nil, basic(user), 202); err != nil {
				t.Errorf("%s: %v", user, err)
			}
		}
	}
}

// imageAs pushes an image of one blob.
func (c *client) imageAs(user, repo, tag string, blob []byte) (string, error) {
	d := string(content.SHA256.Of(blob))
	if _, err := c.want("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d, blob, basic(user), 201); err != nil {
		return "", err
	}
	doc := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` + describe("application/x", blob) + `,"layers":[]}`
	_, err := c.want("PUT", "/v2/"+repo+"/manifests/"+tag, []byte(doc), basic(user), 201)
	return doc, err
}

// Lists have what the caller may pull and nothing else, and a mount cannot read what its client cannot.
func TestRightsOfListsAndMounts(t *testing.T) {
	_, c := closed(t, matrixUsers, Options{})
	for _, repo := range []string{"team/app", "public/tool", "secret/thing"} {
		if _, err := c.imageAs("root", repo, "v1", []byte("of "+repo)); err != nil {
			t.Fatal(err)
		}
	}
	catalog := func(header []string) string {
		t.Helper()
		r, err := c.want("GET", "/v2/_catalog", nil, header, 200)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(r.body))
	}
	for user, want := range map[string]string{
		"other": `{"repositories":[]}`, "reader": `{"repositories":["team/app"]}`, "root": `{"repositories":["public/tool","secret/thing","team/app"]}`,
	} {
		token, err := c.token(user, "registry:catalog:*")
		if err != nil {
			t.Fatal(err)
		}
		for _, header := range [][]string{basic(user), bearer(token)} {
			if got := catalog(header); got != want {
				t.Errorf("catalogue of %s = %s, want %s", user, got, want)
			}
		}
	}
	token, err := c.token("root", "repository:team/app:pull")
	if err != nil {
		t.Fatal(err)
	}
	if got := catalog(bearer(token)); got != `{"repositories":["team/app"]}` {
		t.Errorf("catalogue with a token of one repository: %s", got)
	}
	r, err := c.want("GET", "/v2/_catalog", nil, nil, 401)
	if err != nil || !strings.Contains(r.header.Get("WWW-Authenticate"), `scope="registry:catalog:*"`) {
		t.Errorf("an anonymous caller: %v, %v", r.header, err)
	}
	// Podman asks with a token for nothing first, and is told what to ask for.
	for user, want := range map[string]string{"": `{"repositories":[]}`, "reader": `{"repositories":["team/app"]}`} {
		nothing, err := c.token(user)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/v2/_catalog", "/v1/search?q=app"} {
			r, err := c.want("GET", path, nil, bearer(nothing), 401)
			if err != nil || !strings.Contains(r.header.Get("WWW-Authenticate"), `scope="registry:catalog:*",error="insufficient_scope"`) {
				t.Errorf("%s by %q with a token without a scope: %v, %v", path, user, r.header, err)
			}
		}
		if _, err := c.want("GET", "/v2/", nil, bearer(nothing), 200); err != nil {
			t.Error(err)
		}
		token, err := c.token(user, "registry:catalog:*")
		if err != nil {
			t.Fatal(err)
		}
		if got := catalog(bearer(token)); got != want {
			t.Errorf("catalogue of %q = %s, want %s", user, got, want)
		}
	}
	secret := string(content.SHA256.Of([]byte("of secret/thing")))
	for _, from := range []string{"&from=secret/thing", "", "&from=absent/thing"} {
		r, err := c.want("POST", "/v2/other/x/blobs/uploads/?mount="+secret+from, nil, basic("other"), 202)
		if err != nil || !strings.HasPrefix(r.header.Get("Location"), "/v2/other/x/blobs/uploads/") {
			t.Errorf("a mount of a secret blob (%q): %v, %v", from, r.header, err)
		}
	}
	if _, err := c.want("POST", "/v2/root/x/blobs/uploads/?mount="+secret, nil, basic("root"), 201); err != nil {
		t.Error(err)
	}
	// An upload belongs to the user who began it.
	r, err = c.want("POST", "/v2/team/app/blobs/uploads/", nil, basic("writer"), 202)
	if err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"GET", "PATCH", "DELETE"} {
		if _, err := c.want(method, r.header.Get("Location"), nil, basic("keeper"), 404); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.want("DELETE", r.header.Get("Location"), nil, basic("writer"), 204); err != nil {
		t.Error(err)
	}
}

// Those who do not log in may do what was granted to them, with a token as clients fetch it, and so may every user.
func TestAnonymousGrants(t *testing.T) {
	s, c := closed(t, map[string][]auth.Grant{"other": nil, "root": {{Subject: "root", Pattern: "**", Role: auth.Admin}}}, Options{})
	if _, err := c.imageAs("root", "public/tool", "v1", []byte("data")); err != nil {
		t.Fatal(err)
	}
	users, err := auth.OpenUsers(s.o.Root)
	if err != nil {
		t.Fatal(err)
	}
	if err := users.Grant(auth.Anonymous, "public/**", auth.Reader); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := c.want("GET", "/v2/public/tool/manifests/v1", nil, nil, 200)
		return err
	})
	r, err := c.want("GET", "/v2/", nil, nil, 401)
	if err != nil || !strings.HasPrefix(r.header.Get("WWW-Authenticate"), `Bearer realm="`+c.url+auth.TokenPath+`",service=`) {
		t.Errorf("the challenge is %q (%v)", r.header.Get("WWW-Authenticate"), err)
	}
	token, err := c.token("", "repository:public/tool:pull,push")
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range [][]string{nil, bearer(token), basic("other")} {
		if _, err := c.want("GET", "/v2/public/tool/manifests/v1", nil, header, 200); err != nil {
			t.Error(err)
		}
		if _, err := c.want("POST", "/v2/public/tool/blobs/uploads/", nil, header, 401, 403); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.want("GET", "/v2/", nil, bearer(token), 200); err != nil {
		t.Error(err)
	}
}
