package auth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/registry/access"
	"ply/internal/registry/metadata"
)

func open(t *testing.T, root string) *Users {
	t.Helper()
	u, err := OpenUsers(root)
	if err != nil {
		t.Fatal(err)
	}
	u.Cost = bcrypt.MinCost
	return u
}

func gate(t *testing.T, root string) *Gate {
	t.Helper()
	g, err := NewGate(Options{Users: open(t, root), Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func request(header string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
	if header != "" {
		r.Header.Set("Authorization", header)
	}
	return r
}

func basic(name, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
}

func TestUsers(t *testing.T) {
	root := t.TempDir()
	u := open(t, root)
	g := gate(t, root)
	if !g.IsOpen() || u.Closed() {
		t.Error("a registry without users is closed")
	}
	if c, err := g.Identify(request(basic("anyone", "anything"))); err != nil || !c.May("a", access.Push) || c.Name() != "" {
		t.Errorf("an open registry: %v, %v", c, err)
	}
	if first, err := u.Add("alice", "secret", nil); err != nil || !first {
		t.Fatalf("Add = %v, %v", first, err)
	}
	if first, err := u.Add("bob", "hidden", []Grant{{"bob", "team/*", Reader}}); err != nil || first {
		t.Fatalf("Add = %v, %v", first, err)
	}
	g = gate(t, root)
	for _, c := range []struct {
		name, password string
		err            error
	}{{"alice", "secret", nil}, {"alice", "Secret", errs.Unauthorized}, {"carol", "secret", errs.Unauthorized}, {"alice", "", errs.Unauthorized},
		{"alice", "secret\x00", errs.Unauthorized}, {"alice", "secret" + strings.Repeat("x", 100), errs.Unauthorized}, {"", "", errs.Unauthorized}, {"bob", "hidden", nil}} {
		for range 2 { // the second one is remembered
			caller, err := g.Identify(request(basic(c.name, c.password)))
			if !errors.Is(err, c.err) || err == nil && caller.Name() != c.name {
				t.Errorf("%s with %q: %v, %v", c.name, c.password, caller, err)
			}
		}
	}
	alice, _ := g.Identify(request(basic("alice", "secret")))
	bob, _ := g.Identify(request(basic("bob", "hidden")))
	if !alice.Admin() || !alice.May("any/thing", access.Delete) || bob.Admin() || !bob.May("team/x", access.Pull) || bob.May("team/x", access.Push) || !bob.May("bob/x", access.Delete) || bob.May("bobby/x", access.Pull) {
		t.Error("the rights of the first user and of another one are wrong")
	}
	for _, c := range []struct {
		err, class error
	}{
		{second(u.Add("alice", "x", nil)), errs.Exists}, {second(u.Add("a/b", "x", nil)), errs.Invalid}, {second(u.Add("A:b", "x", nil)), errs.Invalid},
		{second(u.Add("dave", "", nil)), errs.Invalid}, {second(u.Add("dave", strings.Repeat("x", 73), nil)), errs.Invalid}, {second(u.Add("dave", "a\x00b", nil)), errs.Invalid},
		{second(u.Add(Anonymous, "x", nil)), errs.Invalid}, {u.Remove("dave"), errs.NotFound}, {u.SetPassword("dave", "x"), errs.NotFound},
		{u.Grant("dave", "x", Reader), errs.NotFound}, {u.Grant("bob", "x", ""), errs.NotFound},
	} {
		if !errors.Is(c.err, c.class) {
			t.Errorf("%v, want %v", c.err, c.class)
		}
	}
	// A changed password counts at once where the file is read anew, whatever was remembered.
	if err := u.SetPassword("bob", "changed"); err != nil {
		t.Fatal(err)
	}
	g.o.Users.checked = time.Time{}
	if _, err := g.Identify(request(basic("bob", "hidden"))); !errors.Is(err, errs.Unauthorized) {
		t.Errorf("the old password: %v", err)
	}
	// Without its last user the registry stays closed.
	if err := errors.Join(u.Remove("alice"), u.Remove("bob")); err != nil {
		t.Fatal(err)
	}
	g = gate(t, root)
	if g.IsOpen() {
		t.Error("the registry is open after its last user went")
	}
	if _, err := g.Identify(request(basic("alice", "secret"))); !errors.Is(err, errs.Unauthorized) {
		t.Errorf("a user who was removed: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A file of users that is damaged or lost does not open the registry.
func TestDamagedUsers(t *testing.T) {
	root := t.TempDir()
	u := open(t, root)
	if _, err := u.Add("alice", "secret", nil); err != nil {
		t.Fatal(err)
	}
	g := gate(t, root)
	check := func(what string) {
		t.Helper()
		g.o.Users.checked = time.Time{}
		if g.IsOpen() {
			t.Errorf("%s: the registry is open", what)
		}
		if _, err := g.Identify(request(basic("alice", "secret"))); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "users.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("a damaged file")
	if g.o.Users.Failed() == nil {
		t.Error("the damage is not reported")
	}
	if _, err := OpenUsers(root); !errors.Is(err, errs.DataLoss) {
		t.Errorf("a start with a damaged file: %v", err)
	}
	if err := os.Remove(filepath.Join(root, "users.json")); err != nil {
		t.Fatal(err)
	}
	check("a file that is gone")
}

func TestImport(t *testing.T) {
	u := open(t, t.TempDir())
	const hash = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC" // myPassword
	if n, err := u.Import(strings.NewReader("# users\n\nalice:"+hash+"\n"), Writer); err != nil || n != 1 {
		t.Fatalf("Import = %d, %v", n, err)
	}
	l := newLogins(bcrypt.MinCost)
	user := u.current().users["alice"]
	if err := l.check(t.Context(), "127.0.0.1:1", "alice", "myPassword", user.Password); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"alice", "alice:secret", "alice:$apr1$x$y", "al:ice:" + hash, "alice:" + hash + "x\nbob\x00:" + hash, ":" + hash} {
		if _, err := u.Import(strings.NewReader(bad), ""); !errors.Is(err, errs.Invalid) {
			t.Errorf("Import(%q): %v", bad, err)
		}
	}
	if users, grants := u.List(); len(users) != 1 || !slices.Equal(grants, []Grant{{"alice", "**", Writer}}) {
		t.Errorf("users %v, grants %v", users, grants)
	}
}

// A wrong password takes the same work for a user with a hash of any cost and for one who does not exist, and no one logs in as that one.
func TestWorkOfWrongPasswords(t *testing.T) {
	const cost = bcrypt.MinCost + 3
	l := newLogins(cost)
	work := 0
	l.compare = func(hash, password []byte) error {
		n, err := bcrypt.Cost(hash)
		if err != nil {
			t.Fatalf("%s: %v", hash, err)
		}
		work += 1 << n
		return bcrypt.CompareHashAndPassword(hash, password)
	}
	try := func(password, hash string) error { return l.check(t.Context(), "192.0.2.1:1", "alice", password, hash) }
	for n := bcrypt.MinCost; n <= cost; n++ {
		hash, err := (&Users{Cost: n}).hash("right")
		if err != nil {
			t.Fatal(err)
		}
		if work = 0; !errors.Is(try("wrong", hash), errs.Unauthorized) || work != 1<<cost {
			t.Errorf("a wrong password for a hash of cost %d takes %d rounds, want %d", n, work, 1<<cost)
		}
		if err := try("right", hash); err != nil {
			t.Errorf("cost %d: %v", n, err)
		}
	}
	for _, password := range []string{"", "wrong", string(l.nobodyOf(cost)), strings.Repeat("x", 100)} {
		if work = 0; !errors.Is(try(password, ""), errs.Unauthorized) || work != 1<<cost {
			t.Errorf("password %q of no user takes %d rounds, want %d", password, work, 1<<cost)
		}
	}
	hash, err := (&Users{}).hash("right")
	if n, cerr := bcrypt.Cost([]byte(hash)); err != nil || cerr != nil || n < 12 {
		t.Errorf("the cost of a hash is %d, %v, %v", n, err, cerr)
	}
}

// After some wrong passwords an address must wait. Others, and the address with what was right before, need not.
func TestWrongPasswordsAreLimited(t *testing.T) {
	l := newLogins(bcrypt.MinCost)
	hash, err := (&Users{Cost: bcrypt.MinCost}).hash("right")
	if err != nil {
		t.Fatal(err)
	}
	check := func(remote, password string) error { return l.check(t.Context(), remote, "alice", password, hash) }
	if err := check("192.0.2.1:1", "right"); err != nil {
		t.Fatal(err)
	}
	wrong, blocked := 0, 0
	for i := range 10_000 {
		err := check(fmt.Sprintf("192.0.2.1:%d", i), "wrong")
		if errors.Is(err, errs.Exhausted) {
			blocked++
		} else if errors.Is(err, errs.Unauthorized) {
			wrong++
		} else {
			t.Fatal(err)
		}
	}
	if wrong < burst || wrong > burst+20 || wrong+blocked != 10_000 {
		t.Errorf("%d wrong passwords were checked, %d refused", wrong, blocked)
	}
	if err := check("192.0.2.1:1", "right"); err != nil {
		t.Errorf("a password that is known: %v", err)
	}
	if err := check("192.0.2.2:1", "wrong"); !errors.Is(err, errs.Unauthorized) {
		t.Errorf("another address: %v", err)
	}
	if a, b := prefix("[2001:db8::1]:1"), prefix("[2001:db8::ffff]:2"); a != b || a == prefix("[2001:db8:1::1]:1") {
		t.Error("a network of IPv6 does not count as one address")
	}
	for i := range 3 * maxAddresses {
		l.fail(prefix(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255)))
	}
	if n := len(l.failures); n > maxAddresses {
		t.Errorf("%d addresses are remembered", n)
	}
}

func encode(v any) string {
	b, _ := json.Marshal(v)
	return base64.RawURLEncoding.EncodeToString(b)
}

// Tokens that someone else made, or changed, or that are not for now, are refused.
func TestTokens(t *testing.T) {
	root := t.TempDir()
	u := open(t, root)
	if _, err := u.Add("alice", "secret", nil); err != nil {
		t.Fatal(err)
	}
	g := gate(t, root)
	alice, _ := u.user("alice")
	good := claims{Subject: "alice", UserID: alice.ID, Audience: issuer, Access: []scopeClaim{{"repository", "a", []string{"pull"}}}}
	token, err := g.signer.issue(good)
	if err != nil {
		t.Fatal(err)
	}
	c, err := g.Identify(request("Bearer " + token))
	if err != nil || c.Name() != "alice" || !c.May("a", access.Pull) || c.May("a", access.Push) || c.May("b", access.Pull) || c.Admin() {
		t.Fatalf("a good token: %+v, %v", c, err)
	}
	parts := strings.Split(token, ".")
	now := time.Now().Unix()
	full := claims{Issuer: issuer, Subject: "alice", UserID: alice.ID, Audience: issuer, Expires: now + 100, Begins: now - 100, Access: []scopeClaim{{"repository", "a", []string{"pull", "push"}}}}
	key := g.signer.keys[0]
	private := ed25519.NewKeyFromSeed(key.Seed)
	public, _ := private.Public().(ed25519.PublicKey)
	foreign := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	sign := func(k ed25519.PrivateKey, head, body any) string {
		text := encode(head) + "." + encode(body)
		return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(k, []byte(text)))
	}
	head := tokenHeader{"JWT", algorithm, key.ID}
	if _, err := g.signer.verify(sign(private, head, full), issuer); err != nil {
		t.Fatalf("the test signs wrongly: %v", err)
	}
	with := func(edit func(*claims)) claims {
		c := full
		edit(&c)
		return c
	}
	mac := func() string {
		text := encode(tokenHeader{"JWT", "HS256", key.ID}) + "." + encode(full)
		m := hmac.New(sha256.New, public)
		m.Write([]byte(text))
		return text + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
	}
	for name, token := range map[string]string{
		"another payload":     parts[0] + "." + encode(full) + "." + parts[2],
		"no algorithm":        encode(tokenHeader{"JWT", "none", key.ID}) + "." + encode(full) + ".",
		"no signature":        encode(head) + "." + encode(full) + ".",
		"a MAC":               mac(),
		"a foreign key":       sign(foreign, head, full),
		"an unknown key":      sign(foreign, tokenHeader{"JWT", algorithm, "other"}, full),
		"a key of its own":    sign(foreign, map[string]any{"typ": "JWT", "alg": algorithm, "kid": key.ID, "jwk": map[string]string{"kty": "OKP", "x": base64.RawURLEncoding.EncodeToString(foreign[32:])}}, full),
		"two algorithms":      "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIiwiYWxnIjoiRWREU0EifQ." + parts[1] + "." + parts[2],
		"expired":             sign(private, head, with(func(c *claims) { c.Expires = now - 1 })),
		"not yet":             sign(private, head, with(func(c *claims) { c.Begins = now + 100 })),
		"another audience":    sign(private, head, with(func(c *claims) { c.Audience = "other" })),
		"another issuer":      sign(private, head, with(func(c *claims) { c.Issuer = "other" })),
		"another of the name": sign(private, head, with(func(c *claims) { c.UserID = "other" })),
		"a foreign personal":  sign(private, head, with(func(c *claims) { c.Token = "ABCDEFGHIJ" })),
		"a user who is gone":  sign(private, head, with(func(c *claims) { c.Subject = "bob" })),
		"empty":               "",
		"two parts":           parts[0] + "." + parts[1],
		"four parts":          token + ".x",
		"padding":             token + "=",
		"a megabyte":          strings.Repeat("a", 1<<20),
	} {
		if c, err := g.Identify(request("Bearer " + token)); !errors.Is(err, errs.Unauthorized) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	if _, err := g.Identify(request("Negotiate x")); !errors.Is(err, errs.Unauthorized) {
		t.Errorf("another scheme: %v", err)
	}
	// A token never allows more than its user may do now.
	if err := u.Grant("alice", "**", ""); err != nil {
		t.Fatal(err)
	}
	g.o.Users.checked = time.Time{}
	if c, err := g.Identify(request("Bearer " + token)); err != nil || c.May("a", access.Pull) {
		t.Errorf("after the right was taken away: %+v, %v", c, err)
	}
	if err := u.Remove("alice"); err != nil {
		t.Fatal(err)
	}
	g.o.Users.checked = time.Time{}
	if _, err := g.Identify(request("Bearer " + token)); !errors.Is(err, errs.Unauthorized) {
		t.Errorf("after the user went: %v", err)
	}
}

// Keys are replaced with time. Tokens of the one before last until their end.
func TestKeyRotation(t *testing.T) {
	root := t.TempDir()
	s, err := openSigner(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s.now = func() time.Time { return now }
	first := s.keys[0].ID
	now = now.Add(keyLife - time.Second)
	old, err := s.issue(claims{Audience: issuer})
	if err != nil || s.keys[0].ID != first || len(s.keys) != 1 {
		t.Fatalf("keys %v, %v", s.keys, err)
	}
	now = now.Add(2 * time.Second)
	if _, err := s.issue(claims{Audience: issuer}); err != nil || len(s.keys) != 2 {
		t.Fatalf("keys %v, %v", s.keys, err)
	}
	again, err := openSigner(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	again.now = s.now
	for _, s := range []*signer{s, again} {
		if _, err := s.verify(old, issuer); err != nil {
			t.Errorf("a token of the key before: %v", err)
		}
	}
	now = now.Add(keyLife + time.Second)
	if _, err := s.issue(claims{Audience: issuer}); err != nil || len(s.keys) != 2 || s.keys[0].ID == first {
		t.Errorf("keys %v, %v", s.keys, err)
	}
}

func TestTokenEndpoint(t *testing.T) {
	root := t.TempDir()
	if _, err := open(t, root).Add("alice", "secret", []Grant{{"alice", "team/**", Writer}}); err != nil {
		t.Fatal(err)
	}
	g := gate(t, root)
	get := func(r *http.Request) (int, claims) {
		t.Helper()
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		var v struct {
			Token       string `json:"token"`
			AccessToken string `json:"access_token"`
			ExpiresIn   int    `json:"expires_in"`
			IssuedAt    string `json:"issued_at"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		if w.Code != 200 {
			return w.Code, claims{}
		}
		c, err := g.signer.verify(v.Token, issuer)
		if err != nil || v.AccessToken != v.Token || v.ExpiresIn < 60 || v.IssuedAt == "" {
			t.Errorf("%s: %v", w.Body, err)
		}
		return w.Code, c
	}
	r := httptest.NewRequest(http.MethodGet, TokenPath+"?service=x&scope=repository:team/a:pull,push,delete&scope=repository:b:pull+repository:alice/x:*&scope=registry:catalog:*&scope=bad&scope=repository:../x:pull&scope=other:x:y", nil)
	r.SetBasicAuth("alice", "secret")
	status, c := get(r)
	want := `[{repository team/a [pull push]} {repository b []} {repository alice/x [pull push delete]} {registry catalog [*]}]`
	if status != 200 || c.Subject != "alice" || fmt.Sprint(c.Access) != want {
		t.Errorf("%d %+v, want %s", status, c, want)
	}
	if status, c := get(httptest.NewRequest(http.MethodGet, TokenPath+"?scope=repository:team/a:pull", nil)); status != 200 || c.Subject != "" || len(c.Access[0].Actions) != 0 {
		t.Errorf("without a user: %d %+v", status, c)
	}
	r.SetBasicAuth("alice", "wrong")
	if status, _ := get(r); status != 401 {
		t.Errorf("a wrong password: %d", status)
	}
	form := func(s string) *http.Request {
		r := httptest.NewRequest(http.MethodPost, TokenPath, strings.NewReader(s))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return r
	}
	if status, c := get(form("grant_type=password&username=alice&password=secret&scope=repository:team/a:pull&client_id=x")); status != 200 || c.Subject != "alice" || len(c.Access) != 1 {
		t.Errorf("OAuth2: %d %+v", status, c)
	}
	for s, want := range map[string]int{"grant_type=password&username=alice&password=x": 401, "grant_type=refresh_token&refresh_token=x": 400, "grant_type=password": 401} {
		if status, _ := get(form(s)); status != want {
			t.Errorf("%s: %d, want %d", s, status, want)
		}
	}
}

// A challenge quotes nothing that a client sent.
func TestChallenge(t *testing.T) {
	root := t.TempDir()
	if _, err := open(t, root).Add("alice", "secret", nil); err != nil {
		t.Fatal(err)
	}
	g := gate(t, root)
	r := request("")
	r.Host = "x\",realm=\"http://evil\r\n"
	if s := g.Challenge(r, nil, "a/b", access.Pull, access.Push); s != `Bearer realm="http://x,realm=http://evil/auth/token",service="ply-registry",scope="repository:a/b:pull,push"` {
		t.Errorf("challenge: %s", s)
	}
	g.o.URL = "https://registry.example.com/"
	if s := g.Challenge(r, nil, ""); s != `Bearer realm="https://registry.example.com/auth/token",service="ply-registry"` {
		t.Errorf("challenge: %s", s)
	}
	g.o.Basic = true
	if s := g.Challenge(r, nil, ""); s != `Basic realm="ply-registry"` {
		t.Errorf("challenge: %s", s)
	}
}

func TestRecords(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, v := range map[string]struct {
		version int
		value   any
	}{
		"users.v1.json": {1, usersRecord{Users: []User{{Name: "alice", Password: "$2a$10$x", Created: now}}, Grants: []Grant{{Anonymous, "public/**", Reader}}}},
		"users.v2.json": {usersVersion, usersRecord{
			Users:  []User{{Name: "alice", Created: now, ID: "RANDOM", Issuer: "https://id.example.com", Subject: "248289761001", Claims: []string{"/engineering"}, SignedIn: now}},
			Grants: []Grant{{GroupSubject("devs"), "team/**", Writer}},
			Groups: []Group{{"devs", []string{"alice"}, []string{"/engineering"}, now}}, Namespaces: []Namespace{{"team", Internal, now}},
		}},
		"access-token.v1.json": {tokenVersion, AccessToken{
			ID: "ABCDEFGHIJ", User: "alice", UserID: "RANDOM", Name: "CI", Hash: []byte("hash"), Created: now, Expires: now.Add(time.Hour), Used: now,
			Scopes: []TokenScope{{"team/**", []access.Action{access.Pull, access.Push}}},
		}},
		"keys.v1.json": {keysVersion, keysRecord{Keys: []Key{{"ID", []byte("seed"), now}}}},
	} {
		b, err := record.Marshal(v.version, v.value)
		if err != nil {
			t.Fatal(err)
		}
		recordtest.Golden(t, name, b)
	}
	// What the release before wrote is read.
	b, err := os.ReadFile(filepath.Join("testdata", "users.v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "users.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	u := open(t, root)
	if list, grants := u.List(); len(list) != 1 || list[0].Name != "alice" || len(grants) != 1 {
		t.Errorf("users %v, grants %v", list, grants)
	}
}

// documents is a database for tests.
type documents struct {
	mu     sync.Mutex
	values map[string][]byte
	down   bool
}

func (d *documents) Document(_ context.Context, kind, key string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.values[kind+"/"+key]
	if d.down {
		return nil, errs.New(errs.Unavailable, "down")
	}
	if !ok {
		return nil, errs.New(errs.NotFound, "none")
	}
	return v, nil
}

func (d *documents) SwapDocument(_ context.Context, kind, key string, old, value []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.values[kind+"/"+key]
	if ok != (old != nil) || !bytes.Equal(v, old) {
		return errs.New(errs.Precondition, "changed")
	}
	if value == nil {
		delete(d.values, kind+"/"+key)
	} else {
		d.values[kind+"/"+key] = value
	}
	return nil
}

func (d *documents) Documents(_ context.Context, kind, after string, limit int) (list []metadata.Document, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(d.values)) {
		if key, ok := strings.CutPrefix(k, kind+"/"); ok && key > after && len(list) < limit {
			list = append(list, metadata.Document{Key: key, Value: d.values[k]})
		}
	}
	return list, nil
}

// Replicas that share a database know each other's users and accept each other's tokens, and go on with what they know while the
// database does not answer.
func TestSharedUsers(t *testing.T) {
	docs := &documents{values: map[string][]byte{}}
	var users []*Users
	var gates []*Gate
	for range 2 {
		u, err := OpenSharedUsers(docs)
		if err != nil {
			t.Fatal(err)
		}
		u.Cost = bcrypt.MinCost
		g, err := NewGate(Options{Users: u, Documents: docs})
		if err != nil {
			t.Fatal(err)
		}
		users, gates = append(users, u), append(gates, g)
	}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if _, err := users[i%2].Add(fmt.Sprintf("user%d", i), "secret", nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, u := range users {
		u.mu.Lock()
		u.checked = time.Time{}
		u.mu.Unlock()
		if list, _ := u.List(); len(list) != 10 || !u.Closed() {
			t.Errorf("%d users of 10", len(list))
		}
	}
	token, err := gates[0].signer.issue(claims{Audience: issuer})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gates[1].signer.verify(token, issuer); err != nil {
		t.Errorf("a token of another replica: %v", err)
	}
	// The first replica makes a new key.
	gates[0].signer.now = func() time.Time { return time.Now().Add(keyLife + time.Second) }
	gates[1].signer.now = gates[0].signer.now
	if token, err = gates[0].signer.issue(claims{Audience: issuer}); err != nil {
		t.Fatal(err)
	}
	gates[1].signer.loaded = time.Time{}
	if _, err := gates[1].signer.verify(token, issuer); err != nil {
		t.Errorf("a token of a new key of another replica: %v", err)
	}
	docs.down = true
	users[0].checked = time.Time{}
	if list, _ := users[0].List(); len(list) != 10 || users[0].Failed() == nil {
		t.Errorf("while the database is down: %d users, %v", len(list), users[0].Failed())
	}
}
