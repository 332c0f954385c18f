package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/registry/auth"
	"ply/internal/registry/metadata"
)

// OpenTokens opens the users and the personal access tokens that the options name, for a command beside the registry. Those of a root
// that another process serves are reached through it. The caller closes what they are in.
func OpenTokens(ctx context.Context, o Options) (*auth.Users, *auth.Tokens, io.Closer, error) {
	if o.Database == "" {
		if err := durable.MkdirPrivate(durable.OS, o.Root); err != nil {
			return nil, nil, nil, err
		}
	}
	users, end, err := OpenUsers(ctx, o)
	if err != nil {
		return nil, nil, nil, err
	}
	if docs, ok := end.(auth.Documents); ok {
		return users, auth.NewTokens(docs), end, nil
	}
	docs, err := openDocuments(ctx, o)
	if err != nil {
		return nil, nil, nil, err
	}
	return users, auth.NewTokens(docs), docs, nil
}

const (
	documentsPath    = "/documents"
	maxDocumentsCall = 128 << 20 // bytes
)

// documentsCall is a question about documents that a command asks the process that serves a root.
type documentsCall struct {
	Do         string // get, swap or list
	Kind, Key  string // the key of list is the one behind which it starts
	Limit      int
	Old, Value []byte
}

type documentsAnswer struct {
	Value        []byte
	List         []metadata.Document
	Error        string
	NotFound     bool
	Precondition bool
}

// controlDocuments serves documents.
func (s *Server) controlDocuments(w http.ResponseWriter, r *http.Request) {
	var c documentsCall
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxDocumentsCall)).Decode(&c); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	docs := s.repositories.Metadata
	var a documentsAnswer
	var err error
	switch c.Do {
	case "get":
		a.Value, err = docs.Document(r.Context(), c.Kind, c.Key)
	case "swap":
		err = docs.SwapDocument(r.Context(), c.Kind, c.Key, c.Old, c.Value)
	case "list":
		a.List, err = docs.Documents(r.Context(), c.Kind, c.Key, min(c.Limit, 1000))
	default:
		err = errs.New(errs.Invalid, "documents: cannot do %q", c.Do)
	}
	if err != nil {
		a = documentsAnswer{Error: err.Error(), NotFound: errors.Is(err, errs.NotFound), Precondition: errors.Is(err, errs.Precondition)}
	}
	_ = json.NewEncoder(w).Encode(a) // the command may be gone
}

// servedDocuments are the documents of a root that another process serves.
type servedDocuments string

var _ auth.Documents = servedDocuments("")

func (root servedDocuments) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", filepath.Join(string(root), controlSocket))
}

func (root servedDocuments) call(ctx context.Context, c documentsCall) (a documentsAnswer, err error) {
	body, err := json.Marshal(c)
	if err != nil {
		return a, err
	}
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return root.dial(ctx) }}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://registry"+documentsPath, bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	resp, err := t.RoundTrip(r)
	if err != nil {
		return a, errs.New(errs.Unavailable, "%s: the registry does not answer at its control socket: %w", root, err)
	}
	defer errs.Close(&err, resp.Body)
	if resp.StatusCode != http.StatusOK {
		return a, errs.New(errs.Unavailable, "%s: the registry answers %s", root, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxDocumentsCall)).Decode(&a); err != nil {
		return a, errs.New(errs.Unavailable, "%s: the answer of the registry is not complete: %w", root, err)
	}
	switch {
	case a.NotFound:
		err = errs.New(errs.NotFound, "%s", a.Error)
	case a.Precondition:
		err = errs.New(errs.Precondition, "%s", a.Error)
	case a.Error != "":
		err = errs.New(errs.Unavailable, "%s", a.Error)
	}
	return a, err
}

// Document returns a value.
func (root servedDocuments) Document(ctx context.Context, kind, key string) ([]byte, error) {
	a, err := root.call(ctx, documentsCall{Do: "get", Kind: kind, Key: key})
	return a.Value, err
}

// SwapDocument stores or removes a document that has a known value.
func (root servedDocuments) SwapDocument(ctx context.Context, kind, key string, old, value []byte) error {
	_, err := root.call(ctx, documentsCall{Do: "swap", Kind: kind, Key: key, Old: old, Value: value})
	return err
}

// Documents lists documents.
func (root servedDocuments) Documents(ctx context.Context, kind, after string, limit int) ([]metadata.Document, error) {
	a, err := root.call(ctx, documentsCall{Do: "list", Kind: kind, Key: after, Limit: limit})
	return a.List, err
}
