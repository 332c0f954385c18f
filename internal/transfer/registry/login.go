package registry

import (
	"context"
	"strconv"
	"strings"

	"ply/internal/errs"
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

// Search finds repositories on the hub, or on the registry whose host starts term. Limit 0 means 25. Filters: is-official,
// is-automated (true or false), stars (at least).
func (c *Client) Search(ctx context.Context, term string, limit int, filters map[string][]string, cred transfer.Credentials) ([]transfer.SearchResult, error) {
	if limit == 0 {
		limit = defaultSearch
	}
	if limit < 1 || limit > maxSearch {
		return nil, errs.New(errs.Invalid, "Limit %d is outside the range of [1, %d]", limit, maxSearch)
	}
	if strings.TrimSpace(term) == "" || strings.Contains(term, "://") {
		return nil, errs.New(errs.Invalid, "invalid repository name (%s): want a word, or host/word", term)
	}
	keep, err := searchFilter(filters)
	if err != nil {
		return nil, err
	}
	all, err := c.remote.Search(ctx, term, limit, cred)
	if err != nil {
		return nil, err
	}
	var results []transfer.SearchResult
	for _, r := range all {
		if keep(r) {
			results = append(results, r)
		}
	}
	return results, nil
}

func searchFilter(filters map[string][]string) (func(transfer.SearchResult) bool, error) {
	var tests []func(transfer.SearchResult) bool
	for name, values := range filters {
		for _, v := range values {
			switch name {
			case "is-official", "is-automated":
				want, err := strconv.ParseBool(v)
				if err != nil {
					return nil, errs.New(errs.Invalid, "invalid filter '%s=[%s]'", name, v)
				}
				tests = append(tests, func(r transfer.SearchResult) bool {
					if name == "is-official" {
						return r.Official == want
					}
					return r.Automated == want
				})
			case "stars":
				n, err := strconv.Atoi(v)
				if err != nil {
					return nil, errs.New(errs.Invalid, "invalid filter 'stars=[%s]'", v)
				}
				tests = append(tests, func(r transfer.SearchResult) bool { return r.Stars >= n })
			default:
				return nil, errs.New(errs.Invalid, "invalid filter '%s'", name)
			}
		}
	}
	return func(r transfer.SearchResult) bool {
		for _, t := range tests {
			if !t(r) {
				return false
			}
		}
		return true
	}, nil
}
