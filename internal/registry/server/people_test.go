package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ply/internal/registry/access"
	"ply/internal/registry/audit"
	"ply/internal/registry/auth"
	"ply/internal/registry/metadata"
	"ply/internal/registry/migrate"
	"ply/internal/registry/oidc"
	"ply/internal/registry/oidc/oidctest"
	"ply/internal/registry/people"
)

func withPassword(user, password string) []string {
	return []string{"Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))}
}

// personal makes a personal access token.
func (s *Server) personal(t *testing.T, user string, life time.Duration, scopes ...string) (id, text string) {
	t.Helper()
	u, err := s.users.Find(user)
	if err != nil {
		t.Fatal(err)
	}
	var list []auth.TokenScope
	for _, text := range scopes {
		scope, err := auth.ParseTokenScope(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, scope)
	}
	k, text, err := s.tokens.Create(t.Context(), u, "test", list, life)
	if err != nil {
		t.Fatal(err)
	}
	return k.ID, text
}

// onBothBackEnds runs a test on a root, and on PostgreSQL and S3.
func onBothBackEnds(t *testing.T, test func(t *testing.T, o Options)) {
	t.Run("root", func(t *testing.T) { test(t, Options{}) })
	t.Run("database", func(t *testing.T) { test(t, replicas(t)) })
}

func must(t *testing.T, list ...error) {
	t.Helper()
	for _, err := range list {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Every action by everyone, at every visibility, with a password, a personal access token of every scope, and a token that was issued for
// each: exactly what the rights, the visibility and the scope allow together.
func TestRightsOfGroupsVisibilityAndTokens(t *testing.T) {
	onBothBackEnds(t, rightsOfGroupsVisibilityAndTokens)
}

func rightsOfGroupsVisibilityAndTokens(t *testing.T, o Options) {
	s, c := closed(t, map[string][]auth.Grant{
		"": nil, "other": nil, "member": nil, "reader": {{Subject: "reader", Pattern: "team/*", Role: auth.Reader}}, "root": {{Subject: "root", Pattern: "**", Role: auth.Admin}},
	}, o)
	must(t, s.users.AddGroup("devs"), s.users.Join("devs", "member"), s.users.Grant(auth.GroupSubject("devs"), "team/app", auth.Writer))
	doc, err := c.imageAs("root", "team/app", "v1", []byte("config"))
	must(t, err)
	// What the rights alone allow, without visibility.
	rights := map[string]string{"": "", "other": "", "member": "pull push", "reader": "pull", "root": "pull push delete"}
	scopes := map[string]struct {
		scopes []string
		allows string
	}{
		"password": {nil, "pull push delete"}, "all": {[]string{"**=pull,push,delete"}, "pull push delete"}, "pull": {[]string{"team/*=pull"}, "pull"},
		"push": {[]string{"team/app=push"}, "push"}, "delete": {[]string{"other=pull", "team/**=delete"}, "delete"}, "elsewhere": {[]string{"teams/*=pull,push,delete", "app=pull"}, ""},
	}
	type way struct {
		user, scope string
		header      []string
		issued      string
	}
	var ways []way
	for user := range rights {
		for name, scope := range scopes {
			header := basic(user)
			if scope.scopes != nil {
				if user == "" {
					continue
				}
				_, text := s.personal(t, user, time.Hour, scope.scopes...)
				header = withPassword(user, text)
			}
			ways = append(ways, way{user, name, header, ""})
		}
	}
	cells := 0
	for _, visibility := range []auth.Visibility{auth.Private, auth.Internal, auth.Public, ""} {
		if visibility != "" {
			must(t, s.users.SetNamespace("team", visibility))
		} else {
			must(t, s.users.RemoveNamespace("team"))
		}
		for i, w := range ways {
			// A token that was issued while everything was public.
			r, err := c.want("GET", auth.TokenPath+"?scope=repository:team/app:pull,push,delete", nil, w.header, 200)
			must(t, err)
			var issued struct{ Token string }
			must(t, json.Unmarshal(r.body, &issued))
			before := w.issued
			ways[i].issued = issued.Token
			public := visibility == auth.Public
			headers := map[string][]string{"login": w.header, "token": bearer(issued.Token)}
			if visibility == "" {
				headers["token of before"] = bearer(before)
			}
			for how, header := range headers {
				for _, action := range []access.Action{access.Pull, access.Push, access.Delete} {
					cells++
					want := strings.Contains(rights[w.user], string(action)) || action == access.Pull && (public || visibility == auth.Internal && w.user != "")
					// A personal access token narrows what its user may do, but not what everyone may.
					want = want && (strings.Contains(scopes[w.scope].allows, string(action)) || action == access.Pull && public)
					method, path, body := "GET", "/v2/team/app/manifests/v1", ""
					switch action {
					case access.Push:
						method, path, body = "PUT", "/v2/team/app/manifests/v1", doc
					case access.Delete:
						method, path = "DELETE", "/v2/team/app/manifests/nothing"
					}
					r, err := c.do(method, path, []byte(body), header...)
					must(t, err)
					refused := r.status == 401 || r.status == 403
					if refused == want || r.status >= 500 {
						t.Errorf("%s of team/app (%q) by %q with %s, %s: %d, want it allowed: %v", action, visibility, w.user, w.scope, how, r.status, want)
					}
				}
				// Lists show it to whom may pull.
				want := public || visibility == auth.Internal && w.user != "" || strings.Contains(rights[w.user], "pull")
				want = want && (strings.Contains(scopes[w.scope].allows, "pull") || public)
				for _, path := range []string{"/v2/_catalog", "/v1/search?q=app", "/api/v1/repositories"} {
					if how != "login" && !strings.HasPrefix(path, "/v2") || w.user == "" && how == "login" && !strings.HasPrefix(path, "/api") {
						continue
					}
					cells++
					r, err := c.want("GET", path, nil, header, 200)
					must(t, err)
					if how != "token of before" && strings.Contains(string(r.body), `"team/app"`) != want {
						t.Errorf("%s (%q) by %q with %s, %s: %s, want it listed: %v", path, visibility, w.user, w.scope, how, r.body, want)
					}
				}
			}
		}
	}
	t.Logf("%d cells", cells)
}

// Every route of the API by everyone: who may not do it learns nothing and changes nothing.
func TestRightsOfAPI(t *testing.T) { onBothBackEnds(t, rightsOfAPI) }

func rightsOfAPI(t *testing.T, o Options) {
	s, c := closed(t, map[string][]auth.Grant{"": nil, "other": nil, "team": nil, "lead": {{Subject: "lead", Pattern: "team/**", Role: auth.Admin}}, "root": {{Subject: "root", Pattern: "**", Role: auth.Admin}}}, o)
	must(t, s.users.SetNamespace("team", auth.Private))
	tokens := map[string]string{}
	for _, user := range []string{"team", "lead", "root"} {
		_, tokens[user] = s.personal(t, user, time.Hour, "**=pull,push,delete")
	}
	const none, user, owner, admin = "anyone", "a user", "an owner", "an admin"
	routes := []struct{ method, path, body, needs string }{
		{"GET", "me", "", none}, {"GET", "repositories", "", none}, {"GET", "namespaces", "", none}, {"GET", "tokens", "", user},
		{"POST", "tokens", `{"name":"x","scopes":[{"repositories":"a","actions":["pull"]}],"days":1}`, user},
		{"DELETE", "tokens/ABCDEFGHIJ", "", user}, {"GET", "tokens?user=other", "", admin}, {"DELETE", "tokens/ABCDEFGHIJ?user=other", "", admin},
		{"PUT", "namespaces/team", `{"visibility":"private"}`, owner}, {"PUT", "namespaces/team/sub", `{"visibility":"private"}`, owner}, {"PUT", "namespaces/elsewhere", `{"visibility":"public"}`, admin},
		{"DELETE", "namespaces/elsewhere/x", "", admin}, {"DELETE", "namespaces/team/none", "", owner}, {"GET", "users", "", admin}, {"GET", "groups", "", admin}, {"GET", "audit", "", admin},
	}
	cells := 0
	for who, header := range map[string][]string{
		"": nil, "other": basic("other"), "team": basic("team"), "lead": basic("lead"), "root": basic("root"),
		"team's token": withPassword("team", tokens["team"]), "lead's token": withPassword("lead", tokens["lead"]), "root's token": withPassword("root", tokens["root"]),
		"nobody": withPassword("nobody", "x"), "wrong": withPassword("root", "x"),
	} {
		for i, to := range routes {
			if (who == "nobody" || who == "wrong") && i%3 != 0 {
				continue // wrong passwords are limited
			}
			cells++
			want := false
			switch to.needs {
			case none:
				want = who != "nobody" && who != "wrong"
			case user:
				want = slices.Contains([]string{"other", "team", "lead", "root"}, who)
			case owner:
				want = slices.Contains([]string{"team", "lead", "root"}, who)
			case admin:
				want = who == "root" || strings.Contains(to.path, "user=other") && who == "other"
			}
			r, err := c.do(to.method, people.Prefix+to.path, []byte(to.body), header...)
			must(t, err)
			refused := 403
			if who == "" || who == "nobody" || who == "wrong" {
				refused = 401
			}
			switch {
			case want && (r.status == 401 || r.status == 403 || r.status >= 500):
				t.Errorf("%s %s by %q: refused with %d %s", to.method, to.path, who, r.status, r.body)
			case !want && r.status != refused:
				t.Errorf("%s %s by %q: %d %s, want %d", to.method, to.path, who, r.status, r.body, refused)
			case r.header.Get("Cache-Control") != "no-store" && r.status != 204:
				t.Errorf("%s %s may be kept by caches", to.method, to.path)
			}
		}
	}
	t.Logf("%d cells", cells)
	// What the bearer of a token that the gate issued may pull is no right to manage.
	token, err := c.token("root", "repository:team/app:pull,push,delete", "registry:catalog:*")
	must(t, err)
	for _, to := range routes {
		if to.needs != none {
			if _, err := c.want(to.method, people.Prefix+to.path, []byte(to.body), bearer(token), 403); err != nil {
				t.Error(err)
			}
		}
	}
}

// A user makes a token by the API, uses it and revokes it; lists have what the caller may see.
func TestPeopleAPI(t *testing.T) { onBothBackEnds(t, peopleAPI) }

func peopleAPI(t *testing.T, o Options) {
	o.Audit = Audit{Max: 1000, Pulls: true}
	s, c := closed(t, map[string][]auth.Grant{"alice": nil, "root": {{Subject: "root", Pattern: "**", Role: auth.Admin}}}, o)
	for _, repo := range []string{"alice/app", "open/tool", "closed/thing"} {
		if _, err := c.imageAs("root", repo, "v1", []byte("of "+repo)); err != nil {
			t.Fatal(err)
		}
	}
	call := func(method, path, body string, header []string, status int, to any) string {
		t.Helper()
		r, err := c.want(method, people.Prefix+path, []byte(body), header, status)
		must(t, err)
		if to != nil {
			must(t, json.Unmarshal(r.body, to))
		}
		return string(r.body)
	}
	call("PUT", "namespaces/open", `{"visibility":"public"}`, basic("root"), 200, nil)
	call("PUT", "namespaces/closed", `{"visibility":"private"}`, basic("root"), 200, nil)
	call("PUT", "namespaces/alice", `{"visibility":"internal"}`, basic("alice"), 200, nil)
	var me people.Me
	if call("GET", "me", "", basic("alice"), 200, &me); me.Name != "alice" || me.Admin || me.Open {
		t.Errorf("%+v", me)
	}
	var repos struct {
		Repositories []people.Repository
		Next         string
	}
	call("GET", "repositories", "", basic("alice"), 200, &repos)
	if got := fmt.Sprint(repos.Repositories); got != "[{alice/app internal [pull push delete]} {open/tool public [pull]}]" || repos.Next != "" {
		t.Error(got)
	}
	if call("GET", "repositories?n=1", "", basic("root"), 200, &repos); len(repos.Repositories) != 1 || repos.Next != "alice/app" {
		t.Errorf("%+v", repos)
	}
	if call("GET", "repositories?q=t&n=1&last=alice/app", "", basic("root"), 200, &repos); repos.Repositories[0].Name != "closed/thing" || repos.Next == "" {
		t.Errorf("%+v", repos)
	}
	if got := call("GET", "namespaces", "", nil, 200, nil); !strings.Contains(got, `"open"`) || strings.Contains(got, "closed") || strings.Contains(got, "alice") {
		t.Error(got)
	}
	if got := call("GET", "namespaces", "", basic("alice"), 200, nil); !strings.Contains(got, `"open"`) || strings.Contains(got, "closed") || !strings.Contains(got, `"owned":true`) {
		t.Error(got)
	}
	var made people.Token
	call("POST", "tokens", `{"name":"CI","days":30,"scopes":[{"repositories":"alice/**","actions":["pull"]}]}`, basic("alice"), 201, &made)
	if len(made.Text) != 41 || made.User != "alice" || time.Until(made.Expires) > 30*24*time.Hour || time.Until(made.Expires) < 29*24*time.Hour {
		t.Errorf("%+v", made)
	}
	use := withPassword("alice", made.Text)
	for path, status := range map[string]int{"/v2/alice/app/manifests/v1": 200, "/v2/open/tool/manifests/v1": 200, "/v2/closed/thing/manifests/v1": 403} {
		if _, err := c.want("GET", path, nil, use, status); err != nil {
			t.Error(err)
		}
	}
	if list := call("GET", "tokens", "", basic("alice"), 200, nil); !strings.Contains(list, made.ID) || strings.Contains(list, made.Text) || strings.Contains(list, "hash") || !strings.Contains(list, `"used"`) {
		t.Error(list)
	}
	call("GET", "me", "", use, 200, &me)
	if me.Token != made.ID {
		t.Errorf("%+v", me)
	}
	call("DELETE", "tokens/"+made.ID, "", basic("root"), 404, nil) // it is not root's
	call("DELETE", "tokens/"+made.ID+"?user=alice", "", basic("root"), 204, nil)
	if _, err := c.want("GET", "/v2/alice/app/manifests/v1", nil, use, 401); err != nil {
		t.Error(err)
	}
	for _, bad := range []struct{ method, path, body string }{
		{"POST", "tokens", "{"}, {"POST", "tokens", `{"name":"x"}`}, {"POST", "tokens", `{"name":"x","days":-1,"scopes":[{"repositories":"a","actions":["pull"]}]}`}, {"POST", "tokens", `{"name":"x","user":"root"}`},
		{"POST", "tokens", `{"name":"` + strings.Repeat("x", 100_000) + `"}`}, {"POST", "tokens", `{} {}`}, {"PUT", "namespaces/alice", `{"visibility":"open"}`}, {"PUT", "namespaces/ALICE", `{"visibility":"public"}`},
		{"GET", "repositories?n=x", ""}, {"GET", "repositories?n=0", ""},
	} {
		call(bad.method, bad.path, bad.body, basic("alice"), 400, nil)
	}
	call("GET", "audit?since=x", "", basic("root"), 400, nil)
	call("GET", "audit?last=../x", "", basic("root"), 400, nil)
	call("GET", "nothing", "", basic("root"), 404, nil)

	if _, err := c.want("POST", "/v2/closed/thing/blobs/uploads/", nil, basic("alice"), 403); err != nil {
		t.Error(err)
	}
	// The audit log has all of it, and no secret.
	must(t, s.audit.Close()) // writes it
	s.openAudit()
	var log struct{ Entries []audit.Entry }
	text := call("GET", "audit?n=1000", "", basic("root"), 200, &log)
	has := func(want audit.Entry) {
		t.Helper()
		if !slices.ContainsFunc(log.Entries, func(e audit.Entry) bool {
			return e.User == want.User && e.Action == want.Action && e.Repository == want.Repository && e.Status == want.Status && e.Address == "127.0.0.1" && (want.Token == "" || e.Token == want.Token)
		}) {
			t.Errorf("the audit log does not have %+v:\n%s", want, text)
		}
	}
	has(audit.Entry{User: "root", Action: "push", Repository: "alice/app", Status: 201})
	has(audit.Entry{User: "alice", Token: made.ID, Action: "pull", Repository: "alice/app", Status: 200})
	has(audit.Entry{User: "alice", Token: made.ID, Action: "pull", Repository: "closed/thing", Status: 403})
	has(audit.Entry{Action: "pull", Repository: "alice/app", Status: 401})
	has(audit.Entry{User: "alice", Action: "push", Repository: "closed/thing", Status: 403})
	has(audit.Entry{User: "alice", Action: "post tokens", Status: 201})
	has(audit.Entry{User: "root", Action: "delete tokens", Status: 204})
	has(audit.Entry{User: "root", Action: "put namespaces", Status: 200})
	for _, secret := range []string{made.Text, made.Text[15:], "Basic", base64.StdEncoding.EncodeToString([]byte("alice:alice"))} {
		if strings.Contains(text, secret) {
			t.Errorf("the audit log has %q", secret)
		}
	}
	if call("GET", "audit?user=alice&action=pull", "", basic("root"), 200, &log); len(log.Entries) != 3 {
		t.Errorf("%+v", log.Entries)
	}
}

// Another registry takes over users, groups, namespaces, tokens and the audit log, as they are when the copy is made for the last time.
func TestMigratePeople(t *testing.T) {
	s, c := closed(t, map[string][]auth.Grant{"alice": nil}, Options{Audit: Audit{Max: 1000}})
	must(t, s.users.AddGroup("devs"), s.users.Join("devs", "alice"), s.users.Grant(auth.GroupSubject("devs"), "team/**", auth.Writer), s.users.SetNamespace("open", auth.Public))
	_, kept := s.personal(t, "alice", 0, "**=pull,push")
	gone, revoked := s.personal(t, "alice", 0, "**=pull,push")
	if _, err := c.imageAs("alice", "team/app", "v1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	must(t, s.audit.Close())
	s.openAudit()
	docs := s.repositories.Metadata
	must(t, docs.PutDocuments(t.Context(), "webhooks", metadata.Document{Key: "a", Value: []byte("{}")}), docs.PutDocuments(t.Context(), metadata.CopiesKind, metadata.Document{Key: "r d", Value: []byte("{}")}))

	for _, o := range []Options{{Root: t.TempDir()}, replicas(t)} {
		name := "a root"
		if o.Database != "" {
			name = "a database"
			gone, revoked = s.personal(t, "alice", 0, "**=pull,push")
		}
		target, err := Open(o)
		must(t, err)
		run := func(served bool) migrate.Report {
			t.Helper()
			from, err := auth.OpenUsers(s.o.Root)
			must(t, err)
			_, err = from.CopyTo(target.users)
			must(t, err)
			m := migrate.Copier{
				From: migrate.Stores{Metadata: docs, Bytes: s.repositories.Blobs}, Metadata: target.repositories.Metadata, Blobs: target.repositories.Blobs,
				Served: served, Delete: !served, Problem: func(err error) { t.Error(err) },
			}
			r, err := m.Run(t.Context())
			must(t, err)
			return r
		}
		if r := run(true); r.Documents != 5 { // two tokens, two entries of the log, a note
			t.Errorf("%s: %+v", name, r)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		served := make(chan error, 1)
		go func() { served <- target.Serve(l) }()
		c := newClient("http://" + l.Addr().String())
		for text, header := range map[string][]string{"by a password": basic("alice"), "by a token": withPassword("alice", kept), "by another token": withPassword("alice", revoked)} {
			eventually(t, func() error {
				_, err := c.want("POST", "/v2/team/app/blobs/uploads/", nil, header, 202)
				return err
			})
			if _, err := c.want("GET", "/v2/team/app/manifests/v1", nil, header, 200); err != nil {
				t.Errorf("%s: %s: %v", name, text, err)
			}
		}
		if _, err := c.want("GET", "/v2/open/x/tags/list", nil, nil, 404); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if list, _, err := audit.Entries(t.Context(), target.repositories.Metadata, audit.Question{Action: "push", Limit: 10}); err != nil || len(list) != 2 {
			t.Errorf("%s: entries %+v, %v", name, list, err)
		}
		must(t, s.tokens.Revoke(t.Context(), "alice", gone))
		if r := run(false); r.Documents != 1 || r.Deleted != 1 { // the webhook that waits
			t.Errorf("%s: the last copy: %+v", name, r)
		}
		eventually(t, func() error {
			_, err := c.want("GET", "/v2/team/app/manifests/v1", nil, withPassword("alice", revoked), 401)
			return err
		})
		if _, err := c.want("GET", "/v2/team/app/manifests/v1", nil, withPassword("alice", kept), 200); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c.http.CloseIdleConnections()
		must(t, target.http.Close(), <-served, target.Close())
	}
}

// A page signs in by a password and uses the session; other sites cannot, pushes do not, and it ends with the password.
func TestSession(t *testing.T) { onBothBackEnds(t, session) }

func session(t *testing.T, o Options) {
	s, c := closed(t, map[string][]auth.Grant{"alice": nil}, o)
	_, text := s.personal(t, "alice", time.Hour, "**")
	for body, status := range map[string]int{`{"name":"alice","password":"wrong"}`: 401, `{"name":"nobody","password":"alice"}`: 401, `{"name":"alice","password":"` + text + `"}`: 401, `{}`: 401, `x`: 400} {
		if r, err := c.want("POST", "/api/v1/session", []byte(body), nil, status); err != nil || r.header.Get("Set-Cookie") != "" {
			t.Error(err)
		}
	}
	r, err := c.want("POST", "/api/v1/session", []byte(`{"name":"alice","password":"alice"}`), nil, 201)
	must(t, err)
	set := r.header.Get("Set-Cookie")
	if !strings.Contains(set, "HttpOnly") || !strings.Contains(set, "SameSite=Lax") || strings.Contains(set, "Secure") {
		t.Errorf("cookie %s", set)
	}
	cookie, _, _ := strings.Cut(set, ";")
	me := func(status int, header ...string) string {
		t.Helper()
		r, err := c.want("GET", "/api/v1/me", nil, append([]string{"Cookie: " + cookie}, header...), status)
		must(t, err)
		return string(r.body)
	}
	if got := me(200); !strings.Contains(got, `"name":"alice"`) {
		t.Error(got)
	}
	make := []byte(`{"name":"x","scopes":[{"repositories":"a","actions":["pull"]}]}`)
	for header, status := range map[string]int{"Sec-Fetch-Site: cross-site": 403, "Sec-Fetch-Site: same-site": 403, "Origin: https://evil.example.com": 403, "Sec-Fetch-Site: same-origin": 201} {
		if _, err := c.want("POST", "/api/v1/tokens", make, []string{"Cookie: " + cookie, header}, status); err != nil {
			t.Error(err)
		}
	}
	// The protocol has no sessions, and the token of one is none of the protocol's.
	if _, err := c.want("GET", "/v2/", nil, []string{"Cookie: " + cookie}, 401); err != nil {
		t.Error(err)
	}
	_, value, _ := strings.Cut(cookie, "=")
	for _, path := range []string{"/v2/", "/api/v1/me"} {
		if _, err := c.want("GET", path, nil, bearer(value), 401); err != nil {
			t.Error(err)
		}
	}
	token, err := c.token("alice", "repository:alice/x:pull")
	must(t, err)
	if _, err := c.want("GET", "/api/v1/me", nil, []string{"Cookie: ply_session=" + token}, 401); err != nil {
		t.Error(err)
	}
	r, err = c.want("DELETE", "/api/v1/session", nil, []string{"Cookie: " + cookie}, 204)
	if err != nil || !strings.Contains(r.header.Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("%v: %s", err, r.header.Get("Set-Cookie"))
	}
	must(t, s.users.SetPassword("alice", "changed"))
	me(401)
}

// Someone signs in at a provider by a browser, becomes a user with the rights of its groups, makes a token, and logs in by it.
func TestSignInAtProvider(t *testing.T) {
	provider := oidctest.New()
	defer provider.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	o := Options{Root: t.TempDir(), Audit: Audit{Max: 1000}, SignIn: SignIn{GroupsAge: time.Hour, Options: oidc.Options{
		Issuer: provider.URL, ClientID: oidctest.ClientID, ClientSecret: oidctest.ClientSecret, NameClaim: "preferred_username", GroupsClaim: "groups",
	}}}
	s, address, stop := start(t, o)
	c := newClient(address)
	defer c.http.CloseIdleConnections()
	if s.IsOpen() {
		t.Fatal("a registry with a provider is open")
	}
	must(t, s.users.AddGroup("devs"), s.users.SetClaims("devs", "/engineering"), s.users.Grant(auth.GroupSubject("devs"), "team/**", auth.Writer))
	must(t, s.users.SetNamespace("house", auth.Internal))

	newBrowser := func() *http.Client {
		jar, err := cookiejar.New(nil)
		must(t, err)
		return &http.Client{Jar: jar, Transport: c.http.Transport}
	}
	get := func(browser *http.Client, path string) (int, string, string) {
		t.Helper()
		resp, err := browser.Get(address + path) //nolint:noctx // it is near
		must(t, err)
		defer resp.Body.Close()
		var b strings.Builder
		buf := make([]byte, 8192)
		for {
			n, err := resp.Body.Read(buf)
			b.Write(buf[:n])
			if err != nil {
				break
			}
		}
		return resp.StatusCode, b.String(), resp.Request.URL.Path
	}
	signIn := func(claims map[string]any) (*http.Client, int, string) {
		t.Helper()
		provider.Claims = claims
		browser := newBrowser()
		status, text, at := get(browser, auth.SignInPath+"?return=/api/v1/me")
		if (status == 200) != (at == "/api/v1/me") {
			t.Errorf("%d at %s", status, at)
		}
		return browser, status, text
	}
	alice := map[string]any{"sub": "1", "preferred_username": "Alice@example.com", "groups": []string{"/other", "/engineering", "/engineering"}}
	browser, status, text := signIn(alice)
	if status != 200 || !strings.Contains(text, `"name":"alice","admin":false`) || !strings.Contains(text, `"groups":["devs"]`) {
		t.Fatalf("%d %s", status, text)
	}
	user, err := s.users.Find("alice")
	if err != nil || user.Password != "" || !slices.Equal(user.Claims, []string{"/engineering"}) {
		t.Errorf("%+v, %v", user, err)
	}
	// There is no password by which she could log in.
	for _, password := range []string{"", "alice", " "} {
		if _, err := c.want("GET", "/v2/", nil, withPassword("alice", password), 401); err != nil {
			t.Error(err)
		}
	}
	resp, err := browser.Post(address+"/api/v1/tokens", "application/json", strings.NewReader(`{"name":"x","scopes":[{"repositories":"**","actions":["pull","push"]}]}`)) //nolint:noctx // it is near
	must(t, err)
	var made people.Token
	must(t, json.NewDecoder(resp.Body).Decode(&made))
	resp.Body.Close()
	use := withPassword("alice", made.Text)
	push := func(repo string, status int) {
		t.Helper()
		if _, err := c.want("POST", "/v2/"+repo+"/blobs/uploads/", nil, use, status); err != nil {
			t.Error(err)
		}
	}
	push("team/app", 202)
	push("alice/app", 202)
	push("house/app", 403)
	if _, err := c.want("GET", "/v2/house/app/tags/list", nil, use, 404); err != nil {
		t.Error(err)
	}
	// The provider takes her out of the group: with her next sign-in she has lost its rights.
	alice["groups"] = []string{"/other"}
	if _, _, text := signIn(alice); !strings.Contains(text, `"groups":[]`) {
		t.Error(text)
	}
	eventually(t, func() error {
		_, err := c.want("POST", "/v2/team/app/blobs/uploads/", nil, use, 403)
		return err
	})
	// Nobody becomes someone who is there, or who owns what is there, by what the provider calls them.
	if _, err := s.users.Add("root", "root", []auth.Grant{{Subject: "root", Pattern: "**", Role: auth.Admin}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.imageAs("root", "library/tool", "v1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.imageAs("root", "lone", "v1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []any{"root", "alice", "ALICE", "team", "house", "devs", "library", "lone", "", "a/b", "../x", "group:devs", "@anonymous", "a b", strings.Repeat("a", 300), 7, nil} {
		browser, status, text := signIn(map[string]any{"sub": "2", "preferred_username": name})
		if status != 403 {
			t.Errorf("as %v: %d %s", name, status, text)
		}
		if status, text, _ := get(browser, "/api/v1/me"); status != 200 || !strings.Contains(text, `"name":""`) {
			t.Errorf("as %v: %d %s", name, status, text)
		}
	}
	// An administrator lets someone sign in as a user who is there.
	must(t, s.users.Link("root", provider.URL, "2"))
	if _, status, text := signIn(map[string]any{"sub": "2", "preferred_username": "bob"}); status != 200 || !strings.Contains(text, `"name":"root","admin":true`) {
		t.Errorf("%d %s", status, text)
	}
	// Bad tokens, and answers that another browser, or none, has asked for.
	if _, status, _ := signIn(map[string]any{"sub": "1", "aud": "other"}); status != 403 {
		t.Errorf("a token for another client: %d", status)
	}
	provider.Claims = alice
	noFollow := newBrowser()
	var code string
	noFollow.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if r.URL.Path == auth.CallbackPath {
			code = r.URL.RawQuery
			return http.ErrUseLastResponse
		}
		return nil
	}
	get(noFollow, auth.SignInPath)
	victim := newBrowser()
	get(victim, "/api/v1/me")
	if status, _, _ := get(victim, auth.CallbackPath+"?"+code); status != 403 {
		t.Errorf("an answer to another browser: %d", status)
	}
	// While the provider is down users still log in by tokens.
	provider.Down = true
	if _, err := c.want("GET", "/v2/", nil, use, 200); err != nil {
		t.Error(err)
	}
	stop()
	// Only who is a user signs in where the settings say so.
	provider.Down = false
	o.SignIn.NoCreate = true
	s, address, _ = start(t, o)
	c.url = address
	if _, status, _ := signIn(map[string]any{"sub": "3", "preferred_username": "carol"}); status != 403 {
		t.Errorf("a new user where none may be made: %d", status)
	}
	if _, status, _ := signIn(alice); status != 200 {
		t.Errorf("one who is a user: %d", status)
	}
	if _, err := s.users.Find("carol"); err == nil {
		t.Error("carol is a user")
	}
}

// Replicas share people and rights: what is changed at one counts at the other, and a sign-in that is begun at one ends at the other.
func TestPeopleOfReplicas(t *testing.T) {
	provider := oidctest.New()
	defer provider.Close()
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	o := replicas(t)
	o.Audit = Audit{Max: 1000}
	o.SignIn = SignIn{GroupsAge: time.Hour, Options: oidc.Options{Issuer: provider.URL, ClientID: oidctest.ClientID, ClientSecret: oidctest.ClientSecret, NameClaim: "preferred_username", GroupsClaim: "groups"}}
	var addresses []string
	served := map[string]bool{}
	turn := 0
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to := addresses[turn%2]
		served[to] = true
		turn++
		u, err := url.Parse(to)
		if err != nil {
			t.Error(err)
			return
		}
		(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }, Transport: http.DefaultTransport}).ServeHTTP(w, r)
	}))
	defer front.Close()
	o.URL = front.URL
	one, first := replica(t, o)
	two, second := replica(t, o)
	addresses = []string{first, second}
	one.users.Cost = bcrypt.MinCost
	for _, user := range []string{"root", "alice"} {
		if _, err := one.users.Add(user, user, nil); err != nil {
			t.Fatal(err)
		}
	}
	c, at := newClient(first), newClient(second)
	defer c.http.CloseIdleConnections()
	defer at.http.CloseIdleConnections()
	soon := func(method, path string, header []string, status int) {
		t.Helper()
		eventually(t, func() error {
			_, err := at.want(method, path, nil, header, status)
			return err
		})
	}
	soon("GET", "/v2/", basic("alice"), 200)
	if _, err := c.imageAs("root", "team/app", "v1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	const manifest = "/v2/team/app/manifests/v1"
	soon("GET", manifest, basic("alice"), 403)
	must(t, one.users.AddGroup("devs"), one.users.Join("devs", "alice"), one.users.Grant(auth.GroupSubject("devs"), "team/**", auth.Reader))
	soon("GET", manifest, basic("alice"), 200)
	id, text := one.personal(t, "alice", time.Hour, "team/**")
	soon("GET", manifest, withPassword("alice", text), 200)
	r, err := at.want("GET", auth.TokenPath+"?scope=repository:team/app:pull", nil, withPassword("alice", text), 200)
	must(t, err)
	var issued struct{ Token string }
	must(t, json.Unmarshal(r.body, &issued))
	if _, err := c.want("GET", manifest, nil, bearer(issued.Token), 200); err != nil {
		t.Error(err)
	}
	must(t, one.tokens.Revoke(t.Context(), "alice", id))
	soon("GET", manifest, withPassword("alice", text), 401)
	soon("GET", manifest, bearer(issued.Token), 401)
	soon("GET", manifest, nil, 401)
	if _, err := c.want("PUT", "/api/v1/namespaces/team", []byte(`{"visibility":"public"}`), basic("root"), 200); err != nil {
		t.Error(err)
	}
	soon("GET", manifest, nil, 200)

	// Each request of a browser reaches another replica than the one before.
	provider.Claims = map[string]any{"preferred_username": "carol"}
	jar, err := cookiejar.New(nil)
	must(t, err)
	browser := &http.Client{Jar: jar, Transport: c.http.Transport}
	resp, err := browser.Get(front.URL + auth.SignInPath + "?return=/api/v1/me") //nolint:noctx // it is near
	must(t, err)
	defer resp.Body.Close()
	var me people.Me
	must(t, json.NewDecoder(resp.Body).Decode(&me))
	if resp.StatusCode != 200 || me.Name != "carol" || resp.Request.URL.Path != "/api/v1/me" || len(served) != 2 {
		t.Errorf("%s at %s: %+v, by %v", resp.Status, resp.Request.URL, me, served)
	}
	// Both wrote to the one log.
	must(t, one.audit.Close(), two.audit.Close())
	one.openAudit()
	two.openAudit()
	list, _, err := audit.Entries(t.Context(), two.repositories.Metadata, audit.Question{Limit: 100})
	must(t, err)
	if !slices.ContainsFunc(list, func(e audit.Entry) bool { return e.Action == "put namespaces" && e.User == "root" }) ||
		!slices.ContainsFunc(list, func(e audit.Entry) bool { return e.Action == "pull" && e.Status == 403 && e.User == "alice" }) {
		t.Errorf("%+v", list)
	}
}
