package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/registry/access"
	"ply/internal/registry/content"
)

// AccessToken is a personal access token: a password of a user that a program uses, for some repositories and some actions, until it
// expires or is revoked. Its text is known to its user only.
type AccessToken struct {
	ID      string       `json:"id"`
	User    string       `json:"user"`
	UserID  string       `json:"userID,omitempty"` // of the user, see User.ID
	Name    string       `json:"name"`             // what the user calls it
	Hash    []byte       `json:"hash"`             // SHA-256 of its secret, which has 130 random bits
	Scopes  []TokenScope `json:"scopes"`
	Created time.Time    `json:"created"`
	Expires time.Time    `json:"expires,omitzero"` // zero = never
	Used    time.Time    `json:"used,omitzero"`    // the last time, to a few minutes; zero = never
}

// TokenScope is a part of what a personal access token may be used for.
type TokenScope struct {
	Repositories string          `json:"repositories"` // a pattern
	Actions      []access.Action `json:"actions"`
}

// Limits of personal access tokens.
const (
	MaxTokens      = 100 // of a user
	maxTokenName   = 100 // bytes
	maxTokenScopes = 50
	maxTokenLife   = 10 * 365 * 24 * time.Hour

	tokensKind   = "access-tokens"
	tokenVersion = 1
	tokenPrefix  = "plyr_"
	tokenID      = 10 // characters
	tokenSecret  = 26 // characters
	tokenPage    = 500

	useSeen      = 5 * time.Minute     // between two notes of a use
	expiredFor   = 30 * 24 * time.Hour // how long an expired token is listed
	staleTokens  = 5 * time.Minute     // how long a token counts while the database does not answer
	maxKnownToks = 10_000
)

// isToken reports whether a password has the form of a personal access token.
func isToken(password string) bool {
	rest, ok := strings.CutPrefix(password, tokenPrefix)
	return ok && len(rest) == tokenID+tokenSecret && isTokenText(rest)
}

func isTokenText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '2' || r > '7') })
}

// Tokens are the personal access tokens of a registry. A revocation by another process is seen within a second. Safe for concurrent use.
type Tokens struct {
	docs Documents
	now  func() time.Time

	mu    sync.Mutex
	known map[string]knownToken // by key
}

type knownToken struct {
	token AccessToken
	value []byte
	read  time.Time
}

// NewTokens returns the personal access tokens that documents have.
func NewTokens(docs Documents) *Tokens {
	return &Tokens{docs: docs, now: time.Now, known: map[string]knownToken{}}
}

// ParseTokenScope reads PATTERN=ACTION,ACTION, where PATTERN alone stands for pull.
func ParseTokenScope(s string) (TokenScope, error) {
	pattern, actions, ok := strings.Cut(s, "=")
	if !ok {
		actions = string(access.Pull)
	}
	scope := TokenScope{Repositories: pattern}
	for a := range strings.SplitSeq(actions, ",") {
		scope.Actions = append(scope.Actions, access.Action(a))
	}
	return scope, scope.validate()
}

func (s TokenScope) validate() error {
	if _, err := content.ParsePattern(s.Repositories); err != nil {
		return err
	}
	if len(s.Repositories) > content.MaxRepository {
		return errs.New(errs.Invalid, "the pattern has %d bytes, the limit is %d", len(s.Repositories), content.MaxRepository)
	}
	if len(s.Actions) == 0 || len(s.Actions) > 3 {
		return errs.New(errs.Invalid, "scope of %s: want one to three actions", s.Repositories)
	}
	for _, a := range s.Actions {
		if a != access.Pull && a != access.Push && a != access.Delete {
			return errs.New(errs.Invalid, "action %q is none of pull, push and delete", a)
		}
	}
	return nil
}

func (t *AccessToken) allows(repo content.Repository, a access.Action) bool {
	return slices.ContainsFunc(t.Scopes, func(s TokenScope) bool {
		return slices.Contains(s.Actions, a) && content.Pattern(s.Repositories).Matches(repo)
	})
}

