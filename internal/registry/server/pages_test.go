package server

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ply/internal/registry/audit"
)

// A user signs in on the pages, sees what it may, and deletes what it may; the audit log knows of it. Programs find what they found before.
func TestPages(t *testing.T) {
	s, c := closed(t, matrixUsers, Options{Audit: Audit{Max: 1000}, Policy: Policy{Immutable: []string{"team/app:fixed"}}})
	c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, tag := range []string{"1", "2", "fixed"} {
		_, err := c.imageAs("root", "team/app", tag, []byte("layer "+tag))
		must(t, err)
	}
	visit := func(session *http.Cookie, method, path string, form url.Values, status int) (*http.Response, string) {
		t.Helper()
		header := []string{"Content-Type: application/x-www-form-urlencoded"}
		if session != nil {
			header = append(header, "Cookie: "+session.Name+"="+session.Value)
		}
		r, err := c.want(method, path, []byte(form.Encode()), header, status)
		must(t, err)
		return &http.Response{Header: r.header}, string(r.body)
	}
	signIn := func(user, password string, status int) *http.Cookie {
		t.Helper()
		resp, _ := visit(nil, "POST", "/sign-in", url.Values{"name": {user}, "password": {password}, "return": {"/"}}, status)
		for _, cookie := range resp.Cookies() {
			return cookie
		}
		return nil
	}
	if signIn("reader", "wrong", 403) != nil {
		t.Error("a wrong password begins a session")
	}
	for user := range matrixUsers {
		var session *http.Cookie
		if user != "" {
			if session = signIn(user, user, 303); session == nil {
				t.Fatalf("%s has no session", user)
			}
		}
		status := 404
		if may(user, "pull") {
			status = 200
		}
		visit(session, "GET", "/r/team/app", nil, status)
		if _, list := visit(session, "GET", "/", nil, 200); strings.Contains(list, "team/app") != (status == 200) {
			t.Errorf("%q finds team/app in the list: %v", user, status != 200)
		}
		if !may(user, "delete") {
			status = map[bool]int{true: 403, false: 404}[may(user, "pull")]
			visit(session, "POST", "/r/team/app/-/1/delete", url.Values{"confirm": {"1"}}, status)
		}
	}
	keeper := signIn("keeper", "keeper", 303)
	visit(keeper, "POST", "/r/team/app/-/1/delete", url.Values{"confirm": {"no"}}, 400)
	visit(keeper, "GET", "/r/team/app/-/1", nil, 200)
	visit(keeper, "POST", "/r/team/app/-/1/delete", url.Values{"confirm": {"1"}}, 303)
	visit(keeper, "GET", "/r/team/app/-/1", nil, 404)
	visit(keeper, "POST", "/r/team/app/-/fixed/delete", url.Values{"confirm": {"fixed"}}, 409)
	visit(keeper, "GET", "/storage", nil, 404)
	root := signIn("root", "root", 303)
	visit(root, "GET", "/storage", nil, 200)
	visit(keeper, "POST", "/namespaces", url.Values{"name": {"elsewhere"}, "visibility": {"public"}}, 403)
	visit(root, "POST", "/namespaces", url.Values{"name": {"team"}, "visibility": {"public"}}, 303)
	visit(nil, "GET", "/r/team/app", nil, 200)
	// A user makes a token that programs use, and changes its password, which ends its sessions elsewhere. An admin changes users.
	other := signIn("reader", "reader", 303)
	reader := signIn("reader", "reader", 303)
	_, page := visit(reader, "POST", "/tokens", url.Values{"name": {"ci"}, "repositories": {"team/**"}, "actions": {"pull"}, "days": {"7"}}, 201)
	secret := regexp.MustCompile("plyr_[A-Z2-7]{36}").FindString(page)
	_, err := c.want("GET", "/v2/team/app/manifests/2", nil, withPassword("reader", secret), 200)
	must(t, err)
	_, err = c.want("DELETE", "/v2/team/app/manifests/2", nil, withPassword("reader", secret), 403)
	must(t, err)
	_, err = c.want("GET", "/people", nil, withPassword("root", "root"), 200)
	must(t, err)
	visit(reader, "POST", "/password", url.Values{"old": {"wrong"}, "new": {"a"}, "again": {"a"}}, 403)
	visit(reader, "POST", "/password", url.Values{"old": {"reader"}, "new": {"a"}, "again": {"b"}}, 400)
	changed, _ := visit(reader, "POST", "/password", url.Values{"old": {"reader"}, "new": {"next"}, "again": {"next"}}, 303)
	visit(other, "GET", "/tokens", nil, 303)
	visit(reader, "GET", "/tokens", nil, 303)
	if cookies := changed.Cookies(); len(cookies) == 0 {
		t.Error("who changes its password is signed out")
	} else {
		visit(cookies[len(cookies)-1], "GET", "/tokens", nil, 200)
	}
	if signIn("reader", "reader", 403) != nil || signIn("reader", "next", 303) == nil {
		t.Error("the password is not changed")
	}
	visit(keeper, "POST", "/people/users/keeper/grant", url.Values{"pattern": {"**"}, "role": {"admin"}}, 404)
	visit(root, "POST", "/people", url.Values{"name": {"novice"}, "password": {"novice"}}, 303)
	visit(root, "POST", "/people/users/novice/grant", url.Values{"pattern": {"team/**"}, "role": {"admin"}}, 303)
	eventually(t, func() error {
		_, err := c.want("DELETE", "/v2/team/app/manifests/2", nil, withPassword("novice", "novice"), 202)
		return err
	})
	for path, status := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 401, "/v2/": 401, "/static/style.css": 200, "/absent": 404} {
		visit(nil, "GET", path, nil, status)
	}
	must(t, s.audit.Close()) // writes it
	s.openAudit()
	entries, _, err := audit.Entries(t.Context(), s.repositories.Metadata, audit.Question{Limit: 1000})
	must(t, err)
	for _, want := range []audit.Entry{
		{User: "keeper", Action: "delete", Repository: "team/app", Reference: "1", Status: 303}, {User: "reader", Action: "delete", Repository: "team/app", Reference: "1", Status: 403},
		{User: "keeper", Action: "sign-in", Status: 303}, {Action: "sign-in", Status: 403}, {User: "root", Action: "namespace", Reference: "team", Status: 303},
		{User: "reader", Action: "add token", Reference: "ci", Status: 201}, {User: "reader", Action: "passwd user", Status: 303}, {User: "reader", Action: "passwd user", Status: 403},
		{User: "root", Action: "add user", Reference: "novice", Status: 303}, {User: "root", Action: "grant user", Reference: "novice admin=team/**", Status: 303},
	} {
		if !slices.ContainsFunc(entries, func(e audit.Entry) bool {
			return e.User == want.User && e.Action == want.Action && e.Repository == want.Repository && e.Reference == want.Reference && e.Status == want.Status
		}) {
			t.Errorf("the audit log lacks %+v", want)
		}
	}
}

// An open registry shows everything to everyone, unless it has no pages. What cannot be deleted by clients cannot be deleted here.
func TestOpenPages(t *testing.T) {
	for name, tc := range map[string]struct {
		o            Options
		page, delete int
	}{"open": {Options{}, 200, 303}, "no pages": {Options{NoPages: true}, 404, 404}, "nothing is deleted": {Options{NoDelete: true}, 200, 403}, "read only": {Options{ReadOnly: true}, 200, 403}} {
		t.Run(name, func(t *testing.T) {
			tc.o.Root = t.TempDir()
			_, u, _ := start(t, tc.o)
			c := newClient(u)
			defer c.http.CloseIdleConnections()
			c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			if !tc.o.ReadOnly {
				_, err := c.image("app", "1", "", []byte("x"))
				must(t, err)
			}
			_, err := c.want("GET", "/", nil, nil, tc.page)
			must(t, err)
			_, err = c.want("POST", "/r/app/-/1/delete", []byte("confirm=1"), []string{"Content-Type: application/x-www-form-urlencoded"}, tc.delete)
			must(t, err)
			_, err = c.want("GET", "/healthz", nil, nil, 200)
			must(t, err)
		})
	}
}
