package web

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/registry/access"
	"ply/internal/registry/auth"
)

// post sends a form and returns the page that answers.
func (w *world) post(path, who string, form url.Values, status int) string {
	w.t.Helper()
	resp, body := w.do(http.MethodPost, path, who, form)
	if resp.StatusCode != status {
		w.t.Errorf("POST %s as %q: %d, want %d\n%s", path, who, resp.StatusCode, status, body)
	}
	return body
}

var tokenText = regexp.MustCompile(`plyr_[A-Z2-7]{36}`)

// A user makes a token, whose text is shown once, and revokes it.
func TestTokens(t *testing.T) {
	w := newWorld(t, false)
	form := func(change ...string) url.Values {
		f := url.Values{"name": {"build <b>"}, "repositories": {"team/**  public/app"}, "actions": {"pull", "push"}, "days": {"30"}}
		for i := 0; i < len(change); i += 2 {
			f[change[i]] = strings.Fields(change[i+1])
		}
		return f
	}
	w.page("/tokens", "", 404, "Sign in")
	w.post("/tokens", "", form(), 404)
	w.page("/tokens", "reader", 200, "You have no tokens")
	text := tokenText.FindString(w.post("/tokens", "reader", form(), 201))
	list, err := w.tokens.List(t.Context(), "reader", 10)
	if err != nil || len(list) != 1 || text != "" && !strings.Contains(text, list[0].ID) || text == "" {
		t.Fatalf("token %q, %+v, %v", text, list, err)
	}
	made := list[0]
	want := []auth.TokenScope{{Repositories: "team/**", Actions: []access.Action{access.Pull, access.Push}}, {Repositories: "public/app", Actions: []access.Action{access.Pull, access.Push}}}
	if fmt.Sprint(made.Scopes) != fmt.Sprint(want) || made.Name != "build <b>" || made.Expires.Sub(made.Created) != 30*24*time.Hour {
		t.Errorf("the token is %+v", made)
	}
	if body := w.page("/tokens", "reader", 200, "build &lt;b&gt;", "team/**=pull,push", "never"); tokenText.MatchString(body) {
		t.Error("the text of a token is shown again")
	}
	for name, bad := range map[string]url.Values{
		"no name": form("name", ""), "no scope": form("repositories", ""), "no action": form("actions", ""), "an action": form("actions", "pull admin"),
		"a pattern": form("repositories", "Team/**"), "days": form("days", "31"), "no days": form("days", ""), "forever": form("days", "100000"),
	} {
		if body := w.post("/tokens", "reader", bad, 400); tokenText.MatchString(body) {
			t.Errorf("%s: a token", name)
		}
	}

	// Only its user and an admin revoke it.
	revoke := url.Values{"user": {"reader"}, "id": {made.ID}}
	w.post("/tokens/revoke", "", revoke, 404)
	if _, err := w.users.Add("other", "other", nil); err != nil {
		t.Fatal(err)
	}
	w.post("/tokens/revoke", "other", revoke, 404)
	w.post("/tokens/revoke", "other", url.Values{"id": {made.ID}}, 404)
	w.locked = true
	w.post("/tokens/revoke", "reader", revoke, 403)
	w.post("/tokens", "reader", form(), 403)
	w.locked = false
	w.page("/people/users/reader", "root", 200, "build &lt;b&gt;")
	w.post("/tokens/revoke", "root", revoke, 303)
	w.post("/tokens/revoke", "reader", revoke, 404)
	if list, err := w.tokens.List(t.Context(), "", 10); err != nil || len(list) != 0 {
		t.Errorf("tokens %+v, %v", list, err)
	}
	// Tokens of someone who had the name before are nobody's.
	text = tokenText.FindString(w.post("/tokens", "other", form(), 201))
	w.post("/people/users/other/rm", "root", url.Values{"confirm": {"other"}}, 303)
	w.post("/people", "root", url.Values{"name": {"other"}, "password": {"x"}}, 303)
	if body := w.page("/tokens", "other", 200, "You have no tokens"); strings.Contains(body, text[5:15]) {
		t.Error("a token of an earlier user is shown")
	}
}

