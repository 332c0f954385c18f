package auth

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/content"
	"ply/internal/registry/oidc"
)

// Provider signs users in at another place.
type Provider interface {
	// Begin returns the address to which a browser is sent, from which it comes back to redirect.
	Begin(ctx context.Context, redirect string, c oidc.Challenge) (string, error)
	// Finish returns who a browser that came back is. The error's class is errs.Unauthorized when that is not certain.
	Finish(ctx context.Context, redirect string, c oidc.Challenge, answer url.Values) (oidc.Identity, error)
}

// Paths of signing in by a browser.
const (
	SignInPath   = "/auth/oidc/sign-in"
	CallbackPath = "/auth/oidc/callback"
)

const (
	sessionCookie = "ply_session"
	signInCookie  = "ply_sign_in"
	sessionLife   = 8 * time.Hour
	signInLife    = 10 * time.Minute
	maxReturn     = 1000 // bytes
	maxCookie     = 4096 // bytes

	sessionAudience = issuer + " session"
)

// Visitor returns who makes a request of a browser: by the session that it has, or as Identify does.
func (g *Gate) Visitor(r *http.Request) (access.Caller, error) {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil || g.IsOpen() || r.Header.Get("Authorization") != "" {
		return g.Identify(r)
	}
	c, err := g.signer.verify(cookie.Value, sessionAudience)
	if err != nil {
		return nil, err
	}
	user, err := g.subject(c)
	if err == nil && c.Password != passwordMark(user) {
		err = errToken
	}
	if err != nil {
		return nil, err
	}
	return g.newCaller(user.Name, nil), nil
}

// passwordMark changes with the password of a user, which ends its sessions.
func passwordMark(user User) string {
	sum := sha256.Sum256([]byte(user.Password))
	return base64.RawURLEncoding.EncodeToString(sum[:9])
}

func (g *Gate) cookie(r *http.Request, name, value, path string, life time.Duration) *http.Cookie {
	return &http.Cookie{
		Name: name, Value: value, Path: path, MaxAge: int(life.Seconds()), HttpOnly: true, SameSite: http.SameSiteLaxMode,
		Secure: strings.HasPrefix(g.url(r), "https://"),
	}
}

// begin begins a session of a user.
func (g *Gate) begin(w http.ResponseWriter, r *http.Request, user User) error {
	token, err := g.signer.issueFor(claims{Subject: user.Name, UserID: user.ID, Password: passwordMark(user), Audience: sessionAudience}, sessionLife)
	if err == nil {
		http.SetCookie(w, g.cookie(r, sessionCookie, token, "/", sessionLife))
	}
	return err
}

// SignIn begins a session by a password. The error's class is errs.Unauthorized for a wrong one, and for a personal access token.
func (g *Gate) SignIn(w http.ResponseWriter, r *http.Request, name, password string) error {
	if g.IsOpen() {
		return errs.New(errs.Precondition, "the registry is open and has no users")
	}
	personal, err := g.check(r, name, password)
	if err != nil {
		return err
	}
	if personal != nil {
		return errs.New(errs.Unauthorized, "a personal access token begins no session")
	}
	user, ok := g.o.Users.user(name)
	if !ok {
		return errToken
	}
	return g.begin(w, r, user)
}

// SignOut ends the session that a browser has.
func (g *Gate) SignOut(w http.ResponseWriter, r *http.Request) {
	c := g.cookie(r, sessionCookie, "", "/", 0)
	c.MaxAge = -1
	http.SetCookie(w, c)
}

// signInState is what a browser carries while it is at the provider.
type signInState struct {
	oidc.Challenge
	Return  string    `json:"return"`
	Expires time.Time `json:"expires"`
}

// SignInHandler serves SignInPath and CallbackPath. It must have a provider.
func (g *Gate) SignInHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+SignInPath, g.toProvider)
	mux.HandleFunc("GET "+CallbackPath, g.fromProvider)
	return mux
}

func (g *Gate) callback(r *http.Request) string { return g.url(r) + CallbackPath }

func (g *Gate) toProvider(w http.ResponseWriter, r *http.Request) {
	s := signInState{Challenge: oidc.NewChallenge(), Return: LocalPath(r.URL.Query().Get("return")), Expires: time.Now().Add(signInLife)}
	to, err := g.o.Provider.Begin(r.Context(), g.callback(r), s.Challenge)
	var sealed string
	if err == nil {
		sealed, err = g.signer.seal(s)
	}
	if err != nil {
		g.failSignIn(w, err)
		return
	}
	http.SetCookie(w, g.cookie(r, signInCookie, sealed, CallbackPath, signInLife))
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, to, http.StatusFound)
}

