package auth

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
)

const (
	keysVersion = 1
	maxKeys     = 1 << 20
	maxToken    = 16 << 10 // bytes
	algorithm   = "EdDSA"
	issuer      = "ply-registry"
	skew        = 10 * time.Second // between the clocks of replicas

	tokenLife = 5 * time.Minute
	keyLife   = 30 * 24 * time.Hour
)

// Key signs tokens.
type Key struct {
	ID      string    `json:"id"`
	Seed    []byte    `json:"seed"` // of an Ed25519 key
	Created time.Time `json:"created"`
}

type keysRecord struct {
	Keys []Key `json:"keys"` // the newest last
}

// signer issues and verifies tokens. There is one algorithm, and only keys of its own file count; what the header of a token says
// about keys is compared and never used.
type signer struct {
	path string
	docs Documents // nil = the keys are in the file
	now  func() time.Time

	mu     sync.Mutex
	keys   []Key
	value  []byte    // of the document
	loaded time.Time // when the document was read
}

// openSigner reads the keys of a root, or those that replicas share.
func openSigner(root string, docs Documents) (*signer, error) {
	s := &signer{path: filepath.Join(root, "token-keys.json"), docs: docs, now: time.Now}
	if docs != nil {
		if err := s.reload(); err != nil {
			return nil, err
		}
		_, err := s.key()
		return s, err
	}
	var r keysRecord
	err := record.ReadFile(durable.OS, s.path, maxKeys, keysVersion, &r)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s.keys = r.Keys
	if err := checkKeys(s.path, s.keys); err != nil {
		return nil, err
	}
	_, err = s.key()
	return s, err
}

func checkKeys(where string, keys []Key) error {
	for _, k := range keys {
		if len(k.Seed) != ed25519.SeedSize {
			return errs.New(errs.DataLoss, "%s: key %s has %d bytes", where, k.ID, len(k.Seed)).WithHint("Remove them: a new key is made, and clients log in again.")
		}
	}
	return nil
}

// key returns the key to sign with. It makes a new one when the newest is old; the one before it stays for as long as its tokens last.
func (s *signer) key() (Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if n := len(s.keys); n > 0 && now.Sub(s.keys[n-1].Created) < keyLife {
		return s.keys[n-1], nil
	}
	k := Key{ID: rand.Text(), Seed: make([]byte, ed25519.SeedSize), Created: now.UTC().Truncate(time.Second)}
	_, _ = rand.Read(k.Seed) // never fails
	keys := append(slices.Clone(s.keys[max(len(s.keys)-1, 0):]), k)
	if s.docs != nil {
		if err := s.storeShared(keys); err != nil {
			return Key{}, err
		}
		return s.keys[len(s.keys)-1], nil
	}
	if err := record.WriteFile(durable.OS, s.path, keysVersion, keysRecord{keys}, 0o600); err != nil {
		return Key{}, err
	}
	s.keys = keys
	return k, nil
}

type tokenHeader struct {
	Type      string `json:"typ"`
	Algorithm string `json:"alg"`
	Key       string `json:"kid"`
}

// scopeClaim is a part of a token's scope.
type scopeClaim struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

type claims struct {
	Issuer   string       `json:"iss"`
	Subject  string       `json:"sub"` // "" = anonymous
	Audience string       `json:"aud"`
	Expires  int64        `json:"exp"` // Unix seconds
	Begins   int64        `json:"nbf"`
	Issued   int64        `json:"iat"`
	ID       string       `json:"jti"`
	Access   []scopeClaim `json:"access"`
	UserID   string       `json:"uid,omitempty"` // see User.ID
	Password string       `json:"pwd,omitempty"` // of a session, see passwordMark
	Token    string       `json:"pat,omitempty"` // ID of the personal access token that it was issued for
}

func (s *signer) issue(c claims) (string, error) { return s.issueFor(c, tokenLife) }

func (s *signer) issueFor(c claims, life time.Duration) (string, error) {
	k, err := s.key()
	if err != nil {
		return "", err
	}
	now := s.now()
	id := make([]byte, 12)
	_, _ = rand.Read(id)
	c.Issuer, c.ID = issuer, hex.EncodeToString(id)
	c.Issued, c.Begins, c.Expires = now.Unix(), now.Add(-skew).Unix(), now.Add(life).Unix()
	head, err := json.Marshal(tokenHeader{"JWT", algorithm, k.ID})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(body)
	return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(ed25519.NewKeyFromSeed(k.Seed), []byte(text))), nil
}

var errToken = errs.New(errs.Unauthorized, "the token is not valid")

// verify returns what a token says. The error's class is errs.Unauthorized.
func (s *signer) verify(token, audience string) (c claims, err error) {
	if len(token) > maxToken {
		return c, errToken
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errToken
	}
	var raw [3][]byte
	for i, p := range parts {
		if raw[i], err = base64.RawURLEncoding.Strict().DecodeString(p); err != nil {
			return c, errToken
		}
	}
	var head tokenHeader
	if oci.DecodeJSON(raw[0], &head) != nil || head.Algorithm != algorithm || head.Type != "JWT" {
		return c, errToken
	}
	s.mu.Lock()
	isKey := func(k Key) bool { return k.ID == head.Key }
	i := slices.IndexFunc(s.keys, isKey)
	if i < 0 && s.docs != nil && time.Since(s.loaded) > recheck { // another replica may have made it
		s.loaded = time.Now()
		if err := s.reload(); err != nil {
			s.mu.Unlock()
			return c, err
		}
		i = slices.IndexFunc(s.keys, isKey)
	}
	var key ed25519.PrivateKey
	if i >= 0 {
		key = ed25519.NewKeyFromSeed(s.keys[i].Seed)
	}
	s.mu.Unlock()
	if key == nil || !ed25519.Verify(key.Public().(ed25519.PublicKey), []byte(parts[0]+"."+parts[1]), raw[2]) { //nolint:forcetypeassert // always of this type
		return c, errToken
	}
	now := s.now().Unix()
	if oci.DecodeJSON(raw[1], &c) != nil || c.Issuer != issuer || c.Audience != audience || now >= c.Expires || now < c.Begins {
		return claims{}, errToken
	}
	return c, nil
}
