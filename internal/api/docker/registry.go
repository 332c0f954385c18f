package docker

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/wire"
)

// authHeader carries a client's credentials for a registry.
const authHeader = "X-Registry-Auth"

// decodeBase64 accepts both alphabets, with and without padding, because clients differ.
func decodeBase64(s string) ([]byte, error) {
	s = strings.TrimRight(s, "=")
	if strings.ContainsAny(s, "+/") {
		return base64.RawStdEncoding.DecodeString(s)
	}
	return base64.RawURLEncoding.DecodeString(s)
}

// credentials reads X-Registry-Auth. Errors do not contain its text.
func (c *call) credentials() (transfer.Credentials, error) {
	h := strings.TrimSpace(c.r.Header.Get(authHeader))
	if h == "" {
		return transfer.Credentials{}, nil
	}
	b, err := decodeBase64(h)
	if err != nil {
		return transfer.Credentials{}, errs.New(errs.Invalid, "invalid %s header: it is not base64", authHeader)
	}
	var a wire.Auth
	if err := json.Unmarshal(b, &a); err != nil {
		return transfer.Credentials{}, errs.New(errs.Invalid, "invalid %s header: it is not a JSON object of credentials", authHeader)
	}
	return credentialsOf(a), nil
}

func (h transferHandlers) auth(c *call) error {
	var body wire.Auth
	if err := c.body(&body, false); err != nil {
		return err
	}
	token, err := h.registry.Login(c.ctx(), credentialsOf(body))
	if err != nil {
		return ofRegistry(err)
	}
	return c.json(http.StatusOK, wire.LoginResult{IdentityToken: token, Status: "Login Succeeded"})
}

// credentialsOf returns credentials of the API in the engine's form. Auth is an older form of user name and password.
func credentialsOf(a wire.Auth) transfer.Credentials {
	if a.Username == "" && a.Password == "" && a.Auth != "" {
		if b, err := decodeBase64(a.Auth); err == nil {
			a.Username, a.Password, _ = strings.Cut(string(b), ":")
		}
	}
	return transfer.Credentials{Username: a.Username, Password: a.Password, ServerAddress: a.ServerAddress,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
}

// inspect describes an image in its registry.
func (h transferHandlers) inspect(c *call) error {
	name, err := oci.ParseReference(c.vars["name"])
	if err != nil {
		return err
	}
	cred, err := c.credentials()
	if err != nil {
		return err
	}
	found, err := h.registry.Inspect(c.ctx(), name, cred)
	if err != nil {
		return ofRegistry(err)
	}
	a := wire.RegistryImage{Descriptor: wire.RegistryDescriptor{MediaType: found.MediaType, Digest: string(found.Digest), Size: found.Size}, Platforms: []wire.RegistryPlatform{}}
	for _, p := range found.Platforms {
		a.Platforms = append(a.Platforms, wire.RegistryPlatform{Architecture: p.Architecture, OS: p.OS, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures, Variant: p.Variant})
	}
	return c.json(http.StatusOK, a)
}

func (h transferHandlers) search(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	limit, ok, err := c.int("limit")
	if err != nil {
		return err
	}
	if !ok || limit == 0 {
		limit = 25
	}
	if limit < 1 || limit > 100 {
		return errs.New(errs.Invalid, "limit %s is outside the range of [1, 100]", strconv.Itoa(limit))
	}
	if c.get("term") == "" {
		return errs.New(errs.Invalid, "parameter term: what to search for is missing")
	}
	cred, err := c.credentials()
	if err != nil {
		return err
	}
	found, err := h.registry.Search(c.ctx(), c.get("term"), limit, filters, cred)
	if err != nil {
		return ofRegistry(err)
	}
	answer := make([]wire.SearchResult, len(found))
	for i, r := range found {
		answer[i] = wire.SearchResult(r)
	}
	return c.json(http.StatusOK, answer)
}