func (g *Gate) fromProvider(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer") // the address has a code in it
	gone := g.cookie(r, signInCookie, "", CallbackPath, 0)
	gone.MaxAge = -1
	http.SetCookie(w, gone)
	var s signInState
	cookie, err := r.Cookie(signInCookie)
	if err != nil || g.signer.unseal(cookie.Value, &s) != nil || !time.Now().Before(s.Expires) {
		g.failSignIn(w, errs.New(errs.Unauthorized, "the sign-in was not begun by this browser, or took too long"))
		return
	}
	id, err := g.o.Provider.Finish(r.Context(), g.callback(r), s.Challenge, r.URL.Query())
	var user User
	if err == nil {
		user, err = g.known(r.Context(), id)
	}
	if err == nil {
		err = g.begin(w, r, user)
	}
	if err != nil {
		g.failSignIn(w, err)
		return
	}
	if named, ok := w.(interface{ SetUser(name string) }); ok { // for the log
		named.SetUser(user.Name)
	}
	http.Redirect(w, r, s.Return, http.StatusFound)
}

// failSignIn tells a browser that it is not signed in.
func (g *Gate) failSignIn(w http.ResponseWriter, err error) {
	status, text := http.StatusInternalServerError, "The registry has an internal error."
	switch {
	case errors.Is(err, errs.Unauthorized):
		status, text = http.StatusForbidden, "You are not signed in: the answer of the provider cannot be trusted, or it refused. Begin again."
	case errors.Is(err, errs.Exists), errors.Is(err, errs.Invalid), errors.Is(err, errs.NotFound):
		status, text = http.StatusForbidden, "You are not signed in: "+err.Error()+". Ask an administrator of the registry."
	case errors.Is(err, errs.Unavailable):
		status, text = http.StatusServiceUnavailable, "The provider does not answer. Try again later."
	}
	if g.o.Log != nil {
		g.o.Log.Warn("sign-in failed", "err", err)
	}
	http.Error(w, text, status)
}

// LocalPath returns a path of this registry to go back to; any other address becomes "/".
func LocalPath(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "" || u.Host != "" || len(s) > maxReturn || !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") ||
		strings.ContainsFunc(s, func(r rune) bool { return r == '\\' || r <= ' ' || r > '~' }) {
		return "/"
	}
	return s
}

// known returns the user that an identity is. One that signs in for the first time becomes a user, if the name is free.
func (g *Gate) known(ctx context.Context, id oidc.Identity) (User, error) {
	name, err := g.o.Users.signedIn(id)
	if errors.Is(err, errs.NotFound) && g.o.Create {
		if name, err = userName(id.Name); err != nil {
			return User{}, err
		}
		if g.o.Taken != nil {
			taken, err := g.o.Taken(ctx, name)
			if err != nil {
				return User{}, err
			}
			if taken {
				return User{}, errNameTaken(name)
			}
		}
		err = g.o.Users.addSignedIn(name, id)
	}
	if err != nil {
		return User{}, err
	}
	g.o.Users.forget()
	return g.o.Users.Find(name)
}

func errNameTaken(name string) error {
	return errs.New(errs.Exists, "the name %s is taken", name)
}

// userName returns the name of a user whom a provider calls name: its part before an @, in lower case.
func userName(name string) (string, error) {
	name, _, _ = strings.Cut(strings.ToLower(name), "@")
	if err := checkName(name); err != nil {
		return "", errs.New(errs.Invalid, "the provider calls you by a name that no user can have here")
	}
	return name, nil
}

// asked returns those of the groups of a provider that a group here asks for.
func (r *usersRecord) asked(groups []string) (list []string) {
	wanted := map[string]bool{}
	for _, g := range r.Groups {
		for _, c := range g.Claims {
			wanted[c] = true
		}
	}
	for _, g := range groups {
		if wanted[g] {
			list = append(list, g)
			delete(wanted, g)
		}
	}
	return list
}

