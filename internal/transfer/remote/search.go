package remote

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/filter"
	"ply/internal/oci"
	"ply/internal/transfer"
)

const (
	maxSearchAnswer = 4 << 20
	defaultSearch   = 25
	maxSearch       = 100
)

// Search finds repositories with /v1/search of the registry whose host term begins with, else of the hub's index. It
// returns at most limit results that pass searchFilters; limit 0 means 25. errs.Unimplemented when the registry cannot be
// searched.
func (c *Client) Search(ctx context.Context, term string, limit int, filters filter.Args, cred transfer.Credentials) ([]transfer.SearchResult, error) {
	if limit == 0 {
		limit = defaultSearch
	}
	if limit < 1 || limit > maxSearch {
		return nil, errs.New(errs.Invalid, "Limit %d is outside the range of [1, %d]", limit, maxSearch)
	}
	if strings.TrimSpace(term) == "" || strings.Contains(term, "://") {
		return nil, errs.New(errs.Invalid, "invalid repository name (%s): want a word, or host/word", term)
	}
	match, err := searchFilters.Compile(filters)
	if err != nil {
		return nil, err
	}
	all, err := c.search(ctx, term, limit, cred)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(r transfer.SearchResult) bool { return !match(r) }), nil
}

// searchFilters are the conditions of Search.
var searchFilters = filter.Table[transfer.SearchResult]{
	"is-official":  filter.Bool(func(r transfer.SearchResult, want bool) bool { return r.Official == want }),
	"is-automated": filter.Bool(func(r transfer.SearchResult, want bool) bool { return r.Automated == want }),
	"stars":        filter.Every(filter.Number, func(r transfer.SearchResult, least int) bool { return r.Stars >= least }),
}

func (c *Client) search(ctx context.Context, term string, limit int, cred transfer.Credentials) ([]transfer.SearchResult, error) {
	host, rest, ok := strings.Cut(term, "/")
	if !ok || !(strings.ContainsAny(host, ".:") || host == "localhost") || isHub(host) {
		host, rest = hubIndex, strings.TrimPrefix(term, hubDomain+"/")
		rest = strings.TrimPrefix(rest, "library/")
	}
	if !validHost(host) {
		return nil, errs.New(errs.Invalid, "search %q: %q is not a registry's host", clip(term), clip(host))
	}
	s := c.serverSession(host, cred)
	q := url.Values{"q": {rest}, "n": {strconv.Itoa(limit)}}
	resp, _, err := s.send(ctx, s.host, &request{method: http.MethodGet, path: "/v1/search?" + q.Encode()})
	if err != nil {
		if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Unimplemented) {
			return nil, errs.New(errs.Unimplemented, "registry %s: cannot be searched: it does not serve /v1/search", host).
				WithHint("List what it has with GET /v2/_catalog.")
		}
		return nil, err
	}
	var doc struct {
		Results []struct {
			Name        string `json:"name"`
			Description string `json:"description"`
			Stars       int    `json:"star_count"`
			Official    bool   `json:"is_official"`
			Automated   bool   `json:"is_automated"`
		} `json:"results"`
	}
	if err := decodeAnswer(resp, maxSearchAnswer, &doc); err != nil {
		return nil, errs.New(errs.Invalid, "registry %s: search: %w", host, err)
	}
	if len(doc.Results) > limit {
		doc.Results = doc.Results[:limit]
	}
	results := make([]transfer.SearchResult, len(doc.Results))
	for i, found := range doc.Results {
		r := transfer.SearchResult(found)
		r.Name, r.Description = clean(r.Name), clean(r.Description)
		if host != hubIndex && !strings.HasPrefix(r.Name, host+"/") {
			r.Name = host + "/" + r.Name // the name is then what pull takes
		}
		results[i] = r
	}
	return results, nil
}

// serverSession returns a session about a registry, not about one of its repositories.
func (c *Client) serverSession(host string, cred transfer.Credentials) *Session {
	c.mu.Lock()
	p := c.policy
	c.mu.Unlock()
	s := &Session{c: c, cred: cred, auth: map[string]*authState{}}
	if isHub(host) && host != hubIndex {
		host = hubDomain
	}
	s.host = p.endpoint(host)
	s.name, _ = oci.ParseReference(host + "/login") // for messages only
	return s
}

// Login checks credentials with the registry at their server address, which is a host, host:port, URL, or the hub's key. It returns
// an identity token for the client to keep instead of the password, or "". errs.Unauthorized when the credentials are wrong.
func (c *Client) Login(ctx context.Context, cred transfer.Credentials) (identity string, err error) {
	host := cred.ServerAddress
	if isHub(host) {
		host = hubDomain
	} else {
		host = strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://")
		host, _, _ = strings.Cut(host, "/")
	}
	if !validHost(host) {
		return "", errs.New(errs.Invalid, "login: %q is not a registry's host", clip(cred.ServerAddress))
	}
	s := c.serverSession(host, cred)
	resp, ep, err := s.send(ctx, s.host, &request{method: http.MethodGet, path: "/v2/"})
	if err != nil {
		if e, ok := errors.AsType[*Error](err); ok && e.Status == http.StatusUnauthorized {
			return "", errs.New(errs.Unauthorized, "login attempt to %s failed: unauthorized: incorrect username or password", e.URL)
		}
		if e, ok := errors.AsType[*Error](err); ok && e.Status == http.StatusNotFound {
			return "", errs.New(errs.NotFound, "login attempt to %s failed with status: 404 Not Found: no registry answers there", e.URL)
		}
		return "", err
	}
	drain(resp)
	st := s.state(ep)
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.basic && st.bearer == nil && cred.RegistryToken == "" {
		c.log.Debug("registry asks for no credentials", "registry", host)
	}
	return st.tokens[""].refresh, nil
}