func tokenKey(user, id string) string { return user + "/" + id }

// Create makes a token of a user and returns it with its text, which is kept nowhere. Life 0 = it does not expire.
func (k *Tokens) Create(ctx context.Context, user User, name string, scopes []TokenScope, life time.Duration) (AccessToken, string, error) {
	t := AccessToken{
		ID: rand.Text()[:tokenID], User: user.Name, UserID: user.ID, Name: name, Scopes: scopes, Created: k.now().UTC().Truncate(time.Second),
	}
	switch {
	case name == "" || len(name) > maxTokenName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return t, "", errs.New(errs.Invalid, "the name of a token must be text of 1 to %d bytes", maxTokenName)
	case len(scopes) == 0 || len(scopes) > maxTokenScopes:
		return t, "", errs.New(errs.Invalid, "a token has 1 to %d scopes", maxTokenScopes)
	case life < 0 || life > maxTokenLife:
		return t, "", errs.New(errs.Invalid, "a token lives for up to ten years")
	case life > 0:
		t.Expires = t.Created.Add(life)
	}
	for _, s := range scopes {
		if err := s.validate(); err != nil {
			return t, "", err
		}
	}
	n := 0
	for old, err := range k.each(ctx, user.Name) {
		switch {
		case err != nil:
			return t, "", err
		case old.UserID != user.ID || old.expired(k.now().Add(-expiredFor)):
			if err := k.remove(ctx, old); err != nil && !errors.Is(err, errs.NotFound) {
				return t, "", err
			}
		default:
			n++
		}
	}
	if n >= MaxTokens {
		return t, "", errs.New(errs.Exhausted, "%s has %d tokens, the limit", user.Name, n).WithHint("Revoke one.")
	}
	secret := rand.Text()
	sum := sha256.Sum256([]byte(secret))
	t.Hash = sum[:]
	b, err := record.Marshal(tokenVersion, t)
	if err != nil {
		return t, "", err
	}
	return t, tokenPrefix + t.ID + secret, k.docs.SwapDocument(ctx, tokensKind, tokenKey(t.User, t.ID), nil, b)
}

func (t *AccessToken) expired(now time.Time) bool {
	return !t.Expires.IsZero() && !now.Before(t.Expires)
}

// each yields the tokens of a user, or with "" those of all.
func (k *Tokens) each(ctx context.Context, user string) func(func(AccessToken, error) bool) {
	return func(yield func(AccessToken, error) bool) {
		after := ""
		if user != "" {
			after = user + "/"
		}
		for {
			docs, err := k.docs.Documents(ctx, tokensKind, after, tokenPage)
			if err != nil {
				yield(AccessToken{}, err)
				return
			}
			for _, d := range docs {
				if user != "" && !strings.HasPrefix(d.Key, user+"/") {
					return
				}
				var t AccessToken
				if err := record.Unmarshal("token "+d.Key, d.Value, tokenVersion, &t); err != nil {
					yield(t, err)
					return
				}
				if !yield(t, nil) {
					return
				}
			}
			if len(docs) < tokenPage {
				return
			}
			after = docs[len(docs)-1].Key
		}
	}
}

// List lists the tokens of a user, or with "" the first limit ones of all.
func (k *Tokens) List(ctx context.Context, user string, limit int) ([]AccessToken, error) {
	list := []AccessToken{}
	for t, err := range k.each(ctx, user) {
		if err != nil {
			return nil, err
		}
		if len(list) == limit {
			break
		}
		list = append(list, t)
	}
	return list, nil
}

// Revoke removes a token. The error's class is errs.NotFound when the user has none with this ID.
func (k *Tokens) Revoke(ctx context.Context, user, id string) error {
	t, _, err := k.read(ctx, user, id)
	if err != nil {
		return err
	}
	return k.remove(ctx, t)
}