// An admin changes users, groups and roles.
func TestPeople(t *testing.T) {
	w := newWorld(t, false)
	w.page("/people", "root", 200, `href="/people/users/reader"`, "Everyone")
	w.post("/people", "root", url.Values{"name": {"alice"}, "password": {"one"}}, 303)
	w.post("/people", "root", url.Values{"name": {"alice"}, "password": {"two"}}, 409)
	w.post("/people", "root", url.Values{"name": {"Alice/x"}, "password": {"two"}}, 400)
	w.post("/people", "root", url.Values{"name": {"bob"}, "password": {""}}, 400)
	u := "/people/users/alice"
	w.post(u+"/grant", "root", url.Values{"pattern": {"team/**"}, "role": {"writer"}}, 303)
	w.post(u+"/grant", "root", url.Values{"pattern": {"team/**"}, "role": {"owner"}}, 400)
	w.post(u+"/grant", "root", url.Values{"pattern": {"../x"}, "role": {"reader"}}, 400)
	w.post("/people/users/@anonymous/grant", "root", url.Values{"pattern": {"public/**"}, "role": {"reader"}}, 303)
	w.post("/people/users/absent/grant", "root", url.Values{"pattern": {"public/**"}, "role": {"reader"}}, 404)
	w.page(u, "root", 200, "team/**", "writer")
	w.page("/people", "root", 200, "writer on team/**", "reader on public/**")
	before, _ := w.users.Find("alice")
	w.post(u+"/passwd", "root", url.Values{"password": {"two"}}, 303)
	if after, _ := w.users.Find("alice"); after.Password == before.Password || after.ID != before.ID {
		t.Error("the password is the same")
	}
	w.post("/people/groups", "root", url.Values{"name": {"devs"}}, 303)
	w.post("/people/groups", "root", url.Values{"name": {"devs"}}, 409)
	g := "/people/groups/devs"
	w.post(g+"/join", "root", url.Values{"user": {"alice"}}, 303)
	w.post(g+"/join", "root", url.Values{"user": {"absent"}}, 404)
	w.post(g+"/claims", "root", url.Values{"claims": {"/b\r\n\r\n /a <i>\r\n"}}, 303)
	w.post(g+"/grant", "root", url.Values{"pattern": {"**"}, "role": {"reader"}}, 303)
	w.page(g, "root", 200, "alice", "/a &lt;i&gt;\n/b", "reader")
	w.page("/people/groups", "root", 200, `href="/people/groups/devs"`, "reader on **")
	w.page(u, "root", 200, `href="/people/groups/devs"`)
	if got := w.users.Groups()[0]; !slices.Equal(got.Members, []string{"alice"}) || !slices.Equal(got.Claims, []string{"/a <i>", "/b"}) {
		t.Errorf("the group is %+v", got)
	}
	w.post(g+"/leave", "root", url.Values{"user": {"alice"}}, 303)
	w.post(g+"/leave", "root", url.Values{"user": {"alice"}}, 404)
	w.post(g+"/revoke", "root", url.Values{"pattern": {"**"}}, 303)
	w.post(g+"/revoke", "root", url.Values{"pattern": {"**"}}, 404)
	w.post(g+"/rm", "root", url.Values{"confirm": {"dev"}}, 400)
	w.post(g+"/other", "root", nil, 404)
	w.post(g+"/rm", "root", url.Values{"confirm": {"devs"}}, 303)
	w.page(g, "root", 404)
	w.post(u+"/revoke", "root", url.Values{"pattern": {"team/**"}}, 303)
	w.post(u+"/rm", "root", url.Values{"confirm": {""}}, 400)
	w.post(u+"/rm", "root", url.Values{"confirm": {"alice"}}, 303)
	w.page(u, "root", 404)

	// An admin cannot lock itself out.
	w.post("/people/users/root/rm", "root", url.Values{"confirm": {"root"}}, 400)
	w.post("/people/users/root/revoke", "root", url.Values{"pattern": {"**"}}, 400)
	for i := range peoplePage {
		w.post("/people", "root", url.Values{"name": {fmt.Sprintf("many%03d", i)}, "password": {"x"}}, 303)
	}
	w.page("/people?page=2", "root", 200, "Page 2 of 2", `href="/people/users/root"`)
	w.page("/people?name=many04", "root", 200, "10 found")
	w.page("/people?page=0", "root", 400)
	w.page("/people?page=99999999", "root", 200)
}

