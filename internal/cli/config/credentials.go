package config

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"

	"ply/internal/errs"
)

// Credentials are those of one registry. When there is an identity token, name and password are empty.
type Credentials struct {
	Server        string
	Username      string
	Password      string
	IdentityToken string
	RegistryToken string
}

// Empty reports whether there are no credentials.
func (c Credentials) Empty() bool {
	return c.Username == "" && c.Password == "" && c.IdentityToken == "" && c.RegistryToken == ""
}

// Key returns the key in config.json for the domain of a reference.
func Key(domain string) string {
	if domain == HubDomain || domain == "index."+HubDomain || domain == "" {
		return Hub
	}
	return domain
}

// hostname returns a key without scheme and path. Old clients wrote keys with both.
func hostname(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "http://"), "https://")
	host, _, _ := strings.Cut(key, "/")
	return host
}

// Get looks up credentials: in the helper for this registry or the default one, when there is one, else in the file. Without an entry the
// result is empty and there is no error.
func (f *File) Get(ctx context.Context, key string) (Credentials, error) {
	if h := f.helper(key); h != "" {
		return helperGet(ctx, h, key)
	}
	a, ok := f.known.Auths[key]
	if !ok {
		for k, v := range f.known.Auths {
			if hostname(k) == hostname(key) {
				a, ok = v, true
				break
			}
		}
	}
	c := Credentials{Server: key, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if !ok || a.Auth == "" {
		return c, nil
	}
	var err error
	c.Username, c.Password, err = decodeAuth(a.Auth)
	return c, err
}

// helper returns the credential helper for a key, or "".
func (f *File) helper(key string) string {
	if h, ok := f.known.CredHelpers[key]; ok {
		return h
	}
	if h, ok := f.known.CredHelpers[hostname(key)]; ok {
		return h
	}
	return f.known.CredsStore
}

// Store stores credentials. plain reports that they are now unencrypted in the file.
func (f *File) Store(ctx context.Context, c Credentials) (plain bool, err error) {
	if h := f.helper(c.Server); h != "" {
		user, secret := c.Username, c.Password
		if c.IdentityToken != "" {
			user, secret = "<token>", c.IdentityToken
		}
		in, err := json.Marshal(helperCreds{c.Server, user, secret})
		if err != nil {
			return false, err
		}
		if _, err := runHelper(ctx, h, "store", in); err != nil {
			return false, err
		}
		f.setAuth(c.Server, auth{})
		return false, f.save()
	}
	a := auth{IdentityToken: c.IdentityToken}
	if c.IdentityToken != "" {
		a.Auth = base64.StdEncoding.EncodeToString([]byte(c.Username + ":"))
	} else {
		a.Auth = base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password))
	}
	f.setAuth(c.Server, a)
	return true, f.save()
}

func (f *File) setAuth(key string, a auth) {
	if f.known.Auths == nil {
		f.known.Auths = map[string]auth{}
	}
	f.known.Auths[key] = a
}

// Erase removes the credentials for key. found reports whether there were any.
func (f *File) Erase(ctx context.Context, key string) (found bool, err error) {
	for k := range f.known.Auths {
		if k == key || hostname(k) == hostname(key) {
			delete(f.known.Auths, k)
			found = true
		}
	}
	if h := f.helper(key); h != "" {
		if c, _ := helperGet(ctx, h, key); !c.Empty() {
			found = true
		}
		if _, err := runHelper(ctx, h, "erase", []byte(key)); err != nil {
			return found, err
		}
	}
	if !found {
		return false, nil
	}
	return true, f.save()
}

// helperCreds is what goes to a helper and comes from it.
type helperCreds struct {
	ServerURL string
	Username  string
	Secret    string
}

// errNotFound is what helpers print when they have no entry. Their protocol has no other sign for it.
const errNotFound = "credentials not found in native keychain"

func helperGet(ctx context.Context, helper, key string) (Credentials, error) {
	out, err := runHelper(ctx, helper, "get", []byte(key))
	if err != nil {
		if strings.Contains(err.Error(), errNotFound) {
			return Credentials{Server: key}, nil
		}
		return Credentials{}, err
	}
	var hc helperCreds
	if err := json.Unmarshal(out, &hc); err != nil {
		return Credentials{}, errs.New(errs.Invalid, "docker-credential-%s: %w", helper, err)
	}
	c := Credentials{Server: key, Username: hc.Username, Password: hc.Secret}
	if hc.Username == "<token>" {
		c.Username, c.Password, c.IdentityToken = "", "", hc.Secret
	}
	return c, nil
}

// runHelper runs a credential helper and returns its output.
func runHelper(ctx context.Context, helper, verb string, in []byte) ([]byte, error) {
	if strings.ContainsAny(helper, "/\\") {
		return nil, errs.New(errs.Invalid, "credential helper %q: not a plain name", helper)
	}
	cmd := exec.CommandContext(ctx, "docker-credential-"+helper, verb)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, errs.New(errs.NotFound, "credential helper docker-credential-%s: not found in PATH; install it or remove it from config.json", helper)
		}
		text := strings.TrimSpace(string(out) + " " + stderr.String())
		return nil, errs.New(errs.Internal, "error getting credentials - err: %w, out: `%s`", err, text)
	}
	return out, nil
}

// Servers returns the keys of all registries that the file names.
func (f *File) Servers() []string {
	var out []string
	for k := range f.known.Auths {
		out = append(out, k)
	}
	for k := range f.known.CredHelpers {
		if _, twice := f.known.Auths[k]; !twice {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}