func (k *Tokens) remove(ctx context.Context, t AccessToken) error {
	key := tokenKey(t.User, t.ID)
	for range maxSwaps {
		old, err := k.docs.Document(ctx, tokensKind, key)
		if err != nil {
			return err
		}
		err = k.docs.SwapDocument(ctx, tokensKind, key, old, nil)
		if errors.Is(err, errs.Precondition) { // a use was noted meanwhile
			continue
		}
		k.mu.Lock()
		delete(k.known, key)
		k.mu.Unlock()
		return err
	}
	return errs.New(errs.Conflict, "the token is being changed by others").WithHint("Try again.")
}

func (k *Tokens) read(ctx context.Context, user, id string) (t AccessToken, value []byte, err error) {
	if checkName(user) != nil || len(id) != tokenID || !isTokenText(id) {
		return t, nil, errs.New(errs.NotFound, "the token does not exist")
	}
	value, err = k.docs.Document(ctx, tokensKind, tokenKey(user, id))
	if errors.Is(err, errs.NotFound) {
		return t, nil, errs.New(errs.NotFound, "the token does not exist")
	}
	if err == nil {
		err = record.Unmarshal("token "+tokenKey(user, id), value, tokenVersion, &t)
	}
	return t, value, err
}

// find returns a token as it was a second ago at most; while the database does not answer, as it was a few minutes ago at most.
func (k *Tokens) find(ctx context.Context, user, id string) (knownToken, error) {
	key := tokenKey(user, id)
	now := k.now()
	k.mu.Lock()
	f, ok := k.known[key]
	k.mu.Unlock()
	if ok && now.Sub(f.read) < recheck {
		return f, nil
	}
	t, value, err := k.read(ctx, user, id)
	switch {
	case err == nil:
		f = knownToken{t, value, now}
	case errors.Is(err, errs.Unavailable) && ok && now.Sub(f.read) < staleTokens:
		return f, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		delete(k.known, key)
		return knownToken{}, err
	}
	if len(k.known) >= maxKnownToks {
		clear(k.known)
	}
	k.known[key] = f
	return f, nil
}

// current returns a token of a user that can be used. The error's class is errs.Unauthorized.
func (k *Tokens) current(ctx context.Context, user User, id string) (knownToken, error) {
	f, err := k.find(ctx, user.Name, id)
	if errors.Is(err, errs.NotFound) || err == nil && (f.token.UserID != user.ID || f.token.expired(k.now())) {
		return knownToken{}, errToken
	}
	return f, err
}

// check returns the token that a text is. The error's class is errs.Unauthorized. A user without an ID may be one who does not exist.
func (k *Tokens) check(ctx context.Context, user User, exists bool, text string) (AccessToken, error) {
	text = strings.TrimPrefix(text, tokenPrefix)
	id := text[:tokenID]
	f, err := k.current(ctx, user, id)
	if err != nil && !errors.Is(err, errs.Unauthorized) {
		return AccessToken{}, err
	}
	sum := sha256.Sum256([]byte(text[tokenID:]))
	if subtle.ConstantTimeCompare(sum[:], f.token.Hash) != 1 || err != nil || !exists {
		return AccessToken{}, errs.New(errs.Unauthorized, "wrong user name or password")
	}
	k.note(ctx, f)
	return f.token, nil
}

// note notes a use. It may be lost; then the next one is noted.
func (k *Tokens) note(ctx context.Context, f knownToken) {
	now := k.now().UTC().Truncate(time.Second)
	if now.Sub(f.token.Used) < useSeen {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), documentTimeout)
	defer cancel()
	t := f.token
	t.Used = now
	b, err := record.Marshal(tokenVersion, t)
	if err != nil || k.docs.SwapDocument(ctx, tokensKind, tokenKey(t.User, t.ID), f.value, b) != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known[tokenKey(t.User, t.ID)] = knownToken{t, b, k.now()}
}

// String returns the scope as ParseTokenScope reads it.
func (s TokenScope) String() string {
	actions := make([]string, len(s.Actions))
	for i, a := range s.Actions {
		actions[i] = string(a)
	}
	return s.Repositories + "=" + strings.Join(actions, ",")
}