// Who is no admin finds no page about others and changes nothing, and neither does a registry that is open or read-only.
func TestPeopleRights(t *testing.T) {
	forms := map[string]url.Values{
		"/people": {"name": {"new"}, "password": {"x"}}, "/people/groups": {"name": {"new"}}, "/people/users/reader/grant": {"pattern": {"**"}, "role": {"admin"}},
		"/people/users/reader/revoke": {"pattern": {"x"}}, "/people/users/root/passwd": {"password": {"taken"}}, "/people/users/root/rm": {"confirm": {"root"}},
		"/people/groups/g/join": {"user": {"reader"}}, "/people/groups/g/leave": {"user": {"root"}}, "/people/groups/g/grant": {"pattern": {"**"}, "role": {"admin"}},
		"/people/groups/g/revoke": {"pattern": {"x"}}, "/people/groups/g/claims": {"claims": {"x"}}, "/people/groups/g/rm": {"confirm": {"g"}},
	}
	for _, tc := range []struct {
		who          string
		open, locked bool
		status, page int
	}{{"", false, false, 404, 404}, {"reader", false, false, 404, 404}, {"lister", false, false, 404, 404}, {"", true, false, 404, 404}, {"root", false, true, 403, 200}} {
		w := newWorld(t, tc.open)
		if err := w.users.AddGroup("g"); err != nil {
			t.Fatal(err)
		}
		if err := w.users.Join("g", "root"); err != nil {
			t.Fatal(err)
		}
		w.locked = tc.locked
		users, grants := w.users.List()
		before := fmt.Sprint(users, grants, w.users.Groups())
		for path, form := range forms {
			w.post(path, tc.who, form, tc.status)
		}
		users, grants = w.users.List()
		if after := fmt.Sprint(users, grants, w.users.Groups()); after != before {
			t.Errorf("%q changed\n%s\nto\n%s", tc.who, before, after)
		}
		for _, path := range []string{"/people", "/people/users/root", "/people/groups", "/people/groups/g"} {
			w.page(path, tc.who, tc.page)
		}
		if body := w.page("/", tc.who, 200); strings.Contains(body, `href="/people"`) != (tc.page == 200) {
			t.Errorf("%q has the wrong ways", tc.who)
		}
	}
	w := newWorld(t, false)
	for path, form := range forms {
		if resp, _ := w.do(http.MethodPost, path, "root", form, "Sec-Fetch-Site: cross-site"); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s from another site: %d", path, resp.StatusCode)
		}
	}
	if _, err := w.users.Find("new"); err == nil {
		t.Error("another site adds a user")
	}
}

// What users and providers call themselves is text on a page.
func TestHostileNames(t *testing.T) {
	w := newWorld(t, false)
	evil := `"><script>alert(1)</script>` + "\u202e"
	w.post("/tokens", "root", url.Values{"name": {evil}, "repositories": {"a"}, "actions": {"pull"}, "days": {"0"}}, 201)
	w.post("/people/groups", "root", url.Values{"name": {"g"}}, 303)
	w.post("/people/groups/g/claims", "root", url.Values{"claims": {"</textarea>" + evil}}, 303)
	if err := w.users.Link("reader", "https://id.example.com/"+evil, evil); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/tokens", "/people", "/people/users/root", "/people/users/reader", "/people/groups/g", "/people?name=" + url.QueryEscape(evil)} {
		body := w.page(path, "root", 200)
		if strings.Contains(body, "<script>alert") || strings.Contains(body, `""><`) {
			t.Errorf("%s: a name is a part of the page:\n%s", path, body)
		}
		if i := strings.Index(body, "<main"); strings.Contains(body[i:], "\u202e") && !strings.Contains(path, "name=") {
			t.Errorf("%s: a control character is on the page", path)
		}
	}
	for _, path := range []string{"/people/users/" + url.PathEscape(evil), "/people/groups/" + url.PathEscape("../g"), "/people/users/a%2Fb"} {
		w.page(path, "root", 404)
	}
}

// A log has what forms change in the words of the command line, and no secret.
func TestDescribe(t *testing.T) {
	for path, want := range map[string]string{
		"/tokens": "add token|n", "/tokens/revoke": "rm token|u i", "/password": "passwd user|", "/people": "add user|n", "/people/groups": "add group|n",
		"/people/users/alice/grant": "grant user|alice u writer=team/** c d", "/people/groups/devs/rm": "rm group|devs u writer=team/** c d", "/namespaces": "namespace|n", "/people/users/x": "|",
		"/other": "|",
	} {
		form := url.Values{"name": {"n"}, "user": {"u"}, "id": {"i"}, "role": {"writer"}, "pattern": {"team/**"}, "claims": {"c\r\n d"}, "password": {"secret"}, "old": {"secret"}, "new": {"secret"}}
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if err := r.ParseForm(); err != nil {
			t.Fatal(err)
		}
		action, _, reference, change := Describe(r)
		if got := action + "|" + reference; got != want || change != (action != "") {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
