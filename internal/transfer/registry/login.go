package registry

import (
	"context"
	"strings"

	"ply/internal/errs"
	"ply/internal/filter"
	"ply/internal/transfer"
)

// Login checks credentials with their registry. Token is an identity token to keep instead of the password, or "".
// errs.Unauthorized when they are wrong.
func (c *Client) Login(ctx context.Context, cred transfer.Credentials) (status, token string, err error) {
	token, err = c.remote.Login(ctx, cred)
	if err != nil {
		return "", "", err
	}
	return "Login Succeeded", token, nil
}

const (
	defaultSearch = 25
	maxSearch     = 100
)

// Search finds repositories on the hub, or on the registry whose host starts term. Limit 0 means 25. searchFilters
// lists the filters.
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
	all, err := c.remote.Search(ctx, term, limit, cred)
	if err != nil {
		return nil, err
	}
	var results []transfer.SearchResult
	for _, r := range all {
		if match(r) {
			results = append(results, r)
		}
	}
	return results, nil
}

// searchFilters are the conditions of Search.
var searchFilters = filter.Table[transfer.SearchResult]{
	"is-official":  filter.Bool(func(r transfer.SearchResult, want bool) bool { return r.Official == want }),
	"is-automated": filter.Bool(func(r transfer.SearchResult, want bool) bool { return r.Automated == want }),
	"stars":        filter.Every(filter.Number, func(r transfer.SearchResult, least int) bool { return r.Stars >= least }),
}
