package auth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/content"
	"ply/internal/registry/oidc"
)

func ok(t *testing.T, list ...error) {
	t.Helper()
	if err := errors.Join(list...); err != nil {
		t.Fatal(err)
	}
}

// peopleGate returns a gate with users whose passwords are their names, and its tokens.
func peopleGate(t *testing.T, names ...string) (*Gate, *Users, *Tokens) {
	t.Helper()
	root := t.TempDir()
	u := open(t, root)
	for _, name := range append([]string{"zz-first"}, names...) {
		ok(t, second(u.Add(name, name, nil)))
	}
	tokens := NewTokens(&documents{values: map[string][]byte{}})
	mine := open(t, root)
	g, err := NewGate(Options{Users: mine, Root: root, Tokens: tokens, ClaimsAge: time.Hour})
	ok(t, err)
	return g, u, tokens
}

func (g *Gate) fresh() {
	g.o.Users.mu.Lock()
	defer g.o.Users.mu.Unlock()
	g.o.Users.checked = time.Time{}
}

func as(t *testing.T, g *Gate, name, password string) access.Caller {
	t.Helper()
	g.fresh()
	header := ""
	if name != "" {
		header = basic(name, password)
	}
	c, err := g.Identify(request(header))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

// Members of a group may do what was granted to it, until they leave, or the group or its grants go.
func TestGroups(t *testing.T) {
	g, u, _ := peopleGate(t, "alice", "bob")
	pulls := func(name string, want bool) {
		t.Helper()
		if got := as(t, g, name, name).May("team/x", access.Push); got != want {
			t.Errorf("%s may push = %v", name, got)
		}
	}
	ok(t, u.AddGroup("devs"), u.AddGroup("others"), u.Join("devs", "alice"), u.Join("others", "bob"), u.Grant(GroupSubject("devs"), "team/**", Writer))
	pulls("alice", true)
	pulls("bob", false)
	if as(t, g, "alice", "alice").May("team/x", access.Delete) || as(t, g, "alice", "alice").May("other/x", access.Pull) {
		t.Error("a member may more than the group")
	}
	ok(t, u.Leave("devs", "alice"), u.Join("devs", "bob", "bob"))
	pulls("alice", false)
	pulls("bob", true)
	ok(t, u.Remove("bob"), second(u.Add("bob", "bob", nil)))
	pulls("bob", false) // another one of that name
	ok(t, u.Join("devs", "bob"))
	pulls("bob", true)
	ok(t, u.RemoveGroup("devs"), u.AddGroup("devs"), u.Join("devs", "bob"))
	pulls("bob", false) // another group of that name
	ok(t, u.Grant(GroupSubject("devs"), "**", Admin))
	if !as(t, g, "bob", "bob").Admin() || as(t, g, "alice", "alice").Admin() {
		t.Error("the admins are wrong")
	}
	// Users have no name by which a group could be meant, and groups are no users.
	for _, c := range []struct{ err, class error }{
		{u.AddGroup("devs"), errs.Exists}, {u.AddGroup("a/b"), errs.Invalid}, {u.AddGroup("group:x"), errs.Invalid}, {u.AddGroup(""), errs.Invalid},
		{u.AddGroup(strings.Repeat("a", 256)), errs.Invalid}, {u.Join("devs", "nobody"), errs.NotFound}, {u.Join("nothing", "bob"), errs.NotFound},
		{u.Leave("devs", "alice"), errs.NotFound}, {u.RemoveGroup("nothing"), errs.NotFound}, {u.Grant(GroupSubject("nothing"), "x", Reader), errs.NotFound},
		{u.Grant("devs", "x", Reader), errs.NotFound}, {second(u.Add("group:devs", "x", nil)), errs.Invalid}, {u.SetClaims("nothing", "x"), errs.NotFound},
		{u.SetClaims("devs", ""), errs.Invalid}, {u.SetClaims("devs", "a\x00b"), errs.Invalid}, {u.SetClaims("devs", strings.Repeat("a", 256)), errs.Invalid},
		{u.SetClaims("devs", make([]string, 101)...), errs.Invalid},
	} {
		if !errors.Is(c.err, c.class) {
			t.Errorf("%v, want %v", c.err, c.class)
		}
	}
}

// The innermost namespace of a repository says who may pull from it; nobody may push or delete because of it.
func TestVisibility(t *testing.T) {
	g, u, _ := peopleGate(t, "alice")
	ok(t, u.SetNamespace("open", Public), u.SetNamespace("house", Internal), u.SetNamespace("open/closed", Private), u.SetNamespace("open/closed/again", Public), u.SetNamespace("lone", Public))
	for repo, want := range map[content.Repository]Visibility{
		"open": Public, "open/x": Public, "open/x/y": Public, "open/closed": Private, "open/closed/x": Private, "open/closed/again/x": Public, "openly": Private, "openly/x": Private,
		"house/x": Internal, "lone": Public, "other": Private, "x/open": Private,
	} {
		for _, name := range []string{"", "alice"} {
			c := as(t, g, name, name)
			may := want == Public || want == Internal && name != ""
			if c.May(repo, access.Pull) != may || c.Sees(repo) != may || c.May(repo, access.Push) || c.May(repo, access.Delete) {
				t.Errorf("%q at %s: pull %v sees %v push %v delete %v, want pull %v", name, repo, c.May(repo, access.Pull), c.Sees(repo), c.May(repo, access.Push), c.May(repo, access.Delete), may)
			}
		}
	}
	// What everyone may pull, a token for it may pull; and no longer, when the namespace has changed.
	w := httptest.NewRecorder()
	g.ServeHTTP(w, httptest.NewRequest(http.MethodGet, TokenPath+"?scope=repository:open/x:pull,push", nil))
	token := strings.Split(w.Body.String(), `"`)[3]
	for _, v := range []Visibility{Public, Private} {
		ok(t, u.SetNamespace("open", v))
		g.fresh()
		c, err := g.Identify(request("Bearer " + token))
		if err != nil || c.May("open/x", access.Pull) != (v == Public) || c.May("open/y", access.Pull) || c.May("open/x", access.Push) {
			t.Errorf("%s: %+v, %v", v, c, err)
		}
	}
	ok(t, u.RemoveNamespace("lone"))
	if as(t, g, "", "").May("lone", access.Pull) {
		t.Error("a namespace that is gone is public")
	}
	for _, c := range []struct{ err, class error }{
		{u.SetNamespace("A", Public), errs.Invalid}, {u.SetNamespace("a/../b", Public), errs.Invalid}, {u.SetNamespace("", Public), errs.Invalid}, {u.SetNamespace("a", "open"), errs.Invalid},
		{u.SetNamespace("a", ""), errs.Invalid}, {u.RemoveNamespace("lone"), errs.NotFound},
	} {
		if !errors.Is(c.err, c.class) {
			t.Errorf("%v, want %v", c.err, c.class)
		}
	}
}

func scope(t *testing.T, text string) TokenScope {
	t.Helper()
	s, err := ParseTokenScope(text)
	ok(t, err)
	return s
}

func (g *Gate) create(t *testing.T, user string, life time.Duration, scopes ...string) (AccessToken, string) {
	t.Helper()
	g.fresh()
	u, _ := g.o.Users.user(user)
	var list []TokenScope
	for _, s := range scopes {
		list = append(list, scope(t, s))
	}
	k, text, err := g.o.Tokens.Create(t.Context(), u, "test", list, life)
	ok(t, err)
	return k, text
}

// A personal access token lets its user do what both may do, and never makes anyone an admin.
func TestAccessTokens(t *testing.T) {
	g, u, tokens := peopleGate(t, "alice", "bob")
	ok(t, u.Grant("alice", "**", Admin), u.SetNamespace("open", Public))
	k, text := g.create(t, "alice", time.Hour, "team/*=pull,push", "lib/**")
	for _, v := range g.o.Tokens.docs.(*documents).values {
		if strings.Contains(string(v), text[len(tokenPrefix)+tokenID:]) {
			t.Error("the text of the token is stored")
		}
	}
	get := httptest.NewRequest(http.MethodGet, TokenPath+"?scope=repository:team/x:pull,push,delete&scope=repository:lib/x:*&scope=repository:other:*&scope=registry:catalog:*", nil)
	get.SetBasicAuth("alice", text)
	w := httptest.NewRecorder()
	g.ServeHTTP(w, get)
	bearer := strings.Split(w.Body.String(), `"`)[3]
	for how, header := range map[string]string{"basic": basic("alice", text), "bearer": "Bearer " + bearer} {
		c, err := g.Identify(request(header))
		ok(t, err)
		for repo, want := range map[content.Repository]string{"team/x": "pull push", "lib/x": "pull", "lib/x/y": "pull", "team/x/y": "", "other": "", "alice/x": "", "open/x": "pull"} {
			if how == "bearer" && (repo == "lib/x/y" || repo == "open/x") {
				want = "" // it did not ask for them
			}
			got := []string{}
			for _, a := range []access.Action{access.Pull, access.Push, access.Delete} {
				if c.May(repo, a) {
					got = append(got, string(a))
				}
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%s: %s: %v, want %s", how, repo, got, want)
			}
		}
		if c.Name() != "alice" || c.Admin() || c.(*caller).Owns("team") || !c.Sees("team/x") || c.Sees("other") || !c.Sees("open/x") {
			t.Errorf("%s: %+v", how, c)
		}
	}
	// The rights of the user bound it.
	ok(t, u.Grant("alice", "**", Reader))
	if c := as(t, g, "alice", text); c.May("team/x", access.Push) || !c.May("team/x", access.Pull) {
		t.Error("a token may do what its user may not")
	}
	refused := func(why, name, text, bearer string) {
		t.Helper()
		g.fresh()
		for _, header := range []string{basic(name, text), "Bearer " + bearer} {
			if header == "Bearer " {
				continue
			}
			g.logins.failures = map[netip.Prefix]*bucket{}
			if c, err := g.Identify(request(header)); !errors.Is(err, errs.Unauthorized) {
				t.Errorf("%s: %+v, %v", why, c, err)
			}
		}
	}
	flip := text[:len(text)-1] + string('A'+(text[len(text)-1]-'A'+1)%26)
	refused("another secret", "alice", flip, "")
	refused("of another user", "bob", text, "")
	refused("of no user", "nobody", text, "")
	refused("of a strange user", "a\x00b/../", text, "")
	refused("an unknown one", "alice", tokenPrefix+strings.Repeat("A", tokenID+tokenSecret), "")
	refused("its hash", "alice", tokenPrefix+k.ID+string(k.Hash), "")
	// Its user sees when it was used, and it ends: by time, by being revoked, with its user.
	list, err := tokens.List(t.Context(), "alice", 10)
	if err != nil || len(list) != 1 || time.Since(list[0].Used) > time.Minute || list[0].ID != k.ID {
		t.Errorf("tokens %+v, %v", list, err)
	}
	now := time.Now()
	tokens.now = func() time.Time { return now.Add(time.Hour + time.Second) }
	refused("expired", "alice", text, bearer)
	tokens.now = time.Now
	as(t, g, "alice", text)
	if err := tokens.Revoke(t.Context(), "bob", k.ID); !errors.Is(err, errs.NotFound) {
		t.Errorf("a token of another user was revoked: %v", err)
	}
	ok(t, tokens.Revoke(t.Context(), "alice", k.ID))
	refused("revoked", "alice", text, bearer)
	_, text = g.create(t, "bob", 0, "**=pull")
	as(t, g, "bob", text)
	ok(t, u.Remove("bob"))
	refused("of a user who is gone", "bob", text, "")
	ok(t, second(u.Add("bob", "bob", nil)))
	refused("of a user who had the name before", "bob", text, "")
}

// Another process revokes a token: it counts for a second at most, and for some minutes while the database does not answer.
func TestAccessTokenOfAnotherProcess(t *testing.T) {
	g, _, tokens := peopleGate(t, "alice")
	docs := tokens.docs.(*documents)
	k, text := g.create(t, "alice", 0, "**")
	now := time.Now()
	tokens.now = func() time.Time { return now }
	as(t, g, "alice", text)
	docs.down = true
	now = now.Add(time.Minute)
	as(t, g, "alice", text)
	now = now.Add(staleTokens)
	if _, err := g.Identify(request(basic("alice", text))); !errors.Is(err, errs.Unavailable) {
		t.Errorf("without the database: %v", err)
	}
	docs.down = false
	as(t, g, "alice", text)
	ok(t, NewTokens(docs).Revoke(t.Context(), "alice", k.ID))
	now = now.Add(recheck)
	if _, err := g.Identify(request(basic("alice", text))); !errors.Is(err, errs.Unauthorized) {
		t.Errorf("revoked elsewhere: %v", err)
	}
}

// Guesses of tokens are counted like wrong passwords; a token that was right before need not wait.
func TestGuessedTokensAreLimited(t *testing.T) {
	g, _, _ := peopleGate(t, "alice")
	_, text := g.create(t, "alice", 0, "**")
	_, later := g.create(t, "alice", 0, "**")
	as(t, g, "alice", text)
	checked := 0
	for i := range 200 {
		name := []string{"alice", "nobody"}[i%2]
		_, err := g.Identify(request(basic(name, tokenPrefix+strings.Repeat("A", tokenID+tokenSecret))))
		if errors.Is(err, errs.Unauthorized) {
			checked++
		} else if !errors.Is(err, errs.Exhausted) {
			t.Fatal(err)
		}
	}
	if checked < burst || checked > burst+2 {
		t.Errorf("%d guesses were checked", checked)
	}
	as(t, g, "alice", text)
	if _, err := g.Identify(request(basic("alice", later))); !errors.Is(err, errs.Exhausted) {
		t.Errorf("a token that was not seen before: %v", err)
	}
}

func TestAccessTokenLimits(t *testing.T) {
	g, u, tokens := peopleGate(t, "alice")
	alice, _ := u.user("alice")
	for name, c := range map[string]struct {
		name   string
		life   time.Duration
		scopes []TokenScope
	}{
		"no name": {"", 0, []TokenScope{scope(t, "a")}}, "a long name": {strings.Repeat("a", 101), 0, []TokenScope{scope(t, "a")}}, "a control": {"a\x1b[m", 0, []TokenScope{scope(t, "a")}},
		"no UTF-8": {"a\xff", 0, []TokenScope{scope(t, "a")}}, "no scope": {"a", 0, nil}, "many scopes": {"a", 0, slices.Repeat([]TokenScope{scope(t, "a")}, 51)},
		"a bad pattern": {"a", 0, []TokenScope{{"../a", []access.Action{"pull"}}}}, "a long pattern": {"a", 0, []TokenScope{{strings.Repeat("a/", 200) + "a", []access.Action{"pull"}}}},
		"a bad action": {"a", 0, []TokenScope{{"a", []access.Action{"admin"}}}}, "no action": {"a", 0, []TokenScope{{"a", nil}}}, "the past": {"a", -1, []TokenScope{scope(t, "a")}}, "too long": {"a", 11 * 365 * 24 * time.Hour, []TokenScope{scope(t, "a")}},
	} {
		if _, _, err := tokens.Create(t.Context(), alice, c.name, c.scopes, c.life); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range MaxTokens {
		if _, _, err := tokens.Create(t.Context(), alice, fmt.Sprint(i), []TokenScope{scope(t, "a")}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := tokens.Create(t.Context(), alice, "x", []TokenScope{scope(t, "a")}, time.Hour); !errors.Is(err, errs.Exhausted) {
		t.Errorf("one more than the limit: %v", err)
	}
	now := time.Now()
	tokens.now = func() time.Time { return now.Add(expiredFor + 2*time.Hour) }
	if _, _, err := tokens.Create(t.Context(), alice, "x", []TokenScope{scope(t, "a")}, time.Hour); err != nil {
		t.Errorf("after the others expired: %v", err)
	}
	if list, err := tokens.List(t.Context(), "", 1000); err != nil || len(list) != 1 {
		t.Errorf("%d tokens are left (%v)", len(list), err)
	}
	g.fresh()
	if _, err := u.Add("dave", tokenPrefix+strings.Repeat("A", tokenID+tokenSecret), nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("a password that looks like a token: %v", err)
	}

}

// After a sign-in a browser stays at this registry.
func TestReturn(t *testing.T) {
	for s, want := range map[string]string{
		"/": "/", "/a/b?c=d#e": "/a/b?c=d#e", "": "/", "https://evil.example.com": "/", "//evil.example.com": "/", `/\evil.example.com`: "/", "/\t/evil.example.com": "/",
		"javascript:alert(1)": "/", "/x\r\nSet-Cookie: a=b": "/", strings.Repeat("/a", 1000): "/", "a": "/", "/é": "/", "/%zz": "/",
	} {
		if got := LocalPath(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

// What a browser carries to the provider is secret, cannot be changed, and outlives the replacement of a key.
func TestSealed(t *testing.T) {
	s, err := openSigner(t.TempDir(), nil)
	ok(t, err)
	now := time.Now()
	s.now = func() time.Time { return now }
	text, err := s.seal(map[string]string{"verifier": "SECRET"})
	ok(t, err)
	again, err := s.seal(map[string]string{"verifier": "SECRET"})
	ok(t, err)
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || strings.Contains(string(raw), "SECRET") || text == again {
		t.Errorf("%q, %v", raw, err)
	}
	now = now.Add(keyLife + time.Second)
	if _, err := s.key(); err != nil {
		t.Fatal(err)
	}
	changed := "A" + text[1:]
	if text[0] == 'A' {
		changed = "B" + text[1:]
	}
	var got map[string]string
	if err := s.unseal(text, &got); err != nil || got["verifier"] != "SECRET" {
		t.Errorf("%v, %v", got, err)
	}
	other, err := openSigner(t.TempDir(), nil)
	ok(t, err)
	for name, err := range map[string]error{
		"another registry": other.unseal(text, &got), "nothing": s.unseal("", &got), "short": s.unseal("abcd", &got), "long": s.unseal(strings.Repeat("a", maxCookie+1), &got),
		"changed": s.unseal(changed, &got), "cut": s.unseal(text[:len(text)-4], &got), "not base64": s.unseal("%"+text, &got),
	} {
		if !errors.Is(err, errs.Unauthorized) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Groups of a provider count for a while after a sign-in, whatever else a huge list of them says.
func TestClaims(t *testing.T) {
	g, u, _ := peopleGate(t)
	ok(t, u.AddGroup("devs"), u.SetClaims("devs", "/a", "/b"), u.Grant(GroupSubject("devs"), "team/**", Writer))
	id := oidc.Identity{Issuer: "https://id.example.com", Subject: "1", Name: "alice", Groups: []string{"/b"}}
	for i := range 20_000 {
		id.Groups = append(id.Groups, fmt.Sprintf("/%d%s", i, strings.Repeat("x", 200)))
	}
	ok(t, u.addSignedIn("alice", id))
	if list, _ := u.List(); len(list[0].Claims) != 1 {
		t.Errorf("%d claims are kept", len(list[0].Claims))
	}
	may := func() bool {
		g.fresh()
		return g.newCaller("alice", nil).May("team/x", access.Push)
	}
	if !may() {
		t.Error("a member by its claim may not push")
	}
	g.o.ClaimsAge = 0
	if may() {
		t.Error("claims do not end")
	}
	g.o.ClaimsAge = time.Hour
	ok(t, u.SetClaims("devs", "/a"))
	if may() {
		t.Error("a claim counts that the group does not ask for")
	}
	// One subject is one user, and nobody is two.
	ok(t, second(u.Add("bob", "bob", nil)))
	for _, c := range []struct{ err, class error }{
		{u.addSignedIn("bob", oidc.Identity{Issuer: "x", Subject: "2"}), errs.Exists}, {u.addSignedIn("devs", id), errs.Exists}, {u.addSignedIn("team", id), errs.Exists},
		{second(u.signedIn(oidc.Identity{Issuer: "https://evil.example.com", Subject: "1"})), errs.NotFound}, {second(u.signedIn(oidc.Identity{})), errs.NotFound},
		{u.Link("bob", id.Issuer, "1"), errs.Exists}, {u.Link("nobody", id.Issuer, "3"), errs.NotFound}, {u.Link("bob", "", "3"), errs.Invalid},
	} {
		if !errors.Is(c.err, c.class) {
			t.Errorf("%v, want %v", c.err, c.class)
		}
	}
}
