// Package search finds repositories by their names, at the paths where docker search asks: /v1/_ping and /v1/search.
//
// Invariant: a caller finds what it may pull and nothing else.
package search

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

const (
	maxQuery    = 255    // bytes
	defaultPage = 25     // results
	maxPage     = 100    // results
	maxResults  = 10_000 // results of a query, on all of its pages
	chunk       = 1000   // repositories read at once
)

// Handler serves searches.
type Handler struct {
	Metadata metadata.Reader
	Gate     access.Gate
}

// Result is a repository that was found, in the form that docker reads.
type Result struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Stars       int    `json:"star_count"`
	Official    bool   `json:"is_official"`
	Automated   bool   `json:"is_automated"`
}

type answer struct {
	Query    string   `json:"query"`
	Found    int      `json:"num_results"`
	Pages    int      `json:"num_pages"`
	Page     int      `json:"page"`
	PageSize int      `json:"page_size"`
	Results  []Result `json:"results"`
}

// ServeHTTP serves both paths.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	switch r.URL.Path {
	case "/v1/_ping":
		w.Header().Set("X-Docker-Registry-Standalone", "true")
		write(w, map[string]any{"standalone": true})
	case "/v1/search":
		h.search(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (h *Handler) search(w http.ResponseWriter, r *http.Request) {
	caller, err := h.Gate.Identify(r)
	switch {
	case errors.Is(err, errs.Exhausted):
		http.Error(w, err.Error(), http.StatusTooManyRequests)
		return
	case err != nil:
		h.challenge(w, r, nil, err.Error())
		return
	case !caller.May("", access.Pull): // clients send their credentials only when they are asked
		h.challenge(w, r, caller, "authentication required")
		return
	}
	access.Tell(w, caller)
	params := r.URL.Query()
	a := answer{Query: params.Get("q"), Page: 1, PageSize: defaultPage, Results: []Result{}}
	for name, field := range map[string]*int{"n": &a.PageSize, "page": &a.Page} {
		if s := params.Get(name); s != "" {
			v, err := strconv.Atoi(s)
			if err != nil || v < 1 {
				http.Error(w, name+" must be a number from 1", http.StatusBadRequest)
				return
			}
			*field = v
		}
	}
	a.PageSize = min(a.PageSize, maxPage)
	if len(a.Query) > maxQuery {
		http.Error(w, "the query is too long", http.StatusBadRequest)
		return
	}
	found, err := Find(r.Context(), h.Metadata, caller, strings.ToLower(a.Query))
	if err != nil {
		http.Error(w, "the registry has an internal error", http.StatusInternalServerError)
		return
	}
	a.Found, a.Pages = len(found), (len(found)+a.PageSize-1)/a.PageSize
	if from := a.PageSize * min(a.Page-1, maxResults); from < len(found) {
		for _, repo := range found[from:min(from+a.PageSize, len(found))] {
			a.Results = append(a.Results, Result{Name: string(repo)})
		}
	}
	write(w, a)
}

func (h *Handler) challenge(w http.ResponseWriter, r *http.Request, c access.Caller, message string) {
	w.Header().Set("WWW-Authenticate", h.Gate.Challenge(r, c, ""))
	http.Error(w, message, http.StatusUnauthorized)
}

// Find returns the repositories that the caller sees and whose names contain the term, at most 10,000. Those with a component that is the
// term come first, then those with one that starts with it.
func Find(ctx context.Context, m metadata.Reader, caller access.Caller, term string) (found []content.Repository, err error) {
	for after := content.Repository(""); len(found) < maxResults; {
		repos, err := m.Repositories(ctx, after, chunk)
		if err != nil {
			return nil, err
		}
		for _, repo := range repos {
			if strings.Contains(string(repo), term) && caller.Sees(repo) && len(found) < maxResults {
				found = append(found, repo)
			}
		}
		if len(repos) < chunk {
			break
		}
		after = repos[len(repos)-1]
	}
	slices.SortFunc(found, func(a, b content.Repository) int {
		return cmp.Or(cmp.Compare(rank(a, term), rank(b, term)), cmp.Compare(a, b))
	})
	return found, nil
}

func rank(repo content.Repository, term string) int {
	best := 2
	for part := range strings.SplitSeq(string(repo), "/") {
		if part == term || string(repo) == term {
			return 0
		}
		if strings.HasPrefix(part, term) {
			best = 1
		}
	}
	return best
}

func write(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "the registry has an internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	_, _ = w.Write(append(b, '\n'))
}