// signedIn notes that a user has signed in, and returns its name. The error's class is errs.NotFound when there is no such user.
func (u *Users) signedIn(id oidc.Identity) (name string, err error) {
	return name, u.change(func(r *usersRecord) error {
		i := slices.IndexFunc(r.Users, func(u User) bool { return u.Issuer == id.Issuer && u.Subject == id.Subject })
		if i < 0 || id.Subject == "" {
			return errs.New(errs.NotFound, "you are no user of this registry")
		}
		name = r.Users[i].Name
		r.Users[i].Claims, r.Users[i].SignedIn = r.asked(id.Groups), time.Now().UTC().Truncate(time.Second)
		return nil
	})
}

// addSignedIn makes an identity a user. A name that anything here is called by is refused, because a user owns the repositories below
// its name.
func (u *Users) addSignedIn(name string, id oidc.Identity) error {
	return u.change(func(r *usersRecord) error {
		below := func(s string) bool { return s == name || strings.HasPrefix(s, name+"/") }
		if r.find(name) >= 0 || r.findGroup(name) >= 0 || slices.ContainsFunc(r.Namespaces, func(n Namespace) bool { return below(n.Name) }) ||
			slices.ContainsFunc(r.Grants, func(g Grant) bool { return below(g.Pattern) }) {
			return errNameTaken(name)
		}
		user := newUser(name, "")
		user.Issuer, user.Subject, user.Claims, user.SignedIn = id.Issuer, id.Subject, r.asked(id.Groups), user.Created
		r.Users = append(r.Users, user)
		return nil
	})
}

// Link lets someone sign in at a provider as a user. Subject "" ends that.
func (u *Users) Link(name, providerIssuer, subject string) error {
	if len(subject) > 255 || subject != "" && providerIssuer == "" {
		return errs.New(errs.Invalid, "the subject of a provider has up to 255 bytes, and a provider")
	}
	return u.change(func(r *usersRecord) error {
		i := r.find(name)
		if i < 0 {
			return errs.New(errs.NotFound, "user %s does not exist", name)
		}
		if subject == "" {
			providerIssuer = ""
		} else if slices.ContainsFunc(r.Users, func(u User) bool { return u.Issuer == providerIssuer && u.Subject == subject && u.Name != name }) {
			return errs.New(errs.Exists, "another user signs in as %s", subject)
		}
		r.Users[i].Issuer, r.Users[i].Subject, r.Users[i].Claims, r.Users[i].SignedIn = providerIssuer, subject, nil, time.Time{}
		return nil
	})
}

// aead returns the cipher of what browsers carry, by a key that signs tokens.
func (k Key) aead() (cipher.AEAD, error) {
	mac := hmac.New(sha256.New, k.Seed)
	mac.Write([]byte("ply-registry sign-in cookie"))
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// seal encrypts a value, which any replica can read.
func (s *signer) seal(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	k, err := s.key()
	if err != nil {
		return "", err
	}
	c, err := k.aead()
	if err != nil {
		return "", err
	}
	nonce := make([]byte, c.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return base64.RawURLEncoding.EncodeToString(c.Seal(nonce, nonce, b, nil)), nil
}

// unseal reads what seal returned. The error's class is errs.Unauthorized.
func (s *signer) unseal(text string, v any) error {
	if len(text) > maxCookie {
		return errToken
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return errToken
	}
	if _, err := s.key(); err != nil {
		return err
	}
	s.mu.Lock()
	keys := slices.Clone(s.keys)
	s.mu.Unlock()
	for _, k := range keys {
		c, err := k.aead()
		if err != nil {
			return err
		}
		if len(b) < c.NonceSize() {
			return errToken
		}
		if plain, err := c.Open(nil, b[:c.NonceSize()], b[c.NonceSize():], nil); err == nil {
			return json.Unmarshal(plain, v)
		}
	}
	return errToken
}

// Owner is a caller whose rights go beyond repositories.
type Owner interface {
	access.Caller
	// Owns reports whether the caller may change a namespace.
	Owns(namespace string) bool
	// Whole reports whether the caller is a user with all of its rights, and not someone whom it gave a token.
	Whole() bool
	// Groups returns the groups of the user.
	Groups() []string
}

var _ Owner = (*caller)(nil)

// Whole reports whether the caller is a user who has shown its password or signed in.
func (c *caller) Whole() bool { return c.name != "" && !c.token && c.personal == nil }

// Groups returns the groups of the user.
func (c *caller) Groups() []string { return c.groups }

// Visibility returns that of a repository or namespace.
func (u *Users) Visibility(name string) Visibility {
	return u.current().visibility(content.Repository(name))
}
